"""pydiffvg's surface, used as CLIPDraw and CLIPasso use it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from clipag_plug.adapters import pydiffvg_api as pydiffvg
from PIL import Image

from clipag_plug.strokes import render_strokes


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    before = dict(pydiffvg._settings)
    pydiffvg.set_print_timing(False)
    pydiffvg.set_use_gpu(False)
    yield
    pydiffvg._settings.update(before)


def drawing(n: int = 4, size: int = 32):
    generator = torch.Generator().manual_seed(1)
    shapes, groups = [], []
    for i in range(n):
        k = 1 + i % 3
        points = torch.rand(3 * k + 1, 2, generator=generator) * size
        shapes.append(
            pydiffvg.Path(
                num_control_points=torch.zeros(k, dtype=torch.int32) + 2,
                points=points,
                stroke_width=torch.tensor(1.0 + i),
                is_closed=False,
            )
        )
        groups.append(
            pydiffvg.ShapeGroup(
                shape_ids=torch.tensor([len(shapes) - 1]),
                fill_color=None,
                stroke_color=torch.rand(4, generator=generator),
            )
        )
    return shapes, groups


def render(shapes, groups, size: int = 32):
    arguments = pydiffvg.RenderFunction.serialize_scene(size, size, shapes, groups)
    return pydiffvg.RenderFunction.apply(size, size, 2, 2, 0, None, *arguments)


def test_renders_what_render_strokes_does() -> None:
    shapes, groups = drawing()
    expected = render_strokes(
        [s.points for s in shapes],
        torch.stack([s.stroke_width for s in shapes]),
        torch.stack([g.stroke_color for g in groups]),
        32,
        32,
    )
    assert torch.equal(render(shapes, groups), expected)


def test_a_fit_moves_the_tensors_that_were_handed_in() -> None:
    """CLIPDraw's loop: attributes made to require gradients after the fact, three optimisers, clamping of .data."""
    shapes, groups = drawing()
    target = render(*drawing(7))
    handed_in = [s.points for s in shapes]
    for shape, group in zip(shapes, groups, strict=True):
        shape.points.requires_grad = True
        shape.stroke_width.requires_grad = True
        group.stroke_color.requires_grad = True
    optimizers = [
        torch.optim.Adam([s.points for s in shapes], lr=1.0),
        torch.optim.Adam([s.stroke_width for s in shapes], lr=0.1),
        torch.optim.Adam([g.stroke_color for g in groups], lr=0.01),
    ]
    losses = []
    for _ in range(15):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = (render(shapes, groups) - target).square().mean()
        loss.backward()
        losses.append(loss.item())
        for optimizer in optimizers:
            optimizer.step()
        for shape, group in zip(shapes, groups, strict=True):
            shape.stroke_width.data.clamp_(1.0, 50.0)
            group.stroke_color.data.clamp_(0.0, 1.0)
    assert losses[-1] < 0.85 * losses[0]
    assert all(s.points is points for s, points in zip(shapes, handed_in, strict=True))


