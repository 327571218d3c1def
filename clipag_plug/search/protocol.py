"""What a class-conditional generator has to offer to be searched, and how its pictures reach a CLIP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

RANGES = ("correct", "legacy")


class Generator(Protocol):
    """A conditional generator. `classes` names its labels; `soft` says that the class weights take gradients.

    latents: `count` draws (n, dim_z) of z. Called with z (n, dim_z) and class weights y (n, C), of which the row of a
    class is one-hot, it gives pictures (n, 3, S, S) in [-1, 1], as generators of the GAN kind do.
    """

    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> Sequence[str]: ...

    @property
    def dim_z(self) -> int: ...

    @property
    def soft(self) -> bool: ...

    def latents(self, count: int, generator: torch.Generator) -> Tensor: ...

    def __call__(self, z: Tensor, y: Tensor) -> Tensor: ...


class Labelled:
    """A SAGAN-type generator, `network(z, labels)` with label numbers (n,) and z from N(0, I), behind the protocol.

    network: gives (n, 3, S, S) in [-1, 1], as those of `pytorch-pretrained-gans` do. The class weights are
    reduced to their largest, so the class takes no gradient.
    """

    soft = False

    def __init__(
        self,
        network: Callable[[Tensor, Tensor], Tensor],
        dim_z: int,
        classes: Sequence[str],
        name: str = "sagan",
    ) -> None:
        self.network, self.dim_z, self.classes, self.name = network, dim_z, list(classes), name

    def latents(self, count: int, generator: torch.Generator) -> Tensor:
        """z from a standard normal distribution."""
        return torch.randn(count, self.dim_z, generator=generator)

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        return self.network(z, y.argmax(dim=1))


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Label numbers (n,) as class weights (n, C)."""
    return F.one_hot(labels, classes).float()


def as_pictures(output: Tensor) -> Tensor:
    """A generator's output in [-1, 1] as pictures in [0, 1]."""
    return (output + 1) / 2


def enlarged(images: Tensor, side: int) -> Tensor:
    """Pictures at another side, bilinear and with antialiasing where they shrink."""
    if images.shape[-1] == side:
        return images
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
