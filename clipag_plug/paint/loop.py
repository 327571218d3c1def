"""The generator-free loop: views of a picture, their loss, its gradient, a step (Ganz & Elad 2024, supplement 1.3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ..guide import frozen, guide_for
from ..options.generate import Generate
from ..views import Views
from .canvases import Canvas, Stepper, enlarge
from .objective import NotFiniteError, Objective, Target, ViewSet
from .prompts import sweep
from .starts import picture_size, read_mask, start_pictures

# Between the seeds of a picture's drafts: further than anyone's variations reach, and within the 32 bits that
# torch's generator on the CPU takes of a seed.
_DRAFT = 1_000_003


@dataclasses.dataclass
class Step:
    """What one step did: its number from 0, losses (N,) of the pictures before it, and its step size."""

    index: int
    losses: Tensor
    rate: float


@dataclasses.dataclass
class Synthesis:
    """One finished picture: image (3, H, W) in [0, 1] on the CPU, its loss and everything that made it."""

    image: Tensor
    prompt: str
    seed: int
    loss: float
    steps: int
    losses: list[float]
    frames: list[Tensor]
    recipe: dict[str, Any]

    def save(self, path: str) -> None:
        """Writes a PNG with the recipe inside."""
        from ..images import write_image

        write_image(path, self.image, self.recipe)


class Synthesizer:
    """A batch of pictures in the making: iterate over it for `Step` records, then ask for `results()`.

    Pictures are optimised together and independently: each has its own seed, its own random views and its own
    normalisation of the step. `results()` works at any moment: after an interruption it gives the best so far.
    With `drafts` there are so many rows in the batch for each picture that is asked for.
    """

    def __init__(self, options: Generate, model: Any = None) -> None:
        self.options = options.resolved()
        captions = sweep(self.options.prompts, self.options.prefixes)
        chosen = [self.options.model if model is None else model, *self.options.ensemble]
        settings = {
            name: getattr(self.options, name) for name in ("device", "precision", "compile")
        }
        self.guides = [guide_for(each, **settings) for each in chosen]
        self.drafts = int(self.options.drafts or 1)
        seeds = range(self.options.seed, self.options.seed + self.options.variations)
        each = [(seed, draft) for seed in seeds for draft in range(self.drafts)]
        self.captions = [caption for caption, _ in captions for _ in each]
        self.seeds = [seed for _ in captions for seed, _ in each]
        self._draws = [seed + draft * _DRAFT for _ in captions for seed, draft in each]
        self._parts = [parts for _, parts in captions for _ in each]
        self.size = picture_size(self.options, self.guides[0])
        self.losses: list[Tensor] = []
        self.frames: list[Tensor] = []
        self._prepare()

    def _prepare(self) -> None:
        options = self.options
        self.generators = [torch.Generator().manual_seed(seed) for seed in self._draws]
        with frozen([guide.model for guide in self.guides]):
            contrast = float(options.contrast or 0)
            targets = [Target.of(guide, self._parts, contrast) for guide in self.guides]
            start = start_pictures(options, self.size, self.guides[0], targets[0], self.generators)
        mask = read_mask(options.mask, self.size).to(start.device) if options.mask else None
        grid = int(options.grid or 0)
        finest = 2 * max(guide.side for guide in self.guides) if grid < 0 else grid
        self.grids = _grids(min(self.size), finest, int(options.grow or 1))
        self.canvas = Canvas(start, grid=self.grids[0], mask=mask)
        self.stepper = Stepper(
            str(options.optimizer),
            float(options.lr or 0),
            str(options.schedule),
            self.steps,
            float(options.clip_gradient or 0),
            float(options.threshold or 0),
        )
        memory = options.memory * 2**20 if options.memory else None
        self.objective = Objective(
            self.guides, targets, _sets(options), tv=options.tv, memory=memory
        )
        self.best = self.canvas.pixels.clone()
        self.best_loss = torch.full((len(start),), torch.inf, device=start.device)
        self.best_step = torch.zeros(len(start), dtype=torch.long, device=start.device)

    @property
    def steps(self) -> int:
        return int(self.options.steps or 1)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Step]:
        """Runs to the end. NotFiniteError where the model fails; the canvas then still holds the last good pictures."""
        kept = _frame_steps(self.steps, self.options.frames)
        with frozen([guide.model for guide in self.guides]):
            for index in range(len(self.losses), self.steps):
                if index in kept:
                    self._keep_frame()
                yield self._step(index)
        if self.steps in kept:
            self._keep_frame()

    def _step(self, index: int) -> Step:
        stage = min(index * len(self.grids) // self.steps, len(self.grids) - 1)
        if index and stage != (index - 1) * len(self.grids) // self.steps:
            self.canvas.grow(self.grids[stage])
            self.best = enlarge(self.best, self.canvas.shape)
            self.stepper.restart()
        try:
            losses, ranking, gradient = self.objective(
                self.canvas.pixels, self.canvas.shown, self.generators
            )
        except NotFiniteError as error:
            raise NotFiniteError(
                f"stopped at step {index}: {error}; the last good picture is kept"
            ) from error
        # The notebook keeps the picture after the update whose loss, before it, was the lowest.
        if not self.options.quirks:
            self._keep_best(index, ranking)
        self.canvas.pixels = self.stepper(self.canvas.pixels, gradient, index)
        if self.options.quirks:
            self._keep_best(index, ranking)
        self.losses.append(losses)
        return Step(index, losses, self.stepper.rate(index))

    def _keep_best(self, index: int, losses: Tensor) -> None:
        better = losses < self.best_loss
        self.best_loss = torch.where(better, losses, self.best_loss)
        self.best_step = torch.where(better, index, self.best_step)
        self.best = torch.where(better.view(-1, 1, 1, 1), self.canvas.pixels, self.best)

    def _keep_frame(self) -> None:
        self.frames.append((self.canvas.pictures().cpu() * 255).round().to(torch.uint8))

    def pictures(self) -> Tensor:
        """The pictures (N, 3, H, W) to return now: the best so far, or the last ones with keep='last'."""
        return self.canvas.pictures(self.best if self.options.keep == "best" else None)

    def results(self) -> list[Synthesis]:
        """The pictures in the order of the prompts, variations of one prompt together; of its drafts the best."""
        from .recipes import recipe_of

        pictures = self.pictures().detach().cpu()
        curves = (
            torch.stack(self.losses).cpu().T.tolist() if self.losses else [[] for _ in self.seeds]
        )
        found = []
        for first in range(0, len(self.seeds), self.drafts):
            index = self._closest(first)
            found.append(
                Synthesis(
                    image=pictures[index],
                    prompt=self.captions[index],
                    seed=self.seeds[index],
                    loss=self._loss(index),
                    steps=len(self.losses),
                    losses=curves[index],
                    frames=[frame[index].float() / 255 for frame in self.frames],
                    recipe=recipe_of(self, index),
                )
            )
        return found

    def leading(self) -> Tensor:
        """The first picture (3, H, W) as it is now, to be watched; of its drafts the closest so far."""
        return self.canvas.pictures()[self._closest(0)]

    def _closest(self, first: int) -> int:
        return min(range(first, first + self.drafts), key=self._loss)

    def _loss(self, index: int) -> float:
        if self.options.keep == "best":
            return float(self.best_loss[index])
        return float(self.losses[-1][index]) if self.losses else float("inf")


def _sets(options: Generate) -> list[ViewSet]:
    """Global views, or the bare picture without them; then patches."""
    views = int(options.views or 0)
    sets = [ViewSet(Views(str(options.policy) if views else ""), max(views, 1), 1.0)]
    if options.patches:
        patches = Views(str(options.patch_policy))
        sets.append(
            ViewSet(
                patches,
                options.patches,
                float(options.patch_weight or 0),
                float(options.reject or 0),
            )
        )
    return sets


def _grids(short: int, grid: int, stages: int) -> list[int]:
    """Short sides of the canvas, coarse to fine; the last is `grid`, or the full side for 0."""
    final = min(grid, short) if grid > 0 else short
    return [max(final >> (stages - 1 - stage), min(16, final)) for stage in range(stages)]


def _frame_steps(steps: int, frames: int) -> set[int]:
    """Steps whose pictures are kept, the start (0) and the end (`steps`) among them."""
    if frames <= 0:
        return set()
    if frames == 1:
        return {steps}
    return {round(index * steps / (frames - 1)) for index in range(frames)}
