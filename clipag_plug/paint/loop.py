"""The generator-free loop: views of a picture, their loss, its gradient, a step (Ganz & Elad 2024, supplement 1.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..augment import Views
from ..files import sha256
from ..guide import frozen, guide_for
from ..images import read_image
from ..options.generate import PRESENTATION, Generate
from ..version import __version__
from .canvases import CANVASES
from .objective import Objective, Target, ViewSet, layer_readout, parse_prompt
from .results import NotFiniteError, Step, Synthesis
from .rules import Stepper
from .starts import picture_size, read_mask, start_pictures

# Between the seeds of a picture's drafts: further than anyone's variations reach, and within the 32 bits that
# torch's generator on the CPU takes of a seed.
_DRAFT = 1_000_003


class Synthesizer:
    """A batch of pictures in the making: iterate over it for `Step` records, then ask for `results()`.

    Pictures are optimised together and independently: each has its own seed, its own random views and its own
    normalisation of the step. `results()` works at any moment: after an interruption it gives the best so far.
    With `drafts` there are so many rows in the batch for each picture that is asked for.
    """

    def __init__(
        self,
        options: Generate,
        model: Any = None,
        readout: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.options = options = options.resolved()
        if not (options.prompts or options.like or options.target or readout):
            raise ValueError('no prompt; say what to draw, as in clipag generate "a goldfish"')
        styles = [style.strip() for style in options.prefixes or [""]]
        pairs = [(each, style) for each in options.prompts or [""] for style in styles]
        parsed = [parse_prompt(*pair) if options.prompts else [] for pair in pairs]
        settings = {name: getattr(options, name) for name in ("device", "precision", "compile")}
        chosen = [options.model if model is None else model, *options.ensemble]
        self.guides = [guide_for(chosen[0], **settings)]
        settings["precision"] = self.guides[0].precision  # an ensemble has the format of its first
        self.guides += [guide_for(each, **settings) for each in chosen[1:]]
        self.steps, self.drafts = int(options.steps or 1), int(options.drafts or 1)
        seeds = range(options.seed, options.seed + options.variations)
        rows = [
            (number, seed, draft)
            for number in range(len(pairs))
            for seed in seeds
            for draft in range(self.drafts)
        ]
        self.captions = [f"{pairs[i][1]} {pairs[i][0].strip()}".strip() for i, _, _ in rows]
        self.seeds = [seed for _, seed, _ in rows]
        self.generators = [
            torch.Generator().manual_seed(seed + draft * _DRAFT) for _, seed, draft in rows
        ]
        self.size = picture_size(options, self.guides[0])
        with frozen([guide.model for guide in self.guides]):
            wanted = [parsed[i] for i, _, _ in rows]
            how = (float(options.contrast or 0), str(options.objective))
            like = read_image(options.like) if options.like else None
            targets = [Target.of(guide, wanted, *how, like) for guide in self.guides]
            start = start_pictures(options, self.size, self.guides[0], targets[0], self.generators)
        margin = round(float(options.margin or 0) * min(self.size))
        side = max(guide.side for guide in self.guides)
        self.grids = _grids(options, min(self.size) + 2 * margin, side)
        self.canvas = CANVASES[str(options.canvas)](
            start,
            grid=self.grids[0],
            mask=read_mask(options.mask, self.size).to(start.device) if options.mask else None,
            quantile=float(options.threshold or 0),
            margin=margin,
            decorrelate=bool(options.decorrelate),
        )
        if options.init == "own":
            self.canvas.draw(self.generators)
        self.stepper = Stepper(
            str(options.optimizer),
            float(options.lr or 0),
            str(options.schedule),
            self.steps,
            float(options.clip_gradient or 0),
            float(options.tilt or 0),
        )
        if options.target:
            readout = layer_readout(self.guides[0], options.target)
        self.objective = Objective(
            self.guides,
            targets,
            _sets(options, 0.0),
            options.tv,
            options.memory * 2**20 if options.memory else None,
            float(options.tv4 or 0),
            float(options.anchor or 0),
            readout,
        )
        self.losses: list[Tensor] = []
        self.frames: list[Tensor] = []
        self.best = self.canvas.values.clone()
        self.best_loss = torch.full((len(start),), torch.inf, device=start.device)
        self.best_step = torch.zeros(len(start), dtype=torch.long, device=start.device)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Step]:
        """Runs to the end. NotFiniteError where the model fails; the canvas then still holds the last good pictures."""
        frames = self.options.frames  # the start and the end among them
        kept = (
            {round(i * self.steps / (frames - 1)) for i in range(frames)}
            if frames > 1
            else {self.steps}
        )
        with frozen([guide.model for guide in self.guides]):
            for index in range(len(self.losses), self.steps):
                if frames and index in kept:
                    self._keep_frame()
                yield self._step(index)
        if frames:
            self._keep_frame()

    def stage(self, index: int) -> int:
        """Which of the grids step `index` works on."""
        span = max(round(self.steps * float(self.options.grow_share or 1)), 1)
        return min(index * len(self.grids) // span, len(self.grids) - 1)

    def _step(self, index: int) -> Step:
        options = self.options
        if ">" in f"{options.policy} {options.patch_policy}":
            self.objective.sets = _sets(options, index / max(self.steps - 1, 1))
        if index and self.stage(index) != self.stage(index - 1):
            grid, values = self.grids[self.stage(index)], self.canvas.values
            self.best, self.canvas.values = self.canvas.grow(grid, self.best, values)
            self.stepper.restart()
        values = self.canvas.values
        try:
            losses, ranking, gradient = self.objective(self.canvas, self.generators)
        except NotFiniteError as error:
            message = f"stopped at step {index}: {error}; the last good picture is kept"
            raise NotFiniteError(message) from error
        self.canvas.values = self.canvas.settle(self.stepper(values, gradient, index))
        better = ranking < self.best_loss
        self.best_loss = torch.where(better, ranking, self.best_loss)
        self.best_step = torch.where(better, index, self.best_step)
        # The notebook keeps the picture after the update whose loss, before it, was the lowest.
        candidate = self.canvas.values if options.quirks else values
        self.best = torch.where(better.view(-1, 1, 1, 1), candidate, self.best)
        self.losses.append(losses)
        return Step(index, losses, self.stepper.rate(index))

    def _keep_frame(self) -> None:
        self.frames.append((self.canvas.pictures().cpu() * 255).round().to(torch.uint8))

    def pictures(self) -> Tensor:
        """The pictures (N, 3, H, W) to return now: the best so far, or the last ones with keep='last'."""
        return self.canvas.pictures(self.best if self.options.keep == "best" else None)

    def results(self) -> list[Synthesis]:
        """The pictures in the order of the prompts, variations of one prompt together; of its drafts the best."""
        pictures = self.pictures().detach().cpu()
        found = []
        for first in range(0, len(self.seeds), self.drafts):
            index = self._closest(first)
            found.append(
                Synthesis(
                    image=pictures[index],
                    prompt=self.captions[index],
                    model=self.guides[0].name,
                    seed=self.seeds[index],
                    loss=self._loss(index),
                    losses=[float(losses[index]) for losses in self.losses],
                    frames=[frame[index].float() / 255 for frame in self.frames],
                    recipe=self._recipe(index),
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

    def _recipe(self, index: int) -> dict[str, Any]:
        """Everything that made a row, ready for JSON. No time, no place: equal runs, equal bytes."""
        options = self.options.to_dict()
        done = len(self.losses)
        return {
            "clipag_plug": __version__,
            "torch": torch.__version__,
            "index": index // self.drafts,
            "prompt": self.captions[index],
            "seed": self.seeds[index],
            "kept_draft": index % self.drafts,
            "size": f"{self.size[1]}x{self.size[0]}",
            "kept_step": int(self.best_step[index]) if options["keep"] == "best" else done - 1,
            "passes": self.options.passes(),
            "stopped_after": done if done < self.steps else None,
            "files": {path: sha256(path) for path in self.options.files()},
            "options": {
                **{name: options[name] for name in options if name not in PRESENTATION},
                "model": self.guides[0].name,
                "device": self.guides[0].device.type,
                "precision": self.guides[0].precision,
            },
        }


def _sets(options: Generate, progress: float) -> list[ViewSet]:
    """Global views, or the bare picture without them; then patches. `progress`: of the run, for schedules."""
    views = int(options.views or 0)
    seen = Views(
        str(options.policy), progress
    )  # also without views: a part that there is not is said
    sets = [ViewSet(seen if views else Views("none"), max(views, 1))]
    if options.patches:
        patches = Views(str(options.patch_policy), progress)
        weight = float(options.patch_weight or 0)
        sets.append(ViewSet(patches, options.patches, weight, float(options.reject or 0)))
    return sets


def _grids(options: Generate, short: int, side: int) -> list[int]:
    """Short sides of the canvas, coarse to fine, for a picture of side `short` and views of `side`."""
    grid, stages = int(options.grid or 0), int(options.grow or 1)
    final = grid if grid > 0 else min(max(side, 128) if grid else short, short)
    return [min(max(final >> i, min(16, final)), short) for i in reversed(range(stages))]
