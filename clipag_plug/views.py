"""Differentiable random views of pictures: small parts, one row of random numbers per view.

A `Views` object is a list of parts. Each part says how many uniform numbers it needs per view; one draw per picture
provides them all, so a view depends on nothing but its own row. Micro-batches of any size therefore give the same
views, and a picture gets the same views whatever else is in the batch.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .sampling import fit
from .viewparts import PARTS, Crop, Frame, Noise, Part

Generators = torch.Generator | Sequence[torch.Generator] | None


class Views:
    """A policy: `Views(parts)(images, n, generator, side)` gives (N * n, 3, side, side), n views of each picture.

    parts: `Part` objects, or their text as `parse` reads it. The views of one picture are neighbours.
    """

    def __init__(self, parts: Sequence[Part] | str) -> None:
        self.parts = parse(parts) if isinstance(parts, str) else list(parts)

    @property
    def numbers(self) -> int:
        """Uniform numbers that one view needs."""
        return sum(part.numbers for part in self.parts)

    def draw(self, pictures: int, n: int, generator: Generators = None) -> Tensor:
        """Random numbers (pictures, n, numbers), on the CPU.

        generator: one for all the pictures, or a sequence with one for each.
        """
        shape = (n, self.numbers)
        if isinstance(generator, torch.Generator) or generator is None:
            rows = torch.rand((pictures, *shape), generator=generator)
        else:
            rows = torch.stack([torch.rand(shape, generator=g) for g in generator])
        start = 0
        for part in self.parts:
            if part.shared:
                rows[..., start : start + part.numbers] = rows[:, :1, start : start + part.numbers]
            start += part.numbers
        return rows

    def apply(self, images: Tensor, uniform: Tensor, side: int) -> Tensor:
        """The views that the rows of `uniform` (N, n, numbers) describe: (N * n, 3, side, side)."""
        n = uniform.shape[1]
        views, start = images, 0
        for index, part in enumerate(self.parts):
            numbers = uniform[..., start : start + part.numbers]
            start += part.numbers
            if index == 0 and isinstance(part, Frame | Crop):
                views = part.expand(images, numbers.to(images), side)
                continue
            if index == 0:
                views = images.repeat_interleave(n, 0)
            rows = numbers.flatten(0, 1)
            views = part(views, rows if isinstance(part, Noise) else rows.to(views), side)
        if not self.parts:
            views = images.repeat_interleave(n, 0)
        return views if tuple(views.shape[-2:]) == (side, side) else fit(views, side)

    def __call__(
        self, images: Tensor, n: int, generator: Generators = None, side: int | None = None
    ) -> Tensor:
        side = min(images.shape[-2:]) if side is None else side
        return self.apply(images, self.draw(len(images), n, generator), side)


def parse(policy: str) -> list[Part]:
    """'frame 0.8 1.1 0.05, flip, noise 0.02' -> parts; 'none' or '' -> []. ValueError names the closest known part."""
    parts: list[Part] = []
    for text in policy.split(","):
        words = text.split()
        if not words or words == ["none"]:
            continue
        name, numbers = words[0].lower(), words[1:]
        if numbers and numbers[-1] == "shared":
            name, numbers = f"shared-{name}", numbers[:-1]
        if name not in PARTS:
            close = difflib.get_close_matches(name, PARTS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known parts: {', '.join(PARTS)}"
            raise ValueError(f"no view part is called {name!r}; {hint}")
        kind: Any = PARTS[name]
        fields = [field.name for field in dataclasses.fields(kind)]
        try:
            values = [float(number) for number in numbers]
        except ValueError as error:
            raise ValueError(
                f"view part {text.strip()!r}: {error}; it takes {' '.join(fields) or 'nothing'}"
            ) from error
        if len(values) > len(fields):
            raise ValueError(
                f"view part {text.strip()!r} takes at most {len(fields)}: {' '.join(fields) or 'nothing'}"
            )
        parts.append(kind(*values))
    return parts
