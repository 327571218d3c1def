"""The stroke renderer against an oracle that samples, against finite differences, and at its corners."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from clipag_plug.strokes import render_strokes

SIZE = 32


def scene(n: int, seed: int = 0, size: int = SIZE, width: float = 1.5, dtype=torch.float32):
    """CLIPDraw's kind of scene: 1 to 3 segments a stroke, steps of a tenth of the canvas, RGBA uniform."""
    generator = torch.Generator().manual_seed(seed)
    points, counts = [], []
    for _ in range(n):
        count = 3 * int(torch.randint(1, 4, (1,), generator=generator)) + 1
        steps = 0.2 * size * (torch.rand(count, 2, generator=generator) - 0.5)
        steps[0] = torch.rand(2, generator=generator) * size
        points.append(steps.cumsum(0))
        counts.append(count)
    widths = width * (0.5 + torch.rand(n, generator=generator))
    colors = torch.rand(n, 4, generator=generator)
    return torch.cat(points).to(dtype), widths.to(dtype), colors.to(dtype), counts


def sampled(
    points: Tensor,
    widths: Tensor,
    colors: Tensor,
    counts: list[int],
    size: int,
    per_axis: int,
    steps: int = 100,
) -> Tensor:
    """diffvg's definition of a pixel, literally: blend every sample, un-premultiply it, then average."""
    axis = (torch.arange(size * per_axis, dtype=torch.float32) + 0.5) / per_axis
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij")[::-1], -1).view(-1, 2)
    t = torch.linspace(0, 1, steps, dtype=torch.float32).view(-1, 1)
    mixed = grid.new_zeros(len(grid), 4)
    start = 0
    for count, width, color in zip(counts, widths.float(), colors.float(), strict=True):
        path = points[start : start + count].float()
        start += count
        curve = torch.cat(
            [
                (1 - t) ** 3 * p[0]
                + 3 * t * (1 - t) ** 2 * p[1]
                + 3 * t**2 * (1 - t) * p[2]
                + t**3 * p[3]
                for p in path.unfold(0, 4, 3).transpose(1, 2)
            ]
        )
        inside = torch.cdist(grid, curve).amin(1) < width
        paint = torch.cat((color[:3], torch.ones(1)))
        mixed = torch.where(inside[:, None], mixed + color[3] * (paint - mixed), mixed)
    alpha = mixed[:, 3:]
    straight = torch.cat((mixed[:, :3] / alpha.clamp_min(1e-6), alpha), 1)
    return straight.view(size, per_axis, size, per_axis, 4).mean((1, 3))


def psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * (a.detach().double() - b.detach().double()).square().mean().log10())


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))


@pytest.mark.parametrize(("n", "width"), [(3, 0.4), (4, 1.0), (4, 5.0)])
def test_image_is_that_of_dense_sampling(n: int, width: float) -> None:
    points, widths, colors, counts = scene(n, width=width)
    image = render_strokes(points, widths, colors, SIZE, SIZE, counts=counts)
    assert psnr(image, sampled(points, widths, colors, counts, SIZE, 5)) > 37


def test_long_curves_that_cross_themselves() -> None:
    """A loop across the whole canvas: the nearest-point search must not settle on the wrong branch."""
    points = torch.tensor([[-20.0, 30.0], [90.0, -20.0], [-50.0, -10.0], [60.0, 40.0]])
    widths, colors = torch.tensor([1.5]), torch.tensor([[0.2, 0.4, 0.8, 1.0]])
    image = render_strokes(points[None], widths, colors, SIZE, SIZE)
    difference = (image - sampled(points, widths, colors, [4], SIZE, 5, 800)).abs()
    assert float(difference.max()) < 0.3


def test_cutting_a_curve_changes_nothing() -> None:
    """A long segment is cut into pieces internally; the same curve given as two segments is the same image."""
    p = torch.tensor([[2.0, 3.0], [60.0, 10.0], [-30.0, 25.0], [29.0, 28.0]])
    q, r = (p[:-1] + p[1:]) / 2, (p[:-2] + 2 * p[1:-1] + p[2:]) / 4
    middle = (r[0] + r[1]) / 2
    halves = torch.stack((p[0], q[0], r[0], middle, r[1], q[2], p[3]))
    widths, colors = torch.tensor([2.0]), torch.tensor([[0.2, 0.4, 0.8, 0.7]])
    whole = render_strokes(p[None], widths, colors, SIZE, SIZE)
    torch.testing.assert_close(
        render_strokes(halves[None], widths, colors, SIZE, SIZE), whole, atol=2e-3, rtol=0
    )


