"""CLIP-guided search over a class-conditional generator (Du, Yin & Gu): by draws, by evolution, by gradients.

The three methods draw the same z and the same order of classes for one seed, so that what differs between two searches
is what was asked to differ. Each yields batches: z (n, dim_z), class weights (n, C) and scores (n,).
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..guide import Guide, frozen
from ..options.search import Search
from ..paint.objective import parse_prompt
from ..paint.results import Synthesis
from ..paint.starts import fitted
from ..vocabulary import sentence
from .generators import Generator, load_generator
from .run import Run, command, descend, guides, options_of

log = logging.getLogger(__name__)
LIMIT = 2.0  # of |z| while it is refined, as BigGAN's truncated normal has it
HOLD = 8.0  # logit that an own class starts with: weight 0.94 among 202 classes
Score = Callable[[Tensor], Tensor]
Batch = tuple[Tensor, Tensor, Tensor]


def search(
    prompt: str, *, model: Any = "clipag-mini", generator: Generator | None = None, **options: Any
) -> Found:
    """The generator's picture that fits `prompt` best (Du, Yin & Gu, algorithm 1).

    Args:
        prompt: what to look for; 'a fox | fog:-0.3' has weights.
        model: a key, a file, a CLIP of clipag_plug, clip or open_clip, or a `Guide`.
        generator: an object of the protocol `generators.Generator`; default: the one that the options name.
        options: fields of `Search`.
    Raises: ValueError for options that make no sense.
    """
    chosen = options_of(Search, prompt, model, options)
    run = maker(chosen, generator)(chosen, guides(chosen, model)[-1], prompt)
    for _ in run:
        pass
    return run.found()


def run(options: Search) -> int:
    """`clipag search`."""
    return command(options, maker(options))


def maker(options: Search, generator: Generator | None = None) -> Callable[..., Searching]:
    """`Searching` in the generator that the options name, unless one is given."""
    generator = generator or load_generator(options.generator, options.truncation)
    return functools.partial(Searching, generator=generator)


class Searching(Run):
    """One search; a step is a batch, of which the first is looked at right away. losses: minus the best score."""

    def __init__(self, options: Search, guide: Guide, prompt: str, generator: Any) -> None:
        super().__init__(options, guide, prompt)
        if hasattr(generator, "to"):
            generator.to(guide.device)
        parts, weights = zip(*parse_prompt(prompt))
        text = guide.texts(parts)
        if weights != (1.0,):
            text = F.normalize(torch.tensor([weights], device=text.device) @ text, dim=-1)
        with frozen([guide.model]):
            classes = class_features(guide, generator.classes, options.template)
            labels = ordered(classes, text[0], options.k)
            if options.k:
                names = ", ".join(generator.classes[int(label)] for label in labels[:10])
                log.info("classes: %s", names)
            how = (options.seed, options.batch, guide.device)
            self.problem = Problem(generator, scorer(guide, text[0], options.range), labels, *how)
            self.steps, self._batches = batches(self.problem, options)
            self._seen = [next(self._batches)]
        self.losses.append(-self.found().score)

    def found(self) -> Found:
        """The best picture so far."""
        return found(self.problem, self._seen)

    def picture(self) -> Tensor:
        return self.found().image

    def loss(self, index: int) -> Tensor:
        self._seen.append(next(self._batches))
        return -torch.cat([scores for _, _, scores in self._seen]).max()

    def update(self, index: int, loss: Tensor) -> float:
        return float(self.options.rate if self.options.method == "refine" else 0)

    def result(self) -> Synthesis:
        """The best picture at `size`; its class, score and the number of pictures made are in the recipe."""
        best, side = self.found(), self.options.size
        name = self.problem.generator.classes[best.label]
        about = {"class": name, "score": round(best.score, 6), "made": len(best.scores)}
        log.info("%s: %s, score %.4f of %d pictures", self.prompt, name, best.score, about["made"])
        image = fitted(best.image, (side, side)) if side else best.image
        return replace(super().result(), image=image, recipe={**self.recipe(), **about})


@dataclass
class Problem:
    """generator; score: outputs (n, 3, S, S) in [-1, 1] -> (n,), differentiable; labels: classes drawn from."""

    generator: Generator
    score: Score
    labels: Tensor
    seed: int = 0
    batch: int = 32
    device: torch.device | str = "cpu"

    def draws(self, count: int) -> tuple[Tensor, Tensor]:
        """The first `count` draws of z (n, dim_z) and of class numbers (n,): longer draws begin with shorter ones."""
        z_stream, y_stream = (
            torch.Generator().manual_seed((2 * self.seed + place) % 2**64) for place in (0, 1)
        )
        z = torch.cat([self.generator.latents(1, z_stream) for _ in range(count)])
        share = torch.rand(count, generator=y_stream)
        return z, self.labels[(share * len(self.labels)).long()]

    def scores(self, z: Tensor, y: Tensor) -> Tensor:
        """Scores (n,) of latents with class weights, `batch` at a time, with their graph."""
        parts = zip(z.split(self.batch), y.split(self.batch))
        return torch.cat([self.score(self.pictures(a, b)).cpu() for a, b in parts])

    def pictures(self, z: Tensor, y: Tensor) -> Tensor:
        """The generator's output in [-1, 1]."""
        return self.generator(z.to(self.device), y.to(self.device))

    @torch.no_grad()
    def look(self, z: Tensor, labels: Tensor) -> Batch:
        """A batch of latents with one class each, label numbers (n,)."""
        y = F.one_hot(labels, len(self.generator.classes)).float()
        return z, y, self.scores(z, y)


