"""Options of `clipag style` and `clipag_plug.pipelines.clipstyler`."""

from __future__ import annotations

import dataclasses
from typing import Any

from .base import Options, option
from .generate import parse_size

MODES = ("network", "pixels", "train", "fast")
# CLIPStyler (Kwon & Ye 2022): the defaults of its published scripts, for one picture and for fast transfer.
_PAPER: dict[str, Any] = {
    "size": "512",
    "steps": 201,
    "lr": 5e-4,
    "crops": 64,
    "crop_size": 128,
    "batch": 1,
    "patch": 9000.0,
    "direction": 500.0,
    "content": 150.0,
    "tv": 2e-3,
    "residual": False,
    "finish": True,
}
_FAST: dict[str, Any] = {
    "size": "512",
    "steps": 200,
    "lr": 1e-4,
    "crops": 16,
    "crop_size": 224,
    "batch": 4,
    "patch": 10.0,
    "direction": 1.0,
    "content": 1.0,
    "tv": 1e-4,
    "finish": True,
}
_DEMO: dict[str, Any] = {
    **_PAPER,
    "size": "64",
    "steps": 120,
    "lr": 5e-3,
    "crops": 16,
    "crop_size": 32,
    "tv": 1.0,
    "residual": True,
    "finish": False,
}
# By preset, then by mode. Pixels need a larger step; in `demo`, more smoothness and more hold on the content too.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {"network": _PAPER, "pixels": {**_PAPER, "lr": 0.01}, "train": _FAST, "fast": _FAST},
    "demo": {
        "network": {**_DEMO, "content": 50.0, "tv": 0.3},
        "pixels": {**_DEMO, "lr": 0.02},
        "train": {**_FAST, "size": "128", "steps": 60, "lr": 2e-3, "crop_size": 64, "crops": 4},
        "fast": {**_FAST, "size": "128"},
    },
}
_PER_PRESET = "; the preset decides"


@dataclasses.dataclass
class Style(Options):
    """A picture in a style that a sentence describes (CLIPStyler, Kwon & Ye 2022)."""

    prompts: list[str] = option(
        [], "the style; several make several pictures", positional=True, metavar="PROMPT"
    )
    image: str | None = option(None, "picture whose content is kept", short="-i")
    output: str = option("styled.png", "picture to write, or the sheet of --compare", short="-o")
    animation: str | None = option(None, "the picture's course as .gif, .webp, .png or .mp4")
    mode: str = option(
        "network",
        "optimise a network for this picture, or its pixels; train a network for all pictures, or use one (fast)",
        choices=MODES,
    )
    network: str | None = option(
        None, "file of the network that --mode train writes and --mode fast reads (.safetensors)"
    )
    photos: str | None = option(
        None, "folder of photographs for --mode train; default: those in the package"
    )
    model: str = option("clipag-mini", "key or file of the guiding model", short="-m")
    compare: bool = option(False, "style under its vanilla counterpart as well, side by side")
    vanilla: str | None = option(
        None, "that counterpart; default: what the model was fine-tuned from"
    )
    preset: str = option("paper", "settings to start from", choices=tuple(PRESETS), short="-p")
    seed: int = option(0, "of the network and the views", low=0, short="-s")
    source: str = option("a Photo", "what the picture is before, in words; '' for nothing")
    features: str = option(
        "mini",
        "network that measures content; vgg19 is the published one and a download",
        choices=("mini", "vgg19"),
    )
    vgg: str | None = option(None, "file of torchvision's VGG19, instead of the download")
    size: str | None = option(None, "side or WIDTHxHEIGHT in pixels" + _PER_PRESET)
    steps: int | None = option(None, "updates" + _PER_PRESET, low=1)
    lr: float | None = option(None, "Adam's step size" + _PER_PRESET, low=0)
    crops: int | None = option(None, "patches a step, or views of a photograph", low=1)
    crop_size: int | None = option(None, "their side in pixels" + _PER_PRESET, low=8)
    batch: int | None = option(None, "photographs a step of --mode train", low=1)
    patch: float | None = option(None, "weight of the patches' direction" + _PER_PRESET, low=0)
    direction: float | None = option(None, "weight of the whole picture's direction", low=0)
    content: float | None = option(None, "weight of the content" + _PER_PRESET, low=0)
    tv: float | None = option(None, "weight of total variation" + _PER_PRESET, low=0)
    threshold: float = option(0.7, "patches with a loss below it count as done", low=0, high=2)
    distortion: float = option(0.5, "of a patch's perspective", low=0, high=1)
    width: int = option(16, "of the network's first level", low=1)
    residual: bool | None = option(
        None, "the network of one picture changes it, else it makes one anew" + _PER_PRESET
    )
    finish: bool | None = option(
        None, "raise the contrast at the end, as the published script does" + _PER_PRESET
    )
    frames: int = option(0, "pictures of the course to keep", low=0)
    device: str | None = option(None, "cpu, cuda, mps; default: cuda if there is one")

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_size(self.size or "")
        if self.mode in ("train", "fast") and not self.network:
            raise ValueError(f"--mode {self.mode} needs the network's file; add --network FILE")
        if self.mode != "train" and not self.image:
            raise ValueError("no picture to style; add --image PICTURE")

    def resolved(self) -> Style:
        """A copy in which the preset has filled every field left at None that it decides."""
        decided = PRESETS[self.preset][self.mode].items()
        return dataclasses.replace(
            self, **{name: value for name, value in decided if getattr(self, name) is None}
        )
