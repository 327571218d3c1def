"""Auto-PGD (Croce & Hein 2020) around any loss, and its two attacks on classifiers: APGD-CE and APGD-T.

The step starts at twice the radius. At checkpoints that come closer and closer, a sample whose loss rose too seldom,
or whose best loss did not rise at all, goes back to its best point with half the step. Nothing has to be tuned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..losses import margins
from .pgd import NOT_FINITE, Ball, Loss, Range, prepare, value_and_gradient

Classifier = Callable[[Tensor], Tensor]
# (points, numbers of their samples) -> losses, and which samples are beaten and need no further step
Evaluate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
# (scores, labels, numbers of their samples) -> losses
Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
LOSSES = {"ce": margins.ce, "dlr": margins.dlr}
INERTIA = 0.75  # weight of a new step against the last one (alpha in the paper)


@torch.inference_mode(False)
def apgd(
    loss: Loss,
    images: Tensor,
    *,
    eps: float,
    norm: str | type[Ball] = "l2",
    steps: int = 100,
    restarts: int = 1,
    random_start: bool = True,
    rho: float = 0.75,
    project_range: Range = (0.0, 1.0),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Auto-PGD (Croce & Hein 2020, algorithm 1): images within `eps` of the given ones of the highest loss met.

    Args:
        loss: maps images of the given shape to losses (N,); called once more than there are steps.
        images: (N, 3, H, W) in [0, 1], or any other shape.
        eps: in the units of the images; L2 is over all of one sample.
        norm: "l2", "linf", or a subclass of `Ball`.
        restarts: runs from random points, of which each sample keeps its best.
        rho: share of rising steps below which, or at which, the step is halved.
        project_range: valid values of a pixel; None for no limit.
    Returns: images of the given shape and type, detached, with no lower loss than at the start.
    Raises: ValueError as `pgd` does, and for restarts without a random start or a loss that is no vector of N.
    """
    run = Ascent(eps, norm, steps, restarts, random_start, rho, project_range, generator)
    images = prepare(norm, eps, steps, project_range, images)[2]
    single = images.ndim in (0, 1, 3)
    found = (images[None] if single else images).clone()
    highest = torch.full((len(found),), -torch.inf, device=images.device)

    def evaluate(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        values: Any = loss(x[0] if single else x)
        if single and isinstance(values, Tensor) and values.numel() == 1:
            values = values.reshape(1)
        return values, torch.zeros_like(rows, dtype=torch.bool)

    for best, values, _ in [run(evaluate, found) for _ in range(restarts)]:
        found = torch.where(_wide(values > highest, found), best, found)
        highest = torch.maximum(values, highest)
    return found[0] if single else found


def apgd_ce(
    classifier: Classifier, images: Tensor, labels: Tensor, *, loss: str = "ce", **settings: Any
) -> Tensor:
    """APGD on the cross-entropy (or DLR) of a classifier: images that it gets wrong, wherever one was found.

    A sample is left alone from the moment it is misclassified, clean ones included: those come back unchanged. The
    others come back at their highest loss.

    Args:
        classifier: maps images (N, 3, H, W) to class scores (N, C).
        labels: true classes (N,), 0 to C - 1.
        loss: "ce" or "dlr".
        settings: as of `apgd`.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss is {loss!r}; it must be one of {', '.join(map(repr, LOSSES))}")
    run = Ascent(**settings)

    def objectives(scores: Tensor, labels: Tensor) -> Iterable[Objective]:
        return [lambda scores, labels, rows: LOSSES[loss](scores, labels)] * run.restarts

    return _beat(classifier, images, labels, run, objectives)


def apgd_targeted(
    classifier: Classifier, images: Tensor, labels: Tensor, *, targets: int = 9, **settings: Any
) -> Tensor:
    """APGD-T: APGD on the targeted DLR loss, towards each sample's `targets` likeliest wrong classes in turn.

    Needs at least 4 classes and more classes than targets. The rest as in `apgd_ce`; an image that withstands every
    target comes back as it was after the last one.
    """
    run = Ascent(**settings)

    def objectives(scores: Tensor, labels: Tensor) -> Iterator[Objective]:
        for others in margins.likeliest_others(scores, labels, targets).unbind(dim=1):
            for _ in range(run.restarts):
                yield partial(_targeted, others)

    return _beat(classifier, images, labels, run, objectives)


def _targeted(others: Tensor, scores: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
    """The targeted DLR loss of samples `rows`, of which each has a target in `others`."""
    return margins.targeted_dlr(scores, labels, others[rows])


@torch.inference_mode(False)
def _beat(
    classifier: Classifier,
    images: Tensor,
    labels: Tensor,
    run: Ascent,
    objectives: Callable[[Tensor, Tensor], Iterable[Objective]],
) -> Tensor:
    """Runs one objective after another on the samples that are still classified correctly."""
    found = prepare(run.norm, run.eps, run.steps, run.project_range, images)[2].clone()
    with torch.no_grad():
        scores = classifier(found)
    if not isinstance(scores, Tensor) or scores.ndim != 2 or bool(scores.isnan().any()):
        given = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"the classifier must give scores (N, C) without NaN; it gave {given}")
    labels = torch.as_tensor(labels, device=scores.device)
    kind = labels.dtype
    whole = not (kind.is_floating_point or kind.is_complex or kind == torch.bool)
    known = (labels >= 0) & (labels < scores.shape[1]) if whole else torch.zeros(1)
    if labels.shape != scores.shape[:1] or not whole or not bool(known.all()):
        raise ValueError(
            f"labels must be ({len(scores)},) classes from 0 to {scores.shape[1] - 1}; got {tuple(labels.shape)} of "
            f"{kind} with {labels.flatten().unique().tolist()[:20]}"
        )
    labels = labels.long().clone()
    left = (scores.argmax(dim=1) == labels).nonzero()[:, 0]
    for objective in objectives(scores, labels):

        def evaluate(
            x: Tensor, rows: Tensor, objective: Any = objective, left: Tensor = left
        ) -> Any:
            scores, truth = classifier(x), labels[left[rows]]
            return objective(scores, truth, left[rows]), scores.argmax(dim=1) != truth

        found[left], _, beaten = run(evaluate, images[left])
        left = left[~beaten]
    return found


@dataclass(frozen=True)
class Ascent:
    """One run of APGD on a batch whose samples may finish one by one; for the fields see `apgd`."""

    eps: float
    norm: str | type[Ball] = "l2"
    steps: int = 100
    restarts: int = 1
    random_start: bool = True
    rho: float = 0.75
    project_range: Range = (0.0, 1.0)
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if self.restarts < 1 or (self.restarts > 1 and not self.random_start):
            raise ValueError(
                f"restarts is {self.restarts}; it must be at least 1, and 1 without random_start=True: every restart "
                "would repeat the first"
            )

    def windows(self) -> Iterator[int]:
        """Steps between checkpoints, without end: 22 % of the run, then 3 % fewer each time, at least 6 %."""
        window, decrease, least = (max(int(share * self.steps), 1) for share in (0.22, 0.03, 0.06))
        while True:
            yield window
            window = max(window - decrease, least)

    def __call__(self, evaluate: Evaluate, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Best images and losses of every sample, and which were beaten; these end with the point that did it."""
        ball, clean, images = prepare(self.norm, self.eps, self.steps, self.project_range, images)
        rows = torch.arange(len(images), device=images.device)
        beaten = torch.zeros_like(rows, dtype=torch.bool)
        if not len(rows) or not self.steps or not self.eps:
            return images.clone(), clean.new_full(rows.shape, -torch.inf), beaten
        point = clean
        if self.random_start:
            point = clean + ball.inside(clean, ball.start(clean, self.generator))

        def look(backward: bool) -> tuple[Tensor, Tensor, Tensor]:
            """Losses, gradients and hits at the present points of `rows`."""
            hits = []

            def loss(x: Tensor) -> Tensor:
                values, hit = evaluate(x, rows)
                hits.append(hit)
                if isinstance(values, Tensor) and values.shape != rows.shape:
                    raise ValueError(
                        f"APGD needs one loss per sample, shape ({len(rows)},); got {tuple(values.shape)}"
                    )
                return values

            seen = ball.rounded(point[rows], images[rows])
            values, gradient = value_and_gradient(loss, seen, backward=backward)
            if bool(values.isnan().any()) or not bool(gradient.isfinite().all()):
                raise ValueError(NOT_FINITE)
            return values, gradient.to(clean.dtype), hits[0]

        def inside(points: Tensor) -> Tensor:
            return clean + ball.inside(clean, ball.project(points - clean))

        value, gradient, beaten = look(True)
        best, best_gradient, best_value, best_before = point, gradient, value, value
        step, rises = torch.full_like(value, 2 * self.eps), torch.zeros_like(rows)
        halved, previous = torch.ones_like(beaten), point
        windows = self.windows()
        window = checkpoint = next(windows)
        for number in range(1, self.steps + 1):
            rows = (~beaten).nonzero()[:, 0]
            if not len(rows):
                break
            target = inside(point + _wide(step, point) * ball.normalise(gradient))
            inertia = INERTIA if number > 1 else 1.0
            mixed = point + inertia * (target - point) + (1 - inertia) * (point - previous)
            previous, point = point, inside(mixed)
            found, slopes, hits = look(number < self.steps)
            before, value = value, value.index_copy(0, rows, found)
            gradient = gradient.index_copy(0, rows, slopes)
            hit = torch.zeros_like(beaten).index_copy(0, rows, hits)
            rises, beaten = rises + (value > before), beaten | hit
            better = (value > best_value) | hit
            best = torch.where(_wide(better, best), point, best)
            best_gradient = torch.where(_wide(better, best), gradient, best_gradient)
            best_value = torch.where(better, value, best_value)
            if number == checkpoint:
                # Conditions 1 and 2 of section 3.1. As in the authors' code, where the paper differs: a count of
                # exactly rho * window halves too, and the next step counts as rising against the point that was left.
                halved = (rises <= self.rho * window) | (~halved & (best_before >= best_value))
                step = torch.where(halved, step / 2, step)
                point = torch.where(_wide(halved, best), best, point)
                gradient = torch.where(_wide(halved, best), best_gradient, gradient)
                best_before, rises, window = best_value, torch.zeros_like(rises), next(windows)
                checkpoint += window
        return ball.rounded(best, images), best_value, beaten


def _wide(values: Tensor, images: Tensor) -> Tensor:
    """One value per sample, (N,), as (N, 1, 1, 1) for images (N, C, H, W)."""
    return values.view(-1, *[1] * (images.ndim - 1))
