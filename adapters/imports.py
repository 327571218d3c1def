"""Answers to imports while a patch is on: the names of `clip`, modules that are absent, work behind an import.

Nothing is put into `sys.modules` before a program asks for it, so what is answered is what was needed.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

KEEP = ("clipag_plug", "open_clip", "transformers", "torch", "numpy")  # never imported anew
SUBMODULES = ("clip", "model", "simple_tokenizer")
CLONES = ("CLIP", "CLIP_")  # folders with a clone of openai/CLIP that programs expect beside them
Make = Callable[[str], ModuleType | None]  # dotted name -> module, or None for "not mine"
After = Callable[[ModuleType], None]


class Imports:
    """Finders before and behind all others, and the state of `sys.modules` to go back to.

    first: asked before any other finder. absent: asked when no other finder knows the module. after: module ->
    functions that are called once it is imported, or at once if it is already.
    """

    def __init__(self, first: Make, absent: Make, after: Mapping[str, list[After]]) -> None:
        self.first, self.absent, self.after = first, absent, after
        self._served: dict[str, ModuleType] = {}
        self._before = dict(sys.modules)
        self._busy: set[str] = set()
        self._finders: list[Any] = [SimpleNamespace(find_spec=f) for f in (self._front, self._back)]

    def start(self, stale: Iterable[str]) -> None:
        """Puts the finders in place. stale: packages that have bound the real `clip`; they are imported anew."""
        for top in stale:
            for name in [n for n in sys.modules if n == top or n.startswith(top + ".")]:
                del sys.modules[name]
        sys.meta_path[:] = [self._finders[0], *sys.meta_path, self._finders[1]]
        for name, functions in self.after.items():
            if sys.modules.get(name) is not None:
                for function in functions:
                    function(sys.modules[name])

    def stop(self, ours: Iterable[Any]) -> None:
        """Takes the finders away and brings `sys.modules` back.

        Gone are the modules that were answered, those below them, and packages that hold one of the objects `ours`.
        Libraries that were merely imported stay: most cannot be imported twice.
        """
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder not in self._finders]
        identities = {id(value) for value in ours}
        new = sys.modules.keys() - self._before.keys() - {"__main__"}
        drop = {name for name in sys.modules if self._served.get(name) is sys.modules[name]}
        for name in new:
            top = name.partition(".")[0]
            # Modules that import lazily must not be asked for an attribute: their dict alone is read.
            values = list(getattr(sys.modules[name], "__dict__", {}).values())
            if any(name.startswith(parent + ".") for parent in self._served):
                drop.add(name)
            elif top not in KEEP and any(id(value) in identities for value in values):
                drop |= {other for other in new if other.partition(".")[0] == top}
        for name in drop:
            module, (parent, _, tail) = sys.modules.pop(name, None), name.rpartition(".")
            holder = sys.modules.get(parent) or self._before.get(parent)
            if holder is not None and vars(holder).get(tail) is module:
                delattr(holder, tail)
                if name in self._before:
                    setattr(holder, tail, self._before[name])
        sys.modules.update(self._before)

    def elsewhere(self, name: str) -> ModuleSpec | None:
        """What the other finders say of a module; None also where they fail."""
        parent = name.rpartition(".")[0]
        path = vars(sys.modules[parent]).get("__path__") if parent in sys.modules else None
        for finder in sys.meta_path if path is not None or not parent else ():
            if finder in self._finders or not hasattr(finder, "find_spec"):
                continue
            try:
                spec = finder.find_spec(name, path, None)
            except (ImportError, ValueError, AttributeError):
                continue
            if spec is not None:
                return spec
        return None

    def _front(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name in self._busy:
            return None
        self._busy.add(name)
        try:
            module = self.first(name)
            if module is not None:
                return self._spec(name, module)
            spec = self.elsewhere(name) if name in self.after else None
            if spec is not None and spec.loader is not None:
                _watch(spec.loader, self.after[name])
            return spec
        finally:
            self._busy.discard(name)

    def _back(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        module = self.absent(name)
        return None if module is None else self._spec(name, module)

    def _spec(self, name: str, module: ModuleType) -> ModuleSpec:
        self._served[name] = module
        loader: Any = SimpleNamespace(
            create_module=lambda spec: module, exec_module=lambda module: None
        )
        spec = ModuleSpec(name, loader)
        spec.submodule_search_locations = vars(module).get("__path__")
        return spec


def _watch(loader: Any, after: Iterable[After]) -> None:
    """Has a loader call functions behind the module that it is about to run; then it is as before."""

    def exec_module(module: ModuleType) -> None:
        del loader.exec_module
        loader.exec_module(module)
        for function in after:
            function(module)

    loader.exec_module = exec_module


class Names:
    """Makes modules for `clip`, `CLIP.clip`, `deep_daze.clip` and the like.

    A copy of the program's own keeps what it has beside OpenAI's names: its further submodules are imported as they
    are, and its further names are taken from its source when they are asked for.

    Args:
        aliases: dotted names of the package `clip`; a parent that is a mere folder, as a clone of openai/CLIP, is
            answered by an empty package. A further module is answered if its file looks like a copy of `clip`.
        contents: names and values for "clip", "model" or "simple_tokenizer", given the program's own file.
        found: told the name of every module that is answered as `clip`, and that file or None.
        elsewhere: what is there without the patch.
    """

    def __init__(
        self,
        aliases: Iterable[str],
        contents: Callable[[str, Path | None], dict[str, Any]],
        found: Callable[[str, Path | None], None],
        elsewhere: Callable[[str], ModuleSpec | None],
    ) -> None:
        self.aliases, self._contents = tuple(aliases), contents
        self._parents = {alias.rpartition(".")[0] for alias in aliases} - {""}
        self._found, self._elsewhere = found, elsewhere
        self._kinds: dict[str, str] = {}

    def make(self, name: str) -> ModuleType | None:
        """The module for a dotted name, or None if the name is somebody else's."""
        parent, _, tail = name.rpartition(".")
        inner = self._kinds.get(parent) == "clip" and tail in SUBMODULES
        if not inner and "clip" not in tail.lower() and parent not in self._kinds:
            return None
        spec = self._elsewhere(name)
        kind = "inner" if inner else self._kind(name, parent, tail, spec)
        if not kind:
            return None
        self._kinds[name] = kind
        module, copy = ModuleType(name), _source(spec)
        contents = vars(module)
        if kind != "folder":
            contents.update(self._contents(tail if inner else "clip", copy))
            extras = [extra for extra in definitions(copy) if extra not in contents]
            public = [name for name in contents if not name.startswith("_")]
            contents["__all__"] = [*contents.get("__all__", public), *extras]
        if spec is not None and spec.has_location:
            contents["__file__"] = spec.origin
        if kind != "inner":
            contents["__path__"] = list((spec and spec.submodule_search_locations) or ())
        if kind == "clip":
            self._found(name, copy)
        tails = {"clip": SUBMODULES, "folder": ("clip",)}.get(kind, ())
        own = contents.pop("__getattr__", None)
        contents["__getattr__"] = functools.partial(_further, module, tails, copy, own, {})
        return module

    def stale(self) -> set[str]:
        """Packages that are imported already and have, or are, a copy of OpenAI's `clip`."""
        found = set()
        for name, module in list(sys.modules.items()):
            top, tail = name.partition(".")[0], name.rpartition(".")[2]
            if top != "clipag_plug" and tail in ("clip", *CLONES):
                known = name in self.aliases or name in self._parents
                if known or looks_like_clip(getattr(module, "__spec__", None)):
                    found.add(top)
        return found

    def _kind(self, name: str, parent: str, tail: str, spec: ModuleSpec | None) -> str:
        """ "clip", "folder" (with a `clip` in it), or "" for what is somebody else's."""
        if name in self.aliases:
            # A file of the program's own may happen to be called `clip`.
            own = not parent and spec and spec.origin and "site-packages" not in spec.origin
            return "" if own and not looks_like_clip(spec) else "clip"
        if name in self._parents:
            # A regular package keeps its own contents, and only its `clip` is answered.
            if spec is None:
                return "folder" if name in CLONES else ""
            mere = spec.origin in (None, "namespace") or looks_like_clip(spec)
            return "folder" if mere else ""
        if parent and parent.partition(".")[0] not in KEEP and spec:
            file = spec.submodule_search_locations is None
            return "clip" if (tail == "clip" or file) and looks_like_clip(spec) else ""
        return ""


