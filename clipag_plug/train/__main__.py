"""`python -m clipag_plug.train --recipe FILE`: trains a model, or continues with `--resume`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from ..options.base import add_arguments, from_arguments
from ..options.train import Train


def run(options: Train) -> int:
    """Trains by the options and leaves model, checkpoint, log and recipe in `options.output`."""
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


def main(arguments: list[str] | None = None) -> int:
    """The command line of the trainer; bad input is one sentence and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m clipag_plug.train", description=Train.__doc__)
    parser.add_argument(
        "--recipe", help="JSON or TOML file with options, or the name of a shipped recipe"
    )
    add_arguments(parser, Train)
    parsed = parser.parse_args(arguments)
    try:
        return run(from_arguments(Train, parsed, recipe_path(parsed.recipe)))
    except KeyboardInterrupt as stop:
        print(f"clipag train: {stop or 'stopped'}", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        print(f"clipag train: error: {error}", file=sys.stderr)
        return 2


def recipe_path(name: str | None) -> str | None:
    """A recipe file's path as it is, or that of the shipped recipe of this name."""
    if not name or os.path.exists(name) or os.sep in name:
        return name
    shipped = Path(__file__).with_name("recipes")
    known: Any = sorted(path.stem for path in shipped.glob("*.toml"))
    if name not in known:
        raise ValueError(
            f"there is no recipe file {name!r}, and the shipped recipes are {', '.join(known)}"
        )
    return str(shipped / f"{name}.toml")


if __name__ == "__main__":
    sys.exit(main())
