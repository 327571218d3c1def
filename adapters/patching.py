"""`patch`: puts CLIPAG under another pipeline, and takes every change back."""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

from . import catalog

_MISSING = object()
_active: list[Patch] = []


class Patch:
    """A patch that is on from the moment it is made; `undo`, or the end of its `with` block, takes it back.

    Shims use `replace`, `fallback` and `say`. Whatever they put in place looks at `active` and does as the
    original does once the patch is over, since other modules may have kept it.
    """

    def __init__(
        self,
        adapter: catalog.Adapter,
        model: str | None = None,
        device: str | None = None,
        folders: Iterable[Path] = (),
    ) -> None:
        from . import openclip, shims
        from .guide import Guide
        from .imports import Imports
        from .names import Names

        # It brings torch._dynamo, which makes a table of torch's functions and must see the real ones.
        importlib.import_module("torchvision")
        self.adapter, self.device, self.folders = (
            adapter,
            device,
            [Path(f).resolve() for f in folders],
        )
        self.guide = Guide(model)
        self.active = True
        self._stack = contextlib.ExitStack()
        armed = shims.arm(self)
        names = Names(
            adapter.aliases, self.guide, lambda name, path: imports.spec_elsewhere(name, path)
        )
        imports = Imports(names.make, armed.absent, armed.after)
        self._stack.callback(_restore, os.environ, dict(os.environ))
        self._stack.callback(self._leave, imports, names)
        try:
            openclip.answer(self, armed.after)
            imports.start(names.stale())
            for enter in armed.now:
                enter(self)
        except BaseException:
            self.undo()
            raise
        _active.append(self)

    def replace(self, owner: Any, name: str, value: Any) -> None:
        """Sets an attribute until the patch is over."""
        before = vars(owner).get(name, _MISSING)
        setattr(owner, name, value)
        self._stack.callback(_put_back, owner, name, before)

    def fallback(self, module: ModuleType, shim: str, values: dict[str, Any]) -> None:
        """Gives a module attributes that it lacks, as its `__getattr__` would; each use is logged."""
        original = vars(module).get("__getattr__")

        def getter(name: str) -> Any:
            if original is not None:
                try:
                    return original(name)
                except AttributeError:
                    if not (self.active and name in values):
                        raise
            if self.active and name in values:
                self.say(shim, f"{module.__name__}.{name} is gone from the library; given back")
                return values[name]
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        self.replace(module, "__getattr__", getter)

    def enter(self, context: Any) -> Any:
        """Enters a context manager until the patch is over."""
        return self._stack.enter_context(context)

    def callback(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Calls a function when the patch is over."""
        self._stack.callback(function, *arguments)

    def say(self, shim: str, what: str) -> None:
        """Logs a change, the first time it takes effect."""
        self.guide.say(shim, what)

    @property
    def used(self) -> list[tuple[str, str]]:
        """Name and description of every change that took effect."""
        return list(self.guide.said)

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()

    def _leave(self, imports: Any, names: Any) -> None:
        imports.stop(self.folders, names.ours())


def patch(adapter: str = "auto", *, model: str | None = None, device: str | None = None) -> Patch:
    """Answers `clip`, its copies and open_clip with this package's models, with the shims a pipeline needs.

        with patch("vqgan_clip", model="clipag-mini"): ...
        patch("clipdraw")                                # for good, or until `.undo()`

    adapter: a name of `available_adapters()`; "auto" is the generic one, which knows all shims. model: a key or
    path given for every model of OpenAI's names; None gives each name's robust counterpart. device: "cpu" sends
    hard-coded CUDA to the CPU. What takes effect is logged under `clipag_plug.adapters`. ValueError for an unknown
    adapter or device. What was imported of a pipeline before the patch has bound the real `clip` and keeps it.
    """
    if device not in (None, "cpu"):
        raise ValueError(f"device is {device!r}; it must be 'cpu', or None to leave devices alone")
    name = catalog.GENERIC if adapter == "auto" else adapter
    return Patch(catalog.read(name), model, device)


def _restore(environment: Any, before: dict[str, str]) -> None:
    for name in set(environment) - set(before):
        del environment[name]
    for name, value in before.items():
        if environment.get(name) != value:
            environment[name] = value


def _put_back(owner: Any, name: str, before: Any) -> None:
    if before is _MISSING:
        if name in vars(owner):
            delattr(owner, name)
    else:
        setattr(owner, name, before)
