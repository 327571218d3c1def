"""Options of `clipag generate` and `clipag_plug.synthesize`: what the recipe inside a picture holds."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from . import picture
from .base import option

_DIFFAUGMENT = (
    "brightness 0.5, saturation 1, contrast 0.5, translate 0.125, resize 0.8 1.2, cutout 0.5"
)
# Step size of a rule on pixels where neither the user nor the preset has one for it.
_RATES = {"gradient": 0.06, "adam": 0.03, "adamw": 0.03, "nadam": 0.03, "sign": 0.01, "sgd": 0.2}
_RATES["spectral"] = 0.02
# What differs from the preset `fast`, whose values are written at the fields.
_PAPER: dict[str, Any] = {
    "steps": 1000,
    "optimizer": "adamw",  # AdamW's default decay of 0.01 pulls the pixels towards black
    "lr": 0.0175,
    "schedule": "constant",
    "clip_gradient": 0.001,  # under Adam this changes nothing but the weight of its epsilon
    "threshold": 0.95,
    "candidates": 5,
    "views": 32,
    "policy": f"noise 0.01, {_DIFFAUGMENT}",
    "patches": 32,
    "patch_policy": f"noise 0.01 shared, crop 128, clamp, {_DIFFAUGMENT}",
    "patch_weight": 5.0,
    "contrast": 0,
    "grid": 0,
}
_SOFT = {"optimizer": "gradient", "lr": 0.29, "schedule": "quarter", "init": "noise"}
_BARE: dict[str, Any] = {"schedule": "constant", "contrast": 0, "grid": 0, "keep": "last"}
_OWN = {**_BARE, "init": "own", "optimizer": "adam"}
_CHANGES: dict[str, dict[str, Any]] = {
    "fast": {},
    "paper": _PAPER,
    "notebook": {**_PAPER, "steps": 100, "quirks": True},
    "natural": {"optimizer": "spectral", "lr": 0.02, "patches": 2, "drafts": 8},
    "sharp": {"steps": 300, "views": 8, "patches": 8, "grid": 0, "grow": 3},
    "soft": {**_SOFT, "views": 0, "grid": 112},
    # Direct ascent synthesis (Fort & Whitaker 2025).
    "das": {
        **_BARE,
        "canvas": "pyramid",
        "steps": 100,
        "optimizer": "sgd",
        "lr": 0.2,
        "init": "gray",
        "margin": 0.25,
        "views": 32,
        "policy": "crop 224, uniform-noise 0 0.2, clamp",
    },
    # CLIPInversion (Kazemi et al. 2024): grids of 64, 128 and 224, the later two from steps 900 and 1,800 on.
    "inversion": {
        **_OWN,
        "steps": 3400,
        "lr": 0.1,
        "clip_gradient": 1.0,
        "views": 13,
        "policy": "bicubic, affine 30 0.1 0.7 1.2 0.5",
        "objective": "distance",
        "tv4": 0.005,
        "grid": 256,
        "grow": 3,
        "grow_share": 2700 / 3400,
    },
    # Lucid (Olah et al. 2017), its angles and scales drawn from intervals.
    "lucid": {
        **_OWN,
        "canvas": "fourier",
        "decorrelate": True,
        "steps": 512,
        "lr": 0.05,
        "grid": 128,
        "views": 1,
        "policy": "pad 12 0.5, jitter 8, affine 10 0 0.9 1.1 1, jitter 4",
    },
    # MACO (Fel et al. 2023) as in xplique; published at --size 512.
    "maco": {
        **_OWN,
        "canvas": "phase",
        "decorrelate": True,
        "steps": 256,
        "optimizer": "nadam",
        "lr": 1.0,
        "views": 32,
        "policy": "gaze 0.5>0.05 0.05 0.15, noise 0.08, uniform-noise -0.04 0.04",
    },
}
# What a canvas that is not the preset's own changes in it.
_FREE = {"threshold": 0.0, "grid": 0, "grow": 1, "margin": 0.0}
_CANVASES: dict[str, dict[str, Any]] = {
    "pixels": {
        "optimizer": "gradient",
        "lr": _RATES["gradient"],
        "margin": 0.0,
        "decorrelate": False,
    },
    "pyramid": {**_FREE, "optimizer": "sgd", "lr": 0.2},
    "fourier": {**_FREE, "optimizer": "adam", "lr": 0.05, "decorrelate": True},
    "phase": {**_FREE, "optimizer": "nadam", "lr": 1.0, "decorrelate": True},
    "accent": {**_FREE, "optimizer": "gradient", "lr": 0.1, "decorrelate": True, "anchor": 1.0},
}
# What a picture shall look like: the words before its prompt, and the start.
LOOKS: dict[str, tuple[str, str]] = {
    "photo": ("a photo of", "noise"),
    "cartoon": ("a cartoon of", "gray"),
}
# Where a result goes does not change it: pictures drawn alike have the same bytes wherever they are written.
PRESENTATION = (
    *(name for name in picture.PRESENTATION if name != "variations"),
    *("sheet", "log", "replay"),
)


def decided(fast: Any, help: str, **checks: Any) -> Any:
    """A field that the preset fills where it is None; `fast` is its value in the preset of that name."""
    field = option(None, f"{help}; the preset decides", **checks)
    return dataclasses.field(default=None, metadata={**field.metadata, "fast": fast})


@dataclasses.dataclass
class Generate(picture.Picture):
    """Text to picture without a generator (Ganz & Elad 2024, supplement 1.3)."""

    ensemble: list[str] = option([], "further models, whose losses are averaged with the first's")
    preset: str = option("fast", "settings to start from", choices=tuple(_CHANGES), short="-p")
    look: str | None = option(
        None,
        "a start and words before the prompt, 'a photo of' or 'a cartoon of'",
        choices=tuple(LOOKS),
    )
    prefixes: list[str] = option([], "styles to put before every prompt, as 'an oil painting of'")
    size: str = option(
        "",
        "side or WIDTHxHEIGHT in pixels; default: painted as the model sees it, written with a short side of 448",
    )
    steps: int | None = decided(50, "updates of the picture", low=1)
    optimizer: str | None = decided(
        "gradient",
        "update rule; gradient is the gradient at unit RMS, spectral its momentum with fine grain held back",
        choices=("adam", "adamw", "nadam", "gradient", "sgd", "sign", "spectral"),
    )
    tilt: float | None = decided(0.5, "spectral weighs a frequency f by f^-tilt", low=0, high=4)
    lr: float | None = decided(
        _RATES["gradient"], "step size in the canvas's values; pixels: of [0, 1]", low=0
    )
    schedule: str | None = decided(
        "cosine", "course of the step size", choices=("constant", "cosine", "quarter")
    )
    clip_gradient: float | None = decided(0.0, "largest L2 norm of a gradient, 0 for any", low=0)
    threshold: float | None = decided(
        0.0, "quantile of dynamic thresholding after each step, 0 to clamp", low=0, high=1
    )
    canvas: str | None = decided(
        "pixels", "what is optimised in place of the picture", choices=tuple(_CANVASES)
    )
    decorrelate: bool | None = decided(False, "optimise in Lucid's colours; not for pixels")
    margin: float | None = decided(
        0.0, "share of the short side that the canvas reaches beyond each border", low=0, high=1
    )
    init: str | None = decided(
        "gmm",
        "start picture, own: the canvas's own noise",
        choices=("noise", "gmm", "gray", "image", "own"),
    )
    image: str | None = option(None, "picture to start from; implies --init image", short="-i")
    strength: float = option(0.0, "share of noise mixed into a start picture", low=0, high=1)
    mask: str | None = option(None, "picture whose white part may change; needs --image")
    prior: str | None = option(None, "mixture for --init gmm; default: the one in the package")
    candidates: int | None = decided(1, "start candidates per class of the mixture", low=1)
    drafts: int | None = decided(
        1, "pictures drawn for each one asked for; the one closest to its prompt is kept", low=1
    )
    views: int | None = decided(4, "random views a step, 0 for the bare picture", low=0)
    policy: str | None = decided("frame 0.7 1.0 0.1, flip, noise 0.05", "parts of a view")
    patches: int | None = decided(0, "random patches a step", low=0)
    patch_policy: str | None = decided("frame 0.4 0.7, flip, noise 0.05", "parts of a patch")
    patch_weight: float | None = decided(1.0, "weight of the patches beside the views' 1", low=0)
    reject: float | None = decided(
        0.0, "share of a picture's easiest patches to leave out", low=0, high=1
    )
    contrast: float | None = decided(
        -1,
        "scale of a softmax of the prompt against the words of the bundled vocabulary that it does not mean, 0 for "
        "the cosine alone, -1 for what suits the model",
        low=-1,
    )
    objective: str | None = decided(
        "cosine", "loss of a view", choices=("cosine", "distance", "atanh")
    )
    like: str | None = option(None, "picture whose embedding is a further target")
    target: str | None = option(
        None, "raise a layer of the model: LAYER, LAYER:CHANNEL or LAYER:DIRECTION.npy"
    )
    tv: float = option(0.0, "weight of total variation", low=0)
    tv4: float | None = decided(0.0, "weight of CLIPInversion's, in four directions", low=0)
    anchor: float | None = decided(0.0, "weight of the squared distance to the start", low=0)
    grid: int | None = decided(
        -1,
        "short side of the optimised pixels before upsampling, 0 for the full size, -1 for the model's, 128 or more",
        low=-1,
    )
    grow: int | None = decided(1, "coarse-to-fine stages, each doubling the grid", low=1)
    grow_share: float | None = decided(1.0, "share of the steps over which it grows", low=0.01)
    budget: int | None = option(
        None, "passes of a view through a model; sets the steps, not the views", low=1
    )
    keep: str | None = decided("best", "iterate to return", choices=("best", "last"))
    quirks: bool | None = decided(
        False,
        "the authors' slips: candidates of 20 classes, scored unnormalised; the picture after the best step",
    )
    memory: int | None = option(
        None, "MiB that one step's views may take; fewer at once, same gradient", low=1
    )
    compile: bool = option(False, "compile the encoder with torch.compile")
    sheet: str | None = option(
        None,
        "one picture of all: contact, trajectory (start, middle, end) or stochasticity",
        choices=("contact", "trajectory", "stochasticity"),
    )
    log: str | None = option(None, "losses of every step as .csv")
    replay: str | None = option(
        None, "draw this picture again from the recipe inside it", short="--from"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_size(self.size)
        if self.look and self.prefixes:
            raise ValueError(
                f"--look {self.look} and --prefixes both put words before the prompt; leave one out"
            )
        if self.mask and not self.image:
            raise ValueError(f"--mask {self.mask!r} needs a picture to keep; add --image PICTURE")
        if self.init == "image" and not self.image:
            raise ValueError("--init image needs a picture; add --image PICTURE")
        if self.image and self.init not in (None, "image"):
            raise ValueError(f"--image and --init {self.init} exclude each other; leave --init out")
        if (self.contrast or 0) > 0 and self.objective not in (None, "cosine"):
            raise ValueError(f"--contrast needs --objective cosine, not {self.objective}")
        if self.canvas in (None, "pixels"):
            wrong = "--decorrelate" if self.decorrelate and self.canvas else ""
        else:
            wrong = "--threshold" if self.threshold else ""
        if wrong:
            raise ValueError(f"{wrong} does nothing on --canvas {self.canvas}; leave it out")

    def count(self) -> int:
        return super().count() * max(len(self.prefixes), 1)

    def files(self) -> list[str]:
        """What the picture is made from besides the model."""
        readout = (self.target or "").partition(":")[2]
        paths = (self.image, self.mask, self.prior, self.like)
        return [path for path in (*paths, readout) if path and (path in paths or ".npy" in path)]

    def passes(self) -> int:
        """Views through a model that a picture of resolved options takes, each forward and backward."""
        return int(self.steps or 0) * self._passes_a_step(self.views, self.patches)

    def _passes_a_step(self, views: int | None, patches: int | None) -> int:
        return (max(views or 0, 1) + (patches or 0)) * (1 + len(self.ensemble))

    def resolved(self) -> Generate:
        """A copy in which the preset has filled every field left at None that it decides.

        Without views the picture alone is optimised: no patches, and every pixel of it, unless asked otherwise.
        A start picture is edited at its full size too, so that it keeps its details. A rule that is not the
        preset's brings its own step size.
        """
        values = dict(PRESETS[self.preset])
        if self.canvas not in (None, values["canvas"]):
            values |= _CANVASES[str(self.canvas)]
        pixels = (self.canvas or values["canvas"]) == "pixels"
        if self.look and pixels:
            values["init"] = LOOKS[self.look][1]
        if not self.prompts and not self.like:
            values["init"] = "own"
        if self.image:
            values.update(init="image", grow=1, grid=0)
        if self.views == 0:
            values.update(patches=0, grid=0, grow=1)
        if pixels and self.optimizer not in (None, values["optimizer"]):
            values["lr"] = _RATES[str(self.optimizer)]
        chosen = {name: value for name, value in values.items() if getattr(self, name) is None}
        filled = dataclasses.replace(self, **chosen)
        if self.look:
            filled.prefixes = [LOOKS[self.look][0]]
            filled.look = None  # what is resolved says it in full
        if self.budget:
            each = self._passes_a_step(filled.views, filled.patches)
            filled.steps = max(self.budget // each, 1)
        return filled


_FAST = {f.name: f.metadata["fast"] for f in dataclasses.fields(Generate) if "fast" in f.metadata}
PRESETS: dict[str, dict[str, Any]] = {
    name: {**_FAST, **changes} for name, changes in _CHANGES.items()
}


def parse_size(text: str | int) -> tuple[int, int] | None:
    """'384x256' -> (height 256, width 384); '224' -> (224, 224); '' -> None. ValueError otherwise."""
    if text in ("", None):
        return None
    match = re.fullmatch(r"(\d+)(?:[xX](\d+))?", str(text).strip())
    if match is None:
        raise ValueError(f"--size is {text!r}; it must be a side (224) or WIDTHxHEIGHT (384x256)")
    width = int(match[1])
    height = int(match[2] or width)
    if not 8 <= min(width, height) <= max(width, height) <= 8192:
        raise ValueError(f"--size is {text!r}; a side must have between 8 and 8192 pixels")
    return height, width
