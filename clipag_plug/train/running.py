"""The training loop around the steps: log, evaluate, save, stop; resumable at any step."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .evaluate import Evaluation
from .interrupts import Interrupts
from .log import Log
from .loop import Trainer


@dataclass
class Step:
    """What one optimiser step did. `loss` is the outer loss."""

    index: int
    samples: int
    loss: float
    lr: float
    eps: float
    images_per_second: float
    evaluation: Evaluation | None = None


def run(trainer: Trainer, folder: Path, report: Callable[[Step], None] = lambda step: None) -> None:
    """Trains to the end, calling `report` after each step; SIGTERM and Ctrl-C save before they stop it.

    The first worker evaluates, logs, saves and reports; the others wait for it at their next exchange.
    """
    options, workers = trainer.options, trainer.workers
    log = Log(folder, options.tensorboard, after=trainer.index) if workers.first else None
    saved = evaluated = time.monotonic()
    with Interrupts() as interrupts:
        while trainer.index < trainer.steps:
            started = time.monotonic()
            loss, lr, eps = trainer.step()
            now = time.monotonic()
            last = trainer.index == trainer.steps
            evaluation = None
            due = last or now - evaluated > options.evaluate_every
            if log is not None and trainer.evaluate is not None and due:
                evaluation, evaluated = trainer.evaluate(trainer.model), time.monotonic()
            rate = trainer.batch / (now - started)
            samples = trainer.index * trainer.batch
            step = Step(trainer.index, samples, loss, lr, eps, rate, evaluation)
            if log is not None:
                log.write(step)
                report(step)
            # Clocks differ, and saving is done together.
            stop, late = workers.any(interrupts.received, now - saved > options.save_every)
            if last or stop or late:
                trainer.save(folder)
                saved = time.monotonic()
            if stop and not last:
                raise KeyboardInterrupt(
                    f"stopped after step {trainer.index}; --resume latest continues"
                )
