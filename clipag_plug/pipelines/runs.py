"""Names of run folders: `runs/<date>-<slug>-<seed>/`, one a run, never the same twice. Imports no torch."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from pathlib import Path

ROOT = "runs"
_LONGEST = 40


def slug(text: str) -> str:
    """'An oil painting of a fox!' -> 'an-oil-painting-of-a-fox': letters and digits of any script, at most 40."""
    words = re.sub(r"[\W_]+", "-", text.casefold()).strip("-")
    return words[:_LONGEST].rstrip("-") or "picture"


def run_name(text: str, seed: int, day: datetime.date | None = None) -> str:
    """`2026-11-21-a-goldfish-0`; the day is today's unless given."""
    return f"{day or datetime.date.today():%Y-%m-%d}-{slug(text)}-{seed}"


def tags(models: Sequence[str]) -> list[str]:
    """What stands in the names of pictures behind `image`: -1, -2, ... of several, and the model's name of two models.
    models: that of each picture, all pictures of one model together."""
    distinct = list(dict.fromkeys(models))
    each = len(models) // len(distinct)
    counts = [f"-{n:0{len(str(each))}d}" for n in range(1, each + 1)] if each > 1 else [""]
    return [f"-{model}{n}" if distinct[1:] else n for model in distinct for n in counts]


def new_run(text: str, seed: int, root: str | Path = ROOT) -> Path:
    """Makes and returns a folder of this name under `root`, with -2, -3, ... where it is taken.
    Making it is what reserves the name, so that two runs at one time get two folders."""
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    name, number = run_name(text, seed), 1
    while True:
        folder = root / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder
