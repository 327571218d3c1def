"""The stroke renderer at its corners: any number, place, width, opacity and canvas, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from strokes_helpers import SIZE, scene

from clipag_plug.strokes import render_strokes


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
