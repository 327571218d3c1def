"""Differentiable random views of pictures: resampled boxes, view policies, perspectives, cutouts, training crops.

Random numbers are uniform in [0, 1), drawn on the CPU so that every device sees the same, and handed over as tensors:
a view depends on its own numbers alone, whatever else is in the batch.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Generators = torch.Generator | Sequence[torch.Generator] | None
Span = tuple[Tensor, Tensor]  # start and length of boxes along one axis, in pixels
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601
CORNERS = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1]])  # x first, from the top left clockwise
FAR = 1e5  # pixels: outside of every picture


def uniform(generator: torch.Generator, *shape: int, like: Tensor | None = None) -> Tensor:
    """Numbers in [0, 1) of this shape, in the type and on the device of `like`."""
    return torch.rand(shape, generator=generator).to(torch.empty(()) if like is None else like)


def fit(images: Tensor, side: int) -> Tensor:
    """The whole pictures (N, C, H, W), squeezed to (side, side)."""
    start = images.new_zeros(len(images), 1)
    height, width = images.shape[-2:]
    return resample(images, (start, start + height), (start, start + width), side)


def resample(images: Tensor, rows: Span, columns: Span, side: int) -> Tensor:
    """Boxes of pictures at (side, side): (N, C, H, W), n boxes each with spans (N, n) -> (N * n, C, side, side).

    Two matrix products, one per axis: each picture is read once whatever n is, and so is its gradient.
    """
    count, channels, height, width = images.shape
    n = rows[0].shape[1]
    down = axis_weights(*rows, height, side).reshape(count, n * side, height)
    across = axis_weights(*columns, width, side).reshape(count * n, side, width)
    strips = down @ images.transpose(1, 2).reshape(count, height, channels * width)
    strips = strips.view(count * n, side, channels, width).flatten(1, 2)
    views = strips @ across.transpose(1, 2)
    return views.view(count * n, side, channels, side).transpose(1, 2)


def axis_weights(start: Tensor, length: Tensor, size: int, side: int) -> Tensor:
    """Interpolation weights (..., side, size) from `size` pixels to `side` samples of [start, start + length).

    A triangle as wide as the sampling distance, at least one pixel: bilinear when enlarging, anti-aliased when
    reducing. Nothing outside the box or the picture is read. Every row sums to 1.
    """
    start, length = start[..., None], length[..., None]
    step = length / side
    centre = start + (torch.arange(side, device=start.device, dtype=start.dtype) + 0.5) * step
    low = start.clamp(min=0, max=size - 1) + 0.5
    high = torch.maximum((start + length).clamp(min=1, max=size) - 0.5, low)
    centre = torch.minimum(torch.maximum(centre, low), high)[..., None]
    place = torch.arange(size, device=start.device, dtype=start.dtype) + 0.5
    weights = (1 - (place - centre).abs() / step.clamp(min=1)[..., None]).clamp(min=0)
    weights = weights * ((place > low[..., None] - 1) & (place < high[..., None] + 1))
    return weights / weights.sum(-1, keepdim=True)


@dataclasses.dataclass(frozen=True)
class Part:
    """One step of a view: `apply(views (V, 3, H, W), numbers (V, k), *settings)`, with the side before the settings
    and numbers (N, n, k) if it reads `boxes`; if `shared`, all views of a picture have the same numbers."""

    apply: Callable[..., Tensor]
    numbers: int
    boxes: bool = False
    shared: bool = False
    settings: tuple[float, ...] = ()


PARTS: dict[str, Part] = {}


def part(numbers: int, name: str = "", **kind: Any) -> Callable[..., Callable[..., Tensor]]:
    """Registers a function as a part of view policies that needs so many random numbers per view."""

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        PARTS[name or function.__name__] = Part(function, numbers, **kind)
        return function

    return register


class Views:
    """`Views(policy)(images, n, side, generator)`: n random views of each picture, (N * n, 3, side, side).

    policy: parts and their settings, "frame 0.8 1.1 0.05, flip, noise 0.1 shared"; "none" is the whole picture, and
    a setting "0.5>0.1" goes from 0.5 to 0.1 with `progress`, 0 to 1. The views of one picture are neighbours. Raises:
    ValueError for an unknown part, with the closest known one.
    """

    def __init__(self, policy: str, progress: float = 0.0) -> None:
        texts = [text for text in policy.split(",") if text.split() not in ([], ["none"])]
        self.parts = [_parse(text, progress) for text in texts]
        self.numbers = [part.numbers for part in self.parts]

    def draw(self, pictures: int, n: int, generator: Generators = None) -> Tensor:
        """Random numbers (pictures, n, k). generator: one for all pictures, or a sequence with one for each."""
        each = generator if isinstance(generator, Sequence) else [generator] * pictures
        rows = torch.stack([torch.rand(n, sum(self.numbers), generator=one) for one in each])
        for part, numbers in zip(self.parts, rows.split(self.numbers, -1)):
            if part.shared:
                numbers[:] = numbers[:, :1].clone()
        return rows

    def apply(self, images: Tensor, numbers: Tensor, side: int) -> Tensor:
        """The views (N * n, 3, side, side) of images (N, 3, H, W) that rows of `numbers` (N, n, k) stand for."""
        parts = list(zip(self.parts, numbers.to(images.device).split(self.numbers, -1)))
        if parts and parts[0][0].boxes:  # reads each picture once for all its views
            first, rows = parts.pop(0)
            views = first.apply(images, rows, side, *first.settings)
        else:
            views = images.repeat_interleave(numbers.shape[1], 0)
        for part, rows in parts:
            rows = rows.flatten(0, 1)
            given = (rows[:, None], side) if part.boxes else (rows,)
            views = part.apply(views, *given, *part.settings)
        return views if tuple(views.shape[-2:]) == (side, side) else fit(views, side)

    def __call__(self, images: Tensor, n: int, side: int, generator: Generators = None) -> Tensor:
        return self.apply(images, self.draw(len(images), n, generator), side)


def _parse(text: str, progress: float) -> Part:
    name, *values = text.lower().split()
    if values and values[-1] == "shared":
        name, values = f"shared-{name}", values[:-1]
    if name not in PARTS:
        close = difflib.get_close_matches(name, PARTS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known parts: {', '.join(PARTS)}"
        raise ValueError(f"no view part is called {name!r}; {hint}")
    known = list(inspect.signature(PARTS[name].apply).parameters)[2 + PARTS[name].boxes :]
    try:
        ends = [[float(end) for end in value.split(">")] for value in values]
        settings = tuple(end[0] + progress * (end[-1] - end[0]) for end in ends)
        if len(settings) > len(known):
            raise ValueError(f"{len(settings)} numbers are more than {len(known)}")
    except ValueError as error:
        taken = " ".join(known) or "nothing"
        raise ValueError(f"view part {text.strip()!r}: {error}; it takes {taken}") from error
    return dataclasses.replace(PARTS[name], settings=settings)


@part(3, boxes=True)
def frame(
    images: Tensor, u: Tensor, side: int, low: float = 1.0, high: float = 1.0, shift: float = 0.0
) -> Tensor:
    """A square of the picture at a random place, its side `low`..`high` times the short side, resampled to `side`.

    The place is uniform inside the picture, widened by `shift` times the square; beyond the border its pixels repeat.
    """
    u = u.to(images)
    height, width = images.shape[-2:]
    squares = (low + u[..., 0] * (high - low)) * min(height, width)
    spans = []
    for length, number in ((height, u[..., 1]), (width, u[..., 2])):
        slack = (length - squares).abs() / 2 + shift * squares
        spans.append((length / 2 - squares / 2 + (2 * number - 1) * slack, squares))
    return resample(images, spans[0], spans[1], side)


@part(2, boxes=True)
def crop(images: Tensor, u: Tensor, side: int, pixels: float = 128) -> Tensor:
    """A square of `pixels` pixels at a random whole-pixel place, resampled to `side` (RandomCrop and Resize of
    torchvision). A picture smaller than the square is taken whole."""
    spans = []
    for length, number in zip(images.shape[-2:], u.to(images).unbind(-1)):
        square = min(int(pixels), length)
        start = _integer(number, length - square + 1)
        spans.append((start, torch.full_like(start, square)))
    return resample(images, spans[0], spans[1], side)


@part(1)
def flip(images: Tensor, u: Tensor, share: float = 0.5) -> Tensor:
    """Mirrors a view left to right with probability `share`."""
    return torch.where(u[..., None, None] < share, images.flip(-1), images)


@part(1)
def brightness(images: Tensor, u: Tensor, amount: float = 0.5) -> Tensor:
    """Adds up to +-`amount` to every pixel of a view (DiffAugment, Zhao et al. 2020)."""
    return images + (2 * u.to(images)[..., None, None] - 1) * amount


@part(1)
def saturation(images: Tensor, u: Tensor, amount: float = 1.0) -> Tensor:
    """Scales the distance from each pixel's grey by 1 +- `amount` (DiffAugment)."""
    return _away_from(images.mean(1, keepdim=True), images, u, amount)