@dataclass
class Found:
    """A search's best picture: output (3, S, S) in [-1, 1], z and class weights. scores: (budget,), of all."""

    scores: Tensor
    output: Tensor
    z: Tensor
    y: Tensor

    @property
    def running(self) -> Tensor:
        """The best score so far, (budget,)."""
        return self.scores.cummax(dim=0).values

    @property
    def score(self) -> float:
        return float(self.scores.max())

    @property
    def label(self) -> int:
        """Number of its most weighty class."""
        return int(self.y.argmax())

    @property
    def image(self) -> Tensor:
        """The best picture, (3, S, S) in [0, 1]."""
        return ((self.output + 1) / 2).clamp(0, 1)


def solve(problem: Problem, options: Search) -> Found:
    """A whole search."""
    return found(problem, list(batches(problem, options)[1]))


def found(problem: Problem, seen: Sequence[Batch]) -> Found:
    """The best of batches."""
    z, y, scores = (torch.cat(parts) for parts in zip(*seen))
    best = int(scores.argmax())
    with torch.no_grad():
        output = problem.pictures(z[best : best + 1], y[best : best + 1])[0].cpu()
    return Found(scores, output, z[best], y[best])


def batches(problem: Problem, options: Search) -> tuple[int, Iterator[Batch]]:
    """How many batches there are, and they, by the method that the options name; `budget` pictures in all."""
    if options.method == "evolve":
        return math.ceil(options.budget / options.population), evolve(problem, options)
    if options.method == "refine":
        drawn, steps, _ = shares(options)
        return math.ceil(drawn / options.batch) + steps, refine(problem, options)
    return math.ceil(options.budget / options.batch), random(problem, options.budget)


def random(problem: Problem, budget: int) -> Iterator[Batch]:
    """Algorithm 1 of Du, Yin & Gu: draws alone."""
    z, labels = problem.draws(budget)
    return map(problem.look, z.split(problem.batch), labels.split(problem.batch))


