"""The update rules of a run."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Stepper:
    """Update rules; every picture is treated on its own, whatever else is in the batch.

    Args:
        rule: sgd, gradient (sgd at unit RMS), sign, adam, adamw, nadam or spectral.
        lr: step size in the canvas's values; schedule: constant, cosine, or quarter: cos(0.9 * pi / 2 * t), the
            course of FARE's generator-free loop.
        clip: largest L2 norm of a picture's gradient, 0 for any.
        tilt: the spectral rule weighs a frequency f by f^-tilt.
    """

    def __init__(
        self, rule: str, lr: float, schedule: str, steps: int, clip: float = 0.0, tilt: float = 0.5
    ) -> None:
        self.rule, self.lr, self.schedule, self.steps = rule, lr, schedule, steps
        self.clip, self.tilt = clip, tilt
        self.restart()

    def restart(self) -> None:
        """Forgets the moments, as after a change of the grid."""
        self.count, self.product = 0, 1.0
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
        if self.rule in ("sgd", "sign"):
            return values - rate * (gradient if self.rule == "sgd" else gradient.sign())
        if self.rule == "adamw":
            values = values * (1 - rate * 0.01)
        rules = {"spectral": self._spectral, "nadam": self._nadam}
        return values - rate * rules.get(self.rule, self._adam)(gradient)

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

    def _nadam(self, gradient: Tensor) -> Tensor:
        """NAdam's direction (Dozat 2016) with the momentum schedule of Keras and torch."""
        self._momentum(gradient, gradient)
        self.second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        now, after = (0.9 * (1 - 0.5 * 0.96 ** (0.004 * (self.count + i))) for i in (0, 1))
        self.product *= now
        ahead = after / (1 - self.product * after) * self.first
        first = ahead + (1 - now) / (1 - self.product) * gradient
        return first / ((self.second / (1 - 0.999**self.count)).sqrt() + 1e-8)

    def _spectral(self, gradient: Tensor) -> Tensor:
        """Momentum of the gradient, every frequency f of it weighted by f^-tilt, at about unit RMS a picture.

        Photographs have little at high frequencies. Adam gives every pixel a step of the same length and so paints
        the checks and dots there that a gradient is full of (Olah et al. 2017, "Feature Visualization", on
        preconditioning); here they stay as small as they are, or smaller.
        """
        gradient = weighted(gradient, self.tilt)
        power = gradient.square().mean((1, 2, 3), keepdim=True)
        first = self._momentum(gradient, power)
        self.second.lerp_(power, 0.01)
        return first / (self.second / (1 - 0.99**self.count)).sqrt().clamp_min(1e-20)


def frequencies(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """(height, width // 2 + 1) in cycles a pixel, as rfft2 lays them out; the mean counts as the longest wave."""
    rows = torch.fft.fftfreq(height, device=device)[:, None]
    columns = torch.fft.rfftfreq(width, device=device)
    return torch.hypot(rows, columns).clamp_min(1 / max(height, width))


def weighted(pictures: Tensor, tilt: float = 0.5) -> Tensor:
    """Pictures (N, 3, h, w) with each frequency f multiplied by f^-tilt."""
    height, width = pictures.shape[-2:]
    frequency = frequencies(height, width, pictures.device)
    weights = frequency.rsqrt() if tilt == 0.5 else frequency.pow(-tilt)
    return torch.fft.irfft2(torch.fft.rfft2(pictures) * weights, s=(height, width))
