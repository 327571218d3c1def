"""What a run optimises and the picture it stands for.

A canvas holds `values`, one tensor whose rows are pictures. Another canvas is another class in `CANVASES`, with
`encode`, `render` and, for starts of its own, `noise`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .rules import frequencies

# Lucid's map from decorrelated colours to red, green and blue, divided by its largest column norm.
_COLOUR = ((0.26, 0.09, 0.02), (0.27, 0.0, -0.05), (0.27, -0.09, 0.03))
_EDGE = 1e-5  # pixels stay so far from 0 and 1 where their logit is taken


class Canvas:
    """N pictures under optimisation, here as pixels: `values` (N, 3, h, w) in [0, 1].

    A coarse canvas has no room for the high frequencies that encoders ignore or are fooled by, and costs less.

    Args:
        start: pictures (N, 3, H, W) in [0, 1].
        grid: short side of the canvas in pixels; 0, or one beyond the picture's, for the full size.
        mask: (1, H, W) in [0, 1]; where it is 0 a picture equals `start`.
        quantile: of dynamic thresholding after each step; 0 to clamp. Only for pixels.
        margin: pixels of the canvas beyond each border of the picture, grey at first.
        decorrelate: optimise in Lucid's colours instead of red, green and blue. Not for pixels.
    """

    def __init__(
        self,
        start: Tensor,
        *,
        grid: int = 0,
        mask: Tensor | None = None,
        quantile: float = 0.0,
        margin: int = 0,
        decorrelate: bool = False,
    ) -> None:
        around = [margin] * 4
        self.start, self.margin, self.quantile = F.pad(start, around, value=0.5), margin, quantile
        self.mask = None if mask is None else F.pad(mask, around, value=1.0)
        colour = torch.tensor(_COLOUR) if decorrelate else torch.eye(3)
        self.colour = (colour / colour.norm(dim=0).max()).to(start)
        self.size = (self.start.shape[2], self.start.shape[3])
        self.shape = grid_shape(self.size, grid)
        self.origin = shrink(self.start, self.shape)  # what an anchor holds on to
        self.values = self.encode(self.origin.clone())

    def encode(self, pictures: Tensor) -> Tensor:
        """The values that stand for pictures (N, 3, h, w)."""
        return pictures

    def render(self, values: Tensor) -> Tensor:
        """The pictures (N, 3, h, w) in [0, 1] that values stand for."""
        return values

    def noise(self, generator: torch.Generator) -> Tensor:
        """Values (1, ...) of one picture to start from, as the method was published."""
        return torch.rand((1, 3, *self.shape), generator=generator)

    def settle(self, values: Tensor) -> Tensor:
        """The allowed values next to what a step has led to."""
        return threshold(values, self.quantile) if self.quantile > 0 else values.clamp(0, 1)

    def draw(self, generators: Sequence[torch.Generator]) -> None:
        """Starts from noise of the canvas's own kind."""
        self.values = torch.cat([self.noise(generator) for generator in generators]).to(self.start)
        self.origin = self.render(self.values)

    def grow(self, grid: int, *values: Tensor) -> list[Tensor]:
        """The same pictures on a finer canvas, which it is from then on."""
        pictures = [self.render(each) for each in (self.origin, *values)[1:]]
        self.shape = grid_shape(self.size, grid)
        self.origin = enlarge(self.origin, self.shape)
        return [self.encode(enlarge(each, self.shape)) for each in pictures]

    def _whole(self, values: Tensor) -> Tensor:
        pictures = enlarge(self.render(values), self.size)
        if self.mask is None:
            return pictures
        mixed = self.start + self.mask * (pictures - self.start)
        return torch.where(self.mask > 0, mixed, self.start).clamp(0, 1)

    def pictures(self, values: Tensor | None = None) -> Tensor:
        """The finished pictures (N, 3, H, W) in [0, 1]."""
        whole, m = self._whole(self.values if values is None else values), self.margin
        return whole[..., m : self.size[0] - m, m : self.size[1] - m]

    def shown(self, values: Tensor) -> Tensor:
        """What views are taken of: the canvas, or where there is a mask the pictures at full size."""
        return self.render(values) if self.mask is None else self._whole(values)


class Logits(Canvas):
    """The common part of canvases without bounds: pictures are sigmoid(colour @ field), field (N, 3, h, w)."""

    def encode(self, pictures: Tensor) -> Tensor:
        """The values of the field whose sigmoid gives the pictures."""
        field = torch.logit(pictures, _EDGE)
        return self.to_values(torch.einsum("ij,njhw->nihw", self.colour.inverse(), field))

    def render(self, values: Tensor) -> Tensor:
        """The sigmoid of the field."""
        return torch.einsum("ij,njhw->nihw", self.colour, self.to_field(values)).sigmoid()

    def settle(self, values: Tensor) -> Tensor:
        """Every value is allowed."""
        return values

    def to_values(self, field: Tensor) -> Tensor:
        """(N, 3, h, w) -> values; the inverse of `to_field`."""
        raise NotImplementedError

    def to_field(self, values: Tensor) -> Tensor:
        """Values -> (N, 3, h, w)."""
        raise NotImplementedError


