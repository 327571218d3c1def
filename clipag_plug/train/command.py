"""The job behind `clipag train` and `python -m clipag_plug.train`: the loop around the steps."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import importlib
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ..files import write_atomically, write_text
from ..options.base import flag
from ..options.train import EVERY, Train
from . import setup, state
from .distributed import Workers, connect, disconnect
from .trainer import Step, Trainer

EVALUATED = ["clean", "robust", "loss"]
EVALUATED += [f"{way}_{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5)]
COLUMNS = [field.name for field in dataclasses.fields(Step)]
COLUMNS += ["images", *EVALUATED[:2]]
COLUMNS += [f"held_out_{name}{way}" for name in EVALUATED[2:] for way in ("", "_attacked")]


def run(options: Train) -> int:
    """Trains by the options and leaves model, checkpoints, log and recipe in `options.output`.

    `options.init` may also be the folder of an earlier run. FloatingPointError where the loss is no longer finite; the
    last checkpoint is kept. KeyboardInterrupt behind a checkpoint on SIGINT and SIGTERM.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    workers, folder = connect(options.device), Path(options.output)
    try:
        lock: Any = contextlib.nullcontext()
        if workers.first:
            _check_places(options)
            lock = state.claim(folder, options.resume)
        with lock:
            return _run(options, workers, folder)
    finally:
        disconnect()


def _check_places(options: Train) -> None:
    """Raises ImportError or OSError, before anything is made, where what a run is to be told to is not there."""
    for name in ("wandb", "tensorboard"):
        if getattr(options, name):
            try:
                importlib.import_module(name)
            except ImportError as error:
                raise ImportError(
                    f"--{name} needs the package {name}; run pip install {name}"
                ) from error
    state.upload(options.remote)


def _run(options: Train, workers: Workers, folder: Path) -> int:
    resumed = None
    if options.resume and (options.resume != "latest" or state.find(folder) is not None):
        resumed = state.load(folder if options.resume == "latest" else Path(options.resume))
        options, changes = state.continued(resumed["options"], options)
        _say(
            workers,
            options,
            f"resumed at step {resumed['index']}: {', '.join(changes)}" * bool(changes),
        )
    elif (
        options.resume
    ):  # a job that a cluster starts again and again says so from the first time on
        _say(workers, options, f"no checkpoint in {options.output!r} yet; starting from step 0")
    ready = setup.prepare(options, workers, resumed)
    trainer = ready.trainer
    if resumed is not None:
        trainer.restore(resumed)
        if trainer.index >= trainer.steps and (folder / "model.json").is_file():
            _say(workers, options, "the run is finished already; more --samples make it longer")
            return _done(folder, workers)
    if workers.first:
        write_text(folder / "recipe.json", trainer.options.to_json() + "\n")
    held = train(trainer, folder, ready.evaluate, _Card(ready, folder))
    tally = trainer.batches.tally
    tally.merge(workers.objects(tally.state()))
    if workers.first:
        _say(workers, options, tally.summary())
        card = _Card(ready, folder)(held)
        state.save_model(folder, trainer.result(), ready.config, card, options.remote)
        if options.train_text_features:
            state.save_captions(folder, *trainer.learned_captions())
    return _done(folder, workers)


def train(
    trainer: Trainer, folder: Path, evaluate: Any = None, card: Any = None, report: Any = None
) -> dict[str, float]:
    """Trains to the end; SIGTERM and Ctrl-C save before they stop it. Returns the last evaluation.

    evaluate: model -> numbers, called by all workers. card: those -> the card of the best model so far, which is kept
    in the folder `best`. report hears each step (for tests). The first worker logs, saves and reports.
    """
    options, workers = trainer.options, trainer.workers
    log = Log(folder, trainer) if workers.first else None
    saving, evaluating = (_Timer(name, trainer) for name in ("save_every", "evaluate_every"))
    held: dict[str, float] = {}
    best = float("-inf")
    received: list[int] = []
    before = _catch(received)
    try:
        while trainer.index < trainer.steps:
            step, last = trainer.step(), trainer.index == trainer.steps
            # Clocks differ, and saving and evaluating are done together.
            late = bool(received), saving.due(trainer), evaluating.due(trainer)
            stop, save, look = workers.any(*late)
            fresh: dict[str, float] = {}
            if evaluate is not None and (look or last):
                with trainer.averaged():
                    held = fresh = evaluate(trainer.model)
                evaluating.start(trainer)
                merit = fresh.get("robust", -fresh.get("loss_attacked", 0.0))
                if workers.first and card is not None and not last and merit > best:
                    best = merit
                    card.save_best(trainer, fresh)
            if log is not None:
                log.write(step, fresh)
            if report is not None:
                report(step)
            if last or stop or save:
                now = trainer.state()
                if workers.first:
                    state.save(folder, now, options.keep_last, options.remote)
                saving.start(trainer)
            if stop and not last:
                raise KeyboardInterrupt(
                    f"stopped after step {trainer.index}; --resume latest continues"
                )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return held


def _catch(received: list[int]) -> dict[int, Any]:
    """Notes SIGINT and SIGTERM, so that a step in progress ends whole; the handlers before."""
    before: dict[int, Any] = {}
    with contextlib.suppress(ValueError):  # not the main thread: the caller's own handling stays
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, lambda number, frame: received.append(number))
    return before


