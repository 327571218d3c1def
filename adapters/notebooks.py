"""Notebooks as programs: cells run in order, pictures are saved, and what cannot be done here is said and counted."""

from __future__ import annotations

import ast
import functools
import inspect
import io
import json
import linecache
import logging
import os
import re
import runpy
import shlex
import subprocess
import sys
import tokenize
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

log = logging.getLogger("clipag_plug.adapters")
TIMED = ("time", "timeit", "capture", "prun")
# Line magics that a program can do without: they set up the notebook's own display and caches.
QUIET = (
    *("matplotlib", "load_ext", "autoreload", "config", "reload_ext", "tensorflow_version"),
    *("pylab", *TIMED),
)
# Lines that are no loss for a program whose imports work; a cell with these or BUILDS may fail.
INSTALLS = re.compile(r"[!%]\s*(pip3?|conda|mamba|apt|apt-get|nvidia-smi|python3? -m pip)\b")
BUILDS = re.compile(r"[!%]\s*(git|python3? setup\.py|cmake|make|npm)\b")
RUNS = re.compile(r"!\s*(python3?|clipag)\b(?! setup\.py| -m pip)")
ASSIGNED = re.compile(r"(\s*[\w.]+(?:\s*,\s*[\w.]+)*\s*=\s*)([!%].*)$")
SKIPPED = 3  # exit code of a notebook that came to its end with something left out


class NotebookError(ValueError):
    """A file that is no notebook, or a cell that is not there."""


@dataclass
class Cell:
    """One code cell as Python. index: its place among all cells of the file, from 0. installs: it has
    lines such as `!pip install`. skipped: lines that were left out and may matter."""

    index: int
    source: str = ""
    title: str = ""
    installs: bool = False
    skipped: list[str] = field(default_factory=list)


def is_notebook(path: str | Path) -> bool:
    """Whether the name ends like a notebook's."""
    return Path(path).suffix.lower() == ".ipynb"


def read_cells(path: str | Path) -> list[Cell]:
    """The code cells of a notebook, in order. Raises NotebookError if the file is no notebook."""
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
        cells = table["cells"] if "cells" in table else table["worksheets"][0]["cells"]
        return [
            convert("".join(cell.get("source", cell.get("input", ""))), index)
            for index, cell in enumerate(cells)
            if cell["cell_type"] == "code"
        ]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise NotebookError(f"{str(path)!r} is no Jupyter notebook: {error!r}") from error


def run(path: Path, names: dict[str, Any], chosen: set[int] | None = None) -> int:
    """Runs the cells of a notebook in `names`, the namespace of `__main__`.

    Returns 0, or SKIPPED where lines were left out or failed. chosen: numbers of the cells to run, counted from 0
    among all cells of the file; NotebookError where there is no such cell.
    """
    cells = read_cells(path)
    numbers = [
        cell.index for cell in cells
    ]  # text between code counts too, and a range may span it
    unknown = {number for number in chosen or () if number > max(numbers)}
    if unknown or (chosen is not None and not chosen & set(numbers)):
        known, unknown = ", ".join(map(str, numbers)), unknown or chosen or set()
        raise NotebookError(
            f"there is no code cell {min(unknown)} in {path.name}; there are {known}"
        )
    os.environ.setdefault("MPLBACKEND", "Agg")  # nobody would close the windows
    magic = Magic(names)
    names |= {"__magic__": magic, "display": display, "get_ipython": lambda: None}
    for cell in cells:
        if chosen is not None and cell.index not in chosen:
            continue
        log.info("cell %d%s", cell.index, f": {cell.title}" if cell.title else "")
        for line in cell.skipped:
            log.info("cell %d: skipped %s", cell.index, line)
        magic.lost += len(cell.skipped)
        pictures["stem"] = f"{path.stem}-{cell.index}"
        try:
            _run_cell(cell, f"{path}[{cell.index}]", names)
        except Exception as error:
            if not cell.installs:
                raise
            log.info("cell %d installs packages and failed (%r); going on", cell.index, error)
            magic.lost += 1
    if magic.lost:
        log.warning("%d lines were skipped or failed; exit code %d", magic.lost, SKIPPED)
    return SKIPPED if magic.lost else 0


def _run_cell(cell: Cell, filename: str, names: dict[str, Any]) -> None:
    lines = cell.source.splitlines(keepends=True)
    linecache.cache[filename] = (len(cell.source), None, lines, filename)  # for tracebacks
    tree, last = ast.parse(cell.source, filename), None
    if tree.body and isinstance(tree.body[-1], ast.Expr) and not cell.source.rstrip().endswith(";"):
        last = ast.Expression(tree.body.pop().value)  # type: ignore[attr-defined]
    _evaluated(tree, "exec", filename, names)
    if last is not None:
        value = _evaluated(last, "eval", filename, names)
        display(*([] if value is None else [value]))
    save_figures()


def _evaluated(tree: Any, mode: str, filename: str, names: dict[str, Any]) -> Any:
    """The value of a piece of a cell; `await` may stand at its top, as in a notebook."""
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    code = compile(tree, filename, mode, flags, dont_inherit=True)
    value = eval(code, names)
    waits = code.co_flags & inspect.CO_COROUTINE
    return names["__magic__"].loop.run_until_complete(value) if waits else value


pictures: dict[str, Any] = {"stem": "picture", "count": 0}  # of the names `STEM-1.png` and on


