"""pydiffvg's surface over `clipag_plug.strokes`, for scripts that draw open cubic strokes.

Covers what CLIPDraw, CLIPasso and StyleCLIPDraw call. Pixels follow diffvg's definition but are computed exactly
instead of sampled, so numbers of samples and seeds are accepted and have no effect. Whatever diffvg can draw beyond
open cubic strokes is refused by name.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..files import write_atomically, write_text
from ..strokes import render_strokes, strokes_from_svg, strokes_to_svg

_settings: dict[str, Any] = {"device": None, "print_timing": False}


class OutputType(enum.Enum):
    """What diffvg can render; only colours are supported here."""

    color = 1
    sdf = 2


class Path:
    """An open path of cubic segments; keeps the very tensors it is given, so that they can be optimised.

    num_control_points: 2 for each segment. points: (3k + 1, 2) pixels. stroke_width: half the visible width.
    """

    def __init__(
        self,
        num_control_points: Tensor,
        points: Tensor,
        is_closed: bool,
        stroke_width: Tensor | None = None,
        id: str = "",
        use_distance_approx: bool = False,
    ) -> None:
        self.num_control_points = num_control_points
        self.points = points
        self.is_closed = is_closed
        self.stroke_width = torch.tensor(1.0) if stroke_width is None else stroke_width
        self.id = id
        self.use_distance_approx = use_distance_approx


class ShapeGroup:
    """One shape with its stroke colour, RGBA (4,) in [0, 1]."""

    def __init__(
        self,
        shape_ids: Tensor,
        fill_color: Tensor | None,
        use_even_odd_rule: bool = True,
        stroke_color: Tensor | None = None,
        shape_to_canvas: Tensor | None = None,
        id: str = "",
    ) -> None:
        self.shape_ids = shape_ids
        self.fill_color = fill_color
        self.use_even_odd_rule = use_even_odd_rule
        self.stroke_color = stroke_color
        self.shape_to_canvas = torch.eye(3) if shape_to_canvas is None else shape_to_canvas
        self.id = id


class _Refused:
    """A class of pydiffvg that scripts may test against but not make."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        raise _refusal(f"pydiffvg.{type(self).__name__}")


Circle, Ellipse, Polygon, Rect, LinearGradient, RadialGradient = (
    type(name, (_Refused,), {"__doc__": "Refused: strokes are open and have one colour."})
    for name in ("Circle", "Ellipse", "Polygon", "Rect", "LinearGradient", "RadialGradient")
)


@dataclass(frozen=True)
class _Scene:
    size: tuple[int, int]
    strokes: list[tuple[Tensor, Tensor, Tensor]]  # points, width, colour


class RenderFunction:
    """Rendering by `RenderFunction.apply(width, height, samples_x, samples_y, seed, None, *serialized)`."""

    @staticmethod
    def serialize_scene(
        canvas_width: int,
        canvas_height: int,
        shapes: Sequence[Path],
        shape_groups: Sequence[ShapeGroup],
        filter: Any = None,
        output_type: OutputType = OutputType.color,
        use_prefiltering: bool = False,
        eval_positions: Tensor | None = None,
    ) -> list[Any]:
        """Arguments for `apply`; ValueError names the first shape or option that is not supported."""
        if output_type is not OutputType.color:
            raise _refusal(f"output_type {output_type}")
        if eval_positions is not None and len(eval_positions):
            raise _refusal("eval_positions")
        scene = _Scene((canvas_width, canvas_height), [])
        for number, group in enumerate(shape_groups):
            shape = _stroke_of(group, shapes, number)
            if group.stroke_color is not None:
                scene.strokes.append((shape.points, shape.stroke_width, group.stroke_color))
        return [scene]

    @staticmethod
    def apply(
        width: int,
        height: int,
        num_samples_x: int,
        num_samples_y: int,
        seed: int,
        background_image: Tensor | None,
        scene: _Scene,
    ) -> Tensor:
        """Straight RGBA (height, width, 4) on the set device."""
        if background_image is not None:
            raise _refusal(
                "a background image", "pass None and blend: alpha * rgb + (1 - alpha) * background"
            )
        if (width, height) != scene.size:
            raise ValueError(
                f"apply was given a canvas of {width} x {height}, and serialize_scene one of "
                f"{scene.size[0]} x {scene.size[1]}; give both the same"
            )
        device = get_device()
        if not scene.strokes:
            return torch.zeros(height, width, 4, device=device)
        points, widths, colors = zip(*scene.strokes)
        return render_strokes(
            torch.cat(points).to(device),
            torch.stack([each.reshape(()) for each in widths]).to(device),
            torch.stack(colors).to(device),
            width,
            height,
            counts=[len(each) for each in points],
        )


