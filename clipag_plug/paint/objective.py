"""The loss of a batch of pictures and its exact gradient, in micro-batches of views."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..guide import Guide
from ..views import Views
from .rivals import Rivals

Shown = Callable[[Tensor], Tensor]


class NotFiniteError(RuntimeError):
    """A model gave features, or a gradient, that are not finite. `results`: the pictures so far, if any."""

    results: Sequence[Any] = ()


@dataclasses.dataclass
class Target:
    """What one guide wants of N pictures: loss = bias - <features, direction>.

    By linearity a whole weighted prompt, sum of w * (1 - cos(image, text)), is one vector: direction (N, D) is the
    sum of w * text, bias (N,) the sum of w. With `rivals` they take the place of the bias (see `Rivals`).
    """

    direction: Tensor
    bias: Tensor
    rivals: Rivals | None = None

    def losses(self, features: Tensor, pictures: slice) -> Tensor:
        """(n, views) of unit features (n, views, D) of these pictures."""
        near = (features @ self.direction[pictures, :, None])[..., 0]
        if self.rivals is None:
            return self.bias[pictures, None] - near
        return self.rivals.losses(features, near, self.direction[pictures], pictures)

    @classmethod
    def of(
        cls, guide: Guide, prompts: Sequence[Sequence[tuple[str, float]]], contrast: float = 0.0
    ) -> Target:
        """From the parsed prompts of the N pictures; each distinct text is encoded once.

        contrast: scale of the softmax against other words; 0 for none, below 0 for what suits the guide.
        """
        texts = list(dict.fromkeys(text for parts in prompts for text, _ in parts))
        place = {text: index for index, text in enumerate(texts)}
        features = guide.texts(texts)
        weights = torch.zeros(len(prompts), len(texts), device=features.device)
        for row, parts in enumerate(prompts):
            for text, weight in parts:
                weights[row, place[text]] += weight
        scale = guide.contrast if contrast < 0 else contrast
        rivals = Rivals.of(guide, prompts, scale) if scale else None
        return cls(weights @ features, weights.sum(1), rivals)


@dataclasses.dataclass
class ViewSet:
    """`count` random views per picture and step, and the weight of their mean loss."""

    views: Views
    count: int
    weight: float
    reject: float = 0.0


class Objective:
    """Mean loss over guides of N pictures: sum over sets of weight * mean over views.

    memory: bytes that the views of one pass may take with what autograd keeps for them; None for no limit. Views
    are then encoded in several passes. A view depends on its own random numbers only, so the gradient is the same.
    """

    def __init__(
        self,
        guides: Sequence[Guide],
        targets: Sequence[Target],
        sets: Sequence[ViewSet],
        *,
        tv: float = 0.0,
        memory: int | None = None,
    ) -> None:
        self.guides, self.targets, self.sets = guides, targets, sets
        self.tv, self.memory = tv, memory
        self.scale = 1024.0 if any(guide.precision == "fp16" for guide in guides) else 1.0
        self._bytes: dict[tuple[int, int, tuple[int, ...]], int] = {}

    def __call__(
        self, pixels: Tensor, shown: Shown, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Total losses (N,), losses of the first set alone (N,), and the gradient of the totals' sum.

        pixels: (N, 3, h, w); shown: maps them to the pictures that views are taken of. NotFiniteError otherwise.
        """
        count = len(pixels)
        gradient = torch.zeros_like(pixels)
        losses = torch.zeros(len(self.sets), count, device=pixels.device)
        share = 1 / len(self.guides)
        for g in range(len(self.guides)):
            for s, view_set in enumerate(self.sets):
                uniform = view_set.views.draw(count, view_set.count, generators)
                weights = self._weights(g, s, pixels, shown, uniform) * (share / view_set.count)
                for chunk in self._chunks(g, s, pixels, shown, uniform):
                    values, part = self._pass(g, s, pixels, shown, uniform, chunk, weights)
                    losses[s, chunk[0]] += values
                    gradient += part
        scales = torch.tensor([view_set.weight for view_set in self.sets], device=pixels.device)
        totals = (scales[:, None] * losses).sum(0)
        if self.tv:
            extra, slope = self._variation(pixels)
            totals, gradient = totals + extra, gradient + slope
        if not (torch.isfinite(totals).all() and torch.isfinite(gradient).all()):
            raise NotFiniteError(
                f"{self.guides[0].name} gave a loss or a gradient that is not finite"
            )
        return totals, losses[0], gradient

    def _pass(
        self,
        g: int,
        s: int,
        pixels: Tensor,
        shown: Shown,
        uniform: Tensor,
        chunk: tuple[slice, slice],
        weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Weighted losses of a chunk, summed per picture, and their gradient at `pixels`."""
        while True:
            leaf = pixels.detach().requires_grad_(True)
            with torch.enable_grad():
                losses = self._losses(g, s, shown(leaf), uniform, chunk) * weights[chunk]
                scaled = losses.sum() * (self.sets[s].weight * self.scale)
                (gradient,) = torch.autograd.grad(scaled, leaf)
            if self.scale == 1 or torch.isfinite(gradient).all():
                return losses.detach().sum(1), gradient / self.scale
            # fp16 overflowed on the way back, though the features were finite: try a smaller scale.
            self.scale = max(self.scale / 2, 1)

    def _losses(
        self, g: int, s: int, shown: Tensor, uniform: Tensor, chunk: tuple[slice, slice]
    ) -> Tensor:
        """Losses (pictures, views) of a chunk."""
        guide, target = self.guides[g], self.targets[g]
        pictures, _ = chunk
        views = self.sets[s].views.apply(shown[pictures], uniform[chunk], guide.side)
        features = guide.features(views)
        if not torch.isfinite(features).all():
            raise NotFiniteError(f"{guide.name} gave features that are not finite")
        rows = features.view(len(shown[pictures]), -1, features.shape[-1])
        return target.losses(rows, pictures)

    def _weights(self, g: int, s: int, pixels: Tensor, shown: Shown, uniform: Tensor) -> Tensor:
        """1 per view; 0 for the share of each picture's views with the lowest loss, where a set rejects some."""
        reject = self.sets[s].reject
        ones = torch.ones(uniform.shape[:2], device=pixels.device)
        if not reject:
            return ones
        losses = ones.clone()
        with torch.no_grad():
            for chunk in self._chunks(g, s, pixels, shown, uniform):
                losses[chunk] = self._losses(g, s, shown(pixels), uniform, chunk)
        return (losses >= losses.quantile(reject, dim=1, keepdim=True)).float()

    def _chunks(
        self, g: int, s: int, pixels: Tensor, shown: Shown, uniform: Tensor
    ) -> Iterator[tuple[slice, slice]]:
        """(pictures, views) of each pass: everything, several whole pictures, or part of one picture's views."""
        pictures, views = uniform.shape[:2]
        room = pictures * views
        if self.memory is not None:
            room = max(self.memory // self._bytes_per_view(g, s, pixels, shown, uniform), 1)
        group, step = (min(room // views, pictures), views) if room >= views else (1, room)
        for first in range(0, pictures, group):
            for start in range(0, views, step):
                yield (
                    slice(first, min(first + group, pictures)),
                    slice(start, min(start + step, views)),
                )

    def _bytes_per_view(self, g: int, s: int, pixels: Tensor, shown: Shown, uniform: Tensor) -> int:
        """What autograd keeps for one view, measured once per grid on any device, plus half for the way back."""
        key = (g, s, tuple(pixels.shape[-2:]))
        if key not in self._bytes:
            kept: dict[int, int] = {}
            weights = {parameter.data_ptr() for parameter in self.guides[g].model.parameters()}

            def keep(tensor: Tensor) -> Tensor:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in weights:
                    kept[storage.data_ptr()] = storage.nbytes()
                return tensor

            leaf = pixels[:1].detach().requires_grad_(True)
            with (
                torch.enable_grad(),
                torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            ):
                full = torch.cat([leaf, pixels[1:]])
                self._losses(g, s, shown(full), uniform, (slice(0, 1), slice(0, 1)))
            self._bytes[key] = max(int(sum(kept.values()) * 1.5), 1)
        return self._bytes[key]

    def _variation(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Total variation (N,), the mean step between neighbours, and its gradient."""
        leaf = pixels.detach().requires_grad_(True)
        with torch.enable_grad():
            steps = [leaf.diff(dim=axis).abs().mean((1, 2, 3)) for axis in (2, 3)]
            values = self.tv * (steps[0] + steps[1])
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
        return values.detach(), gradient
