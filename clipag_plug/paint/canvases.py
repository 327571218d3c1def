"""What a run optimises, the picture it stands for, and the update rules.

A canvas holds `values`, one tensor whose rows are pictures, and renders them. Another canvas is another class with
`shape`, `render`, `settle` and `grow`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


class Canvas:
    """N pictures under optimisation as pixels, `values` (N, 3, h, w) in [0, 1].

    A coarse canvas has no room for the high frequencies that encoders ignore or are fooled by, and costs less.

    Args:
        start: pictures (N, 3, H, W) in [0, 1].
        grid: short side of the canvas in pixels; 0, or one beyond the picture's, for the full size.
        mask: (1, H, W) in [0, 1]; where it is 0 a picture equals `start`.
        quantile: of dynamic thresholding after each step; 0 to clamp.
    """

    def __init__(
        self, start: Tensor, *, grid: int = 0, mask: Tensor | None = None, quantile: float = 0.0
    ) -> None:
        self.start, self.mask, self.quantile = start, mask, quantile
        self.size = (start.shape[2], start.shape[3])
        self.values = shrink(start, grid_shape(self.size, grid))

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) of what `render` gives."""
        return (self.values.shape[2], self.values.shape[3])

    def render(self, values: Tensor) -> Tensor:
        """The pictures (N, 3, h, w) in [0, 1] that values stand for."""
        return values

    def settle(self, values: Tensor) -> Tensor:
        """The allowed values next to what a step has led to."""
        return threshold(values, self.quantile) if self.quantile > 0 else values.clamp(0, 1)

    def grow(self, values: Tensor, grid: int) -> Tensor:
        """The same pictures on a finer canvas."""
        return enlarge(values, grid_shape(self.size, grid))

    def pictures(self, values: Tensor | None = None) -> Tensor:
        """The finished pictures (N, 3, H, W) in [0, 1]."""
        pictures = enlarge(self.render(self.values if values is None else values), self.size)
        if self.mask is None:
            return pictures
        mixed = self.start + self.mask * (pictures - self.start)
        return torch.where(self.mask > 0, mixed, self.start).clamp(0, 1)

    def shown(self, values: Tensor) -> Tensor:
        """What views are taken of: the canvas, or where there is a mask the finished pictures."""
        return self.render(values) if self.mask is None else self.pictures(values)


class Stepper:
    """Update rules; every picture is treated on its own, whatever else is in the batch.

    Args:
        rule: adam, adamw, gradient (at unit RMS) or spectral.
        lr: step size in the canvas's values; schedule: constant, cosine, or quarter: cos(0.9 * pi / 2 * t), the
            course of FARE's generator-free loop.
        clip: largest L2 norm of a picture's gradient, 0 for any.
    """

    def __init__(self, rule: str, lr: float, schedule: str, steps: int, clip: float) -> None:
        self.rule, self.lr, self.schedule, self.steps, self.clip = rule, lr, schedule, steps, clip
        self.restart()

    def restart(self) -> None:
        """Forgets the moments, as after a change of the grid."""
        self.count = 0
        self.first = self.second = torch.zeros(())

    def rate(self, step: int) -> float:
        """Step size at `step`."""
        share = step / self.steps
        if self.schedule == "cosine":
            return self.lr * (0.5 + 0.5 * math.cos(math.pi * share))
        return self.lr * (math.cos(0.9 * math.pi / 2 * share) if self.schedule == "quarter" else 1)

    @torch.no_grad()
    def __call__(self, values: Tensor, gradient: Tensor, step: int) -> Tensor:
        """The values after one descent step."""
        rate = self.rate(step)
        if self.clip > 0:
            norm = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            gradient = gradient * (self.clip / (norm + 1e-6)).clamp(max=1)
        if self.rule == "gradient":
            rms = gradient.square().mean((1, 2, 3), keepdim=True).sqrt().clamp_min(1e-20)
            return values - rate * gradient / rms
        if self.rule == "spectral":
            return values - rate * self._spectral(gradient)
        if self.rule == "adamw":
            values = values * (1 - rate * 0.01)
        return values - rate * self._adam(gradient)

    def _momentum(self, gradient: Tensor, power: Tensor) -> Tensor:
        """Adam's first moment without bias; makes room for the second, of the shape of `power`."""
        if not self.count:
            self.first, self.second = torch.zeros_like(gradient), torch.zeros_like(power)
        self.count += 1
        return self.first.lerp_(gradient, 0.1) / (1 - 0.9**self.count)

    def _adam(self, gradient: Tensor) -> Tensor:
        """Adam's direction (Kingma & Ba 2015), with its usual constants."""
        first = self._momentum(gradient, gradient)
        self.second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        return first / (self.second.sqrt() / math.sqrt(1 - 0.999**self.count) + 1e-8)

    def _spectral(self, gradient: Tensor) -> Tensor:
        """Momentum of the gradient, every frequency f of it weighted by 1/sqrt(f), at about unit RMS a picture.

        Photographs have little at high frequencies. Adam gives every pixel a step of the same length and so paints
        the checks and dots there that a gradient is full of (Olah et al. 2017, "Feature Visualization", on
        preconditioning); here they stay as small as they are, or smaller.
        """
        gradient = weighted(gradient)
        power = gradient.square().mean((1, 2, 3), keepdim=True)
        first = self._momentum(gradient, power)
        self.second.lerp_(power, 0.01)
        return first / (self.second / (1 - 0.99**self.count)).sqrt().clamp_min(1e-20)


