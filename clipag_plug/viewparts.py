"""The parts that random views are made of: each maps images and one row of uniform numbers per view to images."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from .sampling import resample


@dataclasses.dataclass(frozen=True)
class Part:
    """One step of a view: maps (V, 3, H, W) and its uniform numbers (V, `numbers`) to (V, 3, h, w)."""

    numbers: ClassVar[int] = 0
    shared: ClassVar[bool] = False  # one row of numbers for all the views of a picture

    def __call__(self, images: Tensor, uniform: Tensor, side: int) -> Tensor:
        """`side`: the resolution that the finished views will have."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Frame(Part):
    """A square of the picture at a random place, its side `low`..`high` times the short side, resampled to `side`.

    The place is uniform among those inside the picture, widened by `shift` times the square; a square that
    reaches over the border sees the border's pixels repeated. Resampling is area-like when it reduces and bilinear
    when it enlarges, and cannot alias. As the first part it reads the picture once for all its views.
    """

    low: float = 1.0
    high: float = 1.0
    shift: float = 0.0
    numbers: ClassVar[int] = 3

    def __call__(self, images: Tensor, uniform: Tensor, side: int) -> Tensor:
        return self.expand(images, uniform[:, None], side)

    def expand(self, images: Tensor, uniform: Tensor, side: int) -> Tensor:
        """(N, 3, H, W), (N, n, 3) -> (N * n, 3, side, side)."""
        height, width = images.shape[-2:]
        squares = (self.low + uniform[..., 0] * (self.high - self.low)) * min(height, width)
        boxes = []
        for length, number in ((height, uniform[..., 1]), (width, uniform[..., 2])):
            slack = (length - squares).abs() / 2 + self.shift * squares
            boxes.append((length / 2 - squares / 2 + (2 * number - 1) * slack, squares))
        rows, columns = boxes
        return resample(images, rows, columns, side)


@dataclasses.dataclass(frozen=True)
class Crop(Part):
    """A square of `pixels` pixels at a random whole-pixel place, resampled to `side` (RandomCrop and Resize of
    torchvision). A picture smaller than the square is taken whole."""

    pixels: float = 128
    numbers: ClassVar[int] = 2

    def __call__(self, images: Tensor, uniform: Tensor, side: int) -> Tensor:
        return self.expand(images, uniform[:, None], side)

    def expand(self, images: Tensor, uniform: Tensor, side: int) -> Tensor:
        """(N, 3, H, W), (N, n, 2) -> (N * n, 3, side, side)."""
        boxes = []
        for length, number in zip(images.shape[-2:], uniform.unbind(-1), strict=True):
            square = min(int(self.pixels), length)
            start = _integer(number, length - square + 1)
            boxes.append((start, torch.full_like(start, square)))
        rows, columns = boxes
        return resample(images, rows, columns, side)


@dataclasses.dataclass(frozen=True)
class Flip(Part):
    """Mirrors a view left to right with probability `share`."""

    share: float = 0.5
    numbers: ClassVar[int] = 1

    def __call__(self, images: Tensor, uniform: Tensor, side: int) -> Tensor:
        return torch.where(_each(uniform[:, 0]) < self.share, images.flip(-1), images)


@dataclasses.dataclass(frozen=True)
class Brightness(Part):
    """Adds up to +-`amount` to every pixel of a view (DiffAugment, Zhao et al. 2020)."""

    amount: float = 0.5
    numbers: ClassVar[int] = 1

    def __call__(self, images: Tensor, uniform: Tensor, side: int) -> Tensor:
        return images + _each(2 * uniform[:, 0] - 1) * self.amount


@dataclasses.dataclass(frozen=True)
class Saturation(Part):
    """Scales the distance from each pixel's grey by 1 +- `amount` (DiffAugment)."""

    amount: float = 1.0
    numbers: ClassVar[int] = 1

    def __call__(self, images: Tensor, uniform: Tensor, side: int) -> Tensor:
        grey = images.mean(1, keepdim=True)
        return (images - grey) * _each(1 + (2 * uniform[:, 0] - 1) * self.amount) + grey


@dataclasses.dataclass(frozen=True)
class Contrast(Part):
    """Scales the distance from the view's mean by 1 +- `amount` (DiffAugment)."""

    amount: float = 0.5
    numbers: ClassVar[int] = 1

    def __call__(self, images: Tensor, uniform: Tensor, side: int) -> Tensor:
        mean = images.mean((1, 2, 3), keepdim=True)
        return (images - mean) * _each(1 + (2 * uniform[:, 0] - 1) * self.amount) + mean