class _Card:
    """The card of a result, and the folder of the best one."""

    def __init__(self, ready: setup.Prepared, folder: Path) -> None:
        self.ready, self.folder = ready, folder

    def __call__(self, held: dict[str, float]) -> dict[str, Any]:
        trainer = self.ready.trainer
        return {
            **self.ready.card,
            "images_seen": trainer.index * trainer.batch,
            "held_out": held or None,
            "skipped": trainer.batches.tally.counts(),
            "torch": torch.__version__,
        }

    def save_best(self, trainer: Trainer, held: dict[str, float]) -> None:
        state.save_model(self.folder / "best", trainer.result(), self.ready.config, self(held))


class _Timer:
    """Tells when something is due that comes every so many seconds, minutes, epochs or images."""

    def __init__(self, option: str, trainer: Trainer) -> None:
        every = getattr(trainer.options, option)
        number, unit = re.fullmatch(EVERY, every).groups()  # type: ignore[union-attr]
        self.every, self.clock = float(number), unit in ("s", "min")
        self.every *= {"min": 60, "ep": trainer.batches.mixture.length or 0}.get(unit, 1)
        if unit == "ep" and not self.every:
            raise ValueError(
                f"{flag(option)} {every} needs data of known length; give images or seconds"
            )
        self.start(trainer)

    def _now(self, trainer: Trainer) -> float:
        return time.monotonic() if self.clock else trainer.index * trainer.batch

    def start(self, trainer: Trainer) -> None:
        """From now on."""
        now = self._now(trainer)
        self.next = now + self.every - (0 if self.clock else now % self.every if self.every else 0)

    def due(self, trainer: Trainer) -> bool:
        """Whether it is."""
        return self._now(trainer) >= self.next


class Log:
    """One row a step in `log.csv`, and where asked for in TensorBoard and W&B; a line on stderr now and then.

    Rows behind the step that a run goes on from, of a part that was lost, are dropped, and so is a row that was not
    written to its end.
    """

    def __init__(self, folder: Path, trainer: Trainer) -> None:
        options, self.trainer, self.path = trainer.options, trainer, folder / "log.csv"
        folder.mkdir(parents=True, exist_ok=True)
        rows = self.path.read_text().splitlines(keepends=True)[1:] if self.path.is_file() else []
        kept = [r for r in rows if r.endswith("\n") and int(r.partition(",")[0]) <= trainer.index]
        text = "".join([",".join(COLUMNS) + "\n", *kept])
        write_atomically(self.path, lambda name: Path(name).write_text(text, encoding="utf-8"))
        self.board: Any = None
        if options.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder), purge_step=trainer.index + 1)
        self.wandb: Any = None
        if options.wandb:
            import wandb  # type: ignore[import-not-found]

            about = {"name": options.name or folder.name, "config": options.to_dict()}
            try:
                self.wandb = wandb.init(project=options.wandb, dir=str(folder), **about)
            except Exception as error:  # no key, no network, a name that it does not take
                raise RuntimeError(
                    f"--wandb {options.wandb!r} cannot be logged to: {error}"
                ) from error
        self.quiet, self.shown = options.quiet, 0.0
        self.started, self.first, self.held = time.monotonic(), trainer.index, ""

    def write(self, step: Step, held: dict[str, float]) -> None:
        """A step, and an evaluation behind it if there was one."""
        row: dict[str, Any] = {n: v for n, v in dataclasses.asdict(step).items() if v is not None}
        row |= {
            n if n in ("images", *EVALUATED[:2]) else f"held_out_{n}": v for n, v in held.items()
        }
        with self.path.open("a", newline="", encoding="utf-8") as stream:
            csv.DictWriter(stream, COLUMNS, lineterminator="\n").writerow(row)
        numbers = {name: value for name, value in row.items() if name != "index"}
        if self.board is not None:
            for name, value in numbers.items():
                self.board.add_scalar(name, value, step.index)
            self.board.flush()
        if self.wandb is not None:
            self.wandb.log(numbers, step=step.index)
        self._show(step, held)

    def _show(self, step: Step, held: dict[str, float]) -> None:
        told = [f"{n} {v:.3f}" for n, v in held.items() if n != "images"]
        self.held = f"  held-out {', '.join(told)} (step {step.index})" if told else self.held
        now, terminal = time.monotonic(), sys.stderr.isatty()
        if self.quiet or (now - self.shown < (0.5 if terminal else 30) and not told):
            return
        self.shown = now
        left = (now - self.started) / (step.index - self.first) * (self.trainer.steps - step.index)
        line = (
            f"step {step.index}/{self.trainer.steps}  loss {step.loss:.3f}  lr {step.lr:.1e}  "
            f"{step.images_per_second:.0f} images/s  {left / 60:.0f} min left{self.held}"
        )
        ends = ("\r\x1b[2K", "") if terminal else ("", "\n")
        print(ends[0] + line, end=ends[1], file=sys.stderr, flush=True)


def _say(workers: Workers, options: Train, text: str) -> None:
    if text and workers.first and not options.quiet:
        print(text, file=sys.stderr)


def _done(folder: Path, workers: Workers) -> int:
    if workers.first:
        print(folder / "model.safetensors")
    return 0
