"""taming-transformers on today's torch and lightning, for code of one's own.

with taming_shims():
    from taming.models.vqgan import VQModel
    model = VQModel(**params)
"""

from __future__ import annotations

import dataclasses

from . import catalog
from .patching import Patch

NEEDED = ("lightning", "torch_six", "lpips", "torch_load")


def taming_shims() -> Patch:
    """A patch without any `clip`: taming's imports work, LPIPS loads nothing before its first use, and 2020's
    checkpoints are read. On at once; `undo()` or the end of the `with` block takes it back."""
    adapter = dataclasses.replace(
        catalog.read(catalog.GENERIC), name="taming", aliases=(), shims=NEEDED
    )
    return Patch(adapter)