@part(1)
def contrast(images: Tensor, u: Tensor, amount: float = 0.5) -> Tensor:
    """Scales the distance from the view's mean by 1 +- `amount` (DiffAugment)."""
    return _away_from(images.mean((1, 2, 3), keepdim=True), images, u, amount)


@part(2)
def translate(images: Tensor, u: Tensor, ratio: float = 0.125) -> Tensor:
    """Moves a view by up to `ratio` of its side in whole pixels; black comes in (DiffAugment)."""
    for axis in (2, 3):
        length = images.shape[axis]
        reach = int(length * ratio + 0.5)
        offset = _integer(u[:, axis - 2], 2 * reach + 1).long() - reach
        index = _along(axis, torch.arange(length, device=images.device) + offset[:, None])
        inside = (index >= 0) & (index < length)
        images = images.gather(axis, index.clamp(0, length - 1).expand_as(images)) * inside
    return images


@part(1, shared=True)
def resize(images: Tensor, u: Tensor, low: float = 0.8, high: float = 1.2) -> Tensor:
    """Enlarges or reduces by `low`..`high` about the centre: cut, or padded with black. One factor per picture."""
    size, views = images.shape[-1], []
    # The views of one picture are neighbours and share their factor: one interpolation for each run of them.
    for number, run in itertools.groupby(zip(u[:, 0].tolist(), images), key=lambda pair: pair[0]):
        new = max(int((low + number * (high - low)) * size), 1)
        group = torch.stack([view for _, view in run])
        resized = F.interpolate(group, size=(new, new), mode="bilinear")
        before = (size - new) // 2 if new < size else -((new - size) // 2)
        after = size - new - before
        views.append(F.pad(resized, (before, after, before, after)))
    return torch.cat(views)


