"""CLIP-guided search over a class-conditional generator (Du, Yin & Gu), by chance, by evolution and by gradients."""

from __future__ import annotations

from typing import Any

from ..options.search import Search
from .methods import Found
from .protocol import Generator, Labelled

__all__ = ["Found", "Generator", "Labelled", "Search", "search"]


def search(
    prompt: str, *, model: Any = None, generator: Generator | None = None, **options: Any
) -> Found:
    """The generator's picture that fits `prompt` best, found as the options of `Search` say.

    model: a key, a file, a CLIP or a `Guide`; generator: an object of the protocol instead of a name.
    Raises ValueError for options that make no sense.
    """
    from .command import find

    if isinstance(model, str):
        options["model"], model = model, None
    return find(Search(prompt=prompt, **options), model, generator)
