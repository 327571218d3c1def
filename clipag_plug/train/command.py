"""The job behind `clipag train` and `python -m clipag_plug.train`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..options.train import Train

if TYPE_CHECKING:
    from .distributed import Workers
    from .loop import Trainer


def run(options: Train) -> int:
    """Trains by the options and leaves model, checkpoint, log and recipe in `options.output`.

    `options.init` may also be the folder of an earlier run. FloatingPointError where the loss is no
    longer finite; the last checkpoint is kept.
    """
    import torch

    from .distributed import connect, disconnect

    if options.threads:
        torch.set_num_threads(options.threads)
    workers = connect(options.device)
    try:
        return _run(options, workers)
    finally:
        disconnect()


def _run(options: Train, workers: Workers) -> int:
    from . import setup, state
    from .running import run as run_steps

    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    trainer, config, card = setup.prepare(options, workers)
    if options.resume:
        _resume(trainer, options, folder)
    text = options.to_json() + "\n"
    if workers.first:
        state.sweep(folder)
        state.replace_file(
            folder / "recipe.json", lambda path: path.write_text(text, encoding="utf-8")
        )
    reporter = setup.Reporter(trainer, quiet=options.quiet or not workers.first)
    run_steps(trainer, folder, reporter)
    tally = trainer.batches.tally
    tally.merge(workers.objects(tally.state()))
    if not workers.first:
        return 0
    if summary := tally.summary():
        print(summary, file=sys.stderr)
    card.update(setup.outcome(trainer, reporter.last))
    state.save_model(folder, trainer.result(), config, card)
    print(folder / "model.safetensors")
    return 0


def _resume(trainer: Trainer, options: Train, folder: Path) -> None:
    """Restores the checkpoint that --resume names. A job that a cluster starts again and again can say `latest`
    from the first time on."""
    from .state import find_state

    if options.resume != "latest":
        trainer.restore(Path(options.resume))
    elif find_state(folder) is not None:
        trainer.restore(folder)
    elif trainer.workers.first and not options.quiet:
        print(f"no checkpoint in {str(folder)!r} yet; starting from step 0", file=sys.stderr)