def weighted(pictures: Tensor) -> Tensor:
    """Pictures (N, 3, h, w) with each frequency f, in cycles a pixel, multiplied by 1/sqrt(f); the mean by the
    largest of these factors."""
    height, width = pictures.shape[-2:]
    rows = torch.fft.fftfreq(height, device=pictures.device)[:, None]
    columns = torch.fft.rfftfreq(width, device=pictures.device)
    frequency = torch.hypot(rows, columns).clamp_min(1 / max(height, width))
    return torch.fft.irfft2(torch.fft.rfft2(pictures) * frequency.rsqrt(), s=(height, width))


def threshold(pixels: Tensor, quantile: float) -> Tensor:
    """Dynamic thresholding (Saharia et al. 2022) per picture: |2x - 1| is clipped at its quantile s >= 1, then
    divided by s, so that a few outliers do not saturate."""
    signed = 2 * pixels - 1
    sizes = signed.abs().flatten(1)
    # The linear quantile; torch.quantile refuses rows of more than 16 million values.
    place = quantile * (sizes.shape[1] - 1)
    top = sizes.topk(sizes.shape[1] - math.floor(place), dim=1).values
    low, high = top[:, -1], top[:, -2] if top.shape[1] > 1 else top[:, -1]
    limit = (low + (place - math.floor(place)) * (high - low)).clamp(min=1).view(-1, 1, 1, 1)
    return (torch.minimum(torch.maximum(signed, -limit), limit) / limit + 1) / 2


def grid_shape(size: tuple[int, int], grid: int) -> tuple[int, int]:
    """Shape of a canvas of short side `grid` for a picture of `size`; never finer than the picture."""
    short = min(size)
    if grid <= 0 or grid >= short:
        return size
    return (max(round(size[0] * grid / short), 1), max(round(size[1] * grid / short), 1))


def shrink(pictures: Tensor, shape: tuple[int, int]) -> Tensor:
    """Area averages."""
    same = tuple(pictures.shape[-2:]) == tuple(shape)
    return pictures.clone() if same else F.interpolate(pictures, size=shape, mode="area")


def enlarge(pixels: Tensor, shape: tuple[int, int]) -> Tensor:
    """Bicubic, within [0, 1]."""
    if tuple(pixels.shape[-2:]) == tuple(shape):
        return pixels
    return F.interpolate(pixels, size=shape, mode="bicubic", align_corners=False).clamp(0, 1)