@part(2)
def cutout(images: Tensor, u: Tensor, ratio: float = 0.5) -> Tensor:
    """Blackens a square of `ratio` times the side, its centre anywhere (DiffAugment)."""
    inside: bool | Tensor = True
    for axis in (2, 3):
        length = images.shape[axis]
        cut = int(length * ratio + 0.5)
        start = _integer(u[:, axis - 2], length + 1 - cut % 2)[:, None] - cut // 2
        place = torch.arange(length, device=images.device)
        inside = inside & _along(axis, (place >= start) & (place < start + cut))
    return images * ~inside


@part(1)
@part(1, "shared-noise", shared=True)
def noise(images: Tensor, u: Tensor, sigma: float = 0.01) -> Tensor:
    """Adds Gaussian noise of deviation `sigma`, from a seed that is drawn per view, or per picture for `shared`."""
    seeds = [int(number * 2**24) for number in u[:, 0].tolist()]
    fields = {
        seed: torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(seed))
        for seed in set(seeds)
    }
    return images + sigma * torch.stack([fields[seed] for seed in seeds]).to(images)


@part(0)
def clamp(images: Tensor, u: Tensor) -> Tensor:
    """Limits a view to [0, 1]."""
    return images.clamp(0, 1)


@part(0, boxes=True)
def bicubic(images: Tensor, u: Tensor, side: int) -> Tensor:
    """The whole picture at `side`, bicubic and without care for aliasing (torch's interpolate)."""
    whole = F.interpolate(images, size=(side, side), mode="bicubic", align_corners=False)
    return whole.repeat_interleave(u.shape[1], 0)


