"""Patches a Python process that a patched program has started: `Patch.follow` puts this folder on its path."""

import contextlib
import json
import os
import sys

sys.path.remove(os.path.dirname(os.path.abspath(__file__)))
own = sys.modules.pop("sitecustomize")
with contextlib.suppress(ImportError):  # the one that this one hides
    import sitecustomize  # type: ignore[import-not-found]  # noqa: F401
sys.modules.setdefault("sitecustomize", own)
with contextlib.suppress(ImportError):  # another Python, without this package, is left as it is
    if "CLIPAG_RUN" in os.environ:
        from clipag_plug.adapters import start

        start(**json.loads(os.environ["CLIPAG_RUN"]))