@pytest.mark.parametrize("case", ["short", "joints", "long", "thin", "wide", "opaque"])
def test_gradcheck(case: str) -> None:
    points, widths, colors, counts = scene(3, seed=5, size=14, dtype=torch.float64)
    if case == "joints":
        points, widths, colors, counts = scene(2, seed=3, size=14, dtype=torch.float64)
    elif case == "long":
        points = torch.tensor([[1.0, 2.3], [22.7, 3.1], [-9.4, 11.2], [12.6, 12.9]]).double()
        counts, widths, colors = [4], widths[:1], colors[:1]
    elif case == "thin":
        widths = 0.3 + 0.1 * widths
    elif case == "wide":
        widths = 4 * widths
    else:
        colors[:, 3] = torch.where(torch.arange(len(colors)) == 1, 1.0, 0.3).double()
    inputs = [x.clone().requires_grad_() for x in (points, widths, colors)]
    assert torch.autograd.gradcheck(
        lambda p, w, c: render_strokes(p, w, c, 14, 13, counts=counts),
        inputs,
        atol=1e-5,
        rtol=1e-3,
        fast_mode=True,
    )


def test_gradient_is_the_slope_of_the_sampled_image() -> None:
    """Finite differences of dense sampling, not of the renderer: its approximations must not bias the gradient."""
    size, step = 24, 0.25
    points, widths, colors, counts = scene(2, seed=2, size=size, width=3.0)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(1, 4, 4, 4, generator=generator)
    weights = torch.nn.functional.interpolate(weights, size=size, mode="bicubic")[0].permute(
        1, 2, 0
    )
    inputs = [x.clone().requires_grad_() for x in (points, widths)]
    image = render_strokes(*inputs, colors, size, size, counts=counts)
    gradients = torch.autograd.grad((image * weights).sum(), inputs)
    exact, slopes = [], []
    for index, gradient in enumerate(gradients):
        for i in range(gradient.numel()):
            losses = []
            for sign in (1, -1):
                moved = [points.clone(), widths.clone()]
                moved[index].view(-1)[i] += sign * step
                losses.append((sampled(*moved, colors, counts, size, 6) * weights).sum())
            exact.append(gradient.reshape(-1)[i])
            slopes.append((losses[0] - losses[1]) / (2 * step))
    assert cosine(torch.stack(exact), torch.stack(slopes)) > 0.99


def test_compat_changes_the_geometry_gradient_only() -> None:
    points, widths, colors, counts = scene(8, width=3.0)
    results = []
    for compat in (False, True):
        inputs = [x.clone().requires_grad_() for x in (points, widths, colors)]
        image = render_strokes(*inputs, SIZE, SIZE, counts=counts, compat=compat)
        results.append((image, *torch.autograd.grad(image.square().sum(), inputs)))
    exact, biased = results
    assert torch.equal(exact[0], biased[0]) and torch.equal(exact[3], biased[3])
    assert 0.5 < cosine(exact[1], biased[1]) < 0.999


def test_compat_weighs_the_outline_by_the_length_of_the_curve() -> None:
    """On an arc both sides of the outline count as if they were as long as the curve; exactly, they differ.

    With weights that rise outwards the exact width gradient sees the longer outer side more.
    """
    points = torch.tensor([[[8.0, 16.0], [8.0, 5.3], [24.0, 5.3], [24.0, 16.0]]])
    axis = torch.arange(SIZE) + 0.5
    distance = torch.hypot(axis[None] - 16, axis[:, None] - 16)
    band = ((axis[:, None] < 15) * torch.sign(distance - 8))[..., None]
    slopes = []
    for compat in (False, True):
        width = torch.tensor([4.0], requires_grad=True)
        image = render_strokes(points, width, torch.ones(1, 4), SIZE, SIZE, compat=compat)
        slopes.append(float(torch.autograd.grad((image[..., 3:] * band).sum(), width)[0]))
    lengths = math.pi * 12, math.pi * 4
    assert slopes[0] == pytest.approx(lengths[0] - lengths[1], rel=0.15)
    assert abs(slopes[1]) < 0.15 * slopes[0]


@pytest.mark.parametrize("n", [1, 2, 17, 300, 2000])
def test_any_number_of_strokes(n: int) -> None:
    points, widths, colors, counts = scene(n, size=64)
    inputs = [x.requires_grad_() for x in (points, widths, colors)]
    image = render_strokes(*inputs, 64, 64, counts=counts)
    assert image.shape == (64, 64, 4)
    assert float(image.detach().min()) >= 0 and float(image.detach().max()) <= 1 + 1e-5
    for gradient in torch.autograd.grad(image.sum(), inputs):
        assert torch.isfinite(gradient).all() and gradient.any()