@part(3, boxes=True)
def gaze(
    images: Tensor,
    u: Tensor,
    side: int,
    mean: float = 0.25,
    spread: float = 0.05,
    place: float = 0.15,
) -> Tensor:
    """A box of the picture at `side` (MACO, Fel et al. 2023): its length a share of both sides, normal and within 0.05
    and 1, its centre normal around the middle with deviation `place`; what would leave the picture is moved inside."""
    normal = torch.special.ndtri(u.to(images).clamp(1e-6, 1 - 1e-6))
    share = (mean + spread * normal[..., 0]).clamp(0.05, 1)
    spans = []
    for length, number in zip(images.shape[-2:], normal[..., 1:].unbind(-1)):
        start = 0.5 + place * number - share / 2
        spans.append((torch.minimum(start.clamp(min=0), 1 - share) * length, share * length))
    return resample(images, spans[0], spans[1], side)


@part(2)
def roll(images: Tensor, u: Tensor, pixels: float = 8) -> Tensor:
    """Moves a view by up to `pixels` whole pixels; what leaves it comes in on the other side."""
    for axis in (2, 3):
        offset = _integer(u[:, axis - 2], 2 * int(pixels) + 1).long() - int(pixels)
        place = torch.arange(images.shape[axis], device=images.device)
        index = _along(axis, (place - offset[:, None]) % images.shape[axis])
        images = images.gather(axis, index.expand_as(images))
    return images


@part(2)
def jitter(images: Tensor, u: Tensor, pixels: float = 8) -> Tensor:
    """Cuts `pixels` rows and columns off, at random shares on either side (Lucid)."""
    for axis in (2, 3):
        length = max(images.shape[axis] - int(pixels), 1)
        offset = _integer(u[:, axis - 2], images.shape[axis] - length + 1).long()
        index = _along(axis, torch.arange(length, device=images.device) + offset[:, None])
        shape = [*images.shape[:axis], length, *images.shape[axis + 1 :]]
        images = images.gather(axis, index.expand(shape))
    return images


@part(0)
def pad(images: Tensor, u: Tensor, pixels: float = 12, value: float = 0.5) -> Tensor:
    """`pixels` of grey around a view."""
    return F.pad(images, [int(pixels)] * 4, value=value)


@part(5)
def affine(
    images: Tensor,
    u: Tensor,
    degrees: float = 30,
    shift: float = 0.1,
    low: float = 0.7,
    high: float = 1.2,
    share: float = 0.5,
) -> Tensor:
    """With probability `share` turned by up to +-degrees, moved by up to +-shift of the sides and scaled by low..high,
    about the centre; the border's pixels repeat outside."""
    u = u.to(images)
    angle, scale = torch.deg2rad((2 * u[:, 0] - 1) * degrees), low + u[:, 3] * (high - low)
    ratio = images.shape[-1] / images.shape[-2]
    maps = images.new_zeros(len(images), 2, 3)  # inverse: where each pixel is read
    maps[:, 0, 0] = maps[:, 1, 1] = angle.cos() / scale
    maps[:, 0, 1], maps[:, 1, 0] = angle.sin() / scale / ratio, -angle.sin() / scale * ratio
    maps[:, :, 2] = -2 * (2 * u[:, 1:3] - 1) * shift
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return torch.where(u[:, 4, None, None, None] < share, moved, images)


@part(6)
def shift(images: Tensor, u: Tensor, offset: float = 0.1, spread: float = 0.1) -> Tensor:
    """The colour shift of Plug-in Inversion and CLIPInversion: (x - m) / exp(s) for each view and channel, m and s
    uniform within +-offset and +-spread."""
    moves = (2 * u.to(images) - 1)[..., None, None]
    return (images - offset * moves[:, :3]) / (spread * moves[:, 3:]).exp()


@part(1, "uniform-noise")
def uniform_noise(images: Tensor, u: Tensor, low: float = 0.0, high: float = 0.2) -> Tensor:
    """Adds uniform noise, from a seed that is drawn per view; direct ascent synthesis does not centre it."""
    fields = []
    for number in u[:, 0].tolist():
        generator = torch.Generator().manual_seed(int(number * 2**24))
        fields.append(torch.rand(images.shape[1:], generator=generator))
    return images + low + (high - low) * torch.stack(fields).to(images)


