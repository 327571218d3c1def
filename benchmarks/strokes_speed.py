"""Speed of the stroke renderer as a ratio to the loop one would write first, and how well it fits a photograph.

    OMP_NUM_THREADS=1 python benchmarks/strokes_speed.py                  # table of scenes
    OMP_NUM_THREADS=1 python benchmarks/strokes_speed.py --fit photo.png  # CLIPDraw's optimisers, MSE

The loop draws stroke after stroke into a crop of the canvas, each cubic as eight capsules, with plain autograd.
Both run alternately in one process on one thread. Times are CPU milliseconds for a forward and a backward pass, which
other programs on the machine lengthen less than they do the time of the clock; that is printed too, as the best of
all rounds.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

from clipag_plug.images import read_image  # noqa: E402
from clipag_plug.strokes import render_strokes  # noqa: E402

SIZE = 224
SCENES = [(n, width) for n in (16, 64, 256) for width in ("1", "10", "mix50")]
Scene = tuple[list[Tensor], Tensor, Tensor]


def scene(n: int, width: str, seed: int = 0) -> Scene:
    """CLIPDraw's start: 1 to 3 segments, steps of a tenth of the canvas; mix50 is log-uniform in [1, 50]."""
    generator = torch.Generator().manual_seed(seed)
    points = []
    for _ in range(n):
        count = 3 * int(torch.randint(1, 4, (1,), generator=generator)) + 1
        steps = 0.1 * SIZE * (torch.rand(count, 2, generator=generator) - 0.5)
        steps[0] = torch.rand(2, generator=generator) * SIZE
        points.append(steps.cumsum(0).requires_grad_())
    if width == "mix50":
        widths = (torch.rand(n, generator=generator) * math.log(50)).exp()
    else:
        widths = torch.full((n,), float(width))
    return points, widths.requires_grad_(), torch.rand(n, 4, generator=generator).requires_grad_()


def loop(points: list[Tensor], widths: Tensor, colors: Tensor) -> Tensor:
    """Premultiplied RGBA by the obvious loop over strokes."""
    t = torch.linspace(0, 1, 9).view(-1, 1)
    canvas = torch.zeros(SIZE, SIZE, 4)
    for stroke, width, color in zip(points, widths, colors, strict=True):
        p = stroke.unfold(0, 4, 3).permute(2, 0, 1)[:, :, None]
        curve = (
            (1 - t) ** 3 * p[0]
            + 3 * t * (1 - t) ** 2 * p[1]
            + 3 * t**2 * (1 - t) * p[2]
            + t**3 * p[3]
        )
        start, end = curve[:, :-1].reshape(-1, 1, 2), curve[:, 1:].reshape(-1, 1, 2)
        margin = float(width.detach()) + 1
        low = (stroke.detach().amin(0) - margin).floor().clamp(0, SIZE).int().tolist()
        high = (stroke.detach().amax(0) + margin).ceil().clamp(0, SIZE).int().tolist()
        if low[0] >= high[0] or low[1] >= high[1]:
            continue
        y, x = torch.meshgrid(
            torch.arange(low[1], high[1]), torch.arange(low[0], high[0]), indexing="ij"
        )
        pixels = torch.stack((x, y), -1).view(-1, 2) + 0.5
        along = end - start
        where = ((pixels - start) * along).sum(-1) / (along.square().sum(-1) + 1e-9)
        foot = start + where.clamp(0, 1)[..., None] * along
        distance = ((pixels - foot).square().sum(-1).amin(0) + 1e-9).sqrt()
        weight = ((width - distance + 0.5).clamp(0, 1) * color[3]).view(*x.shape, 1)
        paint = torch.cat((color[:3], torch.ones(1)))
        crop = canvas[low[1] : high[1], low[0] : high[0]]
        canvas[low[1] : high[1], low[0] : high[0]] = crop + weight * (paint - crop)
    return canvas


def ours(points: list[Tensor], widths: Tensor, colors: Tensor) -> Tensor:
    return render_strokes(points, widths, colors, SIZE, SIZE)


def timed(draw: Callable[..., Tensor], what: Scene, weights: Tensor) -> tuple[float, float, float]:
    """CPU milliseconds forward and backward, and milliseconds of the clock for both."""
    clock, start = time.perf_counter(), time.thread_time()
    image = draw(*what)
    middle = time.thread_time()
    image.backward(weights)
    end = time.thread_time()
    return 1e3 * (middle - start), 1e3 * (end - middle), 1e3 * (time.perf_counter() - clock)


def table(rounds: int) -> None:
    weights = torch.randn(SIZE, SIZE, 4, generator=torch.Generator().manual_seed(0))
    print(
        "| strokes | width | forward | backward | both | best, clock | loop | loop best, clock | ratio |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for n, width in SCENES:
        what = scene(n, width)
        timed(ours, what, weights), timed(loop, what, weights)
        fast: list[tuple[float, float, float]] = []
        slow: list[tuple[float, float, float]] = []
        for _ in range(rounds):
            fast += [timed(ours, what, weights) for _ in range(5)]
            slow += [timed(loop, what, weights)]
        forward, backward = (statistics.median(x[i] for x in fast) for i in (0, 1))
        reference = statistics.median(x[0] + x[1] for x in slow)
        print(
            f"| {n} | {width} | {forward:.1f} | {backward:.1f} | {forward + backward:.1f} | "
            f"{min(x[2] for x in fast):.1f} | {reference:.0f} | {min(x[2] for x in slow):.0f} | "
            f"{reference / (forward + backward):.1f} |",
            flush=True,
        )


def fit(photo: str, n: int, steps: int, seed: int, compat: bool) -> float:
    """Mean squared error on white after CLIPDraw's three Adams have fitted n strokes to a photograph.

    CLIPDraw lowers its rate for the points after 500 of 1000 steps; these are the first steps, at the first rate.
    """
    target = torch.nn.functional.interpolate(
        read_image(photo)[None], size=(SIZE, SIZE), mode="bicubic", antialias=True
    )[0].permute(1, 2, 0)
    points, widths, colors = scene(n, "1", seed)
    optimizers = [
        torch.optim.Adam(points, lr=1.0),
        torch.optim.Adam([widths], lr=0.1),
        torch.optim.Adam([colors], lr=0.01),
    ]
    for step in range(steps + 1):
        image = render_strokes(points, widths, colors, SIZE, SIZE, compat=compat)
        loss = (image[..., 3:] * image[..., :3] + 1 - image[..., 3:] - target).square().mean()
        if step == steps:
            break
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        widths.data.clamp_(1, 50)
        colors.data.clamp_(0, 1)
    return float(loss.detach())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="five passes of ours and one of the loop each"
    )
    parser.add_argument("--fit", metavar="PHOTO", help="fit this picture instead of timing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.fit:
        table(arguments.rounds)
        return
    for n, steps in ((256, 100), (64, 160)):
        for compat in (False, True):
            errors = [fit(arguments.fit, n, steps, seed, compat) for seed in (0, 1)]
            numbers = " / ".join(f"{x:.5f}" for x in errors)
            print(
                f"{n} strokes, {steps} steps, compat={compat}, seeds 0 / 1: MSE {numbers}",
                flush=True,
            )


if __name__ == "__main__":
    main()
