"""Scores of heatmaps: conventions on cases with a known answer, and slow transcriptions of the definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from clipag_plug.explanation.maps import (
    agreement,
    energy,
    hot,
    iou,
    localisation,
    pointing_game,
    spearman,
    ssim,
)
from clipag_plug.options.explain import Explain


def quarter(count: int = 1, side: int = 8) -> Tensor:
    """An object in the upper left quarter."""
    mask = torch.zeros(count, side, side, dtype=torch.bool)
    mask[:, : side // 2, : side // 2] = True
    return mask


def peak(row: int, column: int, side: int = 8) -> Tensor:
    heat = torch.zeros(1, side, side)
    heat[0, row, column] = 1
    return heat


def test_a_peak_on_the_object_scores_everything_and_beside_it_nothing() -> None:
    for heat, expected in ((peak(1, 2), 1.0), (peak(1, 5), 0.0)):
        assert pointing_game(heat, quarter()).item() == expected
        assert energy(heat, quarter()).item() == expected
    assert iou(hot(quarter().float()), quarter()).item() == 1
    assert iou(hot(peak(1, 5)), quarter()).item() == 0


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_a_flat_map_scores_as_chance(value) -> None:
    flat = torch.full((1, 8, 8), value)
    assert pointing_game(flat, quarter()).item() == pytest.approx(0.25)
    assert energy(flat, quarter()).item() == pytest.approx(0.25)
    assert hot(flat).any().item() == (value > 0)


def test_localisation_by_hand() -> None:
    heat = torch.zeros(1, 8, 8)
    heat[0, 0, 0], heat[0, 0, 7], heat[0, 7, 7] = 1.0, 0.5, 0.25
    found = localisation(heat, quarter())
    assert found["pointing"].item() == 1
    assert found["energy"].item() == pytest.approx(1 / 1.75)
    assert found["iou"].item() == pytest.approx(
        1 / 17
    )  # hot: two places, one of them on the 16 of the object


def test_iou_of_empty_masks_agrees_and_of_disjoint_ones_does_not() -> None:
    empty = torch.zeros(1, 8, 8, dtype=torch.bool)
    assert iou(empty, empty).item() == 1
    assert iou(empty, quarter()).item() == 0
    assert iou(quarter(), ~quarter()).item() == 0
    assert iou(quarter(), torch.ones_like(empty)).item() == pytest.approx(0.25)


def test_spearman_equals_ranks_counted_pair_by_pair() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(5, (4, 6, 6), generator=generator).float() for _ in range(2))  # many ties
    for first, second, found in zip(a, b, spearman(a, b)):
        ranks = []
        for heat in (first, second):
            x = heat.flatten()
            ranks.append((x[None] < x[:, None]).sum(1) + ((x[None] == x[:, None]).sum(1) + 1) / 2)
        expected = torch.corrcoef(torch.stack(ranks).double())[0, 1]
        assert found.item() == pytest.approx(expected.item(), abs=1e-9)


def test_spearman_sees_order_alone() -> None:
    heat = torch.rand(3, 9, 9)
    assert torch.allclose(spearman(heat, heat.exp() * 7), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(spearman(heat, -heat), -torch.ones(3, dtype=torch.float64))
    assert spearman(heat, torch.zeros(3, 9, 9)).tolist() == [0, 0, 0]


def test_ssim_equals_its_definition_window_by_window() -> None:
    a, b = torch.rand(2, 1, 14, 13, generator=torch.Generator().manual_seed(0)).double()
    offsets = range(-5, 6)
    weight = {(i, j): math.exp(-(i * i + j * j) / (2 * 1.5**2)) for i in offsets for j in offsets}
    total = sum(weight.values())
    values = []
    for y in range(5, 9):
        for x in range(5, 8):
            window = [
                (w / total, a[0, y + i, x + j].item(), b[0, y + i, x + j].item())
                for (i, j), w in weight.items()
            ]
            mean_a, mean_b = sum(w * p for w, p, _ in window), sum(w * q for w, _, q in window)
            var_a = sum(w * (p - mean_a) ** 2 for w, p, _ in window)
            var_b = sum(w * (q - mean_b) ** 2 for w, _, q in window)
            cov = sum(w * (p - mean_a) * (q - mean_b) for w, p, q in window)
            values.append(
                (2 * mean_a * mean_b + 1e-4)
                * (2 * cov + 9e-4)
                / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
            )
    assert ssim(a, b).item() == pytest.approx(sum(values) / len(values), abs=1e-6)
    assert ssim(a, a).item() == pytest.approx(1)
    with pytest.raises(ValueError, match="at least 11x11; got 7x7"):
        ssim(torch.rand(1, 7, 7), torch.rand(1, 7, 7))


def test_agreement_falls_as_noise_grows() -> None:
    generator = torch.Generator().manual_seed(0)
    heat = torch.nn.functional.interpolate(
        torch.rand(4, 1, 5, 5, generator=generator), 32, mode="bilinear"
    )[:, 0]
    noise = torch.rand(heat.shape, generator=generator)
    near, far = (agreement(heat, (1 - share) * heat + share * noise) for share in (0.1, 0.6))
    for key in ("spearman", "ssim", "iou"):
        assert (near[key] > far[key]).all()
    assert all(
        (values == 1).all() or torch.allclose(values.double(), torch.ones(4).double())
        for values in agreement(heat, heat).values()
    )


@pytest.mark.parametrize("second", ["other.PNG", "photos/dog.jpeg", "a.b.webp"])
def test_a_second_picture_is_no_text(second: str) -> None:
    with pytest.raises(ValueError, match="is a second file, and explain takes one"):
        Explain("photo.jpg", ["a dog", second])
    assert Explain("photo.jpg", ["a dog", "the end.", "png"]).texts[1:] == ["the end.", "png"]
