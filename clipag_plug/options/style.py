"""Options of `clipag style` and `clipag_plug.pipelines.clipstyler`."""

from __future__ import annotations

import dataclasses
from typing import Any

from .base import option
from .generate import parse_size
from .picture import PER_PRESET, Picture

MODES, FEATURES = ("network", "pixels"), ("mini", "vgg19")
# CLIPStyler (Kwon & Ye 2022): the defaults of its published script for one picture.
_PAPER: dict[str, Any] = {"side": 512, "steps": 201, "lr": 5e-4, "crops": 64, "crop_size": 128}
_PAPER |= {"patch": 9000.0, "direction": 500.0, "content": 150.0, "tv": 2e-3}
_PAPER |= {"residual": False, "finish": True}
_DEMO: dict[str, Any] = {**_PAPER, "side": 64, "steps": 120, "lr": 5e-3, "crops": 16}
_DEMO |= {"crop_size": 32, "tv": 1.0, "residual": True, "finish": False}
# By preset, then by mode. Pixels need a larger step; in `demo`, more smoothness and more hold on the content too.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "paper": {"network": _PAPER, "pixels": {**_PAPER, "lr": 0.01}},
    "demo": {"network": {**_DEMO, "content": 50.0, "tv": 0.3}, "pixels": {**_DEMO, "lr": 0.02}},
}


@dataclasses.dataclass
class Style(Picture):
    """A picture in a style that a sentence describes (CLIPStyler, Kwon & Ye 2022)."""

    image: str | None = option(None, "picture whose content is kept", short="-i")
    mode: str = option("network", "what is optimised for this picture", choices=MODES)
    preset: str = option("paper", "settings to start from", choices=tuple(PRESETS), short="-p")
    source: str = option("a Photo", "what the picture is before, in words; '' for nothing")
    features: str = option("mini", "what measures content; vgg19: a download", choices=FEATURES)
    vgg: str | None = option(None, "file of torchvision's VGG19, instead of the download")
    size: str | None = option(
        None,
        "side or WIDTHxHEIGHT to cut, style and return the picture at; default: the picture's own size, at most 2048 "
        "pixels a side, to which the change made at --side is enlarged",
    )
    side: int | None = option(
        None, "short side at which it is styled without --size" + PER_PRESET, low=8, high=2048
    )
    steps: int | None = option(None, "updates" + PER_PRESET, low=1)
    lr: float | None = option(None, "Adam's step size" + PER_PRESET, low=0)
    crops: int | None = option(None, "patches a step" + PER_PRESET, low=1)
    crop_size: int | None = option(None, "their side in pixels" + PER_PRESET, low=8)
    patch: float | None = option(None, "weight of the patches' direction" + PER_PRESET, low=0)
    direction: float | None = option(None, "weight of the whole picture's direction", low=0)
    content: float | None = option(None, "weight of the content" + PER_PRESET, low=0)
    tv: float | None = option(None, "weight of total variation" + PER_PRESET, low=0)
    threshold: float = option(0.7, "patches with a loss below it count as done", low=0, high=2)
    distortion: float = option(0.5, "of a patch's perspective", low=0, high=1)
    width: int = option(16, "of the network's first level", low=1)
    residual: bool | None = option(None, "the network changes the picture, else makes one anew")
    finish: bool | None = option(None, "raise the contrast at the end, as the published script")

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_size(self.size or "")
        if not self.image:
            raise ValueError("no picture to style; add --image PICTURE")

    def decided(self) -> dict[str, Any]:
        return PRESETS[self.preset][self.mode]
