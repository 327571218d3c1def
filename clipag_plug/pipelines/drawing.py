"""CLIPDraw (Frans et al. 2022): coloured strokes moved by the gradient of CLIP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..options.clipdraw import ClipDraw
from ..paint import Guide, Step
from ..strokes import render_strokes, strokes_to_svg
from . import warps
from .common import Artwork, Run, check_targets, guides, options_of, perform, write_artworks

PRETTY = 1.0  # smallest half width; thinner strokes fade instead of thinning


def clipdraw(
    prompts: str | Sequence[str],
    *,
    model: Any = "clipag-mini",
    callback: Callable[[Step], object] | None = None,
    **options: Any,
) -> list[Artwork]:
    """Drawings of the prompts, in order; with compare=True first all under the vanilla model.

    model: a key, a file, a CLIP of clipag_plug, clip or open_clip, or a `Guide`. options: fields of `ClipDraw`.
    ValueError for options that make no sense, ImportError where backend="diffvg" is not installed.
    """
    given = [prompts] if isinstance(prompts, str) else list(prompts)
    return draw(options_of(ClipDraw, {**options, "prompts": given}, model), model, callback)


def draw(
    options: ClipDraw,
    model: Any = None,
    callback: Callable[[Step], object] | None = None,
    bar: bool = False,
) -> list[Artwork]:
    """`clipdraw` with its options in one object."""
    if not options.prompts:
        raise ValueError('no prompt; say what to draw, as in clipag clipdraw "a goldfish"')
    if any(not prompt.strip() for prompt in options.prompts):
        raise ValueError("a prompt is empty; write what to draw")
    resolved = options.resolved()
    chosen = guides(resolved, None if isinstance(model, str) else model)
    runs = (Drawing(resolved, guide, text) for guide in chosen for text in resolved.prompts)
    return perform(runs, callback, bar)


def run(options: ClipDraw) -> int:
    """`clipag clipdraw`: draws, writes, prints the paths."""
    import sys

    check_targets(options)
    for path in write_artworks(options, draw(options, bar=True), len(options.prompts)):
        sys.stdout.write(f"{path}\n")
    return 0


class Drawing(Run):
    """One drawing. points: N tensors (3k + 1, 2) in pixels; widths (N,): half of the visible; colors (N, 4) RGBA."""

    def __init__(self, options: Any, guide: Guide, prompt: str) -> None:
        self.prepare(options, guide, prompt)
        texts = guide.texts([prompt, *options.negatives])
        self.text, self.negatives = texts[:1], texts[1:]
        self.points, self.widths, self.colors = first_strokes(options, self.generator)
        leaves = [*self.points, self.widths, self.colors]
        if guide.device.type != "cpu":
            leaves = [leaf.to(guide.device) for leaf in leaves]
            self.points, self.widths, self.colors = leaves[:-2], leaves[-2], leaves[-1]
        for leaf in leaves:
            leaf.requires_grad_(True)
        rates = (options.lr_points, options.lr_width, options.lr_color)
        groups = (self.points, [self.widths], [self.colors])
        self.optimizers = [
            torch.optim.Adam(group, lr=rate, foreach=True) for group, rate in zip(groups, rates)
        ]
        self._render = renderer(options.backend)

    def canvas(self) -> Tensor:
        """The strokes over white, (1, 3, H, W), with their graph."""
        side = int(self.options.canvas)
        image = self._render(self.points, self.widths, self.colors, side)
        alpha = image[..., 3:]
        return (image[..., :3] * alpha + 1 - alpha).permute(2, 0, 1)[None]

    def picture(self) -> Tensor:
        with torch.no_grad():
            return self.canvas()[0].clamp(0, 1).cpu()

    def loss(self, index: int) -> Tensor:
        return objective(self.features(self.canvas()), self.text, self.negatives, self.options)

    def features(self, canvas: Tensor) -> Tensor:
        """Unit features of this step's views of the canvas."""
        options, side = self.options, self.guide.side
        if options.augment:
            views = canvas.expand(int(options.views), -1, -1, -1)
            views = warps.random_perspective(views, self.generator, options.distortion, fill=1.0)
            numbers = warps.uniform(self.generator, len(views), 4, like=views)
            height, width = views.shape[-2:]
            boxes = warps.crop_boxes(numbers, height, width, options.crop_low, options.crop_high)
            views = warps.crops(views, boxes, side)
        else:
            whole = canvas.new_tensor([[0.0, 0.0, canvas.shape[-2], canvas.shape[-1]]])
            views = warps.crops(canvas, whole, side)
        return self.guide.features(views, normalize=bool(options.normalize))

    def update(self, index: int, loss: Tensor) -> float:
        factor = course(index, self.steps)
        self.optimizers[0].param_groups[0]["lr"] = self.options.lr_points * factor
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        with torch.no_grad():
            self.widths.clamp_(PRETTY, float(self.options.max_width))
            self.colors.clamp_(0, 1)
        return float(self.options.lr_points * factor)

    def svg(self) -> str:
        side = int(self.options.canvas)
        strokes = zip(self.points, self.widths.detach(), self.colors.detach())
        return strokes_to_svg(strokes, side, side, background="white")


