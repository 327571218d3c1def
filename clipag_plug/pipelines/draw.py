"""CLIPDraw (Frans et al. 2022): coloured strokes moved by the gradient of CLIP."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..guide import Guide
from ..losses.rendering import SemanticLoss
from ..options.clipdraw import ClipDraw
from ..paint.objective import parse_prompt
from ..paint.results import Step, Synthesis
from ..strokes import render_strokes, strokes_to_svg
from .run import Run, command, descend, guides, options_of, perform

THINNEST = 1.0  # half width in pixels; thinner strokes would fade instead of thinning


def clipdraw(
    prompts: str | Sequence[str],
    *,
    model: Any = "clipag-mini",
    callback: Callable[[Step], object] | None = None,
    **options: Any,
) -> list[Synthesis]:
    """Drawings of the prompts in coloured strokes (CLIPDraw, Frans et al. 2022).

    Args:
        prompts: one or several; 'a fox | fog:-0.3' has weights, of which negative ones repel.
        model: a key, a file, a CLIP of clipag_plug, clip or open_clip, or a `Guide`.
        callback: called with each `Step`.
        options: fields of `ClipDraw`; with compare=True the drawings under the vanilla model come first.
    Raises: ValueError for options that make no sense, ImportError where backend="diffvg" is not installed.
    """
    chosen = options_of(ClipDraw, prompts, model, options)
    return perform(chosen, Drawing, guides(chosen, model), callback)


def run(options: ClipDraw) -> int:
    """`clipag clipdraw`."""
    return command(options, Drawing)


class Drawing(Run):
    """One drawing. points: a tensor (3k + 1, 2) for each stroke of k curves, in pixels of the canvas."""

    def __init__(self, options: Any, guide: Guide, prompt: str) -> None:
        super().__init__(options, guide, prompt)
        self.steps = int(options.steps)
        self.semantic = SemanticLoss(
            guide,
            parse_prompt(prompt),
            negatives=[(text, options.negative_weight) for text in options.negatives],
            views=int(options.views) if options.augment else 0,
            distortion=options.distortion,
            crop=(options.crop_low, options.crop_high),
            normalize=bool(options.normalize),
        )
        points, widths, colors = first_strokes(options, self.generator)
        self.points = [each.to(guide.device).requires_grad_(True) for each in points]
        self.widths = widths.to(guide.device).requires_grad_(True)
        self.colors = colors.to(guide.device).requires_grad_(True)
        self.optimizers = [
            torch.optim.Adam(self.points, lr=options.lr_points, foreach=True),
            torch.optim.Adam([self.widths], lr=options.lr_width, foreach=True),
            torch.optim.Adam([self.colors], lr=options.lr_color, foreach=True),
        ]
        self._render = renderer(options.backend)

    def canvas(self, scale: float = 1.0) -> Tensor:
        """The strokes over white, (1, 3, H, W), with their graph; enlarged by `scale`."""
        points = [each * scale for each in self.points] if scale != 1 else self.points
        side = round(self.options.canvas * scale)
        image = self._render(points, self.widths * scale, self.colors, side)
        alpha = image[..., 3:]
        return (image[..., :3] * alpha + 1 - alpha).permute(2, 0, 1)[None]

    @torch.no_grad()
    def picture(self) -> Tensor:
        return self.canvas()[0].clamp(0, 1).cpu()

    def loss(self, index: int) -> Tensor:
        """Minus the sum over views of their scores, as in the notebook."""
        return -self.semantic.scores(self.canvas(), self.generator).sum()

    def update(self, index: int, loss: Tensor) -> float:
        rate = float(self.options.lr_points * course(index, self.steps))
        self.optimizers[0].param_groups[0]["lr"] = rate
        descend(loss, self.optimizers)
        with torch.no_grad():
            self.widths.clamp_(THINNEST, float(self.options.max_width))
            self.colors.clamp_(0, 1)
        return rate

    @torch.no_grad()
    def result(self) -> Synthesis:
        """The drawing rendered at `size`, and as SVG."""
        side = self.options.canvas
        strokes = zip(self.points, self.widths, self.colors)
        svg = strokes_to_svg(strokes, side, side, background="white")
        image = self.canvas((self.options.size or side) / side)[0].clamp(0, 1).cpu()
        return dataclasses.replace(super().result(), image=image, svg=svg)


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
    return points, torch.ones(count), torch.rand(count, 4, generator=generator)


def renderer(backend: str) -> Callable[[list[Tensor], Tensor, Tensor, int], Tensor]:
    """Strokes to straight RGBA (side, side, 4). Raises: ImportError where diffvg is asked for and absent."""
    if backend == "own":
        return lambda points, widths, colors, side: render_strokes(
            points, widths, colors, side, side
        )
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
            shapes.append(pydiffvg.Path(controls, path.cpu(), False, width.cpu()))
            shape_ids = torch.tensor([index])
            groups.append(pydiffvg.ShapeGroup(shape_ids, None, stroke_color=color.cpu()))
        scene = pydiffvg.RenderFunction.serialize_scene(side, side, shapes, groups)
        image: Tensor = pydiffvg.RenderFunction.apply(side, side, 2, 2, 0, None, *scene)
        return image

    return render
