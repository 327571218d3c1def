"""How picture-like an input gradient is: its spectrum, its roughness, and whether it holds still under noise."""

from __future__ import annotations

import torch
from torch import Tensor


def power(gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Power spectrum (N, H, W) of gradients (N, 3, H, W), summed over colours, without the mean; and the frequency
    (H, W) of each cell, 1 for Nyquist along an axis."""
    centred = gradients - gradients.mean((2, 3), keepdim=True)
    spectrum = torch.fft.fft2(centred.double()).abs().square().sum(1)
    down = torch.fft.fftfreq(gradients.shape[2], dtype=torch.float64) * 2
    across = torch.fft.fftfreq(gradients.shape[3], dtype=torch.float64) * 2
    return spectrum, (down[:, None].square() + across.square()).sqrt()


def fine_share(gradients: Tensor, above: float = 0.25) -> Tensor:
    """Share of a gradient's energy at frequencies above a quarter of Nyquist (N,): noise has about 95 %."""
    spectrum, frequency = power(gradients)
    total = spectrum.sum((1, 2)).clamp_min(1e-300)
    return ((spectrum * (frequency > above)).sum((1, 2)) / total).float()


def slope(gradients: Tensor) -> Tensor:
    """Exponent of the power spectrum over frequency (N,), least squares in logarithms over rings up to Nyquist.

    White noise has 0, photographs about -2 (Field 1987). A flat gradient counts as 0.
    """
    spectrum, frequency = power(gradients)
    size = min(gradients.shape[2:])
    rings = (frequency * size / 2).round().long()
    inside = (rings >= 1) & (rings <= size // 2)
    index = rings[inside] - 1
    count = torch.zeros(size // 2, dtype=torch.float64).index_add_(
        0, index, torch.ones(len(index), dtype=torch.float64)
    )
    sums = torch.zeros(len(spectrum), size // 2, dtype=torch.float64).index_add_(
        1, index, spectrum[:, inside]
    )
    means = sums / count
    flat = means.amax(1) <= 1e-300
    across = torch.arange(1, size // 2 + 1, dtype=torch.float64).log()
    across = across - across.mean()
    up = means.clamp_min(1e-12 * means.amax(1, keepdim=True).clamp_min(1e-300)).log()
    found = (up * across).sum(1) / across.square().sum()
    return torch.where(flat, 0.0, found).float()


def roughness(gradients: Tensor) -> Tensor:
    """Total variation over magnitude (N,): mean difference of neighbours by mean absolute value; scale-free.

    Independent Gaussian noise has sqrt(2), a picture of two flat halves almost 0.
    """
    down = gradients.diff(dim=2).abs().mean((1, 2, 3))
    across = gradients.diff(dim=3).abs().mean((1, 2, 3))
    return (down + across) / 2 / gradients.abs().mean((1, 2, 3)).clamp_min(1e-30)


def stability(gradients: Tensor, others: Tensor) -> Tensor:
    """Cosine of the gradients at a picture and at the same picture with noise, (N, 3, H, W) twice -> (N,)."""
    return torch.cosine_similarity(gradients.flatten(1), others.flatten(1), dim=1)
