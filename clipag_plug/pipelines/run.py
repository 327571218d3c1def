"""The frame of every pipeline: guides, a loop that can be stopped, pictures with their recipes.

A pipeline is an option set (`options.picture.Picture`), a subclass of `Run`, a row in `cli.COMMANDS` and one in
`__init__`. Its function returns `perform(options, make, guides(options, model), callback)`, its command
`command(options, make)`; make(options, guide, prompt) gives the `Run` of one picture.
"""

from __future__ import annotations

import abc
import dataclasses
import itertools
import logging
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ..guide import Guide, frozen, guide_for
from ..options.picture import PRESENTATION, Picture
from ..paint.notebook import watched
from ..paint.results import NotFiniteError, Step, Synthesis
from ..version import __version__
from . import output
from .runs import new_run

log = logging.getLogger(__name__)
ENDING = [signal.SIGINT, signal.SIGTERM, *filter(None, [getattr(signal, "SIGHUP", None)])]
FRAMES = 48  # of an animation, where --frames does not say
Make = Callable[[Any, Guide, str], "Run"]


class Run(abc.ABC):
    """A picture in the making: iterate over it for `Step` records; `result()` may be asked for at any moment.
    The model is frozen during each step and left as it was."""

    steps: int

    def __init__(self, options: Any, guide: Guide, prompt: str) -> None:
        self.options, self.guide, self.prompt = options, guide, prompt
        self.generator = torch.Generator().manual_seed(options.seed)
        self.losses: list[float] = []
        self._frames: list[Tensor] = []

    @abc.abstractmethod
    def picture(self) -> Tensor:
        """The picture (3, H, W) as it is now, on the CPU."""

    @abc.abstractmethod
    def loss(self, index: int) -> Tensor:
        """The scalar loss of step `index`, with its graph."""

    @abc.abstractmethod
    def update(self, index: int, loss: Tensor) -> float:
        """One step of the optimiser; returns its step size."""

    def __iter__(self) -> Iterator[Step]:
        """Runs to the end. Raises: NotFiniteError where a model fails; the last good picture stays."""
        count = self.options.frames
        kept = {round(i * self.steps / max(count - 1, 1)) for i in range(count)}
        for index in range(len(self.losses), self.steps + 1):
            if index in kept:
                self._frames.append((self.picture() * 255).round().to(torch.uint8))
            if index < self.steps:
                with frozen([self.guide.model]), torch.enable_grad():
                    loss = self.loss(index)
                    value = float(loss.detach())
                    if not math.isfinite(value):
                        raise NotFiniteError(
                            f"stopped at step {index}: {self.guide.name} gave a loss that is not finite"
                        )
                    rate = self.update(index, loss)
                self.losses.append(value)
                yield Step(index, torch.tensor([value]), rate)

    def result(self) -> Synthesis:
        """The picture so far and its recipe."""
        frames = [frame.float() / 255 for frame in self._frames]
        loss, losses = self.losses[-1] if self.losses else math.nan, list(self.losses)
        source = (self.prompt, self.guide.name, self.options.seed)
        return Synthesis(self.picture(), *source, loss, losses, frames, self.recipe())

    def recipe(self) -> dict[str, Any]:
        """Everything that made the picture, ready for JSON. No time and no place: equal runs, equal bytes."""
        values, guide, done = self.options.to_dict().items(), self.guide, len(self.losses)
        options = {name: value for name, value in values if name not in PRESENTATION}
        options.update(model=guide.name, device=guide.device.type, precision=guide.precision)
        return {
            "clipag_plug": __version__,
            "torch": torch.__version__,
            "job": type(self.options).__name__,
            "prompt": self.prompt,
            "seed": self.options.seed,
            "stopped_after": done if done < self.steps else None,
            "options": options,
        }


