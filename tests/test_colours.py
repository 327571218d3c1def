"""Colour names: known answers, an independent conversion, and sums."""

from __future__ import annotations

import pytest
import torch
from PIL import ImageColor

from clipag_plug.losses.attributes import NAMES, background, lab, shares, subject


def patch(name: str) -> torch.Tensor:
    rgb = torch.tensor(ImageColor.getrgb(name)[:3]) / 255
    return rgb.view(1, 3, 1, 1).expand(1, 3, 8, 8)


# Names of the CSS list that nobody would call by another of the eleven.
@pytest.mark.parametrize(
    "name, css",
    [
        *(("black", "black"), ("white", "white"), ("grey", "gray silver")),
        *(("red", "red darkred crimson"), ("orange", "orange"), ("yellow", "yellow gold")),
        *(("green", "green lime forestgreen"), ("blue", "blue navy skyblue royalblue")),
        *(("purple", "purple indigo"), ("pink", "pink hotpink"), ("brown", "saddlebrown sienna")),
    ],
)
def test_names_that_everybody_knows(css: str, name: str) -> None:
    for each in css.split():
        assert shares(patch(each), torch.ones(8, 8))[0, NAMES.index(name)] == 1, each


def test_lab_of_known_colours() -> None:
    """Values of the sRGB primaries under D65, as tables of colour science give them."""
    known = {"white": (100, 0, 0), "red": (53.2, 80.1, 67.2), "green": (46.2, -51.7, 49.9)}
    known |= {"blue": (32.3, 79.2, -107.9), "black": (0, 0, 0), "gray": (53.6, 0, 0)}
    for name, values in known.items():
        found = lab(patch(name))[0, :, 0, 0]
        assert torch.allclose(found, torch.tensor(values, dtype=torch.float32), atol=0.15), name
    dark = lab(
        torch.full((1, 3, 1, 1), 5 / 255)
    ).flatten()  # below the linear part's end of both curves
    assert torch.allclose(dark, torch.tensor([1.371, 0.0, 0.0]), atol=5e-3)


def test_shares_are_of_the_pixels_that_count() -> None:
    picture = patch("blue").repeat(1, 1, 2, 2).clone()
    picture[:, :, 4:12, 4:12] = patch("yellow")
    whole = dict(zip(NAMES, shares(picture, torch.ones(16, 16))[0].tolist(), strict=True))
    assert whole["yellow"] == 0.25 and whole["blue"] == 0.75
    assert shares(picture, subject(16))[0, NAMES.index("yellow")] == 1
    assert shares(picture, background(16))[0, NAMES.index("blue")] == 1
    noise = torch.rand(3, 3, 16, 16)
    found = shares(noise, subject(16))
    assert torch.allclose(found.sum(1), torch.ones(3))
    assert torch.allclose(found[1:2], shares(noise[1:2], subject(16)))


def test_subject_and_background_do_not_overlap() -> None:
    for side in (8, 40, 224):
        assert float((subject(side) * background(side)).sum()) == 0
        assert float(subject(side).sum()) == side * side / 4
        assert float(background(side).sum()) == side * side * 7 / 16
