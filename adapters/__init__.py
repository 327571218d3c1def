"""Adapters that put CLIPAG under other people's pipelines; installed as `clipag_plug.adapters`.

One file a pipeline, in this flat folder. Imports in here are relative (`from .. import load`), so
that the folder works only under its installed name and is never imported twice under two.
"""

from __future__ import annotations

import pkgutil

from .. import __version__ as __version__  # fails at once under `import adapters`


def available_adapters() -> list[str]:
    """Names of the adapters that are installed, sorted."""
    return sorted(
        module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")
    )
