"""Options of `clipag explain`: which picture, which texts, which method, which attack."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from ..files import halved
from .base import DEVICE, PRECISION, PRECISIONS, Options, option

METHODS = (
    *("gradcam", "gradcam-ln1", "gradcam-naive", "gscorecam"),
    *("input-gradient", "integrated-gradients"),
)
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".svg")
_METHOD = (
    "how the map is made; gradcam takes the class token's gradient on a ViT and the last stage on a "
    "convolutional tower"
)
_LAYER = "module of the image tower to read instead, as transformer.resblocks.10; empty chooses"
_ATTACK = "show two models side by side, clean and under the attack towards the negated text"


@dataclasses.dataclass
class Explain(Options):
    """Where a model looks for a text, clean and under attack (Ganz & Elad 2024, supplement 2)."""

    image: str = option(help="picture to explain", positional=True, metavar="IMAGE")
    texts: list[str] = option(
        [], "what to look for, as 'a dog'; several make one sheet", positional=True, metavar="TEXT"
    )
    output: str = option("explain.png", "sheet to write (.png)", short="-o")
    overwrite: bool = option(False, "replace files, even if they are no pictures of clipag_plug")
    model: str = option("clipag-mini", "key or file of the model", short="-m")
    method: str = option("gradcam", _METHOD, choices=METHODS)
    layer: str = option("", _LAYER)
    channels: int = option(300, "gscorecam: channels that mask the picture", low=1)
    samples: int = option(
        32, "integrated-gradients: points on the way from black to the picture", low=1
    )

    attack: bool = option(False, _ATTACK)
    against: str = option(
        "", "the other model of the attack; empty takes what the model was fine-tuned from"
    )
    negation: str = option("not {}", "text the attack drives towards; {} stands for the text")
    eps: float = option(8 / 255, "Linf radius of the attack, in [0, 1] pixel units", low=0, high=1)
    steps: int = option(20, "steps of the attack", low=0)
    step_size: float = option(1 / 255, "step of the attack, in the units of eps", low=0)

    cell: int = option(256, "longer side of each picture on the sheet", low=32, high=2048)
    device: str = option("", DEVICE)
    precision: str = option("auto", PRECISION, choices=PRECISIONS)
    json: bool = option(False, "print the path and the cosines as JSON")
    quiet: bool = option(False, "no remarks on stderr", short="-q")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.texts:
            raise ValueError("no text; say what to look for, as: clipag explain photo.jpg 'a dog'")
        for text in self.texts:
            if not text.strip():
                raise ValueError("a text is empty; say what to look for, as 'a dog'")
            if halved(text):
                raise ValueError("a text holds bytes that are not in UTF-8; write it again")
            if Path(text).suffix.lower() in PICTURES or os.path.isfile(text):
                raise ValueError(
                    f"{text!r} is a second file, and explain takes one; call it once for each, as: "
                    f"clipag explain {text} 'a dog'"
                )
        if not self.negation.strip():
            raise ValueError(
                "--negation is empty; give a text, where {} stands for the text it negates"
            )
