"""What a run wants of its pictures: weighted prompts, the loss of their views, and its exact gradient."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..augment import Views, fit
from .canvases import Canvas
from .results import NotFiniteError

if TYPE_CHECKING:
    from ..guide import Guide

Parts = list[tuple[str, float]]
Chunk = tuple[slice, slice]  # of pictures and of their views
_NUMBER = re.compile(r"(.*):\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*", re.DOTALL)


def split_prompt(prompt: str, numbers: int = 1) -> list[tuple[str, list[float]]]:
    """The parts of 'a fox:1 | blurry:-0.3': each text with at most `numbers` numbers behind it, the weight first.

    Raises: ValueError where a part is empty, a number is not finite, or every weight is 0.
    """
    parts = []
    for piece in prompt.split("|"):
        text, found = piece.strip(), list[float]()
        while len(found) < numbers and (match := _NUMBER.fullmatch(text)):
            text, found = match[1].strip(), [float(match[2]), *found]
        if not text or not all(map(math.isfinite, found)):
            raise ValueError(
                f"prompt {prompt!r} has an empty part or an infinite weight; write TEXT or TEXT:WEIGHT around each '|'"
            )
        parts.append((text, found))
    if all(found[:1] == [0.0] for _, found in parts):
        raise ValueError(f"prompt {prompt!r} has no weight other than 0; nothing would be drawn")
    return parts


def parse_prompt(prompt: str, prefix: str = "") -> Parts:
    """'a fox:1 | blurry:-0.3' -> [("a fox", 1.0), ("blurry", -0.3)]; parts of weight 0 are left out.

    `prefix` is put before the parts of positive weight. A text that itself ends in ':10' needs a weight after it.
    Raises: ValueError, as `split_prompt` does.
    """
    found = [(text, numbers[0] if numbers else 1.0) for text, numbers in split_prompt(prompt)]
    before = prefix.strip()
    return [(f"{before} {text}".strip() if w > 0 else text, w) for text, w in found if w]


@dataclasses.dataclass
class Target:
    """What one guide wants of N pictures: loss = bias - <features, direction>.

    By linearity a whole weighted prompt, sum of w * (1 - cos(image, text)), is one vector: direction (N, D) is the
    sum of w * text, bias (N,) the sum of w, texts (K, D) and weights (N, K). Two other losses of a cosine c:
    `distance`, sqrt(2 - 2c), whose gradient does not fade near the target, and `atanh`, -atanh(c).

    With rivals (M, D), unit features of other words, the loss is the cross-entropy of the direction among them,
    divided by `scale`, which multiplies the cosines; own (N, M) is True where a word is part of the prompt itself.
    """

    texts: Tensor
    weights: Tensor
    kind: str = "cosine"
    rivals: Tensor | None = None
    own: Tensor | None = None
    scale: float = 0.0

    def __post_init__(self) -> None:
        self.direction, self.bias = self.weights @ self.texts, self.weights.sum(1)

    def losses(self, features: Tensor, pictures: slice) -> Tensor:
        """(n, views) of unit features (n, views, D) of these pictures; with rivals 0 is the best."""
        if self.kind != "cosine":
            near = (features @ self.texts.T).clamp(-1 + 1e-6, 1 - 1e-6)
            each = (2 - 2 * near).sqrt() if self.kind == "distance" else -near.atanh()
            return (each * self.weights[pictures, None]).sum(-1)
        direction = self.direction[pictures]
        near = (features @ direction[..., None])[..., 0]
        if self.rivals is None or self.own is None:
            return self.bias[pictures, None] - near
        # A weighted prompt enters the softmax by its direction; its length stays the weight of the whole.
        length = direction.norm(dim=-1, keepdim=True)
        near = near / length.clamp_min(1e-12)
        far = (features @ self.rivals.T).masked_fill(self.own[pictures, None], -torch.inf)
        everything = torch.cat([near[..., None], far], -1)
        return length * (torch.logsumexp(everything * self.scale, -1) / self.scale - near)

    @classmethod
    def of(
        cls,
        guide: Guide,
        prompts: Sequence[Parts],
        contrast: float = 0.0,
        kind: str = "cosine",
        like: Tensor | None = None,
    ) -> Target:
        """From the parsed prompts of the N pictures; each distinct text is encoded once.

        contrast: scale of the softmax against the known things that a prompt does not speak of, `Guide.rivals`
        (of "a dog" no breed is a rival; parts of negative weight do not count); 0 for none, below 0 for what suits
        the guide. like: a picture (3, h, w) whose embedding is a further target of weight 1.
        """
        texts = list(dict.fromkeys(text for parts in prompts for text, _ in parts))
        features = guide.texts(texts) if texts else torch.zeros(0, 0)
        weights = torch.zeros(len(prompts), len(texts), device=features.device)
        for row, parts in enumerate(prompts):
            for text, weight in parts:
                weights[row, texts.index(text)] += weight
        if like is not None:
            with torch.no_grad():
                seen = guide.features(fit(like[None].to(guide.device), guide.side))
            features = torch.cat([features, seen]) if texts else seen
            weights = F.pad(weights.to(seen), (0, 1), value=1.0)
        target = cls(features, weights, kind)
        chosen = guide.contrast if texts and kind == "cosine" else 0.0
        target.scale = chosen if contrast < 0 else contrast
        if target.scale:
            target.rivals, meant = guide.rivals(texts)
            asked = (weights[:, : len(texts)] > 0).to(
                features
            )  # a matrix product of bools, for all devices
            target.own = asked @ meant.to(features) > 0
        return target


@dataclasses.dataclass
class ViewSet:
    """`count` random views per picture and step, and the weight of their mean loss.

    reject: share of each picture's views with the lowest losses that do not count.
    """

    views: Views
    count: int
    weight: float = 1.0
    reject: float = 0.0


@dataclasses.dataclass
class Objective:
    """Mean loss over guides of N pictures: sum over sets of weight * mean over views.

    memory: bytes that the views of one pass may take with what autograd keeps for them; None for no limit. Views
    are then encoded in several passes. A view depends on its own random numbers only, so the gradient is the same.
    tv, tv4: weights of total variation, the mean step between neighbours, and of CLIPInversion's in four directions;
    anchor: of the mean squared distance to the start. readout: maps views (V, 3, side, side) in [0, 1] to losses
    (V,), added to the first guide's.
    """

    guides: Sequence[Guide]
    targets: Sequence[Target]
    sets: Sequence[ViewSet]
    tv: float = 0.0
    memory: int | None = None
    tv4: float = 0.0
    anchor: float = 0.0
    readout: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        self.scale = 1024.0 if any(guide.precision == "fp16" for guide in self.guides) else 1.0
        self._bytes: dict[tuple[int, int, tuple[int, ...]], int] = {}

    def __call__(
        self, canvas: Canvas, generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Total losses (N,), losses of the first set alone (N,), and the gradient of the totals' sum.

        NotFiniteError where a guide gives something that is not finite.
        """
        values = canvas.values
        count = len(values)
        gradient = torch.zeros_like(values)
        losses = torch.zeros(len(self.sets), count, device=values.device)
        for g in range(len(self.guides)):
            for s, views in enumerate(self.sets):
                uniform = views.views.draw(count, views.count, generators)

                def evaluate(
                    leaf: Tensor, chunk: Chunk, g: int = g, s: int = s, uniform: Tensor = uniform
                ) -> Tensor:
                    return self._losses(g, s, canvas.shown(leaf), uniform, chunk)

                chunks = self._chunks((g, s, tuple(values.shape[1:])), evaluate, values, views)
                weights = torch.ones(count, views.count, device=values.device)
                if views.reject:
                    with torch.no_grad():
                        every = torch.ones_like(weights)
                        for chunk in chunks:
                            every[chunk] = evaluate(values, chunk)
                    weights = (every >= every.quantile(views.reject, 1, keepdim=True)).float()
                weights = weights * (1 / len(self.guides) / views.count)
                for chunk in chunks:
                    found, part = self._pass(evaluate, values, chunk, weights[chunk], views.weight)
                    losses[s, chunk[0]] += found
                    gradient += part
        scales = torch.tensor([views.weight for views in self.sets], device=values.device)
        totals = (scales[:, None] * losses).sum(0)
        if self.tv or self.tv4 or self.anchor:
            extra, slope = self._smoothness(canvas)
            totals, gradient = totals + extra, gradient + slope
        if not (torch.isfinite(totals).all() and torch.isfinite(gradient).all()):
            name = self.guides[0].name
            raise NotFiniteError(f"{name} gave a loss or a gradient that is not finite")
        return totals, losses[0], gradient

    def _losses(self, g: int, s: int, shown: Tensor, uniform: Tensor, chunk: Chunk) -> Tensor:
        """Losses (pictures, views) of a chunk."""
        guide, pictures = self.guides[g], shown[chunk[0]]
        views = self.sets[s].views.apply(pictures, uniform[chunk], guide.side)
        losses = torch.zeros(len(pictures), len(views) // len(pictures), device=views.device)
        if len(self.targets[g].texts):
            features = guide.features(views)
            if not torch.isfinite(features).all():
                raise NotFiniteError(f"{guide.name} gave features that are not finite")
            rows = features.view(len(pictures), -1, features.shape[-1])
            losses = self.targets[g].losses(rows, chunk[0])
        if self.readout is not None and g == 0:
            losses = losses + self.readout(views).float().view_as(losses)
        return losses

    def _pass(
        self,
        evaluate: Callable[[Tensor, Chunk], Tensor],
        values: Tensor,
        chunk: Chunk,
        weights: Tensor,
        weight: float,
    ) -> tuple[Tensor, Tensor]:
        """Weighted losses of a chunk, summed per picture, and their gradient at `values`."""
        while True:
            leaf = values.detach().requires_grad_(True)
            with torch.enable_grad():
                losses = evaluate(leaf, chunk) * weights
                (gradient,) = torch.autograd.grad(losses.sum() * (weight * self.scale), leaf)
            if self.scale == 1 or torch.isfinite(gradient).all():
                return losses.detach().sum(1), gradient / self.scale
            # fp16 overflowed on the way back, though the features were finite: try a smaller scale.
            self.scale = max(self.scale / 2, 1)

    def _chunks(
        self,
        key: tuple[int, int, tuple[int, ...]],
        evaluate: Callable[[Tensor, Chunk], Tensor],
        values: Tensor,
        views: ViewSet,
    ) -> list[Chunk]:
        """What each pass takes: everything, several whole pictures, or part of one picture's views."""
        room = len(values) * views.count
        if self.memory is not None:
            if key not in self._bytes:
                self._bytes[key] = self._bytes_per_view(key[0], evaluate, values)
            room = max(self.memory // self._bytes[key], 1)
        group = min(max(room // views.count, 1), len(values))
        step = min(room, views.count)
        return [
            (
                slice(first, min(first + group, len(values))),
                slice(start, min(start + step, views.count)),
            )
            for first in range(0, len(values), group)
            for start in range(0, views.count, step)
        ]

    def _bytes_per_view(
        self, g: int, evaluate: Callable[[Tensor, Chunk], Tensor], values: Tensor
    ) -> int:
        """What autograd keeps for one view, on any device, plus half for the way back."""
        kept: dict[int, int] = {}
        weights = {parameter.data_ptr() for parameter in self.guides[g].model.parameters()}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        leaf = values[:1].detach().requires_grad_(True)
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with torch.enable_grad(), hooks:
            evaluate(torch.cat([leaf, values[1:]]), (slice(0, 1), slice(0, 1)))
        return max(int(sum(kept.values()) * 1.5), 1)

    def _smoothness(self, canvas: Canvas) -> tuple[Tensor, Tensor]:
        """Total variations and anchor (N,), and their gradient at the canvas's values."""
        leaf = canvas.values.detach().requires_grad_(True)
        with torch.enable_grad():
            x = canvas.render(leaf)
            steps = [x.diff(dim=axis) for axis in (2, 3)]
            found = self.tv * (steps[0].abs().mean((1, 2, 3)) + steps[1].abs().mean((1, 2, 3)))
            if self.tv4:
                steps.append(x[..., 1:, 1:] - x[..., :-1, :-1])
                steps.append(x[..., 1:, :-1] - x[..., :-1, 1:])
                norms = torch.stack([step.norm(dim=(2, 3)).mean(1) for step in steps])
                found = found + self.tv4 * norms.sum(0)
            if self.anchor:
                found = found + self.anchor * (x - canvas.origin).square().mean((1, 2, 3))
            (gradient,) = torch.autograd.grad(found.sum(), leaf)
        return found.detach(), gradient


def layer_readout(guide: Guide, target: str) -> Callable[[Tensor], Tensor]:
    """Minus the mean response of a layer of the model to views, as a loss (V,); target: LAYER[:UNIT | :FILE.npy].

    LAYER is the dotted name of a module; its channels are the last axis of (V, T, D) and (V, D), the second of
    (V, C, h, w). UNIT is one channel; a file holds a direction (C,), or weights of one view's whole output. Without
    either it is the mean square. ValueError for names and shapes that do not fit.
    """
    name, _, what = target.partition(":")
    layers = dict(guide.model.named_modules())
    if name not in layers or not name:
        close = difflib.get_close_matches(name, layers, n=3) or list(layers)[1:4]
        raise ValueError(f"--target {name!r} is no layer of {guide.name}; try {', '.join(close)}")
    direction = None
    if what.endswith(".npy"):
        direction = torch.from_numpy(np.load(what)).float().to(guide.device)

    def respond(views: Tensor) -> Tensor:
        seen: list[Tensor] = []
        hook = layers[name].register_forward_hook(lambda module, given, out: seen.append(out))
        try:
            guide.features(views)
        finally:
            hook.remove()
        return seen[0].float()

    # Some towers keep their tokens before the batch: the axis that grows with the views is theirs.
    with torch.no_grad():
        blank = [torch.zeros(n, 3, guide.side, guide.side, device=guide.device) for n in (2, 3)]
        shapes = [respond(views).shape for views in blank]
    batch = [two != three for two, three in zip(*shapes)].index(True)

    def readout(views: Tensor) -> Tensor:
        out = respond(views).movedim(batch, 0)
        if direction is not None and direction.shape == out.shape[1:]:
            return -(out * direction).flatten(1).sum(1)
        rows = (
            (out.movedim(1, -1) if out.dim() == 4 else out).flatten(1, -2)
            if out.dim() > 2
            else out[:, None]
        )
        if not what:
            return -rows.square().mean((1, 2))
        if direction is not None and direction.shape == rows.shape[2:]:
            return -(rows @ direction).mean(1)
        if direction is not None or not what.isdigit() or int(what) >= rows.shape[2]:
            raise ValueError(
                f"--target {target!r}: {name} gives {tuple(out.shape[1:])}; give a channel below {rows.shape[2]}, or "
                f"a .npy of shape ({rows.shape[2]},) or {tuple(out.shape[1:])}"
            )
        return -rows[..., int(what)].mean(1)

    return readout
