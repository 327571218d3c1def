"""Options of `clipag models`."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Options, option


@dataclass
class Models(Options):
    """Which registered models to list, and how."""

    pattern: str = option(
        "", "only names that fit: a part of them, or a pattern such as 'fare*b32*'", positional=True
    )
    json: bool = option(False, "print every known field as JSON instead of a table")
