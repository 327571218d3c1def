"""Notebooks as Python: shell lines and magics become `pass`, with a notice, so that line numbers stay."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from dataclasses import dataclass, field
from pathlib import Path

from .errors import RequestError

# Line magics that a program can do without: they set up the notebook's own display and caches.
QUIET = (
    "matplotlib",
    "load_ext",
    "autoreload",
    "config",
    "reload_ext",
    "tensorflow_version",
    "pylab",
)
RUN_BODY = ("time", "timeit", "capture", "prun")
INSTALLS = re.compile(r"^\s*[!%]\s*(pip|conda|apt|apt-get|git|python3? setup\.py|cmake|make|npm)\b")
_ASSIGNED = re.compile(r"^(\s*[\w.]+(?:\s*,\s*[\w.]+)*\s*=\s*)([!%].*)$")


@dataclass
class Cell:
    """One code cell as Python. index: its place among all cells of the file, from 0. installs: it has
    lines such as `!pip install`. notices: what was skipped or done in place of a magic."""

    index: int
    source: str
    title: str = ""
    installs: bool = False
    notices: list[str] = field(default_factory=list)


def is_notebook(path: str | Path) -> bool:
    """Whether the name ends like a notebook's."""
    return Path(path).suffix.lower() == ".ipynb"


def read_cells(path: str | Path) -> list[Cell]:
    """The code cells of a notebook, in order. Raises RequestError if the file is no notebook."""
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
        cells = table["cells"] if "cells" in table else table["worksheets"][0]["cells"]
        sources = [
            (index, "".join(cell.get("source", cell.get("input", ""))))
            for index, cell in enumerate(cells)
            if cell["cell_type"] == "code"
        ]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise RequestError(f"{str(path)!r} is no Jupyter notebook: {error!r}") from error
    return [convert(source, index) for index, source in sources]


def convert(source: str, index: int = 0) -> Cell:
    """A cell's text as Python with as many lines; the rest of a `%%bash` cell becomes comments."""
    lines = source.splitlines()
    cell = Cell(index, "", title=_title(lines))
    start = next((number for number, line in enumerate(lines) if line.strip()), 0)
    if lines and lines[start].startswith("%%"):
        _cell_magic(cell, lines, start)
    number = 0
    while number < len(lines):
        line = lines[number]
        assigned = _ASSIGNED.match(line)
        magic = assigned[2] if assigned else line.lstrip()
        # A '%' that continues an expression, or stands in a string, is Python's.
        if magic[:1] not in ("!", "%", "?") or not _complete(lines[:number]):
            number += 1
            continue
        indent = line[: len(line) - len(line.lstrip())]
        cell.installs |= bool(INSTALLS.match(magic))
        python = _line_magic(cell, magic)
        if assigned:
            value = "[]" if magic[0] == "!" else "None" if python == "pass" else python
            lines[number] = assigned[1] + value
        else:
            lines[number] = indent + python
        while magic.rstrip().endswith("\\") and number + 1 < len(lines):  # a shell line may go on
            number += 1
            magic, lines[number] = lines[number], f"{indent}pass"
        number += 1
    cell.source = "\n".join(lines) + "\n"
    return cell


def with_display(source: str, filename: str) -> tuple[ast.Module, ast.Expression | None]:
    """A cell's statements, and its last one apart where it is an expression that a notebook shows."""
    tree = ast.parse(source, filename)
    if tree.body and isinstance(tree.body[-1], ast.Expr) and not source.rstrip().endswith(";"):
        last = tree.body.pop()
        assert isinstance(last, ast.Expr)
        return tree, ast.Expression(last.value)
    return tree, None


def _title(lines: list[str]) -> str:
    first = next((line.strip() for line in lines if line.strip()), "")
    return first.lstrip("#").replace("@title", "").strip()[:60] if first.startswith("#") else ""


def _cell_magic(cell: Cell, lines: list[str], start: int) -> None:
    name = lines[start][2:].split()[0] if lines[start][2:].split() else ""
    if name in RUN_BODY:
        lines[start] = "pass"
        return
    cell.notices.append(f"skipped a cell of %%{name}")
    cell.installs |= any(INSTALLS.match("!" + line) for line in lines[start + 1 :])
    lines[start:] = [f"# {line}" for line in lines[start:]]


def _line_magic(cell: Cell, magic: str) -> str:
    """Python that stands for one shell or magic line, with a notice of what was left out."""
    text = magic.strip()
    name, _, rest = text[1:].strip().partition(" ")
    if text[0] == "%" and name in ("cd", "env", "set_env"):
        return f"__magic__({name!r}, {rest.strip()!r})"
    if text[0] == "%" and name in RUN_BODY and rest:
        return rest.strip() if _is_python(rest.strip()) else "pass"
    if text[0] == "%" and name in QUIET:
        return "pass"
    cell.notices.append(f"skipped {text[:100]}")
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


def _is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True
