"""CLIP whose image gradients follow the text: a drop-in for `clip`, and what can be built on it.

    import clipag_plug as clip
    model, preprocess = clip.load("clipag", device="cpu")

Conventions, everywhere in this package: images are (N, 3, H, W) floats in [0, 1] before the
model's normalisation; features are (N, D); `eps` is in those pixel units, its L2 norm taken over
C*H*W; randomness comes from a `seed` or a `torch.Generator` and never from global state.

Importing the package imports nothing heavy: each name below loads its module on first use.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

if TYPE_CHECKING:
    from . import clip as clip
    from . import model as model
    from . import simple_tokenizer as simple_tokenizer
    from .adapters import patch as patch
    from .clip import available_models as available_models
    from .clip import load as load
    from .clip import register_open_clip as register_open_clip
    from .clip import tokenize as tokenize
    from .explanation import explain as explain
    from .paint import synthesize as synthesize

# Where each public name lives. No module may have one of these names: importing it would put the
# module in the place of the function.
_HOME = {
    **dict.fromkeys(("available_models", "load", "register_open_clip", "tokenize"), "clip"),
    "explain": "explanation",
    "patch": "adapters",
    "synthesize": "paint",
}
_SUBMODULES = ("clip", "model", "simple_tokenizer")
__all__ = sorted(_HOME)

# In a checkout adapters/ lies beside this folder; installed, it lies inside it. With the checkout
# on the path, `clipag_plug.adapters` is found all the same, without an installation.
_root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if all(os.path.isfile(f"{_root}/{name}") for name in ("pyproject.toml", "adapters/__init__.py")):
    __path__.append(_root)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})