class Pyramid(Logits):
    """Direct ascent synthesis (Fort & Whitaker 2025): 1/2 + 1/2 tanh(s), s the sum of pictures of every size.

    Gradient descent on pictures P_r of sizes r = 1, 2, ..., R, resized by U_r, moves s by -lr K g, where g = dL/ds
    and K = sum_r U_r U_r^T. K is nearly diagonal in the cosine transform, so one tensor does: s = K^(1/2) values.
    """

    def noise(self, generator: torch.Generator) -> Tensor:
        """Grey: all variety comes from the views."""
        return torch.zeros(1, 3, *self.shape)

    def _scaled(self, field: Tensor, power: float) -> Tensor:
        down, across = (cosines(length).to(field) for length in self.shape)
        gain = pyramid_gain(*self.shape).to(field) ** power
        return down.T @ (gain * (down @ field @ across.T)) @ across

    def to_values(self, field: Tensor) -> Tensor:
        """K^(-1/2) s, where tanh(s) / 2 + 1 / 2 = sigmoid(2 s)."""
        return self._scaled(field / 2, -0.5)

    def to_field(self, values: Tensor) -> Tensor:
        """2 K^(1/2) values."""
        return 2 * self._scaled(values, 0.5)


class Fourier(Logits):
    """Feature visualisation's canvas (Olah et al. 2017; Lucid): irfft2(values * sqrt(hw) / f^power) / 4.

    values (N, 3, h, 2 (w // 2 + 1)): real and imaginary parts side by side.
    """

    power, deviation = 1.0, 0.01

    def noise(self, generator: torch.Generator) -> Tensor:
        """Gaussian of the published deviation."""
        columns = 2 * (self.shape[1] // 2 + 1)
        return self.deviation * torch.randn((1, 3, self.shape[0], columns), generator=generator)

    def gain(self, like: Tensor) -> Tensor:
        """What each coefficient is multiplied by."""
        frequency = frequencies(*self.shape, like.device)
        return math.sqrt(math.prod(self.shape)) / frequency**self.power / 4

    def to_values(self, field: Tensor) -> Tensor:
        """The spectrum, divided by its weights."""
        return _halves(torch.fft.rfft2(field) / self.gain(field))

    def to_field(self, values: Tensor) -> Tensor:
        """The inverse transform of the weighted spectrum."""
        return torch.fft.irfft2(_complex(values) * self.gain(values), s=self.shape)


class Phase(Fourier):
    """MACO (Fel et al. 2023): the magnitudes are those of natural pictures, only the phases (N, 3, h, w // 2 + 1)
    are optimised. From a picture it takes the phases."""

    deviation = 1.0

    def noise(self, generator: torch.Generator) -> Tensor:
        """Standard normal phases."""
        self.mean, self.spread = 0.0, 1.0
        return torch.randn((1, 3, self.shape[0], self.shape[1] // 2 + 1), generator=generator)

    def to_values(self, field: Tensor) -> Tensor:
        """The phases of a picture's spectrum, whose mean and deviation they keep."""
        phases = torch.fft.rfft2(field).angle()
        self.mean, self.spread = phases.mean((1, 2, 3), True), phases.std((1, 2, 3), keepdim=True)
        return phases

    def to_field(self, values: Tensor) -> Tensor:
        """Phases and picture standardised, as published; magnitudes fitted to ImageNet's mean spectrum."""
        frequency = frequencies(*self.shape, values.device)
        magnitude = (frequency**-1.3 * torch.exp(-((frequency / 0.26) ** 2))).to(values)
        phases = _standard(values) * self.spread + self.mean
        return _standard(
            torch.fft.irfft2(torch.polar(magnitude.expand_as(phases), phases), s=self.shape)
        )


class Accent(Fourier):
    """Feature accentuation (Hamblin et al. 2024): the spectrum of a given picture; the way there is the identity,
    only the gradient is weighted, by f^-power."""

    power = 1.5

    def to_values(self, field: Tensor) -> Tensor:
        """The orthonormal spectrum."""
        return _halves(torch.fft.rfft2(field, norm="ortho"))

    def to_field(self, values: Tensor) -> Tensor:
        """Its inverse."""
        spectrum = _complex(values)
        scaled = spectrum * self.gain(values)
        return torch.fft.irfft2(scaled + (spectrum - scaled).detach(), s=self.shape, norm="ortho")


CANVASES: dict[str, type[Canvas]] = {
    "pixels": Canvas,
    "pyramid": Pyramid,
    "fourier": Fourier,
    "phase": Phase,
    "accent": Accent,
}


def _complex(values: Tensor) -> Tensor:
    return torch.view_as_complex(values.unflatten(-1, (-1, 2)).contiguous())


def _halves(spectrum: Tensor) -> Tensor:
    return torch.view_as_real(spectrum).flatten(-2)


def _standard(values: Tensor) -> Tensor:
    """Mean 0 and deviation 1 over a picture."""
    centred = values - values.mean((1, 2, 3), keepdim=True)
    return centred / (values.std((1, 2, 3), keepdim=True) + 1e-8)


@functools.lru_cache(maxsize=8)
def cosines(length: int) -> Tensor:
    """The orthonormal cosine transform (DCT-II) along one axis: (length, length), a frequency a row."""
    place = torch.arange(length, dtype=torch.float64)
    table = torch.cos(math.pi / length * (place + 0.5) * place[:, None]) * math.sqrt(2 / length)
    table[0] /= math.sqrt(2)
    return table.float()


@functools.lru_cache(maxsize=8)
def pyramid_gain(height: int, width: int) -> Tensor:
    """The diagonal (height, width) of K in the cosine transform (see `Pyramid`).

    Bicubic, from every size up to the short side; the sizes beyond 32 in groups of up to r / 16, each for all of them.
    """
    short, size = min(height, width), 1
    gain = torch.zeros(height, width)
    while size <= short:
        group = min(max(size // 16, 1), short - size + 1)
        middle = size + group // 2
        axes = []
        for length in (height, width):
            few = max(round(length * middle / short), 1)
            eye = torch.eye(few)[None, :, None]
            enlarged = F.interpolate(eye, size=(1, length), mode="bicubic")[0, :, 0]
            axes.append((cosines(length) @ enlarged.T).square().sum(1))
        gain += group * torch.outer(*axes)
        size += group
    return gain


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