def _stroke_of(group: ShapeGroup, shapes: Sequence[Path], number: int) -> Path:
    """The one shape of a group that can be drawn, or a ValueError."""
    index = int(group.shape_ids[0])
    shape, where, what = shapes[index], f"shape group {number}", f"shape {index}"
    if not isinstance(shape, Path):
        raise _refusal(f"{what}, a {type(shape).__name__},")
    moved = not torch.equal(group.shape_to_canvas.detach().cpu().float(), torch.eye(3))
    kinds = shape.num_control_points
    for wrong, name, instead in (
        (len(group.shape_ids) != 1, f"{where} with {len(group.shape_ids)} shapes", "one a group"),
        (group.fill_color is not None, f"the fill_color of {where}", "None draws the outline only"),
        (isinstance(group.stroke_color, _Refused), f"the gradient of {where}", "give it a colour"),
        (moved, f"the shape_to_canvas of {where}", "transform the points instead"),
        (shape.is_closed, f"{what}, a closed path,", "make it with is_closed=False"),
        (
            kinds.numel() == 0 or bool((kinds != 2).any()),
            f"{what} with lines or quadratic curves",
            "use two control points a segment",
        ),
        (shape.stroke_width.numel() != 1, f"{what}, whose width varies along it,", "give it one"),
    ):
        if wrong:
            raise _refusal(name, instead)
    return shape


def _refusal(what: str, instead: str = "") -> ValueError:
    return ValueError(
        f"{what} cannot be drawn: this renderer does open cubic strokes of one colour and width"
        f"{'; ' + instead if instead else ''}. For the rest install the original pydiffvg"
    )


def set_use_gpu(value: bool) -> None:
    """Render on the GPU or on the CPU."""
    set_device(torch.device("cuda" if value else "cpu"))


def get_use_gpu() -> bool:
    """Whether rendering is on a GPU."""
    return get_device().type == "cuda"


def set_device(device: torch.device | str) -> None:
    """Device of the rendered images; the scene may live elsewhere."""
    _settings["device"] = torch.device(device)


def get_device() -> torch.device:
    """The set device, or a GPU if there is one."""
    return _settings["device"] or torch.device("cuda" if torch.cuda.is_available() else "cpu")


def set_print_timing(value: bool) -> None:
    """Accepted; nothing is printed either way."""
    _settings["print_timing"] = value


def imwrite(img: Any, filename: str, gamma: float = 2.2, normalize: bool = False) -> None:
    """Writes an image (H, W), (H, W, 3) or (H, W, 4) in [0, 1], each channel to the power of 1 / gamma.

    Makes the folder. normalize: stretch the values to [0, 1] first.
    """
    from PIL import Image

    image = torch.as_tensor(img).detach().float().cpu()
    if normalize:
        image = (image - image.min()) / (image.max() - image.min()).clamp_min(1e-12)
    levels = image.clamp(0, 1).pow(1 / gamma).mul(255).round().to(torch.uint8).numpy()
    write_atomically(filename, lambda name: Image.fromarray(levels).save(name), parents=True)


def save_svg(
    filename: str,
    width: int,
    height: int,
    shapes: Sequence[Path],
    shape_groups: Sequence[ShapeGroup],
    use_gamma: bool = False,
    background: str | None = None,
) -> None:
    """Writes the strokes as SVG, one path element a group, colours with 8 bits a channel.

    use_gamma: colours to the power of 1 / 2.2. background: a colour of CSS for the whole canvas.
    """
    (scene,) = RenderFunction.serialize_scene(width, height, shapes, shape_groups)
    gamma = 1 / 2.2 if use_gamma else 1.0
    strokes = []
    for points, stroke_width, color in scene.strokes:
        color = color.detach().clamp(0, 1)
        strokes.append((points, stroke_width, torch.cat((color[:3].pow(gamma), color[3:]))))
    write_text(filename, strokes_to_svg(strokes, width, height, background), parents=True)


def svg_to_scene(filename: str) -> tuple[int, int, list[Path], list[ShapeGroup]]:
    """Canvas width and height, shapes and groups from a file that `save_svg` wrote.

    ValueError for elements and paths that are something else than open cubic strokes.
    """
    width, height, strokes = strokes_from_svg(filename)
    shapes, groups = [], []
    for number, (points, stroke_width, color) in enumerate(strokes):
        segments = torch.full((len(points) // 3,), 2, dtype=torch.int32)
        shapes.append(Path(segments, points, False, stroke_width))
        groups.append(ShapeGroup(torch.tensor([number]), None, stroke_color=color))
    return width, height, shapes, groups