def test_order_decides_who_is_on_top() -> None:
    line = torch.tensor([[4.0, 16.0], [12.0, 16.0], [20.0, 16.0], [28.0, 16.0]])
    colors = torch.tensor([[1.0, 0, 0, 1], [0, 1.0, 0, 1]])
    image = render_strokes(line.expand(2, 4, 2), torch.tensor([3.0, 3.0]), colors, SIZE, SIZE)
    assert torch.equal(image[16, 16], colors[1])
    image = render_strokes(
        line.expand(2, 4, 2), torch.tensor([3.0, 3.0]), colors.flip(0), SIZE, SIZE
    )
    assert torch.equal(image[16, 16], colors[0])


def test_a_zero_length_stroke_is_a_disc() -> None:
    points = torch.full((1, 4, 2), 16.0, requires_grad=True)
    widths = torch.tensor([6.0], requires_grad=True)
    image = render_strokes(points, widths, torch.ones(1, 4), SIZE, SIZE)
    area = image[..., 3].sum()
    assert area.item() == pytest.approx(math.pi * 36, rel=0.005)
    by_points, by_width = torch.autograd.grad(area, (points, widths))
    assert torch.isfinite(by_points).all()
    assert by_width.item() == pytest.approx(2 * math.pi * 6, rel=0.02)


@pytest.mark.parametrize("where", [(-100.0, 16.0), (16.0, 500.0), (1e6, -1e6)])
def test_strokes_off_the_canvas_leave_no_trace(where: tuple[float, float]) -> None:
    points = (torch.tensor([[0.0, 0], [5, 5], [9, -3], [12, 0]]) + torch.tensor(where))[None]
    inputs = [x.requires_grad_() for x in (points, torch.tensor([3.0]), torch.rand(1, 4))]
    image = render_strokes(*inputs, SIZE, SIZE)
    assert not image.any()
    assert not any(g.any() for g in torch.autograd.grad(image.sum(), inputs))


def test_a_stroke_far_out_does_not_disturb_the_others() -> None:
    points, widths, colors, counts = scene(6)
    alone = render_strokes(points, widths, colors, SIZE, SIZE, counts=counts)
    far = torch.cat((points, points[:4] + 1e5))
    both = render_strokes(
        far,
        torch.cat((widths, widths[:1])),
        torch.cat((colors, colors[:1])),
        SIZE,
        SIZE,
        counts=[*counts, 4],
    )
    assert torch.equal(alone, both)


