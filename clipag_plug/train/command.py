"""The job behind `clipag train` and `python -m clipag_plug.train`."""

from __future__ import annotations

from pathlib import Path

from ..options.train import Train


def run(options: Train) -> int:
    """Trains by the options and leaves model, checkpoint, log and recipe in `options.output`.

    `options.init` may also be the folder of an earlier run. FloatingPointError where the loss is no
    longer finite; the last checkpoint is kept.
    """
    import torch

    from . import setup, state

    if options.threads:
        torch.set_num_threads(options.threads)
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    trainer, config, card = setup.prepare(options)
    if options.resume:
        trainer.restore(folder)
    text = options.to_json() + "\n"
    state.replace_file(folder / "recipe.json", lambda path: path.write_text(text, encoding="utf-8"))
    reporter = setup.Reporter(trainer, quiet=options.quiet)
    trainer.run(folder, reporter)
    card.update(setup.outcome(trainer, reporter.last))
    state.save_model(folder, trainer.result(), config, card)
    print(folder / "model.safetensors")
    return 0