def descend(loss: Tensor, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """One gradient step."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()


def options_of(cls: type[Picture], prompts: str | Sequence[str], model: Any, given: Any) -> Any:
    """Options from the keywords of a Python call; `model` may be an object instead of a name."""
    listed = [prompts] if isinstance(prompts, str) else list(prompts)
    named = model if isinstance(model, str) else "custom"
    return cls.from_dict({**given, "prompts": listed, "model": named})


def guides(options: Picture, model: Any = None) -> list[Guide]:
    """The guiding model, in place of its name perhaps a CLIP or a `Guide`; with `compare` its counterpart before it.
    Raises: ValueError where nobody says which model is the counterpart."""
    how: dict[str, Any] = {"device": options.device, "precision": options.precision}
    how |= {"compile": options.compile} if hasattr(options, "compile") else {}
    chosen = guide_for(options.model if model is None or isinstance(model, str) else model, **how)
    if not options.compare:
        return [chosen]
    from ..weights import registry

    record, card = registry.get(chosen.name), getattr(chosen.model, "card", None) or {}
    vanilla = options.vanilla or card.get("base") or (record.base if record else None)
    if not vanilla:
        raise ValueError(
            f"it is not known which model {chosen.name} was fine-tuned from; add --vanilla KEY"
        )
    return [guide_for(vanilla, **how), chosen]


def perform(
    options: Picture,
    make: Make,
    models: Sequence[Guide],
    callback: Callable[[Step], object] | None = None,
    bar: bool = False,
) -> list[Synthesis]:
    """Every prompt with every seed, under one guide after the other.
    Raises: ValueError without a prompt; NotFiniteError, which has what was made so far as `results`, as a
    KeyboardInterrupt of the callback has."""
    if not options.prompts:
        raise ValueError('no prompt; say what to make, as in clipag clipdraw "a goldfish"')
    resolved = options.resolved()
    seeds = range(options.seed, options.seed + options.variations)
    jobs = [dataclasses.replace(resolved, seed=seed, variations=1) for seed in seeds]
    done: list[Synthesis] = []
    for guide, prompt, job in itertools.product(models, options.prompts, jobs):
        run = make(job, guide, prompt)
        label = f"{guide.name}: {prompt}"
        shown = run if bar else watched(run, run.steps, label, run.picture)
        try:
            for step in progress(shown, run.steps, label, hidden=not bar):
                if callback is not None:
                    callback(step)
        except (KeyboardInterrupt, NotFiniteError) as error:
            error.results = [*done, *([run.result()] if run.losses else [])]  # type: ignore[union-attr]
            raise
        done.append(run.result())
    return done


def progress(
    steps: Iterable[Step], total: int, label: str = "", hidden: bool = False
) -> Iterator[Step]:
    """The steps, with a bar on a terminal."""
    from tqdm.auto import tqdm

    hidden = hidden or not sys.stderr.isatty()
    with tqdm(total=total, file=sys.stderr, disable=hidden, unit="step", desc=label[:40]) as bar:
        for step in steps:
            bar.set_postfix_str(f"loss {float(step.losses.mean()):.4f}", refresh=False)
            bar.update()
            yield step


class Stop:
    """Inside it Ctrl-C, SIGTERM and SIGHUP end the loop after its step instead of the process; `asked` is the signal.
    So what was made can be written, and a second signal does not leave it half-written. Before the first step, when
    there is nothing to keep, each raises KeyboardInterrupt at once. Called after every step."""

    asked = 0
    holding = False

    def __enter__(self) -> Self:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in ENDING:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        self.asked = number
        if not self.holding:
            raise KeyboardInterrupt

    def __call__(self, step: object = None) -> None:
        self.holding = True
        if self.asked:
            raise KeyboardInterrupt


def command(options: Picture, make: Make) -> int:
    """The command of a pipeline: see `produce`."""
    loud = not options.quiet
    return produce(options, lambda job, models, stop: perform(job, make, models, stop, bar=loud))


def produce(
    options: Any,
    work: Callable[[Any, Sequence[Guide], Stop], list[Synthesis]],
    sheet: Callable[[Sequence[Synthesis]], Tensor] = output.comparison,
    count: int = 0,
) -> int:
    """Makes, writes and prints; the exit code is 0, or 1 where a model failed, 130 after Ctrl-C, 143 after SIGTERM.
    In the last three cases what was made so far is written all the same.
    work: makes the pictures of all models; calls the `Stop` after each step.
    sheet: lays them on one picture (3, H, W), where one is asked for.
    count: pictures a model; 0 for what the options say.
    Raises: ValueError and OSError for what cannot be done or would replace what is not ours, before any work."""
    count = count or options.count()
    if not options.compare:  # the names of the files hold the models' only where there are two
        output.check(options, output.files(options, [""], count))
    models = guides(options)
    names = [Path(guide.name).name for guide in models]
    if options.compare:
        output.check(options, output.files(options, names, count))
    if not options.frames and (options.animation or output.is_folder(options.output)):
        options = dataclasses.replace(options, frames=FRAMES)
    code = 0
    with Stop() as stop:
        try:
            works = work(options, models, stop)
        except (KeyboardInterrupt, NotFiniteError) as error:
            stop.holding, works = True, getattr(error, "results", [])
            if not works:
                raise
            log.warning("%s", str(error) or "stopped: what was made so far is kept")
            interrupted = isinstance(error, KeyboardInterrupt)
            code = 128 + (stop.asked or signal.SIGINT) if interrupted else 1
        if not options.output:
            folder = new_run(works[0].prompt, works[0].seed)
            options = dataclasses.replace(options, output=str(folder))
        targets = output.files(options, names, count)
        try:
            paths = output.write(works, targets, sheet, options.shown())
        except OSError as error:  # a folder that is gone meanwhile, a disk that is full
            raise OSError(f"{error}; {output.rescue(works)}") from error
        if "picture" in targets and "shown" in (about := works[0].enlarged(options.shown()).recipe):
            log.info("%s; --size says another", about["shown"])
        output.report(works, paths, as_json=options.json)
    return code
