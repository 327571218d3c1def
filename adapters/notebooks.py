"""Notebooks as programs: cells run in order, pictures are saved, and what cannot be done here is said and counted."""

from __future__ import annotations

import ast
import io
import json
import linecache
import logging
import os
import re
import subprocess
import sys
import tokenize
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

log = logging.getLogger("clipag_plug.adapters")
# Line magics that a program can do without: they set up the notebook's own display and caches.
QUIET = (
    *("matplotlib", "load_ext", "autoreload", "config", "reload_ext", "tensorflow_version"),
    *("pylab", "time", "timeit", "capture", "prun"),
)
TIMED = ("time", "timeit", "capture", "prun")
# Lines that change nothing for a program whose imports work, and need not count as skipped.
INSTALLS = re.compile(r"^\s*[!%]\s*(pip3?|conda|mamba|apt|apt-get|nvidia-smi|python3? -m pip)\b")
BUILDS = re.compile(r"^\s*[!%]\s*(git|python3? setup\.py|cmake|make|npm)\b")
RUNS = re.compile(r"^\s*!\s*(python3?|clipag)\b(?! setup\.py| -m pip)")
_ASSIGNED = re.compile(r"^(\s*[\w.]+(?:\s*,\s*[\w.]+)*\s*=\s*)([!%].*)$")
SKIPPED = 3  # exit code of a notebook that came to its end with something left out


@dataclass
class Cell:
    """One code cell as Python. index: its place among all cells of the file, from 0. installs: it has
    lines such as `!pip install`. skipped: lines that were left out and may matter."""

    index: int
    source: str
    title: str = ""
    installs: bool = False
    skipped: list[str] = field(default_factory=list)


class NotebookError(ValueError):
    """A file that is no notebook, or a cell that is not there."""


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
    """Runs the cells of a notebook, or the chosen ones, in `names`. Returns 0, or SKIPPED where lines were left out.

    Args:
        path: the notebook.
        names: the namespace of `__main__`.
        chosen: numbers of cells, counted from 0 among all cells of the file.

    Raises:
        NotebookError: there is no such cell.
    """
    cells = read_cells(path)
    unknown = (chosen or set()) - {cell.index for cell in cells}
    if unknown:
        known = ", ".join(str(cell.index) for cell in cells)
        raise NotebookError(
            f"there is no code cell {min(unknown)} in {path.name}; there are {known}"
        )
    os.environ.setdefault("MPLBACKEND", "Agg")  # nobody would close the windows
    names |= {"__magic__": _Magic(names), "display": display, "get_ipython": lambda: None}
    skipped = 0
    for cell in cells:
        if chosen is not None and cell.index not in chosen:
            continue
        log.info("cell %d%s", cell.index, f": {cell.title}" if cell.title else "")
        for line in cell.skipped:
            log.info("cell %d: skipped %s", cell.index, line)
        PICTURES.stem = f"{path.stem}-{cell.index}"
        skipped += len(cell.skipped)
        try:
            _run_cell(cell, f"{path}[{cell.index}]", names)
        except Exception as error:
            if not cell.installs:
                raise
            log.info("cell %d installs packages and failed (%r); going on", cell.index, error)
            skipped += 1
    skipped += names["__magic__"].failed
    if skipped:
        log.warning(
            "%s: %d lines were skipped or failed; exit code %d", path.name, skipped, SKIPPED
        )
    return SKIPPED if skipped else 0


def _run_cell(cell: Cell, filename: str, names: dict[str, Any]) -> None:
    lines = cell.source.splitlines(keepends=True)
    linecache.cache[filename] = (len(cell.source), None, lines, filename)  # for tracebacks
    tree, last = ast.parse(cell.source, filename), None
    if tree.body and isinstance(tree.body[-1], ast.Expr) and not cell.source.rstrip().endswith(";"):
        last = ast.Expression(tree.body.pop().value)  # type: ignore[attr-defined]
    exec(compile(tree, filename, "exec", dont_inherit=True), names)
    if last is not None:
        value = eval(compile(last, filename, "eval", dont_inherit=True), names)
        if value is not None:
            display(value)
    save_figures()


class Pictures:
    """Names of the pictures that a program shows: `STEM-1.png` and on, in the working folder."""

    stem, count = "picture", 0

    def path(self, ending: str = "png") -> str:
        """The next name; it is logged."""
        self.count += 1
        name = f"{self.stem}-{self.count}.{ending}"
        log.info("picture saved as %s", os.path.abspath(name))
        return name


PICTURES = Pictures()


class Image:
    """IPython.display.Image, which is saved when it is displayed."""

    def __init__(
        self, data: Any = None, url: Any = None, filename: Any = None, **keywords: Any
    ) -> None:
        path = filename or (data if isinstance(data, str) else None)
        self.data = Path(path).read_bytes() if path and os.path.isfile(path) else data

    def _repr_png_(self) -> Any:
        return self.data if isinstance(self.data, bytes) else None


