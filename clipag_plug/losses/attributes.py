"""What captions can say of an image beside its subject: colours of subject and background, and brightness.

The words, the sentences made with them, and how much of each an image has, from its pixels alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from ..vocabulary import TEMPLATES, sentence
from . import colours

OTHER_SPELLINGS = {"grey": ("gray",), "purple": ("violet",)}
_BACKGROUNDS = tuple(
    f"{{}} {relation} a {{}} background" for relation in ("on", "with", "against", "in front of")
)
_BRIGHTNESS = {
    "bright": ("a bright photo of {}", "a bright picture of {}", "{} in bright light"),
    "dark": ("a dark photo of {}", "a dark picture of {}", "{} at night"),
}


@dataclass(frozen=True)
class Attribute:
    """One thing that a caption can say. kind: "subject", "background" or "light"; one of a kind each."""

    kind: str
    name: str

    def caption(self, word: str, rng: random.Random | None = None) -> str:
        """A caption of a taught word with this attribute: "a photo of a red car". rng: None for the plainest one."""
        name = self.name
        if rng is not None and name in OTHER_SPELLINGS and rng.random() < 0.25:
            name = rng.choice(OTHER_SPELLINGS[name])
        template = "a {}" if rng is None else rng.choice(TEMPLATES)
        if self.kind == "subject":
            return sentence(f"{name} {word}", template)
        plain = sentence(word, template)
        if self.kind == "background":
            relation = _BACKGROUNDS[0] if rng is None else rng.choice(_BACKGROUNDS)
            return sentence(name, relation.format(plain, "{}"))
        phrases = _BRIGHTNESS[name]
        return (phrases[0] if rng is None else rng.choice(phrases)).format(sentence(word, "a {}"))


ATTRIBUTES = (
    *(Attribute("subject", name) for name in colours.NAMES),
    *(Attribute("background", name) for name in colours.NAMES),
    *(Attribute("light", name) for name in _BRIGHTNESS),
)
KINDS = tuple(
    slice(rows[0], rows[-1] + 1)
    for kind in ("subject", "background", "light")
    for rows in [[row for row, a in enumerate(ATTRIBUTES) if a.kind == kind]]
)


def amounts(images: Tensor) -> Tensor:
    """How much of each of `ATTRIBUTES` images (N, 3, H, W) in [0, 1] have: (N, 24), each kind sums to 1.

    Colours: the shares of the middle and of the border that have that name. Light: the mean lightness and the rest.
    Every second pixel of each axis is looked at.
    """
    seen = images[..., ::2, ::2]
    side, names = seen.shape[-1], colours.names_of(seen)
    subject, background = (
        colours.shares_of_names(names, where(side).to(seen))
        for where in (colours.subject, colours.background)
    )
    light = colours.lab(seen)[:, :1].mean((2, 3)) / 100
    return torch.cat([subject, background, light, 1 - light], dim=1)
