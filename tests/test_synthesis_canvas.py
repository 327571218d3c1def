"""The rule that holds fine grain back: known frequencies, scale, independence."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from clipag_plug.paint.canvases import Stepper, weighted


def wave(cycles: int, side: int = 32) -> Tensor:
    """A picture (1, 3, side, side) of so many cosine waves from left to right."""
    line = torch.cos(2 * math.pi * cycles * torch.arange(side) / side)
    return line.expand(1, 3, side, side).contiguous()


@pytest.mark.parametrize("cycles", [1, 4, 15])
def test_a_wave_is_weighted_by_its_frequency(cycles: int) -> None:
    expected = wave(cycles) * (cycles / 32) ** -0.5
    assert torch.allclose(weighted(wave(cycles)), expected, atol=1e-5)
    turned = weighted(wave(cycles).transpose(2, 3))
    assert torch.allclose(turned, expected.transpose(2, 3), atol=1e-5)


def test_the_mean_has_the_weight_of_the_longest_wave() -> None:
    flat = torch.full((1, 3, 24, 32), 0.25)
    assert torch.allclose(weighted(flat), flat * 32**0.5, atol=1e-5)


def stepped(gradients: list[Tensor], rule: str = "spectral") -> Tensor:
    """Where steps of 0.01 lead from grey."""
    stepper = Stepper(rule, 0.01, "constant", len(gradients), 0.0)
    pixels = torch.full_like(gradients[0], 0.5)
    for index, gradient in enumerate(gradients):
        pixels = stepper(pixels, gradient, index).clamp(0, 1)
    return pixels


def test_a_steady_gradient_gives_steps_of_the_rate() -> None:
    way = stepped([wave(3)] * 5) - 0.5
    assert float(way.square().mean().sqrt()) == pytest.approx(5 * 0.01, rel=1e-3)
    assert float((way * wave(3)).sum()) < 0, "downhill"


def test_pictures_are_scaled_each_on_its_own() -> None:
    generator = torch.Generator().manual_seed(0)
    steps = [torch.randn(2, 3, 16, 16, generator=generator) for _ in range(4)]
    both = stepped([torch.cat([step[:1], 1e-6 * step[1:]]) for step in steps])
    for row in range(2):
        alone = stepped([step[row : row + 1] for step in steps])
        assert torch.allclose(both[row : row + 1], alone, atol=1e-6)


def test_grain_is_held_back_where_adam_lets_it_through() -> None:
    def grain(pixels: Tensor) -> float:
        way = pixels - 0.5
        return float((way[..., 1:] - way[..., :-1]).square().mean() / way.square().mean())

    generator = torch.Generator().manual_seed(0)
    mixed = [wave(1) + 0.5 * torch.randn(1, 3, 32, 32, generator=generator) for _ in range(8)]
    assert grain(stepped(mixed)) < 0.5 * grain(stepped(mixed, "adam"))
