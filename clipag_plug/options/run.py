"""Options of `clipag run`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .base import Options, option


@dataclass
class Run(Options):
    """Runs somebody else's script or notebook, unmodified, with this package's models in the place of CLIP."""

    script: str = option("", "Python script or notebook", positional=True, metavar="SCRIPT")
    arguments: list[str] = option(
        [],
        "arguments of the script; everything behind its name is the script's",
        positional=True,
        metavar="ARG",
    )
    module: str = option(
        "",
        "module to run in place of a script, as by `python -m`; its arguments follow",
        short="-m",
    )
    model: str = option(
        "",
        "key or file given for every model the script asks for; default: the robust counterpart of each",
    )
    adapter: str = option("auto", "adapter of the pipeline; auto tells it by the script's imports")
    device: str = option("", "cpu sends hard-coded CUDA to the CPU", choices=("", "cpu"))
    cells: str = option("", "cells of a notebook to run, counted from 0, as 2-4,6; default: all")
    quiet: bool = option(False, "do not log what was answered and shimmed", short="-q")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.script or self.module):
            raise ValueError("Run needs a value for script, or -m MODULE")
        self.chosen_cells()

    def chosen_cells(self) -> set[int] | None:
        """Numbers in `cells`, None for all. Raises ValueError for what is no list of numbers and ranges."""
        if not self.cells:
            return None
        chosen: set[int] = set()
        for part in self.cells.split(","):
            match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
            if match is None:
                raise ValueError(
                    f"--cells is {self.cells!r}; it must be numbers and ranges, as 2-4,6"
                )
            chosen |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
        return chosen
