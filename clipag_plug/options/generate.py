"""Options of `clipag generate` and `clipag_plug.synthesize`: what the recipe inside a picture holds."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from .base import Options, option

# What each preset decides. A field of `Generate` that is None takes its value from here.
# `policy` and `patch_policy` are lists of views (see clipag_plug.views.parse).
_LR = 0.05
_LR_FROM_MIXTURE = 0.03  # a sample of the mixture has its large shapes; smaller steps keep them
_FROM_NOISE = "spectral"  # there every shape has to be drawn, and Adam draws grain first
_COMMON: dict[str, Any] = {
    "steps": 50,
    "optimizer": "adam",
    "lr": _LR,
    "schedule": "cosine",
    "clip_gradient": 0.0,
    "threshold": 0.0,
    "init": "gmm",
    "candidates": 1,
    "drafts": 1,
    "views": 4,
    "policy": "frame 0.7 1.0 0.1, flip, noise 0.05",
    "patches": 0,
    "patch_policy": "frame 0.4 0.7, flip, noise 0.05",
    "patch_weight": 1.0,
    "reject": 0.0,
    "contrast": -1,
    "grid": -1,
    "grow": 1,
    "keep": "best",
    "quirks": False,
}
_DIFFAUGMENT = (
    "brightness 0.5, saturation 1, contrast 0.5, translate 0.125, resize 0.8 1.2, cutout 0.5"
)
_NOTEBOOK: dict[str, Any] = {
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
PRESETS: dict[str, dict[str, Any]] = {
    "fast": _COMMON,
    "paper": {**_COMMON, **_NOTEBOOK, "steps": 1000},
    "notebook": {**_COMMON, **_NOTEBOOK, "steps": 100, "quirks": True},
    "natural": {**_COMMON, "optimizer": "spectral", "lr": 0.02, "patches": 2, "drafts": 8},
    "sharp": {**_COMMON, "steps": 300, "views": 8, "patches": 8, "grid": 0, "grow": 3},
    "soft": {
        **_COMMON,
        "optimizer": "gradient",
        "lr": 0.29,
        "schedule": "quarter",
        "init": "noise",
        "views": 0,
        "grid": 112,
    },
}
_PER_PRESET = "; the preset decides"


@dataclasses.dataclass
class Generate(Options):
    """Text to picture without a generator (Ganz & Elad 2024, supplement 1.3)."""

    prompts: list[str] = option(
        [],
        "what to draw; several make several pictures; 'a fox:1 | blurry:-0.3' weighs parts",
        positional=True,
        metavar="PROMPT",
    )
    output: str = option(
        "", "picture (.png) or folder to write; default: runs/DATE-PROMPT-SEED", short="-o"
    )
    model: str = option("clipag-mini", "key or file of the guiding model", short="-m")
    ensemble: list[str] = option(
        [], "further models whose losses are averaged with the first one's"
    )
    preset: str = option("fast", "settings to start from", choices=tuple(PRESETS), short="-p")
    seed: int = option(0, "seed of the first variation", low=0, short="-s")
    variations: int = option(
        1, "pictures per prompt, with seeds seed, seed + 1, ...", low=1, short="-n"
    )
    prefixes: list[str] = option(
        [], "styles to sweep, put before every prompt, as 'an oil painting of'"
    )
    size: str = option(
        "", "side or WIDTHxHEIGHT of the picture in pixels; default: what the model sees"
    )
    steps: int | None = option(None, "updates of the picture" + _PER_PRESET, low=1)
    optimizer: str | None = option(
        None,
        "update rule; gradient is the gradient at unit RMS, spectral its momentum with fine grain held back"
        + _PER_PRESET,
        choices=("adam", "adamw", "gradient", "spectral"),
    )
    lr: float | None = option(None, "step size in pixel values of [0, 1]" + _PER_PRESET, low=0)
    schedule: str | None = option(
        None, "course of the step size" + _PER_PRESET, choices=("constant", "cosine", "quarter")
    )
    clip_gradient: float | None = option(
        None, "largest L2 norm of a picture's gradient, 0 for any", low=0
    )
    threshold: float | None = option(
        None,
        "quantile of dynamic thresholding after each step, 0 to clamp" + _PER_PRESET,
        low=0,
        high=1,
    )
    init: str | None = option(
        None, "start picture" + _PER_PRESET, choices=("noise", "gmm", "gray", "image")
    )
    image: str | None = option(None, "picture to start from; implies --init image")
    strength: float = option(0.0, "share of noise mixed into a start picture", low=0, high=1)
    mask: str | None = option(None, "picture whose white part may change; needs --image")
    prior: str | None = option(
        None, "fitted mixture for --init gmm; default: the one in the package"
    )
    candidates: int | None = option(None, "start candidates per class of the mixture", low=1)
    drafts: int | None = option(
        None,
        "pictures drawn for each one asked for; the one that the model finds closest is kept"
        + _PER_PRESET,
        low=1,
    )
    views: int | None = option(
        None, "random views of the picture per step, 0 for the bare picture", low=0
    )
    policy: str | None = option(None, "parts of a view" + _PER_PRESET)
    patches: int | None = option(None, "random patches per step" + _PER_PRESET, low=0)
    patch_policy: str | None = option(None, "parts of a patch" + _PER_PRESET)
    patch_weight: float | None = option(None, "weight of the patches beside the views' 1", low=0)
    reject: float | None = option(
        None, "share of a picture's easiest patches to leave out", low=0, high=1
    )
    contrast: float | None = option(
        None,
        "scale of a softmax of the prompt against the words of the bundled vocabulary that it does not mean, 0 for "
        "the cosine alone, -1 for what suits the model" + _PER_PRESET,
        low=-1,
    )
    tv: float = option(0.0, "weight of total variation", low=0)
    grid: int | None = option(
        None,
        "short side of the optimised pixels before upsampling, 0 for the full size, -1 for twice what the model sees"
        + _PER_PRESET,
        low=-1,
    )
    grow: int | None = option(
        None, "coarse-to-fine stages, each doubling the grid" + _PER_PRESET, low=1
    )
    keep: str | None = option(None, "iterate to return" + _PER_PRESET, choices=("best", "last"))
    quirks: bool | None = option(
        None,
        "the authors' slips: candidates of 20 classes, scored unnormalised; the picture after the best step",
    )
    precision: str = option("fp32", "of the encoder", choices=("fp32", "bf16", "fp16"))
    device: str | None = option(None, "cpu, cuda, mps; default: cuda if there is one")
    memory: int | None = option(
        None, "MiB that one step's views may take; fewer at once, same gradient", low=1
    )
    compile: bool = option(False, "compile the encoder with torch.compile")
    frames: int = option(0, "pictures of the trajectory to keep", low=0)
    animation: str | None = option(None, "trajectory as .gif, .webp, .png or .mp4")
    sheet: str | None = option(
        None,
        "one picture of all: contact, trajectory (start, middle, end) or stochasticity",
        choices=("contact", "trajectory", "stochasticity"),
    )
    log: str | None = option(None, "losses of every step as .csv")
    replay: str | None = option(
        None, "draw this picture again from the recipe inside it", short="--from"
    )

    json: bool = option(False, "print paths, seeds and losses as JSON instead of the paths")
    quiet: bool = option(False, "no bar and no remarks on stderr", short="-q")

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_size(self.size)
        if self.mask and not self.image:
            raise ValueError(f"--mask {self.mask!r} needs a picture to keep; add --image PICTURE")
        if self.init == "image" and not self.image:
            raise ValueError("--init image needs a picture; add --image PICTURE")
        if self.image and self.init not in (None, "image"):
            raise ValueError(f"--image and --init {self.init} exclude each other; leave --init out")

    def resolved(self) -> Generate:
        """A copy in which the preset has filled every field left at None that it decides.

        Without views the picture alone is optimised: no patches, and every pixel of it, unless asked otherwise.
        A start picture is edited at its full size too, so that it keeps its details. The presets that have no step size
        of their own take smaller steps from the mixture; `fast`, with views, takes the spectral rule from noise.
        """
        decided = dict(PRESETS[self.preset])
        if self.image:
            decided.update(init="image", grow=1, grid=0)
        if self.views == 0:
            decided.update(patches=0, grid=0, grow=1)
        init = self.init or decided["init"]
        if init == "gmm" and decided["lr"] == _LR:
            decided["lr"] = _LR_FROM_MIXTURE
        if init == "noise" and self.preset == "fast" and self.optimizer is None and self.views != 0:
            decided["optimizer"] = _FROM_NOISE
        chosen = {name: value for name, value in decided.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **chosen)


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
