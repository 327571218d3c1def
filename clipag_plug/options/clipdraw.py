"""Options of `clipag clipdraw` and `clipag_plug.pipelines.clipdraw`."""

from __future__ import annotations

import dataclasses
from typing import Any

from .base import option
from .picture import PER_PRESET, Picture

# CLIPDraw (Frans et al. 2022): the defaults of its notebook, which CLIPAG's own notebook keeps. `predict` differs in
# one thing: the script of that name feeds CLIP normalised views.
_PAPER: dict[str, Any] = {"strokes": 256, "segments": 3, "radius": 0.1, "canvas": 224}
_PAPER |= {"steps": 1000, "max_width": 50.0, "lr_points": 1.0, "lr_width": 0.1, "lr_color": 0.01}
_PAPER |= {"augment": True, "views": 4, "distortion": 0.5, "crop_low": 0.7, "crop_high": 0.9}
_PAPER |= {"normalize": False}
_DEMO: dict[str, Any] = {"steps": 400, "strokes": 128, "canvas": 112, "max_width": 12.0}
_DEMO |= {"lr_width": 0.2, "lr_color": 0.03, "views": 12, "crop_low": 0.5, "crop_high": 1.0}
PRESETS = {
    "paper": _PAPER,
    "predict": {**_PAPER, "normalize": True},
    "demo": {**_PAPER, **_DEMO, "normalize": True},
}


@dataclasses.dataclass
class ClipDraw(Picture):
    """Drawing with strokes towards a sentence (CLIPDraw, Frans et al. 2022)."""

    PRESETS = PRESETS

    size: int = option(448, "side of the picture that is rendered; 0: canvas", low=0, high=8192)
    svg: str | None = option(None, "the strokes as .svg")
    preset: str = option("paper", "settings to start from", choices=tuple(PRESETS), short="-p")
    negatives: list[str] = option([], "what the drawing should not be")
    negative_weight: float = option(0.3, "weight of each of these", low=0)
    steps: int | None = option(None, "updates" + PER_PRESET, low=1)
    strokes: int | None = option(None, "strokes" + PER_PRESET, low=1, high=20000)
    segments: int | None = option(None, "a stroke has 1 to this many curves" + PER_PRESET, low=1)
    radius: float | None = option(None, "reach of the first points, share of the canvas", low=0)
    canvas: int | None = option(None, "side of what the model sees, pixels", low=8, high=4096)
    max_width: float | None = option(None, "half of the largest visible width, pixels", low=1)
    lr_points: float | None = option(None, "Adam's step size for points, in pixels", low=0)
    lr_width: float | None = option(None, "the same for widths, in pixels", low=0)
    lr_color: float | None = option(None, "the same for colours, of [0, 1]" + PER_PRESET, low=0)
    augment: bool | None = option(None, "look at random views of the canvas, else at it alone")
    views: int | None = option(None, "views a step" + PER_PRESET, low=1)
    distortion: float | None = option(None, "of a view's perspective", low=0, high=1)
    crop_low: float | None = option(None, "smallest area of a view, as a share", low=0.01, high=1)
    crop_high: float | None = option(None, "largest area of a view, as a share", low=0.01, high=1)
    normalize: bool | None = option(None, "give the model pixels in its own normalisation")
    backend: str = option("own", "renderer, the package's or diffvg", choices=("own", "diffvg"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop_low and self.crop_high and self.crop_low > self.crop_high:
            raise ValueError(
                f"--crop-low {self.crop_low} is above --crop-high {self.crop_high}; exchange them"
            )
