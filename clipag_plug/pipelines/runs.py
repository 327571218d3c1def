"""Names of run folders: `runs/<date>-<slug>-<seed>/`, one a run, never the same twice. Imports no torch."""

from __future__ import annotations

import datetime
import re
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


def new_run(text: str, seed: int, root: str | Path = ROOT) -> Path:
    """Makes and returns a folder of this name under `root`, with -2, -3, ... where it is taken.

    Making it is what reserves the name, so that two runs at one time get two folders.
    """
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
