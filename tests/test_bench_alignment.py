"""Measures of input gradients: known answers, plain sums, and items that do not depend on their batch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from clipag_plug.bench import alignment


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def wave(cycles: int, side: int = 32) -> Tensor:
    """A cosine of so many cycles across the picture, in every colour: frequency 2 * cycles / side of Nyquist."""
    row = (2 * math.pi * cycles * torch.arange(side) / side).cos()
    return row.expand(1, 3, side, side).contiguous()


def test_a_single_wave_lies_on_one_side_of_the_limit() -> None:
    assert float(alignment.fine_share(wave(3))) == pytest.approx(0, abs=1e-6)  # 0.19 of Nyquist
    assert float(alignment.fine_share(wave(5))) == pytest.approx(1, abs=1e-6)  # 0.31
    both = wave(3) + 2 * wave(5)
    assert float(alignment.fine_share(both)) == pytest.approx(4 / 5, abs=1e-6)
    assert float(alignment.fine_share(both + 7)) == pytest.approx(4 / 5, abs=1e-5)  # no mean
    noise = alignment.fine_share(draw(20, 3, 64, 64)).mean()
    assert float(noise) == pytest.approx(1 - math.pi * 0.25**2 / 4, abs=0.01)


def test_power_is_the_sum_of_squares() -> None:
    gradients = draw(2, 3, 16, 16)
    centred = gradients - gradients.mean((2, 3), keepdim=True)
    spectrum, _ = alignment.power(gradients)
    assert torch.allclose(
        spectrum.sum((1, 2)) / 256, centred.double().square().sum((1, 2, 3)), rtol=1e-5
    )


@pytest.mark.parametrize("exponent", [0.0, -1.0, -2.0, -3.0])
def test_the_slope_of_noise_with_a_known_spectrum(exponent: float) -> None:
    side = 64
    axis = torch.fft.fftfreq(side) * side
    frequency = (axis[:, None] ** 2 + axis**2).sqrt().clamp_min(1)
    shaped = torch.fft.ifft2(
        torch.fft.fft2(draw(30, 3, side, side)) * frequency ** (exponent / 2)
    ).real
    assert float(alignment.slope(shaped).mean()) == pytest.approx(exponent, abs=0.1)
    assert torch.allclose(alignment.slope(1e-6 * shaped), alignment.slope(shaped), atol=1e-3)
    assert float(alignment.slope(torch.zeros(1, 3, 16, 16))) == 0


def test_roughness() -> None:
    noise = alignment.roughness(draw(10, 3, 64, 64))
    assert noise.mean().item() == pytest.approx(math.sqrt(2), rel=0.01)
    halves = torch.ones(1, 3, 64, 64)
    halves[..., 32:] = -1
    assert float(alignment.roughness(halves)) == pytest.approx(2 / 63 / 2)
    gradients = draw(3, 3, 8, 9)
    for g, found in zip(gradients, alignment.roughness(gradients)):
        down = sum(abs(float(a - b)) for a, b in zip(g[:, 1:].flatten(), g[:, :-1].flatten())) / 189
        right = sum(abs(float(a - b)) for a, b in zip(g[..., 1:].flatten(), g[..., :-1].flatten()))
        expected = (down + right / 192) / 2 / float(g.abs().mean())
        assert float(found) == pytest.approx(expected, rel=1e-4)


def test_stability_is_a_cosine() -> None:
    one, two = draw(4, 3, 8, 8), draw(4, 3, 8, 8, seed=1)
    expected = [float((a * b).sum() / a.norm() / b.norm()) for a, b in zip(one, two)]
    assert alignment.stability(one, two).tolist() == pytest.approx(expected, abs=1e-6)
    assert alignment.stability(one, 3 * one).tolist() == pytest.approx([1.0] * 4)
    assert alignment.stability(one, -one).tolist() == pytest.approx([-1.0] * 4)


def test_items_do_not_depend_on_their_batch_and_come_out_the_same_again() -> None:
    one, two = draw(6, 3, 16, 16), draw(6, 3, 16, 16, seed=1)
    measures = (
        lambda rows: alignment.fine_share(one[rows]),
        lambda rows: alignment.slope(one[rows]),
        lambda rows: alignment.roughness(one[rows]),
        lambda rows: alignment.stability(one[rows], two[rows]),
    )
    for measure in measures:
        whole = measure(slice(None))
        assert torch.equal(whole, measure(slice(None)))
        alone = torch.cat([measure(slice(row, row + 1)) for row in range(6)])
        assert torch.allclose(alone, whole, atol=1e-5)
