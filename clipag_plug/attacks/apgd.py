"""Auto-PGD (Croce & Hein 2020) around any loss, and its two attacks on classifiers: APGD-CE and APGD-T."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..losses import margins
from .ascent import Ball, Evaluate, Range, ascend
from .pgd import Loss, check_budget, check_range

Classifier = Callable[[Tensor], Tensor]
# (scores, labels, numbers of their samples) -> losses
Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
LOSSES = ("ce", "dlr")


def apgd(
    loss: Loss,
    images: Tensor,
    *,
    eps: float,
    norm: str = "l2",
    steps: int = 100,
    restarts: int = 1,
    random_start: bool = True,
    rho: float = 0.75,
    project_range: Range = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Auto-PGD (Croce & Hein 2020, algorithm 1): images within `eps` of the given ones of the highest loss met.

    loss: maps images (N, 3, H, W) to per-sample losses (N,); called once more than there are steps.
    eps: in the units of the images; L2 is over C*H*W of one sample. rho: share of rising steps below which, or at
    which, the step is halved. restarts: runs from random points, of which each sample keeps its best.
    project_range: valid values of a pixel; None for no limit.
    Returns images, detached, with no lower loss than at the start. Raises ValueError for an unknown norm, a negative
    eps or steps, images outside `project_range`, restarts without a random start, or a loss that is no vector of N.
    """
    check_budget(eps, norm, steps)
    check_range(images, project_range)
    _check_restarts(restarts, random_start)
    images = images.detach()
    if steps == 0 or eps == 0:
        return images.clone()
    ball = Ball(eps, norm, steps, rho, random_start, project_range, generator)
    found, values = images.clone(), images.new_full((len(images),), -torch.inf)
    for _ in range(restarts):
        run = ascend(lambda x, rows: (loss(x), None), images, ball)
        better = run.best_value > values
        values = torch.where(better, run.best_value, values)
        found[better] = run.best[better]
    return found


def apgd_ce(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: str = "l2",
    steps: int = 100,
    restarts: int = 1,
    random_start: bool = True,
    rho: float = 0.75,
    loss: str = "ce",
    project_range: Range = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Tensor:
    """APGD on the cross-entropy (or DLR) of a classifier: images that it gets wrong, wherever one was found.

    classifier: maps images (N, 3, H, W) to class scores (N, C). labels: true classes (N,). loss: "ce" or "dlr".
    A sample is left alone from the moment it is misclassified, clean ones included: those come back unchanged. The
    others come back at their highest loss. The rest as in `apgd`.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss is {loss!r}; it must be one of {', '.join(map(repr, LOSSES))}")
    check_budget(eps, norm, steps)
    check_range(images, project_range)
    _check_restarts(restarts, random_start)
    per_sample = margins.ce if loss == "ce" else margins.dlr
    ball = Ball(eps, norm, steps, rho, random_start, project_range, generator)

    def objectives(scores: Tensor) -> Iterator[Objective]:
        return (lambda s, y, rows: per_sample(s, y) for _ in range(restarts))

    return _beat(classifier, images.detach(), labels, ball, objectives)


def apgd_targeted(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: str = "l2",
    steps: int = 100,
    targets: int = 9,
    restarts: int = 1,
    random_start: bool = True,
    rho: float = 0.75,
    project_range: Range = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Tensor:
    """APGD-T: APGD on the targeted DLR loss, towards each sample's `targets` likeliest wrong classes in turn.

    Needs at least 4 classes and more classes than targets. The rest as in `apgd_ce`; an image that withstands every
    target comes back as it was after the last one.
    """
    check_budget(eps, norm, steps)
    check_range(images, project_range)
    _check_restarts(restarts, random_start)
    ball = Ball(eps, norm, steps, rho, random_start, project_range, generator)

    def objectives(scores: Tensor) -> Iterator[Objective]:
        for others in margins.likeliest_others(scores, labels, targets).unbind(dim=1):
            for _ in range(restarts):
                yield _towards(others)

    return _beat(classifier, images.detach(), labels, ball, objectives)


def _beat(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    ball: Ball,
    objectives: Callable[[Tensor], Iterator[Objective]],
) -> Tensor:
    """Runs one objective after another on the samples that are still classified correctly."""
    found = images.clone()
    with torch.no_grad():
        scores = classifier(images)
    if ball.steps == 0 or ball.eps == 0:
        return found
    left = (scores.argmax(dim=1) == labels).nonzero()[:, 0]
    for objective in objectives(scores):
        if not len(left):
            break
        run = ascend(_watched(classifier, labels, left, objective), images[left], ball)
        found[left] = run.best
        left = left[~run.beaten]
    return found


def _watched(
    classifier: Classifier, labels: Tensor, left: Tensor, objective: Objective
) -> Evaluate:
    """The objective's losses, and which samples are misclassified; `left` are their numbers in the whole batch."""

    def evaluate(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        numbers = left[rows]
        scores = classifier(points)
        losses = objective(scores, labels[numbers], numbers)
        return losses, scores.argmax(dim=1) != labels[numbers]

    return evaluate


def _towards(targets: Tensor) -> Objective:
    return lambda scores, labels, rows: margins.targeted_dlr(scores, labels, targets[rows])


def _check_restarts(restarts: int, random_start: bool) -> None:
    if restarts < 1:
        raise ValueError(f"restarts is {restarts}; it must be at least 1")
    if restarts > 1 and not random_start:
        raise ValueError(
            "every restart would repeat the first; give random_start=True or restarts=1"
        )
