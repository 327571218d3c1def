"""Options of `clipag completion`."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Options, option

SHELLS = ("bash", "zsh", "fish")


@dataclass
class Completion(Options):
    """A script that lets the shell complete commands, flags and their values."""

    shell: str = option("bash", "for which shell", positional=True, choices=SHELLS)
