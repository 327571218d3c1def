"""The core of a patch: what it puts in place, and the way back. It knows no shim: it is handed them."""

from __future__ import annotations

import ast
import contextlib
import functools
import json
import linecache
import logging
import os
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Self
from unittest import mock

from .imports import Imports, Names

log = logging.getLogger("clipag_plug.adapters")
HERE = Path(__file__).parent
CHILD = "CLIPAG_RUN"  # environment variable: what the Python programs that a patched one starts are patched with
CATCH = ("ImportError", "ModuleNotFoundError", "Exception", "BaseException")
_active: list[Patch] = []


@dataclass(frozen=True)
class Shim:
    """One repair of a program's surroundings. what: said when an absent module is made up.

    absent: modules that are made up when nothing else provides them. after: work behind an import. asked: who gets
    them: who imports them plainly, libraries too. useful: the stand-in does the work of the real module, so that
    who only tries the import gets it as well.
    """

    what: str = ""
    absent: Mapping[str, Callable[[Patch, str], ModuleType]] = field(default_factory=dict)
    after: Mapping[str, Callable[[Patch, Any], None]] = field(default_factory=dict)
    useful: bool = False
    asked: tuple[str, ...] = ("plain", "library")


class Patch:
    """A patch that is on from the moment it is made; `undo`, or the end of its `with` block, takes it back.

    Shims use `wrap`, `replace`, `fallback` and `say`. What they put in place does as the original does once the patch
    is over, since other modules may have kept it.

    Args:
        shims: by name; each takes effect only where it is needed.
        aliases, contents: names of the package `clip`, and what its modules hold.
        model, device: what the user chose.
    """

    def __init__(
        self,
        shims: Mapping[str, Shim],
        aliases: tuple[str, ...] = (),
        contents: Callable[[Patch, str, Path | None], dict[str, Any]] = lambda *given: {},
        model: str | None = None,
        device: str | None = None,
    ) -> None:
        self.shims, self.model, self.device = shims, model, device
        self.used: list[tuple[str, str]] = []  # shim and description of what took effect
        self.ours: list[Any] = []  # what shows that a module was imported meanwhile, if it holds it
        self.widths: set[int] = set()  # numbers of a feature, of the models that were handed out
        self.attention = False  # whether the blocks of a model are to keep their attention
        self.copies: list[Path] = []  # the program's own files in the place of `clip.clip`
        self.active = True
        self._stack = contextlib.ExitStack()
        self.enter = self._stack.enter_context  # enters a context manager until the patch is over
        given = functools.partial(contents, self)
        names = Names(aliases, given, self._found, lambda name: self._imports.elsewhere(name))
        after: dict[str, list[Callable[[ModuleType], None]]] = {}
        for shim in shims.values():
            for module, function in shim.after.items():
                after.setdefault(module, []).append(functools.partial(function, self))
        self._imports = Imports(names.make, self._absent, after)
        self.enter(mock.patch.dict(os.environ))
        self._stack.callback(lambda: self._imports.stop(self.ours))
        _active.append(self)
        try:
            self._imports.start(names.stale())
        except BaseException:
            self.undo()
            raise

    def replace(self, owner: Any, name: str, value: Any) -> None:
        """Sets an attribute until the patch is over."""
        self.enter(mock.patch.object(owner, name, value, create=True))

    def wrap(self, owner: Any, name: str, call: Callable[..., Any]) -> None:
        """Has `call(original, *arguments)` stand for a function while the patch is on."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def stand_in(*arguments: Any, **keywords: Any) -> Any:
            if not self.active:
                return original(*arguments, **keywords)
            return call(original, *arguments, **keywords)

        self.replace(owner, name, stand_in)

    def fallback(self, module: Any, shim: str, values: dict[str, Any]) -> None:
        """Gives a module attributes that it lacks, as its `__getattr__` would; each use is logged."""
        original = vars(module).get("__getattr__")

        def getter(name: str) -> Any:
            if self.active and name in values:
                self.say(shim, f"{module.__name__}.{name} is gone from the library; given back")
                return values[name]
            if original is not None:
                return original(name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        self.replace(module, "__getattr__", getter)

    def say(self, shim: str, what: str) -> None:
        """Logs a change, the first time it takes effect."""
        if (shim, what) not in self.used:
            self.used.append((shim, what))
            log.info("%s: %s", shim, what)

    def answered(self, shim: str, what: str, width: int) -> None:
        """Says which model was handed out; a process that the program started tells the first one by a file."""
        self.say(shim, what)
        self.widths.add(width)
        report = json.loads(os.environ.get(CHILD, "{}")).get("report")
        if report:
            Path(report).touch()

    def follow(self, **settings: str) -> None:
        """Has every Python that is started from here patched likewise, however it is started."""
        settings |= {key: value for key in ("model", "device") if (value := getattr(self, key))}
        os.environ[CHILD] = json.dumps(settings)
        paths = [str(HERE / "child"), *filter(None, [os.environ.get("PYTHONPATH")])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)

    def undo(self) -> None:
        """Takes the patch back: modules, attributes and environment are as before. A second call does nothing.

        Patches made later and still on are taken back first, or they would bring this one's changes back.
        """
        while self in _active and _active[-1] is not self:
            _active[-1].undo()
        if self in _active:
            _active.remove(self)
        self.active = False
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.undo()

    def _found(self, name: str, copy: Path | None) -> None:
        own = "; other names are those of the program's own copy" if copy else ""
        self.say("names", f"`{name}` is answered by clipag_plug{own}")
        if copy:
            self.copies.append(copy)
            files = copy.parent.glob("*.py")
            self.attention |= any(b"attn_probs" in path.read_bytes() for path in files)

    def _absent(self, name: str) -> ModuleType | None:
        for key, shim in self.shims.items():
            if name in shim.absent and self.active and (shim.useful or _asked() in shim.asked):
                module = shim.absent[name](self, name)
                self.say(key, f"`{name}` is absent; {shim.what}")
                return module
        return None


def current() -> Patch | None:
    """The patch that was made last and is on."""
    return _active[-1] if _active else None


def _asked() -> str:
    """How the import under way is asked for: "tried" (in a `try`, or a mere question), by a "library", or "plain"."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if frame.f_code.co_name == "find_spec" and "importlib" in file and "util" in file:
            return "tried"
        if os.path.dirname(file) != str(HERE) and "importlib" not in file:
            break
        frame = frame.f_back
    else:
        return "plain"
    with contextlib.suppress(SyntaxError):
        for node in ast.walk(ast.parse("".join(linecache.getlines(file)))):
            if isinstance(node, ast.Try):
                kinds = [ast.unparse(h.type) if h.type else "Exception" for h in node.handlers]
                inside = node.body[0].lineno <= frame.f_lineno <= (node.body[-1].end_lineno or 0)
                if inside and any(name in kind for kind in kinds for name in CATCH):
                    return "tried"
    library = "-packages" in file or file.startswith(sysconfig.get_path("stdlib"))
    return "library" if library else "plain"
