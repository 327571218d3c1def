"""The recipe inside a picture, and how to draw the same picture again from it."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..options.generate import Generate
from ..version import __version__

if TYPE_CHECKING:
    from .loop import Synthesizer

# Where a result goes does not change it: two pictures drawn alike have the same bytes wherever they are written.
PRESENTATION = ("output", "animation", "sheet", "log", "replay", "frames", "json", "quiet")


def recipe_of(run: Synthesizer, index: int) -> dict[str, Any]:
    """Everything that made row `index` of a run, ready for JSON. No time, no place: equal runs, equal bytes."""
    options = {
        name: value for name, value in run.options.to_dict().items() if name not in PRESENTATION
    }
    options["model"] = run.guides[0].name
    options["device"] = run.guides[0].device.type
    done = len(run.losses)
    return {
        "clipag_plug": __version__,
        "torch": torch.__version__,
        "index": index // run.drafts,
        "prompt": run.captions[index],
        "seed": run.seeds[index],
        "kept_draft": index % run.drafts,
        "size": f"{run.size[1]}x{run.size[0]}",
        "kept_step": int(run.best_step[index]) if run.options.keep == "best" else done - 1,
        "stopped_after": done if done < run.steps else None,
        "files": {path: sha256(path) for path in _files(run.options)},
        "options": options,
    }


def replay_options(recipe: dict[str, Any], given: Generate | None = None) -> Generate:
    """The options in a recipe, with what `given` asks for besides: its presentation, and every field of it that is
    not at its default. ValueError where the recipe is not of ours or a picture it needs has changed."""
    try:
        values = dict(recipe["options"])
        files = dict(recipe["files"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("the recipe is incomplete; it was not written by clipag_plug") from error
    plain = Generate()
    for field in dataclasses.fields(Generate):
        value = getattr(given or plain, field.name)
        if field.name in PRESENTATION or value != getattr(plain, field.name):
            values[field.name] = value
    options = Generate.from_dict({**values, "replay": None})
    for path in _files(options):
        if path in files and sha256(path) != files[path]:
            raise ValueError(
                f"{path!r} has changed since the picture was made; the result would be another"
            )
    return options


def sha256(path: str) -> str:
    """Hexadecimal digest of a file; FileNotFoundError where it is missing."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path!r} does not exist; the picture was made from it")
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _files(options: Generate) -> list[str]:
    return [path for path in (options.image, options.mask, options.prior) if path]
