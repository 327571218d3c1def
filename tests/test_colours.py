"""Colour names: known answers, an independent conversion, and sums."""

from __future__ import annotations

import pytest
import torch
from PIL import ImageColor

from clipag_plug.losses.colours import NAMES, background, lab, names_of, shares, subject


def patch(name: str) -> torch.Tensor:
    rgb = torch.tensor(ImageColor.getrgb(name)[:3]) / 255
    return rgb.view(1, 3, 1, 1).expand(1, 3, 8, 8)


# Names of the CSS list that nobody would call by another of the eleven.
@pytest.mark.parametrize(
    "css, name",
    [
        *(("black", "black"), ("white", "white"), ("gray", "grey"), ("silver", "grey")),
        *(("red", "red"), ("darkred", "red"), ("crimson", "red"), ("orange", "orange")),
        *(("yellow", "yellow"), ("gold", "yellow"), ("green", "green"), ("lime", "green")),
        *(("forestgreen", "green"), ("blue", "blue"), ("navy", "blue"), ("skyblue", "blue")),
        *(("royalblue", "blue"), ("purple", "purple"), ("indigo", "purple"), ("pink", "pink")),
        *(("hotpink", "pink"), ("saddlebrown", "brown"), ("sienna", "brown")),
    ],
)
def test_names_that_everybody_knows(css: str, name: str) -> None:
    assert NAMES[int(names_of(patch(css))[0, 0, 0])] == name


def test_lab_of_known_colours() -> None:
    """Values of the sRGB primaries under D65, as tables of colour science give them."""
    known = {"white": (100, 0, 0), "red": (53.2, 80.1, 67.2), "green": (46.2, -51.7, 49.9)}
    known |= {"blue": (32.3, 79.2, -107.9), "black": (0, 0, 0), "gray": (53.6, 0, 0)}
    for name, values in known.items():
        found = lab(patch(name))[0, :, 0, 0]
        assert torch.allclose(found, torch.tensor(values, dtype=torch.float32), atol=0.15), name


def test_shares_are_of_the_pixels_that_count() -> None:
    picture = patch("blue").repeat(1, 1, 2, 2).clone()
    picture[:, :, 4:12, 4:12] = patch("yellow")
    whole = dict(zip(NAMES, shares(picture)[0].tolist(), strict=True))
    assert whole["yellow"] == 0.25 and whole["blue"] == 0.75
    assert shares(picture, subject(16))[0, NAMES.index("yellow")] == 1
    assert shares(picture, background(16))[0, NAMES.index("blue")] == 1
    noise = torch.rand(3, 3, 16, 16)
    assert torch.allclose(shares(noise, subject(16)).sum(1), torch.ones(3))
    assert torch.allclose(shares(noise)[1:2], shares(noise[1:2]))


def test_subject_and_background_do_not_overlap() -> None:
    for side in (8, 40, 224):
        assert float((subject(side) * background(side)).sum()) == 0
        assert float(subject(side).sum()) == side * side / 4
