"""Answers to imports while a patch is on: names that become ours, modules that are absent, work behind an import.

Nothing is put into `sys.modules` before a script asks for it, so what is answered is what was needed.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

Make = Callable[[str], ModuleType | None]  # full name -> module, or None for "not mine"
After = Callable[[ModuleType], None]
STANDARD = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
KEEP = ("clipag_plug", "open_clip", "torch", "numpy")


class Imports:
    """Finders before and behind all others, and the state of `sys.modules` to go back to.

    first: asked before any other finder. absent: asked when no other finder knows the module.
    after: module -> functions that are called once it is imported, or at once if it is already.
    """

    def __init__(self, first: Make, absent: Make, after: dict[str, list[After]]) -> None:
        self.first, self.absent, self.after = first, absent, after
        self.served: dict[str, ModuleType] = {}
        self._before = dict(sys.modules)
        self._busy: set[str] = set()
        self._finders = (_Finder(self._front), _Finder(self._back))

    def start(self, stale: Iterable[str]) -> None:
        """Puts the finders in place. stale: packages that have bound the real `clip`; they are imported anew."""
        for top in stale:
            for name in [n for n in sys.modules if n == top or n.startswith(top + ".")]:
                del sys.modules[name]
        sys.meta_path.insert(0, self._finders[0])
        sys.meta_path.append(self._finders[1])
        for name, functions in self.after.items():
            module = sys.modules.get(name)
            if module is not None:
                for function in functions:
                    function(module)

    def stop(self, folders: Iterable[Path], ours: Iterable[Any]) -> None:
        """Takes the finders away and brings `sys.modules` back.

        Gone are the modules that were answered, those that lie in `folders` (the script's own), and packages that
        hold one of the objects `ours`. Libraries that were merely imported stay: most cannot be imported twice.
        """
        for finder in self._finders:
            if finder in sys.meta_path:
                sys.meta_path.remove(finder)
        for name in self._to_drop(list(folders), {id(value) for value in ours}):
            self._drop(name)
        for name, module in self._before.items():
            if sys.modules.get(name) is not module:
                sys.modules[name] = module

    def spec_elsewhere(self, name: str, path: Any = None) -> importlib.machinery.ModuleSpec | None:
        """What the other finders say of a module; None also where they fail."""
        for finder in list(sys.meta_path):
            if finder in self._finders or not hasattr(finder, "find_spec"):
                continue
            try:
                spec = finder.find_spec(name, path, None)
            except (ImportError, ValueError, AttributeError):
                continue
            if spec is not None:
                return spec
        return None

    def _front(self, name: str, path: Any) -> importlib.machinery.ModuleSpec | None:
        if name in self._busy:
            return None
        self._busy.add(name)
        try:
            module = self.first(name)
            if module is not None:
                return self._spec(name, module)
            if name in self.after:
                spec = self.spec_elsewhere(name, path)
                if spec is not None and spec.loader is not None:
                    spec.loader = _Watched(spec.loader, self.after[name])
                return spec
            return None
        finally:
            self._busy.discard(name)

    def _back(self, name: str, path: Any) -> importlib.machinery.ModuleSpec | None:
        module = self.absent(name)
        return None if module is None else self._spec(name, module)

    def _spec(self, name: str, module: ModuleType) -> importlib.machinery.ModuleSpec:
        self.served[name] = module
        package = hasattr(module, "__path__")
        spec = importlib.machinery.ModuleSpec(name, _Given(module), is_package=package)
        if package:
            spec.submodule_search_locations = list(module.__path__)
        return spec

    def _to_drop(self, folders: list[Path], ours: set[int]) -> set[str]:
        new = {name: module for name, module in sys.modules.items() if name not in self._before}
        drop = {name for name in sys.modules if self.served.get(name) is sys.modules[name]}
        for name, module in new.items():
            top = name.partition(".")[0]
            if top in KEEP:
                continue
            if any(id(value) in ours for value in list(getattr(module, "__dict__", {}).values())):
                drop |= {other for other in new if other.partition(".")[0] == top}
            elif any(_lies_in(module, folder) for folder in folders):
                drop.add(name)
        return drop - {"__main__"}

    def _drop(self, name: str) -> None:
        module = sys.modules.pop(name, None)
        parent, _, tail = name.rpartition(".")
        holder = sys.modules.get(parent) or self._before.get(parent)
        if holder is not None and vars(holder).get(tail) is module:
            delattr(holder, tail)
            if name in self._before:
                setattr(holder, tail, self._before[name])


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, find: Callable[[str, Any], importlib.machinery.ModuleSpec | None]) -> None:
        self._find = find

    def find_spec(
        self, fullname: str, path: Any, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return self._find(fullname, path)


class _Given(importlib.abc.Loader):
    """Hands over a module that is there already."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        pass


class _Watched(importlib.abc.Loader):
    """Another loader, with functions to call behind it; it leaves no trace in the module."""

    def __init__(self, loader: Any, after: list[After]) -> None:
        self._loader, self._after = loader, after

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        spec.loader, watched = self._loader, spec.loader
        try:
            return self._loader.create_module(spec)
        finally:
            spec.loader = watched

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        for function in self._after:
            function(module)


def _lies_in(module: ModuleType, folder: Path) -> bool:
    """Whether a module's file is in a folder, but not in an installation of Python inside it."""
    spots = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    for spot in filter(None, spots):
        if str(spot).startswith(STANDARD):
            continue
        try:
            inside = Path(str(spot)).resolve().relative_to(folder)
        except (ValueError, OSError):
            continue
        if not {"site-packages", "dist-packages"} & set(inside.parts):
            return True
    return False
