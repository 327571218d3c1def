"""Runs a script, a notebook or a predictor as `__main__`, as `python SCRIPT` would, and puts everything back."""

from __future__ import annotations

import builtins
import contextlib
import importlib.machinery
import importlib.util
import io
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from . import cog_api, notebooks
from .errors import RequestError

_log = logging.getLogger("clipag_plug.adapters")


def run(script: Path, arguments: Sequence[str], cells: set[int] | None = None) -> int:
    """Runs a file and returns the exit code that `python` would have had; what it raises comes out.

    cells: of a notebook, the cells to run, by their place in the file from 0.
    """
    with _as_main(script, arguments) as module:
        try:
            if notebooks.is_notebook(script):
                _run_notebook(script, vars(module), cells)
            else:
                _run_file(script, arguments, vars(module))
        except SystemExit as end:
            return _exit_code(end.code)
        finally:
            _wait_for_threads()
            sys.stdout.flush()
    return 0


def _run_file(script: Path, arguments: Sequence[str], names: dict[str, Any]) -> None:
    with io.open_code(str(script)) as file:
        data = file.read()
    predictor = cog_api.is_predictor(importlib.util.decode_source(data))
    if predictor:
        cog_api.parse(arguments)  # before minutes of loading
        sys.argv[1:] = []
    exec(compile(data, str(script), "exec", dont_inherit=True), names)
    if predictor:
        cog_api.predict(names, arguments)


def _run_notebook(script: Path, names: dict[str, Any], chosen: set[int] | None) -> None:
    cells = notebooks.read_cells(script)
    unknown = (chosen or set()) - {cell.index for cell in cells}
    if unknown:
        known = ", ".join(str(cell.index) for cell in cells)
        raise RequestError(
            f"there is no code cell {min(unknown)} in {script.name}; there are {known}"
        )
    names |= {"__magic__": _magic, "display": _display, "get_ipython": lambda: None}
    os.environ.setdefault("MPLBACKEND", "Agg")  # nobody would close the windows
    for cell in cells:
        if chosen is not None and cell.index not in chosen:
            continue
        _log.info("cell %d%s", cell.index, f": {cell.title}" if cell.title else "")
        for notice in cell.notices:
            _log.info("cell %d: %s", cell.index, notice)
        try:
            _run_cell(cell, f"{script}[{cell.index}]", names)
        except Exception as error:
            if not cell.installs:
                raise
            _log.info("cell %d installs packages and failed (%r); going on", cell.index, error)


def _run_cell(cell: notebooks.Cell, filename: str, names: dict[str, Any]) -> None:
    import linecache

    lines = cell.source.splitlines(keepends=True)
    linecache.cache[filename] = (len(cell.source), None, lines, filename)  # for tracebacks
    body, last = notebooks.with_display(cell.source, filename)
    exec(compile(body, filename, "exec", dont_inherit=True), names)
    if last is not None:
        value = eval(compile(last, filename, "eval", dont_inherit=True), names)
        if value is not None:
            _display(value)


def _display(*values: Any, **keywords: Any) -> None:
    for value in values:
        print(value if isinstance(value, str) else repr(value))


def _magic(name: str, rest: str) -> Any:
    """`%cd` and `%env`, the magics that change what the next lines see."""
    rest = rest.strip("\"'")
    if name == "cd":
        try:
            os.chdir(os.path.expanduser(rest or "~"))
        except OSError as error:
            _log.info("%%cd %s: %s; staying in %s", rest, error.strerror, os.getcwd())
        return None
    key, equals, value = rest.partition("=") if "=" in rest else rest.partition(" ")
    if not equals:
        return os.environ.get(rest)
    os.environ[key.strip()] = value.strip()
    return None


@contextlib.contextmanager
def _as_main(script: Path, arguments: Sequence[str]) -> Iterator[ModuleType]:
    """A fresh `__main__` with its argv and sys.path[0]; afterwards everything that a script may turn is as before."""
    module = ModuleType("__main__")
    vars(module).update(
        __file__=str(script), __builtins__=builtins, __cached__=None, __annotations__={}
    )
    vars(module)["__loader__"] = importlib.machinery.SourceFileLoader("__main__", str(script))
    main, argv, path, folder = sys.modules["__main__"], sys.argv, sys.path, os.getcwd()
    hooks = sys.excepthook, sys.stdout, sys.stderr, threading.excepthook
    handlers = {number: signal.getsignal(number) for number in _signals()}
    sys.modules["__main__"] = module
    sys.argv = [str(script), *arguments]
    sys.path = [str(script.resolve().parent), *path[1:]]
    with warnings.catch_warnings(), _torch_settings():
        try:
            yield module
        finally:
            sys.modules["__main__"] = main
            sys.argv, sys.path = argv, path
            sys.excepthook, sys.stdout, sys.stderr, threading.excepthook = hooks
            with contextlib.suppress(OSError):
                os.chdir(folder)
            for number, handler in handlers.items():
                if signal.getsignal(number) != handler:
                    signal.signal(number, handler)


@contextlib.contextmanager
def _torch_settings() -> Iterator[None]:
    """Global switches of torch that scripts turn."""
    import torch

    cudnn = torch.backends.cudnn
    before = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()
    flags = cudnn.benchmark, cudnn.deterministic, torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.set_default_dtype(before[0])
        torch.set_grad_enabled(before[1])
        torch.set_num_threads(before[2])
        cudnn.benchmark, cudnn.deterministic = flags[:2]
        torch.use_deterministic_algorithms(flags[2])


def _signals() -> list[signal.Signals]:
    """Signals whose handlers can be put back: only the main thread may."""
    if threading.current_thread() is not threading.main_thread():
        return []
    return [s for s in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(s) is not None]


def _exit_code(code: Any) -> int:
    if code is None or isinstance(code, int):
        return code or 0
    print(code, file=sys.stderr)
    return 1


def _wait_for_threads() -> None:
    """As the interpreter does at its end; behind it the shims are gone."""
    for thread in threading.enumerate():
        if (
            thread not in (threading.current_thread(), threading.main_thread())
            and not thread.daemon
        ):
            thread.join()


def print_traceback(error: BaseException) -> None:
    """A script's traceback as `python` prints it: without the frames that lead to the script."""
    trace, folder = error.__traceback__, os.path.dirname(__file__)
    while trace is not None and os.path.dirname(trace.tb_frame.f_code.co_filename) == folder:
        trace = trace.tb_next
    traceback.print_exception(type(error), error, trace)