def _picture() -> str:
    """The name of the next picture that is shown, in the working folder; it is logged."""
    pictures["count"] += 1
    name = f"{pictures['stem']}-{pictures['count']}.png"
    log.info("picture saved as %s", os.path.abspath(name))
    return name


def display(*values: Any, **keywords: Any) -> None:
    """Saves pictures and figures; prints what else a cell shows."""
    for value in values:
        data = value._repr_png_() if hasattr(type(value), "_repr_png_") else None
        if hasattr(type(value), "savefig"):
            value.savefig(_picture())
            sys.modules["matplotlib.pyplot"].close(value)
        elif data:
            Path(_picture()).write_bytes(data if isinstance(data, bytes) else data[0])
        else:
            print(value if isinstance(value, str) else repr(value))


def save_figures() -> None:
    """Saves and closes the figures of matplotlib that are open, as a notebook shows them."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    display(*[pyplot.figure(number) for number in pyplot.get_fignums()] if pyplot else [])


class Magic:
    """`%cd`, `%env`, `%run` and `!python`: what changes the lines behind it. lost: what failed or was left out."""

    def __init__(self, names: dict[str, Any]) -> None:
        self.names, self.lost = names, 0

    @functools.cached_property
    def loop(self) -> Any:
        """What runs the `await` of all cells."""
        import asyncio

        return asyncio.new_event_loop()

    def __call__(self, name: str, rest: str) -> Any:
        if name in ("env", "set_env"):
            key, _, value = rest.partition("=" if "=" in rest else " ")
            if not value:
                return os.environ.get(key)
            os.environ[key.strip()] = value.strip()
            return None
        return getattr(self, f"_{name}")(rest)

    def _shell(self, line: str) -> list[str]:
        known = {key: str(value) for key, value in self.names.items()}
        filled = re.sub(r"[{$](\w+)\b}?", lambda found: known.get(found[1], found[0]), line)
        done = subprocess.run(filled, shell=True, stdout=subprocess.PIPE, text=True)
        print(done.stdout, end="")
        self.lost += done.returncode != 0
        return done.stdout.splitlines()

    def _cd(self, folder: str) -> None:
        try:
            os.chdir(os.path.expanduser(folder.strip("\"'") or "~"))
        except OSError as error:
            log.info("%%cd %s: %s; staying in %s", folder, error.strerror, os.getcwd())
            self.lost += 1

    def _run(self, line: str) -> None:
        before, sys.argv = sys.argv, [w for w in shlex.split(line) if w not in ("-i", "-n", "-t")]
        try:
            found = runpy.run_path(sys.argv[0], run_name="__main__")
            self.names |= {key: found[key] for key in found if not key.startswith("__")}
        except SystemExit as end:
            self.lost += bool(end.code)
        finally:
            sys.argv = before


def convert(source: str, index: int = 0) -> Cell:
    """A cell's text as Python with as many lines; the rest of a `%%bash` cell becomes comments."""
    lines, cell = source.splitlines(), Cell(index)
    start = next((number for number, line in enumerate(lines) if line.strip()), 0)
    if lines and lines[start].startswith("#"):
        cell.title = lines[start].lstrip("#").replace("@title", "").strip()[:60]
    if lines and lines[start].startswith("%%"):
        name = (lines[start][2:].split() or [""])[0]
        if name in TIMED:
            lines[start] = "pass"
        else:
            cell.skipped.append(f"a cell of %%{name}")
            cell.installs = any(INSTALLS.match("!" + line) for line in lines[start + 1 :])
            lines[start:] = [f"# {line}" for line in lines[start:]]
    number = 0
    while number < len(lines):
        assigned = ASSIGNED.match(lines[number])
        magic = assigned[2] if assigned else lines[number].strip()
        # A '%' that continues an expression, or stands in a string, is Python's.
        if magic[:1] in ("!", "%", "?") and _complete(lines[:number]):
            first, indent = number, lines[number][: -len(lines[number].lstrip())]
            while magic.endswith("\\") and number + 1 < len(lines):  # a shell line may go on
                number += 1
                magic = magic[:-1] + " " + lines[number].strip()
                lines[number] = f"{indent}pass"
            python = _line_magic(cell, magic)
            if assigned and python == "pass":
                python = "[]" if magic[0] == "!" else "None"
            lines[first] = (assigned[1] if assigned else indent) + python
        number += 1
    cell.source = "\n".join(lines) + "\n"
    return cell


def _line_magic(cell: Cell, magic: str) -> str:
    """Python that stands for one shell or magic line, or `pass` and a note of what is left out."""
    name, _, rest = magic[1:].strip().partition(" ")
    cell.installs |= bool(INSTALLS.match(magic) or BUILDS.match(magic))
    if RUNS.match(magic):
        return f"__magic__('shell', {magic[1:].strip()!r})"
    if magic[0] == "%" and name in ("cd", "env", "set_env", "run"):
        return f"__magic__({name!r}, {rest.strip()!r})"
    if magic[0] == "%" and name in TIMED and _complete([rest]):
        return rest.strip() or "pass"
    if not (INSTALLS.match(magic) or (magic[0] == "%" and name in QUIET)):
        cell.skipped.append(magic[:100])
    return "pass"


def _complete(lines: list[str]) -> bool:
    """Whether a new statement may begin behind these lines: no bracket or string is open."""
    try:
        list(tokenize.generate_tokens(io.StringIO("\n".join(lines) + "\n").readline))
    except tokenize.TokenError:
        return False
    except SyntaxError:
        return True
    return not (lines and lines[-1].rstrip().endswith("\\"))
