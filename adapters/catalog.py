"""The adapters: small declarative files that say what a pipeline needs, and which of them fits a program.

`NAME.toml` in this folder is the adapter NAME; its fields are those of `Adapter`. What repairs a program is the same
for all of them: an adapter tells the pipeline by its imports, and says what it needs and where to get it.
"""

from __future__ import annotations

import ast
import difflib
import fnmatch
import functools
import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .notebooks import is_notebook, read_cells

FOLDER = Path(__file__).parent
GENERIC = "generic"
MOST_FILES = 200  # beside a program that are read for their imports


@dataclass(frozen=True)
class Weights:
    """A file that a pipeline loads. file: end of its path or address, a shell pattern. size, hash: empty where
    unknown. place: where it belongs, if the program does not say."""

    file: str
    name: str
    source: str
    size: str = "unknown"
    hash: str = "unknown"
    place: str = "its library's cache"

    def missing(self, path: str, source: str = "") -> str:
        """One sentence for a file that is not there."""
        return (
            f"{self.name} is missing: expected at {path!r}, size {self.size}, hash {self.hash}; "
            f"get it from {source or self.source}"
        )


@dataclass(frozen=True)
class Adapter:
    """What one pipeline needs.

    tested: commits that were run whole. imports: modules, all of which mark the pipeline, whether the program imports
    them or a file beside it. files: what lies beside the program in a clone of the repository. packages: module =
    what `pip install` takes, or a sentence. weights: files that it loads.
    """

    name: str
    title: str
    repository: str = ""
    tested: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    packages: dict[str, str] = field(default_factory=dict)
    weights: tuple[Weights, ...] = ()


def names() -> list[str]:
    """Names of the adapters that are installed, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


@functools.cache
def read(name: str) -> Adapter:
    """The adapter of this name (case, '-' and '_' do not matter). Raises ValueError that names the closest."""
    known, plain = names(), name.lower().replace("-", "_").replace(" ", "_")
    if plain not in known:
        close = difflib.get_close_matches(plain, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"there is no adapter {name!r}; {hint}Adapters: auto, {', '.join(known)}")
    table = tomllib.loads((FOLDER / f"{plain}.toml").read_text(encoding="utf-8"))
    weights = tuple(Weights(**row) for row in table.pop("weights", ()))
    lists: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in table.items()
    }
    return Adapter(name=plain, weights=weights, **lists)


def detect(program: Path) -> Adapter:
    """The adapter whose imports and files fit a program best; `generic` where none does."""
    imported = set(imported_names(program))
    best, score = read(GENERIC), 0
    for adapter in map(read, names()):
        hits = [any(f"{n}.".startswith(f"{w}.") for n in imported) for w in adapter.imports]
        files = sum((program.resolve().parent / file).exists() for file in adapter.files)
        if hits and all(hits) and 10 * len(hits) + 15 * files > score:
            best, score = adapter, 10 * len(hits) + 15 * files
    return best


def known_weights(path: str, adapter: Adapter) -> Weights | None:
    """The weight file that a path or an address ends with, of this adapter before others; None if it is unknown."""
    plain = path.replace(os.sep, "/").partition("?")[0]
    for known in (adapter, *map(read, names())):
        for weights in known.weights:
            if fnmatch.fnmatch(f"/{plain}", f"*/{weights.file}"):
                return weights
    return None


def imported_names(program: Path) -> Iterator[str]:
    """Dotted names of the modules that a program imports, and those that files beside it import in their turn."""
    todo, seen = [program.resolve()], set[Path]()
    while todo and len(seen) < MOST_FILES:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in _imports_of(path):
            yield name
            for folder in {program.resolve().parent, path.parent}:
                base = folder.joinpath(*name.split("."))
                todo += filter(Path.is_file, (Path(f"{base}.py"), base / "__init__.py"))


def _imports_of(path: Path) -> Iterator[str]:
    try:
        cells = read_cells(path) if is_notebook(path) else None
        source = "\n".join(cell.source for cell in cells) if cells else path.read_bytes()
        nodes = ast.walk(ast.parse(source))
    except (OSError, ValueError, SyntaxError):  # the interpreter will say it better
        return
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if not node.level)
