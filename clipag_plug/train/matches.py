"""Which caption describes which image of a large batch, made piece by piece."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Matches:
    """A bool matrix (N images, M captions) that is never whole: for 40,960 pairs it would take 1.7 GB.

    covers: (M, C) bool, the classes that each caption covers, with the images' classes (N,) in `labels`; or (M,)
    int, where a caption describes the images of equal number in `labels`. Takes `[images]` and `[images, captions]`,
    each a slice, and gives that piece.
    """

    labels: Tensor
    covers: Tensor

    def __getitem__(self, key: slice | tuple[slice, slice]) -> Tensor:
        images, captions = key if isinstance(key, tuple) else (key, slice(None))
        labels, covers = self.labels[images], self.covers[captions]
        if covers.ndim == 2:
            return covers[:, labels].T
        return labels[:, None] == covers[None, :]

    def to(self, device: torch.device | str) -> Matches:
        """The same on a device."""
        return Matches(self.labels.to(device), self.covers.to(device))
