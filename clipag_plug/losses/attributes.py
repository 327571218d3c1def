"""What captions can say of an image beside its subject: colours of subject and background, and brightness.

The words, the sentences made with them, and how much of each an image has, from its pixels alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from ..vocabulary import TEMPLATES, sentence

# The eleven basic colour terms of English (Berlin & Kay 1969), each by sRGB examples from dark to light.
COLOURS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "black": ((0.0, 0.0, 0.0), (0.1, 0.1, 0.1)),
    "white": ((1.0, 1.0, 1.0), (0.92, 0.92, 0.9)),
    "grey": ((0.33, 0.33, 0.33), (0.5, 0.5, 0.5), (0.7, 0.7, 0.7)),
    "red": ((0.5, 0.04, 0.06), (0.75, 0.08, 0.1), (0.95, 0.2, 0.16)),
    "orange": ((0.85, 0.4, 0.08), (1.0, 0.55, 0.1), (1.0, 0.66, 0.3)),
    "yellow": ((0.85, 0.75, 0.1), (1.0, 0.92, 0.2), (1.0, 0.95, 0.55)),
    "green": ((0.08, 0.3, 0.08), (0.2, 0.55, 0.2), (0.45, 0.8, 0.3), (0.6, 0.75, 0.2)),
    "blue": (
        *((0.05, 0.08, 0.4), (0.0, 0.0, 1.0), (0.1, 0.3, 0.75)),
        *((0.3, 0.55, 0.95), (0.55, 0.78, 0.95)),
    ),
    "purple": ((0.3, 0.08, 0.4), (0.5, 0.2, 0.65), (0.7, 0.45, 0.85)),
    "pink": ((0.85, 0.35, 0.55), (0.98, 0.6, 0.75), (1.0, 0.8, 0.86)),
    "brown": ((0.25, 0.13, 0.06), (0.45, 0.27, 0.12), (0.62, 0.43, 0.25)),
}
NAMES = tuple(COLOURS)
_TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
_WHITE = (0.9505, 1.0, 1.089)  # D65
_SPELLINGS = {"grey": ("gray",), "purple": ("violet",)}
_BACKGROUNDS: tuple[str, ...] = (
    "{} on a {} background",
    "{} with a {} background",
    "{} against a {} background",
)
_BACKGROUNDS += ("{} in front of a {} background",)
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
        if rng is not None and name in _SPELLINGS and rng.random() < 0.25:
            name = rng.choice(_SPELLINGS[name])
        template = "a {}" if rng is None else rng.choice(TEMPLATES)
        if self.kind == "subject":
            return sentence(f"{name} {word}", template)
        phrases = _BACKGROUNDS if self.kind == "background" else _BRIGHTNESS[name]
        phrase = phrases[0] if rng is None else rng.choice(phrases)
        if self.kind == "light":
            return phrase.format(sentence(word, "a {}"))
        return sentence(name, phrase.format(sentence(word, template), "{}"))


ATTRIBUTES = (
    *(Attribute(kind, name) for kind in ("subject", "background") for name in NAMES),
    *(Attribute("light", name) for name in _BRIGHTNESS),
)
KINDS = (slice(0, len(NAMES)), slice(len(NAMES), 2 * len(NAMES)), slice(2 * len(NAMES), None))


def amounts(images: Tensor) -> Tensor:
    """How much of each of `ATTRIBUTES` images (N, 3, H, W) in [0, 1] have: (N, 24), each kind sums to 1.

    Colours: the shares of the middle and of the border that have that name. Light: the mean lightness and the rest.
    Every second pixel of each axis is looked at.
    """
    seen = images[..., ::2, ::2]
    names = _names(seen)
    light = lab(seen)[:, :1].mean((2, 3)) / 100
    places = (weight(seen.shape[-1]) for weight in (subject, background))
    return torch.cat([*(_shares(names, each.to(seen)) for each in places), light, 1 - light], dim=1)


def shares(images: Tensor, where: Tensor) -> Tensor:
    """The share of each of `NAMES` in pictures (N, 3, H, W) in [0, 1]: (N, 11), rows that sum to 1.

    where: weight (H, W) of the pixels, not all zero.
    """
    return _shares(_names(images), where)


def subject(side: int) -> Tensor:
    """Weight (side, side) of where a photograph's subject is: the middle half of each axis, 1 there and 0 elsewhere."""
    inside = (torch.arange(side) - (side - 1) / 2).abs() < side / 4
    return (inside[:, None] & inside[None, :]).float()


def background(side: int) -> Tensor:
    """Weight (side, side) of a frame along the border, an eighth of the side wide."""
    inside = (torch.arange(side) - (side - 1) / 2).abs() < side * 3 / 8
    return 1 - (inside[:, None] & inside[None, :]).float()


def lab(images: Tensor) -> Tensor:
    """sRGB (N, 3, H, W) in [0, 1] -> CIE L*a*b* (N, 3, H, W): L* in [0, 100] (IEC 61966-2-1, CIE 15)."""
    linear = torch.where(
        images <= 0.04045, images / 12.92, ((images.clamp(min=0) + 0.055) / 1.055) ** 2.4
    )
    xyz = torch.einsum("ij,njhw->nihw", images.new_tensor(_TO_XYZ), linear)
    ratio = xyz / images.new_tensor(_WHITE)[:, None, None]
    root = torch.where(
        ratio > (6 / 29) ** 3, ratio.clamp(min=1e-9) ** (1 / 3), ratio * (29 / 6) ** 2 / 3 + 4 / 29
    )
    x, y, z = root.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def _names(images: Tensor) -> Tensor:
    """The place in `NAMES` of each pixel's colour, by the nearest example in L*a*b*: (N, 3, H, W) -> (N, H, W)."""
    owner = torch.tensor([row for row, name in enumerate(NAMES) for _ in COLOURS[name]])
    examples = images.new_tensor([rgb for name in NAMES for rgb in COLOURS[name]])
    points = lab(examples.T[None, :, None, :])[0, :, 0].T
    pixels = lab(images).permute(0, 2, 3, 1)
    nearest = torch.cdist(pixels.reshape(len(images), -1, 3), points[None]).argmin(-1)
    return owner.to(nearest.device)[nearest].reshape(images.shape[0], *images.shape[2:])


def _shares(names: Tensor, weight: Tensor) -> Tensor:
    hits = torch.nn.functional.one_hot(names, len(NAMES)).to(weight.dtype)
    return torch.einsum("nhwc,hw->nc", hits, weight) / weight.sum()
