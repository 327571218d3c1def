"""Three ways to spend a budget of pictures: draws alone, evolution of the best draws, gradients from the best draws.

Each takes a `Problem` and gives a `Found`. All of them draw the same z and the same order of classes for one seed,
so that what differs between two searches is what was asked to differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .protocol import Generator, one_hot

Score = Callable[[Tensor], Tensor]
LIMIT = 2.0  # of |z| while it is refined, as BigGAN's truncated normal has it
HOLD = 8.0  # logit that an own class starts with: weight 0.94 among 202 classes


@dataclass
class Problem:
    """generator; score: outputs (n, 3, S, S) in [-1, 1] -> (n,), differentiable; labels: classes drawn from."""

    generator: Generator
    score: Score
    labels: Tensor
    seed: int = 0
    batch: int = 32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def draws(self, count: int) -> tuple[Tensor, Tensor]:
        """The first `count` draws of z (n, dim_z) and of class numbers (n,): longer draws begin with shorter ones."""
        z_stream = torch.Generator().manual_seed(2 * self.seed)
        y_stream = torch.Generator().manual_seed(2 * self.seed + 1)
        z = torch.cat([self.generator.latents(1, z_stream) for _ in range(count)])
        share = torch.rand(count, generator=y_stream)
        return z, self.labels[(share * len(self.labels)).long()]

    @torch.no_grad()
    def scores(self, z: Tensor, y: Tensor) -> Tensor:
        """Scores (n,) of latents with class weights, a batch at a time."""
        parts = zip(z.split(self.batch), y.split(self.batch))
        return torch.cat([self.score(self.pictures(a, b)).cpu() for a, b in parts])

    def pictures(self, z: Tensor, y: Tensor) -> Tensor:
        """The generator's output in [-1, 1]."""
        return self.generator(z.to(self.device), y.to(self.device))


@dataclass
class Found:
    """scores (budget,) in the order in which the pictures were made; the best picture's output in [-1, 1], its z,
    class weights, and most weighty class. running: the best score so far, which cannot fall."""

    scores: Tensor
    output: Tensor
    z: Tensor
    y: Tensor

    @property
    def running(self) -> Tensor:
        return self.scores.cummax(dim=0).values

    @property
    def score(self) -> float:
        return float(self.scores.max())

    @property
    def label(self) -> int:
        return int(self.y.argmax())

    @property
    def image(self) -> Tensor:
        """The best picture, (3, S, S) in [0, 1]."""
        return ((self.output + 1) / 2).clamp(0, 1)


def random(problem: Problem, budget: int) -> Found:
    """Algorithm 1 of Du, Yin & Gu: the best of `budget` draws."""
    z, labels = problem.draws(budget)
    y = one_hot(labels, len(problem.generator.classes))
    return _found(problem, problem.scores(z, y), z, y)


def evolve(problem: Problem, budget: int, *, population: int = 16, mutation: float = 0.3) -> Found:
    """(mu + lambda) evolution: children mix the z of two of the best, add noise, and take a parent's class.

    One child in ten draws its class anew. Parents stay until something better comes.
    """
    z, labels = problem.draws(min(population, budget))
    scores = problem.scores(z, one_hot(labels, len(problem.generator.classes)))
    stream = torch.Generator().manual_seed(problem.seed)
    all_z, all_labels, all_scores = [z], [labels], [scores]
    made = len(z)
    while made < budget:
        count = min(population, budget - made)
        child_z, child_labels = _children(problem, z, labels, count, mutation, stream)
        child_scores = problem.scores(
            child_z, one_hot(child_labels, len(problem.generator.classes))
        )
        made += count
        all_z.append(child_z)
        all_labels.append(child_labels)
        all_scores.append(child_scores)
        z, labels, scores = (
            torch.cat(pair)
            for pair in ((z, child_z), (labels, child_labels), (scores, child_scores))
        )
        keep = scores.argsort(descending=True, stable=True)[:population]
        z, labels, scores = z[keep], labels[keep], scores[keep]
    y = one_hot(torch.cat(all_labels), len(problem.generator.classes))
    return _found(problem, torch.cat(all_scores), torch.cat(all_z), y)


def _children(
    problem: Problem,
    z: Tensor,
    labels: Tensor,
    count: int,
    mutation: float,
    stream: torch.Generator,
) -> tuple[Tensor, Tensor]:
    pairs = torch.randint(len(z), (count, 2), generator=stream)
    mixed = torch.rand(count, z.shape[1], generator=stream) < 0.5
    child = torch.where(mixed, z[pairs[:, 0]], z[pairs[:, 1]])
    child = child + mutation * torch.randn(child.shape, generator=stream)
    own = labels[pairs[:, 0]]
    anew = torch.rand(count, generator=stream) < 0.1
    drawn = problem.labels[torch.randint(len(problem.labels), (count,), generator=stream)]
    return child, torch.where(anew, drawn, own)


def refine(problem: Problem, budget: int, *, bases: int = 4, rate: float = 0.05) -> Found:
    """Half the budget is drawn; from the best `bases` draws gradients of the score then move z and the class weights.

    Adam on z, kept within +-2, and on the logits of the class weights where the generator is `soft`. Each step of a
    base makes one picture of the budget; steps that do not divide evenly are left to the first draws.
    """
    bases = min(bases, budget // 2)
    steps = budget // 2 // bases
    drawn = random(problem, budget - steps * bases)
    z, labels = problem.draws(budget - steps * bases)
    keep = drawn.scores.argsort(descending=True, stable=True)[:bases]
    classes = len(problem.generator.classes)
    moving = z[keep].clone().requires_grad_(True)
    logits = (HOLD * one_hot(labels[keep], classes)).requires_grad_(problem.generator.soft)
    optimizer = torch.optim.Adam([moving, logits] if problem.generator.soft else [moving], lr=rate)
    seen_z, seen_y, seen = [], [], []
    for step in range(steps + 1):
        soft = problem.generator.soft
        y = logits.softmax(dim=1) if soft else one_hot(labels[keep], classes)
        optimizer.zero_grad()
        values = torch.cat(
            [
                problem.score(problem.pictures(a, b)).cpu()
                for a, b in zip(moving.split(problem.batch), y.split(problem.batch))
            ]
        )
        if step:  # the first look is at draws that were counted already
            seen_z.append(moving.detach().clone())
            seen_y.append(y.detach().clone())
            seen.append(values.detach())
        if step == steps:
            break
        (-values.sum()).backward()
        optimizer.step()
        with torch.no_grad():
            moving.clamp_(-LIMIT, LIMIT)
    return _found(
        problem,
        torch.cat([drawn.scores, *seen]),
        torch.cat([z, *seen_z]),
        torch.cat([one_hot(labels, classes), *seen_y]),
    )


def _found(problem: Problem, scores: Tensor, z: Tensor, y: Tensor) -> Found:
    best = int(scores.argmax())
    with torch.no_grad():
        output = problem.pictures(z[best : best + 1], y[best : best + 1])[0].cpu()
    return Found(scores, output, z[best], y[best])
