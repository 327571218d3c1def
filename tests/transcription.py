"""The authors' text-to-picture loop, written a second time from its description: an oracle, slow and plain.

It takes its random numbers from outside, one row per view, so that it can be compared with the package's loop.
Columns of a view: noise seed, brightness, saturation, contrast, translation (2), resize, cutout (2); a patch has
the place of its crop (2) behind the noise seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

MEAN = torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(1, 3, 1, 1)
STD = torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(1, 3, 1, 1)


def gaussian(number: float, shape: Sequence[int]) -> Tensor:
    generator = torch.Generator().manual_seed(int(number * 2**24))
    return torch.randn(tuple(shape), generator=generator)


def whole(number: float, count: int) -> int:
    return min(int(torch.tensor(number) * count), count - 1)


def colour(x: Tensor, rows: Tensor) -> Tensor:
    x = x + (rows[:, 0].view(-1, 1, 1, 1) - 0.5)
    grey = x.mean(dim=1, keepdim=True)
    x = (x - grey) * (rows[:, 1].view(-1, 1, 1, 1) * 2) + grey
    mean = x.mean(dim=[1, 2, 3], keepdim=True)
    return (x - mean) * (rows[:, 2].view(-1, 1, 1, 1) + 0.5) + mean


def translate(view: Tensor, down: float, right: float) -> Tensor:
    side = view.shape[-1]
    reach = int(side * 0.125 + 0.5)
    dy, dx = (whole(number, 2 * reach + 1) - reach for number in (down, right))
    padded = F.pad(view, (reach, reach, reach, reach))
    return padded[:, reach + dy : reach + dy + side, reach + dx : reach + dx + side]


def resize(x: Tensor, number: float) -> Tensor:
    side = x.shape[-1]
    new = int((0.8 + 0.4 * number) * side)
    scaled = F.interpolate(x, size=new, mode="bilinear")
    if new < side:
        left = int((side - new) / 2)
        return F.pad(scaled, (left, side - left - new, left, side - left - new), "constant", 0.0)
    left = int((new - side) / 2)
    return scaled[:, :, left : left + side, left : left + side]


def cutout(view: Tensor, row: float, column: float) -> Tensor:
    side = view.shape[-1]
    cut = int(side * 0.5 + 0.5)
    y, x = (whole(number, side + 1 - cut % 2) - cut // 2 for number in (row, column))
    mask = torch.ones(1, side, side)
    mask[:, max(y, 0) : max(y + cut, 0), max(x, 0) : max(x + cut, 0)] = 0
    return view * mask


def diff_augment(x: Tensor, rows: Tensor) -> Tensor:
    x = colour(x, rows[:, :3])
    x = torch.stack([translate(view, *row[3:5].tolist()) for view, row in zip(x, rows)])
    x = resize(x, float(rows[0, 5]))
    return torch.stack([cutout(view, *row[6:8].tolist()) for view, row in zip(x, rows)])


def crop(view: Tensor, row: Tensor, pixels: int) -> Tensor:
    side = view.shape[-1]
    y, x = (whole(number, side - pixels + 1) for number in row.tolist())
    patch = view[None, :, y : y + pixels, x : x + pixels]
    return F.interpolate(patch, size=(side, side), mode="bilinear", align_corners=False)[0]


def dynamic_threshold(image: Tensor, quantile: float) -> Tensor:
    signed = image * 2 - 1
    limit = torch.quantile(signed.abs(), quantile).clamp(min=1)
    return (signed.clamp(-limit, limit) / limit + 1) / 2


def notebook_loop(
    model: Any,
    text_features: Tensor,
    start: Tensor,
    tape: Callable[[int], tuple[Tensor, Tensor]],
    steps: int,
    *,
    crop_pixels: int = 128,
) -> tuple[list[float], Tensor]:
    """Losses of each step and the image of lowest global loss. start: (1, 3, S, S) in [0, 1].

    tape: step -> random rows of the views and of the patches. The weights are not frozen, as in the notebook.
    """
    image = start.clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([image], lr=0.0175)
    losses: list[float] = []
    best_loss, best_image = float("inf"), start
    for step in range(steps):
        view_rows, patch_rows = tape(step)
        optimizer.zero_grad()
        noise = gaussian(float(patch_rows[0, 0]), image.shape[1:])[None]
        noisy = image.repeat(len(patch_rows), 1, 1, 1) + noise * 0.01
        crops = [crop(view, row[1:3], crop_pixels) for view, row in zip(noisy, patch_rows)]
        crops = diff_augment(torch.stack(crops).clamp(0, 1), patch_rows[:, 3:])
        features = model.encode_image((crops - MEAN) / STD)
        patch_loss = (1 - torch.cosine_similarity(features, text_features, dim=1)).mean()
        noise = torch.stack([gaussian(float(row[0]), image.shape[1:]) for row in view_rows])
        views = diff_augment(image.repeat(len(view_rows), 1, 1, 1) + noise * 0.01, view_rows[:, 1:])
        features = model.encode_image((views - MEAN) / STD)
        clip_loss = (1 - torch.cosine_similarity(features, text_features, dim=1)).mean()
        loss = 1.0 * clip_loss + 5.0 * patch_loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(image, max_norm=0.001)
        optimizer.step()
        image.data = dynamic_threshold(image.data, 0.95)
        if clip_loss.item() < best_loss:
            best_loss, best_image = clip_loss.item(), image.data.clone()
        losses.append(loss.item())
    return losses, best_image
