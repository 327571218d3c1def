"""One run of Auto-PGD (Croce & Hein 2020, algorithm 1) on a batch whose samples may finish one by one.

The step starts at twice the radius. At checkpoints that come closer and closer, a sample whose loss rose too seldom,
or whose best loss did not rise at all, goes back to its best point with half the step. Nothing has to be tuned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .pgd import into_range, project, random_perturbation, steepest

Range = tuple[float, float] | None
# (images, numbers of their samples) -> (losses, which samples are beaten and need no further step)
Evaluate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]
INERTIA = 0.75  # weight of a new step against the last one (alpha in the paper)


@dataclass(frozen=True)
class Ball:
    """The threat model and the schedule of one run."""

    eps: float
    norm: str
    steps: int
    rho: float
    random_start: bool
    limits: Range
    generator: torch.Generator | None

    def inside(self, images: Tensor, points: Tensor) -> Tensor:
        """The points, projected into the ball around the images, then into the valid range."""
        delta = project(points - images, self.eps, self.norm)
        return images + into_range(images, delta, self.limits)

    def start(self, images: Tensor) -> Tensor:
        if not self.random_start:
            return images.clone()
        noise = random_perturbation(images, self.eps, self.norm, self.generator)
        return images + into_range(images, noise, self.limits)

    def windows(self) -> Iterator[int]:
        """Steps between checkpoints, without end: 22 % of the run, then 3 % fewer each time, at least 6 %."""
        window, decrease, least = (max(int(share * self.steps), 1) for share in (0.22, 0.03, 0.06))
        while True:
            yield window
            window = max(window - decrease, least)


@dataclass
class Run:
    """The samples still being attacked, one row each; `rows` are their numbers in the batch."""

    rows: Tensor
    images: Tensor
    point: Tensor
    previous: Tensor
    gradient: Tensor
    value: Tensor
    step: Tensor  # (n, 1, 1, 1)
    best: Tensor
    best_gradient: Tensor
    best_value: Tensor
    rises: Tensor  # steps of this window that raised the loss
    best_before: Tensor  # best value at the last checkpoint
    halved: Tensor  # whether the last checkpoint halved the step

    def select(self, keep: Tensor) -> Run:
        fields = dataclasses.fields(self)
        return Run(**{field.name: getattr(self, field.name)[keep] for field in fields})


@dataclass
class Result:
    """best images and losses of every sample; which samples were beaten, where the evaluation tells."""

    best: Tensor
    best_value: Tensor
    beaten: Tensor


def ascend(evaluate: Evaluate, images: Tensor, ball: Ball) -> Result:
    """One run of APGD. A sample that `evaluate` calls beaten ends there, with that point as its best."""
    everyone = torch.arange(len(images), device=images.device)
    done = Result(images.clone(), images.new_zeros(len(images)), torch.zeros_like(everyone).bool())
    start = ball.start(images)
    value, gradient, beaten = _evaluate(evaluate, start, everyone)
    run = Run(
        everyone,
        images,
        *(start, start, gradient, value),
        torch.full_like(value, 2 * ball.eps).view(-1, 1, 1, 1),
        *(start, gradient, value),
        *(torch.zeros_like(value), value, torch.ones_like(beaten)),
    )
    run = _retire(run, beaten, done)
    windows = ball.windows()
    window, inside = next(windows), 0
    for number in range(ball.steps):
        if not len(run.rows):
            return done
        run.previous, run.point = run.point, _move(run, ball, 1.0 if number == 0 else INERTIA)
        last = number + 1 == ball.steps
        value, gradient, beaten = _evaluate(evaluate, run.point, run.rows, need_gradient=not last)
        _note(run, value, gradient)
        run = _retire(run, beaten, done)
        inside += 1
        if inside == window:
            _halve(run, window, ball.rho)
            window, inside = next(windows), 0
    _retire(run, torch.ones_like(run.rows).bool(), done, beaten=False)
    return done


def _move(run: Run, ball: Ball, inertia: float) -> Tensor:
    """The next point: a gradient step, mixed with the last movement, projected after each."""
    target = ball.inside(run.images, run.point + run.step * steepest(run.gradient, ball.norm))
    mixed = run.point + inertia * (target - run.point) + (1 - inertia) * (run.point - run.previous)
    return ball.inside(run.images, mixed)


def _note(run: Run, value: Tensor, gradient: Tensor) -> None:
    """Takes in what the new point gave."""
    run.rises = run.rises + (value > run.value)
    run.value, run.gradient = value, gradient
    better = value > run.best_value
    wide = better.view(-1, 1, 1, 1)
    run.best = torch.where(wide, run.point, run.best)
    run.best_gradient = torch.where(wide, gradient, run.best_gradient)
    run.best_value = torch.where(better, value, run.best_value)


def _halve(run: Run, window: int, rho: float) -> None:
    """A checkpoint (conditions 1 and 2 of section 3.1): halves steps and sends their samples back to their best.

    As in the authors' code, where the paper differs: a count of exactly rho * window halves too, and the next step
    counts as rising against the point that was left, not against the best one.
    """
    stuck = ~run.halved & (run.best_before >= run.best_value)
    halve = (run.rises <= rho * window) | stuck
    wide = halve.view(-1, 1, 1, 1)
    run.step = torch.where(wide, run.step / 2, run.step)
    run.point = torch.where(wide, run.best, run.point)
    run.gradient = torch.where(wide, run.best_gradient, run.gradient)
    run.halved, run.best_before = halve, run.best_value
    run.rises = torch.zeros_like(run.rises)


def _retire(run: Run, leaving: Tensor, done: Result, beaten: bool = True) -> Run:
    """Moves samples to the results; the beaten ones with their present point, the others with their best."""
    if not bool(leaving.any()):
        return run
    rows = run.rows[leaving]
    done.best[rows] = (run.point if beaten else run.best)[leaving]
    done.best_value[rows] = (run.value if beaten else run.best_value)[leaving]
    done.beaten[rows] = beaten
    return run.select(~leaving)


def _evaluate(
    evaluate: Evaluate, points: Tensor, rows: Tensor, need_gradient: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, their gradients by the points, and which samples are beaten, all detached."""
    with torch.set_grad_enabled(need_gradient):
        points = points.detach().requires_grad_(need_gradient)
        values, beaten = evaluate(points, rows)
        if values.shape != (len(points),):
            raise ValueError(
                f"APGD needs one loss per sample, shape ({len(points)},); got {tuple(values.shape)}"
            )
        gradient = (
            torch.autograd.grad(values.sum(), points)[0]
            if need_gradient
            else torch.zeros_like(points)
        )
    if beaten is None:
        beaten = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    return values.detach(), gradient, beaten
