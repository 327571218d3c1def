"""Options of `clipag clipdraw` and `clipag_plug.pipelines.clipdraw`."""

from __future__ import annotations

import dataclasses
from typing import Any

from .base import Options, option

# CLIPDraw (Frans et al. 2022): the defaults of its notebook, which CLIPAG's own notebook keeps. `predict` differs in
# one thing: the script of that name feeds CLIP normalised views.
_PAPER: dict[str, Any] = {
    "steps": 1000,
    "strokes": 256,
    "segments": 3,
    "radius": 0.1,
    "canvas": 224,
    "max_width": 50.0,
    "lr_points": 1.0,
    "lr_width": 0.1,
    "lr_color": 0.01,
    "augment": True,
    "views": 4,
    "distortion": 0.5,
    "crop_low": 0.7,
    "crop_high": 0.9,
    "normalize": False,
}
PRESETS: dict[str, dict[str, Any]] = {
    "paper": _PAPER,
    "predict": {**_PAPER, "normalize": True},
    "demo": {
        **_PAPER,
        "steps": 400,
        "strokes": 128,
        "canvas": 112,
        "max_width": 12.0,
        "lr_width": 0.2,
        "lr_color": 0.03,
        "views": 12,
        "crop_low": 0.5,
        "crop_high": 1.0,
        "normalize": True,
    },
}
_PER_PRESET = "; the preset decides"


@dataclasses.dataclass
class ClipDraw(Options):
    """Drawing with strokes towards a sentence (CLIPDraw, Frans et al. 2022)."""

    prompts: list[str] = option(
        [], "what to draw; several make several drawings", positional=True, metavar="PROMPT"
    )
    output: str = option("drawing.png", "picture to write, or the sheet of --compare", short="-o")
    svg: str | None = option(None, "the strokes as .svg")
    animation: str | None = option(None, "the drawing's course as .gif, .webp, .png or .mp4")
    model: str = option("clipag-mini", "key or file of the guiding model", short="-m")
    compare: bool = option(False, "draw under its vanilla counterpart as well, side by side")
    vanilla: str | None = option(
        None, "that counterpart; default: what the model was fine-tuned from"
    )
    preset: str = option("paper", "settings to start from", choices=tuple(PRESETS), short="-p")
    seed: int = option(0, "of strokes and views", low=0, short="-s")
    negatives: list[str] = option([], "what the drawing should not be")
    negative_weight: float = option(0.3, "weight of each of these", low=0)
    steps: int | None = option(None, "updates" + _PER_PRESET, low=1)
    strokes: int | None = option(None, "strokes" + _PER_PRESET, low=1, high=20000)
    segments: int | None = option(None, "a stroke has 1 to this many curves" + _PER_PRESET, low=1)
    radius: float | None = option(
        None, "reach of a stroke's points at the start, as a share of the canvas", low=0
    )
    canvas: int | None = option(None, "side in pixels" + _PER_PRESET, low=8, high=4096)
    max_width: float | None = option(
        None, "half of the largest visible width, in pixels" + _PER_PRESET, low=1
    )
    lr_points: float | None = option(None, "Adam's step size for points, in pixels", low=0)
    lr_width: float | None = option(None, "the same for widths, in pixels", low=0)
    lr_color: float | None = option(None, "the same for colours, of [0, 1]" + _PER_PRESET, low=0)
    augment: bool | None = option(
        None, "look at random views of the canvas, else at the canvas" + _PER_PRESET
    )
    views: int | None = option(None, "views a step" + _PER_PRESET, low=1)
    distortion: float | None = option(None, "of a view's perspective", low=0, high=1)
    crop_low: float | None = option(None, "smallest area of a view, as a share", low=0.01, high=1)
    crop_high: float | None = option(None, "largest area of a view, as a share", low=0.01, high=1)
    normalize: bool | None = option(
        None, "give the model the pixels in its own normalisation" + _PER_PRESET
    )
    backend: str = option(
        "own", "renderer: the package's, or diffvg where it is installed", choices=("own", "diffvg")
    )
    frames: int = option(0, "pictures of the course to keep", low=0)
    device: str | None = option(None, "cpu, cuda, mps; default: cuda if there is one")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop_low and self.crop_high and self.crop_low > self.crop_high:
            raise ValueError(
                f"--crop-low {self.crop_low} is above --crop-high {self.crop_high}; exchange them"
            )

    def resolved(self) -> ClipDraw:
        """A copy in which the preset has filled every field left at None that it decides."""
        decided = PRESETS[self.preset].items()
        return dataclasses.replace(
            self, **{name: value for name, value in decided if getattr(self, name) is None}
        )