def test_what_save_svg_writes_can_be_read_back(tmp_path: Path) -> None:
    shapes, groups = drawing(5)
    file = tmp_path / "new folder" / "drawing.svg"
    pydiffvg.save_svg(str(file), 32, 32, shapes, groups)
    width, height, read_shapes, read_groups = pydiffvg.svg_to_scene(str(file))
    assert (width, height, len(read_shapes)) == (32, 32, 5)
    for old, new in zip(shapes, read_shapes, strict=True):
        torch.testing.assert_close(new.points, old.points, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(new.stroke_width, old.stroke_width)
        assert torch.equal(new.num_control_points, old.num_control_points)
    for old, new in zip(groups, read_groups, strict=True):
        torch.testing.assert_close(
            new.stroke_color, old.stroke_color, atol=0.5 / 255 + 1e-6, rtol=0
        )
    image = render(read_shapes, read_groups)
    torch.testing.assert_close(image, render(shapes, groups), atol=0.01, rtol=0)


def test_visible_width_in_the_file_is_twice_the_stroke_width(tmp_path: Path) -> None:
    shapes, groups = drawing(1)
    pydiffvg.save_svg(str(tmp_path / "a.svg"), 32, 32, shapes, groups, background="white")
    assert 'stroke-width="2"' in (tmp_path / "a.svg").read_text()
    assert len(pydiffvg.svg_to_scene(str(tmp_path / "a.svg"))[2]) == 1


@pytest.mark.parametrize(("gamma", "level"), [(1.0, 64), (2.2, 136)])
def test_imwrite_applies_gamma_and_makes_the_folder(
    tmp_path: Path, gamma: float, level: int
) -> None:
    file = tmp_path / "results" / "iter_0.png"
    pydiffvg.imwrite(torch.full((5, 7, 3), 0.25), str(file), gamma=gamma)
    with Image.open(file) as image:
        assert image.size == (7, 5) and image.getpixel((0, 0)) == (level, level, level)


def test_imwrite_takes_grey_alpha_and_stretching(tmp_path: Path) -> None:
    ramp = torch.linspace(2, 3, 6).view(2, 3)
    pydiffvg.imwrite(ramp, str(tmp_path / "grey.png"), gamma=1.0, normalize=True)
    with Image.open(tmp_path / "grey.png") as image:
        assert image.getextrema() == (0, 255)
    pydiffvg.imwrite(torch.rand(4, 4, 4).numpy(), str(tmp_path / "alpha.png"))
    with Image.open(tmp_path / "alpha.png") as image:
        assert image.mode == "RGBA"


def test_devices() -> None:
    assert pydiffvg.get_device() == torch.device("cpu") and not pydiffvg.get_use_gpu()
    pydiffvg.set_device(torch.device("cuda:0"))
    assert pydiffvg.get_device() == torch.device("cuda:0") and pydiffvg.get_use_gpu()


def test_nothing_to_draw_is_a_transparent_image() -> None:
    shapes, groups = drawing(1)
    assert not render([], []).any()
    groups[0].stroke_color = None
    assert not render(shapes, groups).any()


def test_a_group_names_its_shape() -> None:
    shapes, groups = drawing(3)
    shuffled = [shapes[2], shapes[0], shapes[1]]
    for group, index in zip(groups, (1, 2, 0), strict=True):
        group.shape_ids = torch.tensor([index])
    assert torch.equal(render(shuffled, groups), render(*drawing(3)))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s, g: setattr(g, "fill_color", torch.rand(4)), "fill_color of shape group 0"),
        (lambda s, g: setattr(s, "is_closed", True), "shape 0, a closed path"),
        (lambda s, g: setattr(s, "num_control_points", torch.zeros(1)), "lines or quadratic"),
        (lambda s, g: setattr(s, "stroke_width", torch.ones(4)), "varies along it"),
        (
            lambda s, g: setattr(g, "shape_to_canvas", 2 * torch.eye(3)),
            "shape_to_canvas of shape group 0",
        ),
        (lambda s, g: setattr(g, "shape_ids", torch.tensor([0, 0])), "with 2 shapes"),
    ],
)
def test_refusals_name_the_shape(spoil, message: str) -> None:
    shapes, groups = drawing(1)
    spoil(shapes[0], groups[0])
    with pytest.raises(ValueError, match=message):
        render(shapes, groups)


def test_other_shapes_are_refused_by_name() -> None:
    for name in ("Circle", "Ellipse", "Polygon", "Rect", "LinearGradient", "RadialGradient"):
        with pytest.raises(ValueError, match=name):
            getattr(pydiffvg, name)()
    groups = drawing(1)[1]
    with pytest.raises(ValueError, match="a SimpleNamespace"):
        render([SimpleNamespace(points=torch.rand(4, 2))], groups)


def test_options_that_are_not_supported_are_refused() -> None:
    shapes, groups = drawing(1)
    serialize = pydiffvg.RenderFunction.serialize_scene
    with pytest.raises(ValueError, match="output_type"):
        serialize(32, 32, shapes, groups, output_type=pydiffvg.OutputType.sdf)
    with pytest.raises(ValueError, match="background image"):
        pydiffvg.RenderFunction.apply(
            32, 32, 2, 2, 0, torch.ones(32, 32, 4), *serialize(32, 32, shapes, groups)
        )
    with pytest.raises(ValueError, match="give both the same"):
        pydiffvg.RenderFunction.apply(16, 16, 2, 2, 0, None, *serialize(32, 32, shapes, groups))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('<circle cx="1" cy="1" r="1"/>', "<circle>"),
        ('<path d="M 0 0 L 1 1" fill="none" stroke="rgb(0,0,0)"/>', "M 0 0 L 1 1"),
        ('<path d="M 0 0 C 1 1 2 2 3 3 Z" fill="none" stroke="rgb(0,0,0)"/>', "C 1 1"),
        ('<path d="M 0 0 C 1 1 2 2 3 3" fill="red" stroke="rgb(0,0,0)"/>', "fill 'red'"),
    ],
)
def test_svg_of_another_kind_is_refused(tmp_path: Path, body: str, message: str) -> None:
    file = tmp_path / "other.svg"
    file.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8">{body}</svg>')
    with pytest.raises(ValueError, match=message):
        pydiffvg.svg_to_scene(str(file))
