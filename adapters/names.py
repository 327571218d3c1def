"""The modules that scripts find under the names of OpenAI's `clip` and of its copies."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from .guide import Guide

SUBMODULES = ("clip", "model", "simple_tokenizer")
CLONES = (
    "CLIP",
    "CLIP_",
)  # folders of openai/CLIP that scripts expect beside them, and need not have
Elsewhere = Callable[[str, Any], ModuleSpec | None]


class Names:
    """Makes modules for `clip`, `CLIP.clip`, `deep_daze.clip` and the like, all on one guide.

    aliases: dotted names of the package `clip`. A parent that is no regular package, as the clone of
    openai/CLIP in a folder `CLIP`, is answered by an empty package. Any further module `*.clip` is answered
    if its file looks like a copy of OpenAI's.
    """

    def __init__(self, aliases: Iterable[str], guide: Guide, elsewhere: Elsewhere) -> None:
        self.aliases, self.guide, self._elsewhere = tuple(aliases), guide, elsewhere
        self._kinds: dict[str, str] = {}

    def make(self, name: str) -> ModuleType | None:
        """The module for a dotted name, or None if the name is somebody else's."""
        kind = self._kind(name)
        if kind is None:
            return None
        self._kinds[name] = kind
        if kind == "clip":
            self.guide.say("names", f"`{name}` is answered by clipag_plug")
        return self._module(name, kind)

    def stale(self) -> set[str]:
        """Packages that are imported already and have, or are, a copy of OpenAI's `clip`."""
        found = set()
        for name, module in list(sys.modules.items()):
            top = name.partition(".")[0]
            if top == "clipag_plug" or name.rpartition(".")[2] not in ("clip", "CLIP", "CLIP_"):
                continue
            spec = getattr(module, "__spec__", None)
            if name in self.aliases or name in self._parents() or (spec and looks_like_clip(spec)):
                found.add(top)
        return found

    def ours(self) -> list[Any]:
        """Objects whose presence in a module shows that it was imported under the patch."""
        return [self.guide.load, self.guide.tokenize, self.guide.available_models]

    def _parents(self) -> set[str]:
        return {alias.rpartition(".")[0] for alias in self.aliases} - {""}

    def _kind(self, name: str) -> str | None:
        parent, _, tail = name.rpartition(".")
        if self._kinds.get(parent) == "clip":
            return {"clip": "inner", "model": "model", "simple_tokenizer": "tokenizer"}.get(tail)
        if name in self.aliases:
            return None if parent == "" and self._is_another(name) else "clip"
        if name in self._parents():
            spec = self._elsewhere(name, None)
            # A regular package keeps its own contents, and only its `clip` is answered.
            if spec is None:
                return "folder" if name in CLONES else None
            folder = spec.origin in (None, "namespace") or looks_like_clip(spec)
            return "folder" if folder else None
        if (
            tail == "clip"
            and parent
            and parent.partition(".")[0] not in ("clipag_plug", "open_clip")
        ):
            holder = sys.modules.get(parent)
            spec = self._elsewhere(name, getattr(holder, "__path__", None))
            return "clip" if spec is not None and looks_like_clip(spec) else None
        return None

    def _is_another(self, name: str) -> bool:
        """A file of the script's own that happens to be called `clip`."""
        spec = self._elsewhere(name, None)
        if (
            spec is None
            or not spec.origin
            or {"site-packages", "dist-packages"} & set(Path(spec.origin).parts)
        ):
            return False
        return not looks_like_clip(spec)

    def _module(self, name: str, kind: str) -> ModuleType:
        module = ModuleType(name)
        contents = vars(module)
        if kind == "model":
            contents.update(_public(importlib.import_module("..model", __package__)))
        elif kind == "tokenizer":
            contents.update(_public(importlib.import_module("..simple_tokenizer", __package__)))
        elif kind in ("clip", "inner"):
            contents.update(self.guide.functions())
        if kind in ("clip", "folder"):
            tails = SUBMODULES if kind == "clip" else ("clip",)
            contents["__path__"] = []
            contents["__getattr__"] = functools.partial(_submodule, name, tails)
        return module


def _submodule(package: str, tails: tuple[str, ...], name: str) -> ModuleType:
    """OpenAI's package has its submodules as attributes from the start."""
    if name in tails:
        return importlib.import_module(f"{package}.{name}")
    raise AttributeError(f"module {package!r} has no attribute {name!r}")


def _public(module: ModuleType) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if not name.startswith("__")}


def looks_like_clip(spec: ModuleSpec) -> bool:
    """Whether a module's file, or a package's folder, is a copy of OpenAI's `clip`."""
    for folder in spec.submodule_search_locations or ():
        if (Path(folder) / "simple_tokenizer.py").is_file() or (
            Path(folder) / "clip" / "clip.py"
        ).is_file():
            return True
    if not spec.origin or not spec.origin.endswith(".py"):
        return False
    try:
        text = Path(spec.origin).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "def load(" in text and "def tokenize(" in text