def _away_from(middle: Tensor, images: Tensor, u: Tensor, amount: float) -> Tensor:
    return (images - middle) * (1 + (2 * u.to(images)[..., None, None] - 1) * amount) + middle


def _integer(u: Tensor, count: int) -> Tensor:
    """Uniform numbers as whole numbers 0..count-1. The product can round up to `count`."""
    return (u * count).floor().clamp(max=count - 1)


def _along(axis: int, values: Tensor) -> Tensor:  # (V, length) for one axis of (V, C, H, W)
    return values[:, None, :, None] if axis == 2 else values[:, None, None]


def warp(views: Tensor, maps: Tensor, fill: float = 0.0) -> Tensor:
    """Views (V, C, H, W) read bilinearly at the places in pixels that `maps` (V, 3, 3) send each pixel's centre to;
    `fill` comes in from outside."""
    height, width = views.shape[-2:]
    ys, xs = (torch.arange(length).to(views) + 0.5 for length in (height, width))
    x, y = torch.meshgrid(xs, ys, indexing="xy")
    places = maps @ torch.stack([x, y, torch.ones_like(x)]).flatten(1)
    # A strong perspective has its horizon inside the frame; what lies on it is infinitely far, which is outside.
    places = (places[:, :2] / places[:, 2:]).nan_to_num(FAR).clamp(-FAR, FAR)
    places = places * places.new_tensor([2 / width, 2 / height])[:, None] - 1
    places = places.transpose(1, 2).view(len(views), height, width, 2)
    # Outside is 0 for grid_sample: shift the values so that 0 is what should come in.
    return F.grid_sample(views - fill, places, align_corners=False) + fill


def perspective(views: Tensor, corners: Tensor, fill: float = 0.0) -> Tensor:
    """Views whose corners have moved to `corners` (V, 4, 2), in pixels, in the order of `CORNERS` (torchvision's)."""
    # The homography from `corners` to the frame: eight linear equations in its eight entries.
    x, y = corners.double().cpu().unbind(-1)
    ends = CORNERS.double() * torch.tensor([views.shape[-1] - 1, views.shape[-2] - 1])
    u, v = ends.expand(len(x), 4, 2).unbind(-1)
    one, none = torch.ones_like(x), torch.zeros_like(x)
    above = torch.stack([x, y, one, none, none, none, -u * x, -u * y], -1)
    below = torch.stack([none, none, none, x, y, one, -v * x, -v * y], -1)
    solved = torch.linalg.solve(torch.cat([above, below], 1), torch.cat([u, v], 1))
    maps = torch.cat([solved, torch.ones_like(solved[:, :1])], 1).view(-1, 3, 3)
    # torchvision puts pixel centres at half-integers and corners at whole ones; so does this.
    return warp(views, maps.to(views), fill)