def _further(
    module: ModuleType,
    tails: tuple[str, ...],
    copy: Path | None,
    own: Callable[[str], Any] | None,
    run: dict[str, Any],
    name: str,
) -> Any:
    """An attribute made when it is asked for: a submodule, one of ours (`own`), or of the program's own copy."""
    if name in tails:
        return importlib.import_module(f"{module.__name__}.{name}")
    if own is not None and not name.startswith("__"):
        with contextlib.suppress(AttributeError):
            return own(name)
    if name not in definitions(copy):
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
    if not run:
        assert copy is not None
        home = f"{module.__name__}.clip" if "__path__" in vars(module) else module.__name__
        run.update(__name__=home, __file__=str(copy), __package__=home.rpartition(".")[0])
        exec(compile(copy.read_bytes(), str(copy), "exec", dont_inherit=True), run)
        # Its functions find our weights and words where they look for their own.
        run.update(
            {
                key: vars(module)[key]
                for key in vars(module).get("__all__", ())
                if key in vars(module)
            }
        )
    return run[name]


def looks_like_clip(spec: ModuleSpec | None) -> bool:
    """Whether a module's file, or a package's folder, is a copy of OpenAI's `clip`."""
    for folder in (spec and spec.submodule_search_locations) or ():
        if Path(folder, "simple_tokenizer.py").is_file() or Path(folder, "clip/clip.py").is_file():
            return True
    return {"load", "tokenize"} <= definitions(_source(spec)).keys()


def _source(spec: ModuleSpec | None) -> Path | None:
    """The file of a copy of `clip`: of a package, its `clip.py`."""
    for folder in (spec and spec.submodule_search_locations) or ():
        if Path(folder, "clip.py").is_file():
            return Path(folder, "clip.py")
    origin = (spec and spec.origin) or ""
    return Path(origin) if origin.endswith(".py") else None


@functools.cache
def definitions(path: Path | None) -> dict[str, ast.stmt]:
    """Functions, classes and variables at the top of a file, by name; none where it cannot be read."""
    try:
        body = ast.parse(path.read_bytes()).body if path else []
    except (OSError, SyntaxError, ValueError):
        return {}
    named = {n.name: n for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    assigned = {
        target.id: node
        for node in body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return {k: v for k, v in {**assigned, **named}.items() if not k.startswith("__")}
