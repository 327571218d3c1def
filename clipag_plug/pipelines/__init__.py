"""The published pipelines around CLIP as functions: CLIPDraw, VQGAN+CLIP, CLIPStyler, CLIP-guided search of a GAN."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .draw import clipdraw as clipdraw
    from .gan_search import search as search
    from .style import clipstyler as clipstyler
    from .vqgan import vqgan_clip as vqgan_clip

# No module may have one of these names: importing it would put the module in the place of the function.
_HOME = {"clipdraw": "draw", "vqgan_clip": "vqgan", "clipstyler": "style", "search": "gan_search"}

__all__ = ["clipdraw", "clipstyler", "search", "vqgan_clip"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
