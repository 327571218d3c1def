"""Options of `clipag doctor`."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Options, option


@dataclass
class Doctor(Options):
    """Checks of a model: its files, its hash, its activation, and what surrounds it."""

    model: str = option(
        "", "any name that load() takes; empty checks the installation alone", positional=True
    )
    forget: bool = option(
        False, "delete the cached weights and the recorded hash: the next load starts anew"
    )
    json: bool = option(False, "print the findings as JSON")
