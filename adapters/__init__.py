"""Adapters that put CLIPAG under other people's pipelines; installed as `clipag_plug.adapters`.

One `.toml` file a pipeline, in this flat folder, beside the machinery that reads them. Imports in here are relative
(`from .. import load`), so that the folder works only under its installed name and is never imported under two.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..version import __version__ as __version__  # fails at once under `import adapters`

if TYPE_CHECKING:
    from .patching import Patch

ALIASES = ("clip", "CLIP.clip", "CLIP_.clip", "big_sleep.clip", "deep_daze.clip")


def available_adapters() -> list[str]:
    """Names of the adapters that are installed, sorted."""
    from . import catalog

    return catalog.names()


def patch(adapter: str = "auto", *, model: str | None = None, device: str | None = None) -> Patch:
    """Answers `clip`, its copies, open_clip and transformers' CLIPModel with this package's models.

        with patch("vqgan_clip", model="clipag-mini"): ...
        patch("clipdraw")                                # for good, or until `.undo()`

    Outdated calls of libraries are repaired too, each where it is needed. What was imported of a pipeline before the
    patch has bound the real `clip` and keeps it. What takes effect is logged under `clipag_plug.adapters`. Python
    processes that are started while it is on are patched likewise.

    Args:
        adapter: a name of `available_adapters()`; "auto" is the generic one.
        model: key or path given for every model of OpenAI's names; None gives each name's robust counterpart.
        device: "cpu" sends hard-coded CUDA to the CPU; None leaves devices alone.

    Raises:
        ValueError: there is no such adapter or device.
    """
    from . import catalog

    if device not in (None, "cpu"):
        raise ValueError(f"device is {device!r}; it must be 'cpu', or None to leave devices alone")
    catalog.read(catalog.GENERIC if adapter == "auto" else adapter)
    made = start(model, device)
    made.follow()
    return made


def start(model: str | None = None, device: str | None = None, **settings: str) -> Patch:
    """The patch without a word to processes that are started; settings: what `Patch.follow` adds for them."""
    from .patching import Patch
    from .shims import SHIMS

    chosen = {name: shim for name, shim in SHIMS.items() if name != "cuda" or device}
    return Patch(chosen, ALIASES, _contents, model, device)


def _contents(made: Patch, kind: str, copy: Path | None) -> dict[str, Any]:
    from . import models  # brings torch, which a process that never asks for a model can do without

    return models.contents(made, kind, copy)
