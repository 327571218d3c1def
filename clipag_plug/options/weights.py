"""Options of `clipag models`, `clipag doctor` and `clipag export`."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Options, option

FORMATS = ("open_clip", "openai", "transformers", "bundled")


@dataclass
class Models(Options):
    """Which registered models to list, and how."""

    pattern: str = option(
        "", "only names that fit: a part of them, or a pattern such as 'fare*b32*'", positional=True
    )
    json: bool = option(False, "print every known field as JSON instead of a table")


@dataclass
class Words(Options):
    """What a model makes of words: whether it was taught them, and which known things it takes them for."""

    texts: list[str] = option(help="words or sentences", positional=True, metavar="TEXT")
    model: str = option("clipag-mini", "key or file of the model", short="-m")
    count: int = option(5, "nearest known things to show", low=1)
    json: bool = option(False, "print JSON instead of a table")


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


@dataclass
class Export(Options):
    """A model, written as files that another library loads."""

    model: str = option(help="any name that load() takes", positional=True)
    folder: str = option(help="folder to write to; it may exist", positional=True)
    format: str = option("open_clip", "whose layout to write", choices=FORMATS, short="-f")
    any_activation: bool = option(
        False,
        "write OpenAI's layout for a GELU model too, though OpenAI's code would compute QuickGELU",
    )
    push: str = option(
        "", "also upload the folder to this Hugging Face repository, org/name", metavar="ORG/NAME"
    )
    private: bool = option(False, "make that repository private")