def evolve(problem: Problem, options: Search) -> Iterator[Batch]:
    """(mu + lambda) evolution: children mix the z of two of the best, add noise, and take a parent's class.
    One child in ten draws its class anew. Parents stay until something better comes."""
    stream = torch.Generator().manual_seed(problem.seed)
    z, labels = problem.draws(min(options.population, options.budget))
    yield (batch := problem.look(z, labels))
    scores, made = batch[2], len(z)
    while made < options.budget:
        count = min(options.population, options.budget - made)
        pairs = torch.randint(len(z), (count, 2), generator=stream)
        mixed = torch.rand(count, z.shape[1], generator=stream) < 0.5
        child = torch.where(mixed, z[pairs[:, 0]], z[pairs[:, 1]])
        child = child + options.mutation * torch.randn(child.shape, generator=stream)
        anew = torch.rand(count, generator=stream) < 0.1
        drawn = problem.labels[torch.randint(len(problem.labels), (count,), generator=stream)]
        own = torch.where(anew, drawn, labels[pairs[:, 0]])
        yield (batch := problem.look(child, own))
        made += count
        z, labels = torch.cat([z, child]), torch.cat([labels, own])
        scores = torch.cat([scores, batch[2]])
        keep = scores.argsort(descending=True, stable=True)[: options.population]
        z, labels, scores = z[keep], labels[keep], scores[keep]


def shares(options: Search) -> tuple[int, int, int]:
    """How `refine` spends its budget: draws, steps, and how many of the best draws are refined."""
    bases = min(options.bases, options.budget // 2) or 1
    steps = options.budget // 2 // bases
    return options.budget - steps * bases, steps, bases


def refine(problem: Problem, options: Search) -> Iterator[Batch]:
    """Half the budget is drawn; from the best `bases` draws gradients of the score then move z and the class weights.
    Adam on z, kept within +-2, and on the logits of the class weights where the generator is `soft`. Each step of a
    base makes one picture of the budget; steps that do not divide evenly are left to the first draws."""
    count, steps, bases = shares(options)
    drawn = []
    for batch in random(problem, count):
        drawn.append(batch)
        yield batch
    z, y, scores = (torch.cat(parts) for parts in zip(*drawn))
    keep = scores.argsort(descending=True, stable=True)[:bases]
    moving, soft = z[keep].clone().requires_grad_(True), problem.generator.soft
    logits = (HOLD * y[keep]).requires_grad_(soft)
    optimizer = torch.optim.Adam([moving, logits] if soft else [moving], lr=options.rate)
    for step in range(steps + 1):
        weights = logits.softmax(dim=1) if soft else y[keep]
        values = problem.scores(moving, weights)
        if step:  # the first look is at draws that were counted already
            yield moving.detach().clone(), weights.detach(), values.detach()
        if step < steps:
            descend(-values.sum(), [optimizer])
            with torch.no_grad():
                moving.clamp_(-LIMIT, LIMIT)


def scorer(guide: Guide, text: Tensor, inputs: str = "correct") -> Score:
    """Cosine of a generator's outputs (n, 3, S, S) in [-1, 1] and a unit text feature (D,).
    inputs: "correct" shows the model pictures in [0, 1], normalised; "legacy" the outputs as they are, as the published
    code of the CLIP-guided search does, whose scores can only be met that way."""

    def score(outputs: Tensor) -> Tensor:
        correct = inputs == "correct"
        views = enlarged((outputs + 1) / 2 if correct else outputs, guide.side)
        return guide.features(views, normalize=correct) @ text

    return score


def enlarged(images: Tensor, side: int) -> Tensor:
    """Pictures at another side, bilinear and with antialiasing where they shrink."""
    if images.shape[-1] == side:
        return images
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)


def class_features(guide: Guide, classes: Sequence[str], template: str) -> Tensor:
    """Unit features (C, D) of the classes' sentences."""
    texts = [sentence(name, template) for name in classes]
    return torch.cat([guide.texts(texts[i : i + 256]) for i in range(0, len(texts), 256)])


def ordered(features: Tensor, text: Tensor, k: int) -> Tensor:
    """Rows of `features` by cosine to `text`, the first `k` of them, or all for 0."""
    order = (features @ text).argsort(descending=True, stable=True).cpu()
    return order[:k] if k else order
