"""Every public robust CLIP by name: found, fetched safely, converted once, opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .opening import Opened as Opened
    from .opening import open_checkpoint as open_checkpoint

__all__ = ["Opened", "open_checkpoint"]


def __getattr__(name: str) -> Any:
    # The registry must be readable without importing torch, which `opening` needs.
    if name in __all__:
        from . import opening

        return getattr(opening, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