@pytest.mark.parametrize("width", [0.3, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pixel_centres_exactly_on_the_curve(width: float, dtype: torch.dtype) -> None:
    points = torch.tensor(
        [[[4.5, 8.5], [8.5, 8.5], [16.5, 8.5], [20.5, 8.5]]], dtype=dtype, requires_grad=True
    )
    widths = torch.tensor([width], dtype=dtype, requires_grad=True)
    image = render_strokes(points, widths, torch.ones(1, 4, dtype=dtype), SIZE, SIZE)
    for gradient in torch.autograd.grad(image.sum(), (points, widths)):
        assert torch.isfinite(gradient).all()
    middle = image[8, 8:16, 3]
    torch.testing.assert_close(
        middle, torch.full_like(middle, min(1, 2 * width)), atol=1e-4, rtol=0
    )


def test_alpha_of_exactly_zero_and_one() -> None:
    points, widths, colors, counts = scene(6, width=3.0)
    colors[::2, 3], colors[1::2, 3] = 0, 1
    inputs = [x.requires_grad_() for x in (points, widths, colors)]
    image = render_strokes(*inputs, SIZE, SIZE, counts=counts)
    assert torch.isfinite(image).all()
    white = image[..., 3:] * image[..., :3] + 1 - image[..., 3:]
    for gradient in torch.autograd.grad(white.sum(), inputs):
        assert torch.isfinite(gradient).all() and float(gradient.abs().max()) < 1e4
    opaque = [i for i in range(len(counts)) if i % 2]
    kept = torch.split(points.detach(), counts)
    seen = render_strokes([kept[i] for i in opaque], widths[opaque], colors[opaque], SIZE, SIZE)
    torch.testing.assert_close(image, seen, atol=1e-6, rtol=0)


def test_the_same_scene_gives_the_same_bits() -> None:
    results = []
    for _ in range(2):
        points, widths, colors, counts = scene(60, size=64, width=4.0)
        inputs = [x.requires_grad_() for x in (points, widths, colors)]
        image = render_strokes(*inputs, 64, 64, counts=counts)
        results.append((image, *torch.autograd.grad(image.square().sum(), inputs)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_float32_agrees_with_float64() -> None:
    results = []
    for dtype in (torch.float32, torch.float64):
        points, widths, colors, counts = scene(20, dtype=torch.float32)
        inputs = [x.to(dtype).requires_grad_() for x in (points, widths, colors)]
        image = render_strokes(*inputs, SIZE, SIZE, counts=counts)
        results.append((image, *torch.autograd.grad(image.square().sum(), inputs)))
    assert psnr(results[0][0], results[1][0]) > 70
    for single, double in zip(results[0][1:], results[1][1:], strict=True):
        assert cosine(single, double) > 0.9999


@pytest.mark.parametrize(("width", "height"), [(1, 1), (30, 17), (33, 64), (64, 5)])
def test_canvases_that_are_no_multiple_of_a_tile(width: int, height: int) -> None:
    points, widths, colors, counts = scene(10, size=40)
    whole = render_strokes(points, widths, colors, 64, 64, counts=counts)
    inputs = [x.requires_grad_() for x in (points, widths, colors)]
    part = render_strokes(*inputs, width, height, counts=counts)
    torch.testing.assert_close(part, whole[:height, :width], atol=1e-6, rtol=0)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(part.sum(), inputs))


def test_points_can_be_given_in_three_ways() -> None:
    points = torch.rand(5, 7, 2) * SIZE
    widths, colors = torch.full((5,), 2.0), torch.rand(5, 4)
    image = render_strokes(points, widths, colors, SIZE, SIZE)
    assert torch.equal(image, render_strokes(list(points), widths, colors, SIZE, SIZE))
    packed = render_strokes(points.flatten(0, 1), widths, colors, SIZE, SIZE, counts=[7] * 5)
    assert torch.equal(image, packed)


@pytest.mark.parametrize("radius", [100.0, 400.0])
def test_strokes_wider_than_the_canvas(radius: float) -> None:
    points = torch.tensor(
        [[[-radius + 5, 0.0], [-radius + 5, 10], [-radius + 5, 20], [-radius + 5, 30]]]
    )
    image = render_strokes(points, torch.tensor([radius]), torch.ones(1, 4), SIZE, SIZE)
    assert torch.equal(image[2:28, :4, 3], torch.ones(26, 4)) and not image[:, 6:].any()


@pytest.mark.parametrize("width", [0.0, -1.0])
def test_no_width_no_stroke(width: float) -> None:
    points = torch.rand(1, 4, 2) * SIZE
    assert not render_strokes(points, torch.tensor([width]), torch.ones(1, 4), SIZE, SIZE).any()


def good() -> dict[str, object]:
    return {
        "points": torch.rand(2, 4, 2),
        "widths": torch.ones(2),
        "colors": torch.rand(2, 4),
        "width": 8,
        "height": 8,
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"points": torch.rand(2, 5, 2)}, r"5 points.*3 \* k \+ 1"),
        ({"points": torch.rand(8, 2)}, "counts is missing"),
        ({"points": []}, "no strokes"),
        ({"points": torch.full((2, 4, 2), math.nan)}, "points holds NaN"),
        ({"widths": torch.ones(3)}, r"widths has shape \(3,\)"),
        ({"widths": torch.ones(2).double()}, "widths is torch.float64"),
        ({"colors": torch.rand(2, 3)}, r"colors has shape \(2, 3\)"),
        ({"colors": torch.full((2, 4), math.inf)}, "colors holds NaN or infinity"),
        ({"width": 0}, "at least 1"),
    ],
)
def test_refusals_say_what_is_wrong(changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_strokes(**{**good(), **changed})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_agrees_with_cpu() -> None:
    results = []
    for device in ("cpu", "cuda"):
        points, widths, colors, counts = scene(100, size=64, width=4.0)
        inputs = [x.to(device).requires_grad_() for x in (points, widths, colors)]
        image = render_strokes(*inputs, 64, 64, counts=counts)
        results.append(
            [x.cpu() for x in (image, *torch.autograd.grad(image.square().sum(), inputs))]
        )
    assert psnr(results[0][0], results[1][0]) > 70
    for a, b in zip(results[0][1:], results[1][1:], strict=True):
        assert cosine(a, b) > 0.9999
