"""Options of `clipag vqgan` and of the training of its autoencoder."""

from __future__ import annotations

import dataclasses
from typing import Any

from .base import Options, option
from .generate import parse_size

CUTS = ("latest", "original", "updated", "pooling", "moved", "plain")
# VQGAN+CLIP (Crowson et al. 2022) with the defaults of its most used script, nerdyrodent/VQGAN-CLIP. `style` is that
# script's advice for changing a given picture. Its size is 512 where there is a large GPU and 256 without one.
_PAPER: dict[str, Any] = {
    "steps": 501,
    "optimizer": "adam",
    "lr": 0.1,
    "cuts": 32,
    "cut_method": "latest",
    "cut_power": 1.0,
    "init": "codes",
    "init_weight": 0.0,
    "size": "",
}
PRESETS: dict[str, dict[str, Any]] = {
    "paper": _PAPER,
    "style": {**_PAPER, "steps": 81, "optimizer": "adamw", "lr": 0.25},
    "demo": {**_PAPER, "steps": 150, "cuts": 12, "cut_method": "moved", "size": "64"},
}
_PER_PRESET = "; the preset decides"


@dataclasses.dataclass
class Vqgan(Options):
    """Pictures from a VQGAN's codes, steered by sentences (VQGAN+CLIP, Crowson et al. 2022)."""

    prompts: list[str] = option(
        [],
        "what to draw; several make several pictures; 'a fox:1 | fog:0.5 | text:-1:-0.8' has weights and stops",
        positional=True,
        metavar="PROMPT",
    )
    output: str = option("vqgan.png", "picture to write, or the sheet of --compare", short="-o")
    animation: str | None = option(None, "the picture's course as .gif, .webp, .png or .mp4")
    model: str = option("clipag-mini", "key or file of the guiding model", short="-m")
    compare: bool = option(False, "draw under its vanilla counterpart as well, side by side")
    vanilla: str | None = option(
        None, "that counterpart; default: what the model was fine-tuned from"
    )
    preset: str = option("paper", "settings to start from", choices=tuple(PRESETS), short="-p")
    seed: int = option(0, "of the start and the cuts", low=0, short="-s")
    autoencoder: str = option(
        "vqgan-mini", "vqgan-mini (in the package), imagenet-f16-16384 (a download), or a file"
    )
    config: str | None = option(None, "the .yaml or .json that belongs to such a file")
    backend: str = option(
        "own",
        "autoencoder's code: the package's, or taming-transformers",
        choices=("own", "taming"),
    )
    size: str | None = option(None, "side or WIDTHxHEIGHT in pixels" + _PER_PRESET)
    image: str | None = option(None, "picture to start from")
    init: str | None = option(
        None, "start without one: random codes, or noise pixels", choices=("codes", "noise")
    )
    init_weight: float | None = option(None, "pull of the codes towards zero" + _PER_PRESET, low=0)
    steps: int | None = option(None, "updates" + _PER_PRESET, low=1)
    optimizer: str | None = option(None, "update rule", choices=("adam", "adamw", "rmsprop"))
    lr: float | None = option(None, "step size in units of the codes" + _PER_PRESET, low=0)
    cuts: int | None = option(None, "cutouts a step" + _PER_PRESET, low=1)
    cut_method: str | None = option(None, "how they are made" + _PER_PRESET, choices=CUTS)
    cut_power: float | None = option(None, "above 1 prefers small cutouts" + _PER_PRESET, low=0)
    frames: int = option(0, "pictures of the course to keep", low=0)
    device: str | None = option(None, "cpu, cuda, mps; default: cuda if there is one")

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_size(self.size or "")

    def resolved(self) -> Vqgan:
        """A copy in which the preset has filled every field left at None that it decides."""
        decided = PRESETS[self.preset].items()
        return dataclasses.replace(
            self, **{name: value for name, value in decided if getattr(self, name) is None}
        )


@dataclasses.dataclass
class TrainVQGAN(Options):
    """A small VQGAN autoencoder from photographs (Esser et al. 2021, without the discriminator)."""

    data: list[str] = option([], "photographs: WebDataset tar files, or .npy of uint8 (N, H, W, 3)")
    validation: list[str] = option([], "held-out photographs for the reconstruction's PSNR")
    output: str = option("runs/vqgan-mini", "folder of the run", short="-o")
    ch: int = option(64, "width of the first level", low=32)
    ch_mult: list[int] = option([1, 1, 1], "widths of the levels, as multiples of it", low=1)
    num_res_blocks: int = option(
        0, "blocks a level of the encoder; the decoder has one more", low=0
    )
    z_channels: int = option(64, "width of the features around the codebook", low=1)
    embed_dim: int = option(16, "width of a code", low=1)
    n_embed: int = option(1024, "codes in the codebook", low=2)
    resolution: int = option(64, "side of the photographs", low=16)
    steps: int = option(3000, "updates", low=1)
    batch_size: int = option(16, "crops an update; a quarter as many whole photographs", low=4)
    crop: int = option(32, "side of the crops of the first updates", low=16)
    whole: float = option(
        0.15, "share of the updates, the last, on whole photographs", low=0, high=1
    )
    warm: float = option(
        0.2, "share of the updates, the first, without the codebook", low=0, high=1
    )
    revive: int = option(
        100, "updates after which unused codes move to the data, up to 0.7 of all", low=1
    )
    edges: float = option(1.0, "weight of the difference between neighbours beside L1", low=0)
    lr: float = option(1e-3, "peak of Adam's step size; cosine to 0", low=0)
    seed: int = option(0, "of weights, crops and order", low=0)
    save_every: int = option(200, "updates between checkpoints", low=1)
    images: int = option(1000, "held-out photographs to measure on", low=1)
    resume: bool = option(False, "go on from the run's checkpoint")