@dataclasses.dataclass(frozen=True)
class Translate(Part):
    """Moves a view by up to `ratio` of its side in whole pixels; black comes in (DiffAugment)."""

    ratio: float = 0.125
    numbers: ClassVar[int] = 2

    def __call__(self, images: Tensor, uniform: Tensor, side: int) -> Tensor:
        for axis in (2, 3):
            length = images.shape[axis]
            reach = int(length * self.ratio + 0.5)
            offset = _integer(uniform[:, axis - 2], 2 * reach + 1).long() - reach
            index = torch.arange(length, device=images.device) + offset[:, None]
            inside = (index >= 0) & (index < length)
            shape = [len(images), 1, 1, 1]
            shape[axis] = length
            index = index.clamp(0, length - 1).view(shape).expand_as(images)
            images = images.gather(axis, index) * inside.view(shape)
        return images


@dataclasses.dataclass(frozen=True)
class Resize(Part):
    """Enlarges or reduces by `low`..`high` about the centre: cut, or padded with black. One factor per picture."""

    low: float = 0.8
    high: float = 1.2
    numbers: ClassVar[int] = 1
    shared: ClassVar[bool] = True

    def __call__(self, images: Tensor, uniform: Tensor, side: int) -> Tensor:
        # The views of one picture are neighbours and share their factor: one interpolation for each run of them.
        runs = [(value, len(list(run))) for value, run in itertools.groupby(uniform[:, 0].tolist())]
        groups = images.split([length for _, length in runs])
        return torch.cat(
            [self.scale(group, value) for group, (value, _) in zip(groups, runs, strict=True)]
        )

    def scale(self, images: Tensor, number: float) -> Tensor:
        """The views at one factor, given by its uniform number."""
        size = images.shape[-1]
        new = max(int((self.low + number * (self.high - self.low)) * size), 1)
        resized = F.interpolate(images, size=(new, new), mode="bilinear")
        if new < size:
            before = (size - new) // 2
            after = size - new - before
            return F.pad(resized, (before, after, before, after))
        start = (new - size) // 2
        return resized[:, :, start : start + size, start : start + size]


@dataclasses.dataclass(frozen=True)
class Cutout(Part):
    """Blackens a square of `ratio` times the side, its centre anywhere (DiffAugment)."""

    ratio: float = 0.5
    numbers: ClassVar[int] = 2

    def __call__(self, images: Tensor, uniform: Tensor, side: int) -> Tensor:
        inside = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=images.device)
        for axis in (2, 3):
            length = images.shape[axis]
            cut = int(length * self.ratio + 0.5)
            centre = _integer(uniform[:, axis - 2], length + 1 - cut % 2)
            start = centre[:, None] - cut // 2
            place = torch.arange(length, device=images.device)
            shape = [len(images), 1, 1, 1]
            shape[axis] = length
            inside = inside & ((place >= start) & (place < start + cut)).view(shape)
        return images * ~inside


@dataclasses.dataclass(frozen=True)
class Noise(Part):
    """Adds Gaussian noise of deviation `sigma`, generated from a seed that is drawn per view."""

    sigma: float = 0.01
    numbers: ClassVar[int] = 1

    def __call__(self, images: Tensor, uniform: Tensor, side: int) -> Tensor:
        numbers = uniform[:, 0].tolist()
        fields = {number: self.draw(images.shape[1:], number) for number in dict.fromkeys(numbers)}
        return images + self.sigma * torch.stack([fields[number] for number in numbers]).to(images)

    @staticmethod
    def draw(shape: Sequence[int], number: float) -> Tensor:
        """The standard normal field of one view. On the CPU, so that every device sees the same."""
        generator = torch.Generator().manual_seed(int(number * 2**24))
        return torch.randn(tuple(shape), generator=generator)


@dataclasses.dataclass(frozen=True)
class SharedNoise(Noise):
    """`Noise` with one field for all the views of a picture."""

    shared: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class Clamp(Part):
    """Limits a view to [0, 1]."""

    def __call__(self, images: Tensor, uniform: Tensor, side: int) -> Tensor:
        return images.clamp(0, 1)


PARTS: dict[str, type[Part]] = {
    "frame": Frame,
    "crop": Crop,
    "flip": Flip,
    "brightness": Brightness,
    "saturation": Saturation,
    "contrast": Contrast,
    "translate": Translate,
    "resize": Resize,
    "cutout": Cutout,
    "noise": Noise,
    "shared-noise": SharedNoise,
    "clamp": Clamp,
}


def _integer(uniform: Tensor, count: int) -> Tensor:
    """Uniform numbers as whole numbers 0..count-1. The product can round up to `count`."""
    return (uniform * count).floor().clamp(max=count - 1)


def _each(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
