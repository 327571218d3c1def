"""What any pipeline gives: its steps, its finished pictures, and the error that keeps them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import write_text
from ..images import png_bytes, resize, write_image


class NotFiniteError(RuntimeError):
    """A model gave features, or a gradient, that are not finite. `results`: the pictures so far, if any."""

    results: Sequence[Any] = ()


@dataclasses.dataclass
class Step:
    """What one step did: its number from 0, losses (N,) of the pictures before it, and its step size."""

    index: int
    losses: Tensor
    rate: float


@dataclasses.dataclass
class Synthesis:
    """One finished picture: image (3, H, W) in [0, 1] on the CPU, its loss and everything that made it.

    loss: of the picture that was kept. frames: pictures of the course, the start first. svg: strokes, of a drawing.
    """

    image: Tensor
    prompt: str
    model: str
    seed: int
    loss: float
    losses: list[float]
    frames: list[Tensor]
    recipe: dict[str, Any]
    svg: str | None = None

    @property
    def steps(self) -> int:
        """Steps that were done."""
        return len(self.losses)

    def enlarged(self, side: int) -> Synthesis:
        """With a short side of at least `side` pixels, resampled where it has fewer, which the recipe then says."""
        height, width = self.image.shape[-2:]
        if min(height, width) >= side:
            return self
        size = (round(height * side / min(height, width)), round(width * side / min(height, width)))
        shown = f"{size[1]}x{size[0]}, resampled from {width}x{height}"
        picture = resize(self.image[None], size)[0]
        return dataclasses.replace(self, image=picture, recipe={**self.recipe, "shown": shown})

    def save(self, path: str | Path) -> Path:
        """Writes a .png with the recipe inside, or the strokes as .svg. Raises: ValueError for another suffix."""
        if Path(path).suffix.lower() == ".svg":
            if self.svg is None:
                raise ValueError(f"{str(path)!r}: this picture is not made of strokes; give a .png")
            return write_text(path, self.svg)
        return write_image(path, self.image, self.recipe)

    def _repr_png_(self) -> bytes:
        """The picture with its recipe, for notebooks."""
        return png_bytes(self.image, self.recipe)
