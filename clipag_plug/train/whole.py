"""The loss of the whole batch of all workers, from features alone, and its gradient for each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..options.train import Train
from .distributed import Workers
from .matches import Matches
from .objective import Targets, outer_loss


@dataclass
class Part:
    """A micro-batch between its two passes: everything but its images.

    images: features of the attacked images (N, D), or (2 N, D) with those of the clean ones behind; text (N, D).
    original: the initial model's or the teachers' features of the clean images (N, D), where they are asked for; so
    attributes, their amounts (N, A), and said, the image teacher's output (N, C).
    """

    number: int
    texts: list[str]
    words: list[str]
    labels: Tensor
    original: Tensor | None
    images: Tensor
    text: Tensor
    attributes: Tensor | None = None
    said: Tensor | None = None


class Room:
    """Room for the features of `count` micro-batches in one tensor each of images and texts.

    Kept one by one, small tensors between the large temporaries of the attacks leave the heap in pieces, and the
    process grows with the number of micro-batches.
    """

    def __init__(self, count: int) -> None:
        self.count, self._taken = count, 0
        self._images: Tensor | None = None
        self._text: Tensor | None = None

    def put(self, part: Part) -> Part:
        """The next part, with its features moved here; as it is where it is the only one. All parts are of one size."""
        if self.count == 1:
            return part
        if self._images is None or self._text is None:
            self._images = part.images.new_empty(self.count, *part.images.shape)
            self._text = part.text.new_empty(self.count, *part.text.shape)
        part.images = self._images[self._taken].copy_(part.images)
        part.text = self._text[self._taken].copy_(part.text)
        self._taken += 1
        return part


@dataclass
class Outcome:
    """loss of the whole batch; its gradients for the features of each part, images and text (None: constant); and
    this worker's share of that for the logit scale (None: constant)."""

    loss: float
    images: list[Tensor]
    text: list[Tensor | None]
    scale: Tensor | None


# (text features, matches, labels, initial features, logit scale, amounts, what is said, captions) -> targets
Aim = Callable[..., Targets]


def whole_loss(
    parts: list[Part],
    scale: Tensor,
    aim: Aim,
    match: Callable[[list[str], Tensor], Matches],
    options: Train,
    workers: Workers,
    sides: int,
) -> Outcome:
    """Every image against every text of all parts of all workers.

    A worker computes the rows of its own images and texts, and the gradients for a feature are added up over the
    workers: each does 1 / size of the work. scale: the logit scale, with a graph where it trains. sides: 2 where
    the parts hold features of clean images too.
    """
    count = sum(len(part.labels) for part in parts)
    own = slice(workers.rank * count, (workers.rank + 1) * count)
    halves = zip(*(part.images.detach().chunk(sides) for part in parts), strict=True)
    images = [workers.all(torch.cat(half)).requires_grad_() for half in halves]
    text = workers.all(torch.cat([part.text.detach() for part in parts]))
    text.requires_grad_(options.text == "train")
    leaf = scale.detach().requires_grad_(scale.requires_grad)
    labels = workers.all(torch.cat([part.labels for part in parts]).to(text.device))
    words = [w for mine in workers.objects([w for p in parts for w in p.words]) for w in mine]
    original = _all(workers, [part.original for part in parts])
    amounts = _all(workers, [part.attributes for part in parts])
    said = _all(workers, [part.said for part in parts])
    texts = None
    if options.text_teacher_weight:
        texts = [t for mine in workers.objects([t for p in parts for t in p.texts]) for t in mine]
    matches = match(words, labels.cpu()).to(text.device)
    targets = aim(text, matches, labels, original, leaf, amounts, said, texts)
    loss = outer_loss(images, targets, options, own)
    loss.backward()
    sizes = [len(part.labels) for part in parts]
    mine = [_mine(side, own, workers).split(sizes) for side in images]
    of_text = _mine(text, own, workers).split(sizes) if text.requires_grad else [None] * len(parts)
    together = [torch.cat(pieces) for pieces in zip(*mine, strict=True)]
    return Outcome(workers.sum(loss.detach()).item(), together, list(of_text), leaf.grad)


def _all(workers: Workers, parts: list[Tensor | None]) -> Tensor | None:
    """The rows of all parts of all workers, where parts have them."""
    given = [part for part in parts if part is not None]
    return workers.all(torch.cat(given)) if given else None


def _mine(leaf: Tensor, own: slice, workers: Workers) -> Tensor:
    """The gradient of everybody's loss for this worker's rows; zero where the loss does not look at them."""
    return workers.sum(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)[own]
