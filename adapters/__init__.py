"""Adapters that put CLIPAG under other people's pipelines; installed as `clipag_plug.adapters`.

One `.toml` file a pipeline, in this flat folder, beside the machinery that reads them. Imports in here are relative
(`from .. import load`), so that the folder works only under its installed name and is never imported under two.
"""

from __future__ import annotations

from ..version import __version__ as __version__  # fails at once under `import adapters`


def available_adapters() -> list[str]:
    """Names of the adapters that are installed, sorted."""
    from . import catalog

    return catalog.names()