def objective(features: Tensor, text: Tensor, negatives: Tensor, options: Any) -> Tensor:
    """Minus the views' summed cosine with the prompt, plus `negative_weight` times that with each negative."""
    loss = -(features @ text.T).sum()
    if len(negatives):
        loss = loss + options.negative_weight * (features @ negatives.T).sum()
    return loss


def course(index: int, steps: int) -> float:
    """Factor of the points' step size: 1, from half of the steps on 0.4, from three quarters 0.1."""
    return 0.1 if index >= 0.75 * steps else 0.4 if index >= 0.5 * steps else 1.0


def first_strokes(options: Any, generator: torch.Generator) -> tuple[list[Tensor], Tensor, Tensor]:
    """Random open strokes: a uniform start, every further point at most `radius` from the last, along each axis."""
    count, side = int(options.strokes), int(options.canvas)
    numbers = torch.randint(1, int(options.segments) + 1, (count,), generator=generator).tolist()
    points = []
    for segments in numbers:
        first = torch.rand(1, 2, generator=generator)
        steps = options.radius * (torch.rand(segments, 3, 2, generator=generator) - 0.5)
        # The second and third point of a curve and the end each start out from the point before.
        points.append(torch.cat([first, first + steps.flatten(0, 1).cumsum(0)]) * side)
    colors = torch.rand(count, 4, generator=generator)
    return points, torch.ones(count), colors


def renderer(backend: str) -> Callable[[list[Tensor], Tensor, Tensor, int], Tensor]:
    """Strokes to straight RGBA (side, side, 4). ImportError where diffvg is asked for and absent."""
    if backend == "own":
        return _own
    try:
        import pydiffvg
    except ImportError as error:
        raise ImportError(
            "--backend diffvg needs pydiffvg, which is built from https://github.com/BachiLi/diffvg; "
            "--backend own needs nothing"
        ) from error

    def render(points: list[Tensor], widths: Tensor, colors: Tensor, side: int) -> Tensor:
        pydiffvg.set_device(widths.device)
        shapes, groups = [], []
        for index, (path, width, color) in enumerate(zip(points, widths, colors)):
            controls = torch.full((len(path) // 3,), 2, dtype=torch.int32)
            shapes.append(
                pydiffvg.Path(
                    num_control_points=controls,
                    points=path.cpu(),
                    stroke_width=width.cpu(),
                    is_closed=False,
                )
            )
            groups.append(
                pydiffvg.ShapeGroup(
                    shape_ids=torch.tensor([index]), fill_color=None, stroke_color=color.cpu()
                )
            )
        scene = pydiffvg.RenderFunction.serialize_scene(side, side, shapes, groups)
        image: Tensor = pydiffvg.RenderFunction.apply(side, side, 2, 2, 0, None, *scene)
        return image

    return render


def _own(points: list[Tensor], widths: Tensor, colors: Tensor, side: int) -> Tensor:
    return render_strokes(points, widths, colors, side, side)
