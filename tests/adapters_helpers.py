"""What the tests of the adapters share: a folder of made-up libraries, old checkpoints, and `clipag run`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from clipag_plug.adapters import notebooks, patching

from clipag_plug import cli

SCRIPTS = Path(__file__).parent / "upstream_scripts"


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path; what is imported from it is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    forget(before, tmp_path)


def forget(before: set[str], *folders: Path) -> None:
    """Modules that were imported since and lie in one of the folders."""
    for name in set(sys.modules) - before:
        contents = vars(
            sys.modules[name]
        )  # lazy modules import when they are asked for an attribute
        spots, path = [contents.get("__file__") or ""], contents.get("__path__", ())
        spots += [str(spot) for spot in path] if isinstance(path, list | tuple) else []
        if any(spot.startswith(str(folder)) for spot in spots for folder in folders):
            del sys.modules[name]


def old_file(folder: Path) -> Path:
    """A checkpoint with an object of a class that no longer exists."""
    module = ModuleType("callbacks_of_2020")
    kind = vars(module)["Gone"] = type("Gone", (), {"__module__": module.__name__})
    path = folder / "clipag-test-old.ckpt"
    sys.modules[module.__name__] = module
    torch.save({"state_dict": {"w": torch.arange(3.0)}, "callback": kind(), kind: 1}, path)
    del sys.modules[module.__name__]
    return path


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For programs that run in this process, which `clipag run` leaves as they leave it: all is put back here."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(notebooks, "pictures", {"stem": "", "count": 0})
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    modules, main = set(sys.modules), sys.modules["__main__"]
    environment, logger, root = (
        dict(os.environ),
        logging.getLogger("clipag_plug"),
        logging.getLogger(),
    )
    kept = [(owner, name, getattr(owner, name)) for owner, name in (
        *((sys, name) for name in ("argv", "stdout", "stderr", "excepthook")),
        *((logger, name) for name in ("level", "propagate")), (root, "level"), (torch, "load"),
    )]  # fmt: skip
    path, handlers = list(sys.path), [(log, list(log.handlers)) for log in (root, logger)]
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with warnings.catch_warnings():
        yield
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()
    while (patch := patching.current()) is not None:
        patch.undo()
    for owner, name, value in kept:
        setattr(owner, name, value)
    for log, before in handlers:
        log.handlers[:] = before
    for number, handler in signals.items():
        signal.signal(number, handler)
    os.environ.clear()
    os.environ.update(environment)
    sys.modules["__main__"], sys.path[:] = main, path
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    forget(modules, tmp_path, SCRIPTS)


def clipag_run(*arguments: str, model: str = "clipag-mini") -> int:
    own = ["--model", model] if model else []
    return cli.main(["run", *own, "--device", "cpu", *arguments])
