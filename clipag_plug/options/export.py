"""Options of `clipag export`."""

from __future__ import annotations

from dataclasses import dataclass

from .base import Options, option

FORMATS = ("open_clip", "openai", "transformers", "bundled")


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
