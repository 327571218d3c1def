"""Images and gradients of strokes are those of dense sampling, finite differences, another precision or device."""

from __future__ import annotations

import math

import pytest
import torch
from strokes_helpers import SIZE, cosine, psnr, scene
from torch import Tensor

from clipag_plug.strokes import render_strokes


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
