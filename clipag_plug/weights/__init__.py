"""Every public robust CLIP by name: found, fetched safely, converted once, opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .export import push_to_hub as push_to_hub
    from .export import save_pretrained as save_pretrained
    from .opening import Opened as Opened
    from .opening import open_checkpoint as open_checkpoint

__all__ = ["Opened", "open_checkpoint", "push_to_hub", "save_pretrained"]


def __getattr__(name: str) -> Any:
    # The registry must be readable without importing torch, which these need.
    if name in __all__:
        from . import export, opening

        return getattr(export if hasattr(export, name) else opening, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