def random_perspective(
    views: Tensor, generator: torch.Generator, distortion: float, fill: float = 0.0
) -> Tensor:
    """RandomPerspective of torchvision: each corner up to distortion * half inwards, drawn for each view."""
    height, width = views.shape[-2:]
    most = [int(distortion * (width // 2)) + 1, int(distortion * (height // 2)) + 1]
    moves = (uniform(generator, len(views), 4, 2, like=views) * views.new_tensor(most)).floor()
    corners = CORNERS.to(views)
    corners = corners * views.new_tensor([width - 1, height - 1]) + (1 - 2 * corners) * moves
    return perspective(views, corners, fill)


def random_affine(
    views: Tensor, generator: torch.Generator, degrees: float, translate: float, shear: float
) -> Tensor:
    """Rotated, moved by up to `translate` of the side and sheared along x, about the centre; black comes in."""
    height, width = views.shape[-2:]
    numbers = 2 * uniform(generator, len(views), 4) - 1
    angle, slant = torch.deg2rad(numbers[:, 0] * degrees), torch.deg2rad(numbers[:, 3] * shear)
    maps = torch.eye(3).repeat(len(views), 1, 1)
    # Places are read, so this is the inverse map: x' = R (x - centre - shift) + centre, then the slant.
    maps[:, 0, 0], maps[:, 0, 1] = angle.cos(), angle.sin() + slant.tan()
    maps[:, 1, 0], maps[:, 1, 1] = -angle.sin(), angle.cos()
    centre = torch.tensor([width / 2, height / 2])
    shift = numbers[:, 1:3] * translate * torch.tensor([width, height])
    maps[:, :2, 2] = centre - (maps[:, :2, :2] @ (centre + shift)[..., None])[..., 0]
    return warp(views, maps.to(views))


def random_resized_crops(
    views: Tensor, generator: torch.Generator, side: int, low: float, high: float
) -> Tensor:
    """A crop of each view (V, C, H, W) at (side, side) as RandomResizedCrop draws it: `low`..`high` of the area, an
    aspect of 3/4 to 4/3 (log-uniform), anti-aliased. A box that would leave the picture is cut to it."""
    (height, width), numbers = views.shape[-2:], uniform(generator, len(views), 4, like=views)
    area = height * width * (low + numbers[:, :1] * (high - low))
    aspect = (math.log(3 / 4) + numbers[:, 1:2] * math.log(16 / 9)).exp()
    across = (area * aspect).sqrt().round().clamp(max=width)
    down = (area / aspect).sqrt().round().clamp(max=height)
    top = (numbers[:, 2:3] * (height - down + 1)).floor()
    left = (numbers[:, 3:] * (width - across + 1)).floor()
    return resample(views, (top, down), (left, across), side)


def training_crops(images: Tensor, size: int, smallest: float, flip: bool, u: Tensor) -> Tensor:
    """A random square crop of each square training image (N, 3, H, H) at (size, size), of at least `smallest` of its
    area. images: float in [0, 1], or uint8; the crops are float in [0, 1].

    Bilinear at no less than the images' own resolution, then averaged: free of aliasing. u (4, N): area, place x,
    place y, and which half is mirrored if `flip` is on.
    """
    length, finer = images.shape[-1], -(-images.shape[-1] // size)
    side = (smallest + (1 - smallest) * u[0]).sqrt()
    mirror = torch.where(u[3] < 0.5, -1.0, 1.0) if flip else torch.ones(len(images))
    points = (2 * torch.arange(size * finer) + 1) / (size * finer) - 1

    def taps(scale: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:  # (N, size, 2 * finer) each
        place = (points * scale[:, None] + (middle * (1 - side))[:, None] + 1) * length / 2 - 0.5
        place = place.clamp(0, length - 1)
        low = place.floor().clamp(max=max(length - 2, 0))
        weights = torch.stack((1 - place + low, place - low), -1) / finer
        low = low.long()
        index = torch.stack((low, low + min(1, length - 1)), -1)
        return index.view(-1, size, 2 * finer), weights.view(-1, size, 2 * finer)

    def sums(rows: Tensor, index: Tensor, weights: Tensor) -> Tensor:  # of rows (H, C): (size, C)
        return F.embedding_bag(index, rows, per_sample_weights=weights, mode="sum")

    rows, columns = taps(side, 2 * u[2] - 1), taps(side * mirror, 2 * u[1] - 1)
    found = torch.empty(len(images), 3, size, size)
    for image, out, *picked in zip(
        images, found, *rows, *columns, strict=True
    ):  # each in the cache
        down = sums(image.permute(1, 2, 0).float().flatten(1), *picked[:2])  # (size, W * 3)
        across = sums(down.T.reshape(length, -1), *picked[2:])  # (size, 3 * size)
        out.copy_(across.T.view(3, size, size))
    return found.div_(255 if images.dtype == torch.uint8 else 1).clamp_(0, 1)


def cutouts(
    image: Tensor, count: int, side: int, method: str, power: float, generator: torch.Generator
) -> Tensor:
    """Cutouts (count, 3, side, side) of one picture (1, 3, H, W) in [0, 1]; with noise they may leave [0, 1].

    By nerdyrodent/VQGAN-CLIP: `latest` squeezes the whole picture (the mean of average and maximum pooling), `pooling`
    random squares; `updated` and `original` resample random squares; all but `original` are then changed by affine
    maps, perspective, colours, erasing and noise. Two things differ: the hue turns in YIQ, and what is erased is
    black. Ours: `plain` is the whole picture, resampled; `moved` is `updated` without colours and erasing, since a
    guide of 40 pixels recognises much by colour. power: above 1 prefers small squares.
    """
    if method == "plain":
        return fit(image, side).expand(count, -1, -1, -1)
    if method == "latest":
        cut = _pooled(image, side).expand(count, -1, -1, -1)
    else:
        height, width = image.shape[-2:]
        most, least = min(height, width), min(height, width, side)
        numbers = uniform(generator, 3, 1, count, like=image)
        length = (numbers[0].pow(power) * (most - least) + least).floor()
        top = (numbers[1] * (height - length + 1)).floor()
        left = (numbers[2] * (width - length + 1)).floor()
        if method == "pooling":
            boxes = torch.cat([top, left, length]).long().T.tolist()
            squares = [_pooled(image[..., y : y + s, x : x + s], side) for y, x, s in boxes]
            cut = torch.cat(squares)
        else:
            cut = resample(image, (top, length), (left, length), side)
    if method == "original":
        return cut
    cut = _some(random_affine(cut, generator, 15, 0.1, 5), cut, generator)
    cut = _some(random_perspective(cut, generator, 0.7), cut, generator)
    if method != "moved":
        cut = _some(_jittered(cut, generator), cut, generator)
        cut = _some(_erased(cut, generator), cut, generator)
    factor = uniform(generator, len(cut), 1, 1, 1) * 0.1
    return cut + (factor * torch.randn(cut.shape, generator=generator)).to(cut)


def _pooled(image: Tensor, side: int) -> Tensor:
    return (F.adaptive_avg_pool2d(image, side) + F.adaptive_max_pool2d(image, side)) / 2


def _some(changed: Tensor, cut: Tensor, generator: torch.Generator) -> Tensor:
    """Each cutout changed with probability 0.7."""
    return torch.where(uniform(generator, len(cut), 1, 1, 1, like=cut) < 0.7, changed, cut)


def _jittered(cut: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness, contrast and saturation x 0.9..1.1, hue +-0.1 of the circle, for each cutout."""
    numbers = (2 * uniform(generator, 4, len(cut), 1, 1, 1, like=cut) - 1) * 0.1
    weights = cut.new_tensor(GREY).view(1, 3, 1, 1)
    cut = (cut * (1 + numbers[0])).clamp(0, 1)
    mean = (cut * weights).sum(1, keepdim=True).mean((1, 2, 3), keepdim=True)
    cut = (mean + (cut - mean) * (1 + numbers[1])).clamp(0, 1)
    grey = (cut * weights).sum(1, keepdim=True)
    cut = (grey + (cut - grey) * (1 + numbers[2])).clamp(0, 1)
    # The hue turns the colour plane of YIQ.
    to_yiq = cut.new_tensor([GREY, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])
    angle = numbers[3].flatten() * 2 * math.pi
    turn = torch.eye(3).to(cut).repeat(len(cut), 1, 1)
    turn[:, 1, 1] = turn[:, 2, 2] = angle.cos()
    turn[:, 1, 2], turn[:, 2, 1] = -angle.sin(), angle.sin()
    turned = torch.einsum("vij,vjhw->vihw", torch.linalg.inv(to_yiq) @ turn @ to_yiq, cut)
    return turned.clamp(0, 1)


def _erased(cut: Tensor, generator: torch.Generator) -> Tensor:
    """The same box black in all: 0.1 to 0.4 of the area, an aspect of 0.3 to 3.3."""
    height, width = cut.shape[-2:]
    area, aspect, y, x = torch.rand(4, generator=generator).tolist()
    area = (0.1 + 0.3 * area) * height * width
    aspect = 0.3 + (1 / 0.3 - 0.3) * aspect
    down = min(round(math.sqrt(area * aspect)), height)
    across = min(round(math.sqrt(area / aspect)), width)
    top, left = int(y * (height - down + 1)), int(x * (width - across + 1))
    mask = cut.new_ones(1, 1, height, width)
    mask[..., top : top + down, left : left + across] = 0
    return cut * mask
