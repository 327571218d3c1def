"""Images mixed with smooth noise: what is drawn, for whom, and what stays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clipag_plug import priors
from clipag_plug.options.train import Train
from clipag_plug.train.data import Batch, Batches, Photos
from clipag_plug.train.noised import FAINTEST, noised
from clipag_plug.vocabulary import bundled_vocabulary


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(**settings) -> Batch:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    photos = Photos(pixels, ["word"] * 12, torch.arange(12))
    common = {"crop": 0.5, "flip": True, "seed": 3, "group_share": 0.2, "attributes": True}
    common["vocabulary"] = bundled_vocabulary()
    return Batches(photos, settings.pop("size", 12), 16, **{**common, **settings})[0]


def test_an_image_is_a_blend_of_itself_and_a_start_picture() -> None:
    white = torch.ones(6, 3, 24, 24)
    mixed = noised(white, 1.0, generator())
    draws = generator()
    _, amount = torch.rand(2, 6, generator=draws)
    for image, share in zip(mixed, FAINTEST + (1 - FAINTEST) * amount, strict=True):
        start = priors.noise((24, 24), draws)
        assert torch.allclose(image, share * 1 + (1 - share) * start, atol=1e-6)


def test_the_share_is_about_what_was_asked_for_and_the_rest_is_untouched() -> None:
    images = torch.rand(400, 3, 4, 4, generator=generator(1))
    mixed = noised(images, 0.25, generator())
    changed = (mixed != images).flatten(1).any(1)
    assert 60 <= int(changed.sum()) <= 140
    assert mixed.min() >= 0
    assert mixed.max() <= 1
    assert torch.equal(noised(images, 0.0, generator()), images)


def test_no_image_is_lost_in_the_noise() -> None:
    light, dark = (noised(torch.full((64, 3, 8, 8), v), 1.0, generator()) for v in (1.0, 0.0))
    assert (light - dark).min() >= FAINTEST - 1e-6


def test_workers_get_their_rows_of_the_whole_batch() -> None:
    images = torch.rand(6, 3, 8, 8, generator=generator(1))
    parts = [noised(images[i : i + 2], 0.7, generator(), (i, 6)) for i in (0, 2, 4)]
    assert torch.equal(torch.cat(parts), noised(images, 0.7, generator()))


def test_batches_mix_what_they_cropped_and_tell_of_the_photograph() -> None:
    plain, mixed = batch(), batch(noise_share=1.0)
    assert (mixed.images != plain.images).flatten(1).any(1).all()
    assert plain.texts == mixed.texts
    assert torch.equal(plain.attributes, mixed.attributes)
    halves = [batch(size=6, worker=(rank, 2), noise_share=0.5) for rank in (0, 1)]
    whole = batch(noise_share=0.5)
    assert torch.equal(torch.cat([half.images for half in halves]), whole.images)


def test_the_option_is_a_share() -> None:
    with pytest.raises(ValueError, match="noise-share"):
        Train(noise_share=1.5)