def display(*values: Any, **keywords: Any) -> None:
    """Saves pictures and figures; prints what else a cell shows."""
    for value in values:
        png = getattr(value, "_repr_png_", None)
        data = png() if png else None
        if hasattr(value, "savefig"):
            value.savefig(PICTURES.path())
            _pyplot_close(value)
        elif isinstance(data, bytes | tuple):
            data = data if isinstance(data, bytes) else data[0]
            Path(PICTURES.path("jpg" if data[:2] == b"\xff\xd8" else "png")).write_bytes(data)
        elif type(value).__module__.partition(".")[0] == "PIL":
            value.save(PICTURES.path())
        else:
            print(value if isinstance(value, str) else repr(value))


def save_figures() -> None:
    """Saves and closes the figures of matplotlib that are open, as a notebook shows them."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    for number in pyplot.get_fignums() if pyplot else ():
        display(pyplot.figure(number))


def _pyplot_close(figure: Any) -> None:
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close(figure)


class _Magic:
    """`%cd`, `%env`, `%run` and `!python`: what changes the lines behind it."""

    def __init__(self, names: dict[str, Any]) -> None:
        self.names, self.failed = names, 0

    def __call__(self, name: str, rest: str) -> Any:
        if name == "cd":
            self._cd(rest.strip("\"'"))
        elif name == "run":
            self._run(rest)
        elif name == "shell":
            text = re.sub(r"\{(\w+)\}|\$(\w+)", self._value, rest)
            done = subprocess.run(text, shell=True, stdout=subprocess.PIPE, text=True)
            print(done.stdout, end="")
            self.failed += done.returncode != 0
            return done.stdout.splitlines()
        else:
            key, equals, value = rest.partition("=" if "=" in rest else " ")
            if not equals:
                return os.environ.get(rest)
            os.environ[key.strip()] = value.strip()
        return None

    def _value(self, match: re.Match[str]) -> str:
        name = match[1] or match[2]
        return str(self.names[name]) if name in self.names else match[0]

    def _cd(self, folder: str) -> None:
        try:
            os.chdir(os.path.expanduser(folder or "~"))
        except OSError as error:
            log.info("%%cd %s: %s; staying in %s", folder, error.strerror, os.getcwd())
            self.failed += 1

    def _run(self, rest: str) -> None:
        import runpy
        import shlex

        words = [word for word in shlex.split(rest) if word not in ("-i", "-n", "-t")]
        before, sys.argv = sys.argv, words
        try:
            names = runpy.run_path(words[0], run_name="__main__")
        except SystemExit as end:
            self.failed += bool(end.code)
            return
        finally:
            sys.argv = before
        self.names |= {key: value for key, value in names.items() if not key.startswith("__")}


def convert(source: str, index: int = 0) -> Cell:
    """A cell's text as Python with as many lines; the rest of a `%%bash` cell becomes comments."""
    lines = source.splitlines()
    cell = Cell(index, "")
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
        assigned = _ASSIGNED.match(lines[number])
        magic = assigned[2] if assigned else lines[number].lstrip()
        # A '%' that continues an expression, or stands in a string, is Python's.
        if magic[:1] in ("!", "%", "?") and _complete(lines[:number]):
            first, indent = number, lines[number][: -len(lines[number].lstrip())]
            while magic.endswith("\\") and number + 1 < len(lines):  # a shell line may go on
                number += 1
                magic = magic[:-1] + " " + lines[number].strip()
                lines[number] = f"{indent}pass"
            cell.installs |= bool(INSTALLS.match(magic) or BUILDS.match(magic))
            python = _line_magic(cell, magic)
            if assigned and python == "pass":
                python = "[]" if magic[0] == "!" else "None"
            lines[first] = (assigned[1] if assigned else indent) + python
        number += 1
    cell.source = "\n".join(lines) + "\n"
    return cell


def _line_magic(cell: Cell, magic: str) -> str:
    """Python that stands for one shell or magic line, or `pass` and a note of what is left out."""
    text = magic.strip()
    name, _, rest = text[1:].strip().partition(" ")
    if text[0] == "%" and name in ("cd", "env", "set_env", "run"):
        return f"__magic__({name!r}, {rest.strip()!r})"
    if text[0] == "%" and name in TIMED and _parses(rest.strip()):
        return rest.strip() or "pass"
    if RUNS.match(text):
        return f"__magic__('shell', {text[1:].strip()!r})"
    if not (text[0] == "%" and name in QUIET):
        if INSTALLS.match(text):
            log.debug("left out: %s", text)
        else:
            cell.skipped.append(text[:100])
    return "pass"


def _complete(lines: list[str]) -> bool:
    """Whether a new statement may begin behind these lines: no bracket or string is open."""
    if lines and lines[-1].rstrip().endswith("\\"):
        return False
    try:
        for _ in tokenize.generate_tokens(io.StringIO("\n".join(lines) + "\n").readline):
            pass
    except tokenize.TokenError:
        return False
    except (IndentationError, SyntaxError):
        return True
    return True


def _parses(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True
