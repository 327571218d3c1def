"""The published pipelines around CLIP as functions: CLIPDraw, VQGAN+CLIP and CLIPStyler."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .drawing import clipdraw as clipdraw
    from .faststyle import fast_style as fast_style
    from .faststyle import train_fast_style as train_fast_style
    from .latents import vqgan_clip as vqgan_clip
    from .styling import clipstyler as clipstyler

_HOME = {
    "clipdraw": "drawing",
    "vqgan_clip": "latents",
    "clipstyler": "styling",
    "train_fast_style": "faststyle",
    "fast_style": "faststyle",
}

__all__ = ["clipdraw", "clipstyler", "fast_style", "train_fast_style", "vqgan_clip"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
