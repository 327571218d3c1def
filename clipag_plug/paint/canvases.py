"""The optimised pixels: their start, their growth, their step, and the picture they stand for."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


class Canvas:
    """N pictures under optimisation: pixels (N, 3, h, w) in [0, 1] that stand for pictures of `size` (H, W).

    h, w may be smaller than the picture: the short side is `grid` (0 for the full size). A coarse canvas has no
    room for the high frequencies that encoders ignore or are fooled by, and costs less.
    base: start pictures (N, 3, H, W). mask: (1, H, W) in [0, 1] or None; where it is 0 a picture equals `base`.
    """

    def __init__(self, base: Tensor, *, grid: int = 0, mask: Tensor | None = None) -> None:
        self.base, self.mask = base, mask
        self.size = (base.shape[2], base.shape[3])
        self.pixels = shrink(base, grid_shape(self.size, grid))

    @property
    def shape(self) -> tuple[int, int]:
        return (self.pixels.shape[2], self.pixels.shape[3])

    def grow(self, grid: int) -> None:
        """Goes on at a finer grid, from the same picture."""
        shape = grid_shape(self.size, grid)
        if shape != self.shape:
            self.pixels = enlarge(self.pixels, shape)

    def pictures(self, pixels: Tensor | None = None) -> Tensor:
        """The pictures (N, 3, H, W) in [0, 1]."""
        pixels = self.pixels if pixels is None else pixels
        pictures = enlarge(pixels, self.size)
        if self.mask is None:
            return pictures
        mixed = self.base + self.mask * (pictures - self.base)
        return torch.where(self.mask > 0, mixed, self.base).clamp(0, 1)

    def shown(self, pixels: Tensor) -> Tensor:
        """What views are taken of: the canvas, or where there is a mask the pictures it stands for."""
        return pixels if self.mask is None else self.pictures(pixels)


class Stepper:
    """Update rules on a canvas; every picture is treated on its own, whatever else is in the batch."""

    def __init__(
        self, rule: str, lr: float, schedule: str, steps: int, clip: float, quantile: float
    ) -> None:
        self.rule, self.lr, self.schedule, self.steps = rule, lr, schedule, steps
        self.clip, self.quantile = clip, quantile
        self.restart()

    def restart(self) -> None:
        """Forgets the moments, as after a change of the grid."""
        self.first: Tensor | None = None
        self.second: Tensor | None = None
        self.count = 0

    def rate(self, step: int) -> float:
        """Step size at `step`. `quarter` is cos(0.9 * pi / 2 * t), the course of FARE's generator-free loop."""
        share = step / self.steps
        if self.schedule == "cosine":
            return self.lr * (0.5 + 0.5 * math.cos(math.pi * share))
        if self.schedule == "quarter":
            return self.lr * math.cos(0.9 * math.pi / 2 * share)
        return self.lr

    @torch.no_grad()
    def __call__(self, pixels: Tensor, gradient: Tensor, step: int) -> Tensor:
        """The pixels after one descent step, back in [0, 1]."""
        rate = self.rate(step)
        if self.clip > 0:
            norm = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            gradient = gradient * (self.clip / (norm + 1e-6)).clamp(max=1)
        if self.rule == "gradient":
            rms = gradient.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-20)
            pixels = pixels - rate * gradient / rms
        elif self.rule == "spectral":
            pixels = pixels - rate * self._spectral(gradient)
        else:
            if self.rule == "adamw":
                pixels = pixels * (1 - rate * 0.01)
            pixels = pixels - rate * self._adam(gradient)
        return threshold(pixels, self.quantile) if self.quantile > 0 else pixels.clamp(0, 1)

    def _adam(self, gradient: Tensor) -> Tensor:
        """Adam's direction (Kingma & Ba 2015), with its usual constants."""
        if self.first is None or self.second is None:
            self.first, self.second = torch.zeros_like(gradient), torch.zeros_like(gradient)
        self.count += 1
        self.first.lerp_(gradient, 0.1)
        self.second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        scale = math.sqrt(1 - 0.999**self.count)
        return self.first / (1 - 0.9**self.count) / (self.second.sqrt() / scale + 1e-8)

    def _spectral(self, gradient: Tensor) -> Tensor:
        """Momentum of the gradient, every frequency f of it weighted by 1/sqrt(f), at about unit RMS a picture.

        Photographs have little at high frequencies. Adam gives every pixel a step of the same length and so paints
        the checks and dots there that a gradient is full of (Olah et al. 2017, "Feature Visualization", on
        preconditioning); here they stay as small as they are, or smaller.
        """
        gradient = weighted(gradient)
        power = gradient.square().mean((1, 2, 3), keepdim=True)
        if self.first is None or self.second is None:
            self.first, self.second = torch.zeros_like(gradient), torch.zeros_like(power)
        self.count += 1
        self.first.lerp_(gradient, 0.1)
        self.second.lerp_(power, 0.01)
        scale = (self.second / (1 - 0.99**self.count)).sqrt().clamp_min(1e-20)
        return self.first / (1 - 0.9**self.count) / scale


def weighted(pictures: Tensor) -> Tensor:
    """Pictures (N, 3, h, w) with each frequency f, in cycles a pixel, multiplied by 1/sqrt(f); the mean by the
    largest of these factors."""
    height, width = pictures.shape[-2:]
    rows = torch.fft.fftfreq(height, device=pictures.device)[:, None]
    columns = torch.fft.rfftfreq(width, device=pictures.device)
    frequency = torch.hypot(rows, columns).clamp_min(1 / max(height, width))
    spectrum = torch.fft.rfft2(pictures) * frequency.rsqrt()
    return torch.fft.irfft2(spectrum, s=(height, width))


def threshold(pixels: Tensor, quantile: float) -> Tensor:
    """Dynamic thresholding (Saharia et al. 2022) per picture: |2x - 1| is clipped at its quantile s >= 1, then
    divided by s, so that a few outliers do not saturate."""
    signed = 2 * pixels - 1
    limit = _quantile(signed.abs().flatten(1), quantile).clamp(min=1).view(-1, 1, 1, 1)
    return (torch.minimum(torch.maximum(signed, -limit), limit) / limit + 1) / 2


def _quantile(values: Tensor, quantile: float) -> Tensor:
    """Linear quantile of each row. torch.quantile refuses rows of more than 16 million values."""
    place = quantile * (values.shape[1] - 1)
    below = math.floor(place)
    top = values.topk(values.shape[1] - below, dim=1).values
    low, high = top[:, -1], top[:, -2] if top.shape[1] > 1 else top[:, -1]
    return low + (place - below) * (high - low)


def grid_shape(size: tuple[int, int], grid: int) -> tuple[int, int]:
    """Shape of a canvas of short side `grid` for a picture of `size`; never finer than the picture."""
    short = min(size)
    if grid <= 0 or grid >= short:
        return size
    return (max(round(size[0] * grid / short), 1), max(round(size[1] * grid / short), 1))


def shrink(pictures: Tensor, shape: tuple[int, int]) -> Tensor:
    """Area averages."""
    if tuple(pictures.shape[-2:]) == tuple(shape):
        return pictures.clone()
    return F.interpolate(pictures, size=shape, mode="area")


def enlarge(pixels: Tensor, shape: tuple[int, int]) -> Tensor:
    """Bicubic, within [0, 1]."""
    if tuple(pixels.shape[-2:]) == tuple(shape):
        return pixels
    return F.interpolate(pixels, size=shape, mode="bicubic", align_corners=False).clamp(0, 1)
