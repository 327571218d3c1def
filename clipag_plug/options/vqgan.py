"""Options of `clipag vqgan` and `clipag_plug.pipelines.vqgan_clip`."""

from __future__ import annotations

import dataclasses
from typing import Any

from .base import option
from .generate import parse_size
from .picture import PER_PRESET, Picture

BACKENDS = ("own", "taming")
CUTS = ("latest", "original", "updated", "pooling", "moved", "plain")
# VQGAN+CLIP (Crowson et al. 2022) with the defaults of its most used script, nerdyrodent/VQGAN-CLIP. `style` is that
# script's advice for changing a given picture. Its size is 512 where there is a large GPU and 256 without one.
_PAPER: dict[str, Any] = {"steps": 501, "optimizer": "adam", "lr": 0.1, "cuts": 32}
_PAPER |= {"cut_method": "latest", "cut_power": 1.0, "init": "codes", "init_weight": 0.0}
_PAPER |= {"size": ""}
PRESETS: dict[str, dict[str, Any]] = {
    "paper": _PAPER,
    "style": {**_PAPER, "steps": 81, "optimizer": "adamw", "lr": 0.25},
    "demo": {**_PAPER, "steps": 150, "cuts": 12, "cut_method": "moved", "size": "64"},
}


@dataclasses.dataclass
class Vqgan(Picture):
    """Pictures from a VQGAN's codes, steered by sentences (VQGAN+CLIP, Crowson et al. 2022).

    A part of a prompt may have a stop behind its weight, as in 'text:-1:-0.8'.
    """

    PRESETS = PRESETS

    preset: str = option("paper", "settings to start from", choices=tuple(PRESETS), short="-p")
    autoencoder: str = option(
        "vqgan-mini", "vqgan-mini, imagenet-f16-16384 (a download), or a file"
    )
    config: str | None = option(None, "the .yaml or .json that belongs to such a file")
    backend: str = option("own", "whose code: ours, or taming-transformers'", choices=BACKENDS)
    size: str | None = option(
        None,
        "side or WIDTHxHEIGHT in pixels; default: made as the preset says, written with a short side of 448",
    )
    image: str | None = option(None, "picture to start from", short="-i")
    init: str | None = option(None, "start without one", choices=("codes", "noise"))
    init_weight: float | None = option(None, "pull of the codes towards zero" + PER_PRESET, low=0)
    steps: int | None = option(None, "updates" + PER_PRESET, low=1)
    optimizer: str | None = option(None, "update rule", choices=("adam", "adamw", "rmsprop"))
    lr: float | None = option(None, "step size in units of the codes" + PER_PRESET, low=0)
    cuts: int | None = option(None, "cutouts a step" + PER_PRESET, low=1)
    cut_method: str | None = option(None, "how they are made" + PER_PRESET, choices=CUTS)
    cut_power: float | None = option(None, "above 1 prefers small cutouts" + PER_PRESET, low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_size(self.size or "")
