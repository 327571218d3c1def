"""The adapters: small declarative files that say what a pipeline needs, and which of them fits a script.

`NAME.toml` in this folder is the adapter NAME:

    title, repository   what it is for
    tested              upstream commits it was run on
    imports             modules whose import, by the script or by files beside it, tells the pipeline
    files               files that lie beside the script in a clone of the repository
    aliases             names under which the pipeline imports OpenAI's `clip`
    shims               names in `shims.SHIMS`; each takes effect only where the script needs it
    packages            module = "what to install" for those that are no obvious guess
    weights             files that the pipeline loads: file, name, source, size, sha256, place
"""

from __future__ import annotations

import ast
import difflib
import functools
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .notebooks import is_notebook, read_cells

FOLDER = Path(__file__).parent
GENERIC = "generic"
MOST_FILES = 200  # beside a script that are read for their imports


@dataclass(frozen=True)
class Weights:
    """A file that a pipeline loads. file: end of its path, a shell pattern. size, sha256: empty where unknown.
    place: where it belongs, if the script does not say."""

    file: str
    name: str
    source: str
    size: str = ""
    sha256: str = ""
    place: str = ""


@dataclass(frozen=True)
class Adapter:
    """What one pipeline needs; the fields are those of its file."""

    name: str
    title: str
    repository: str = ""
    tested: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    shims: tuple[str, ...] = ()
    packages: dict[str, str] = field(default_factory=dict)
    weights: tuple[Weights, ...] = ()


def names() -> list[str]:
    """Names of the adapters that are installed, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


@functools.cache
def read(name: str) -> Adapter:
    """The adapter of this name (case, '-' and '_' do not matter). Raises ValueError that names the closest."""
    known = names()
    plain = name.lower().replace("-", "_").replace(" ", "_")
    if plain not in known:
        close = difflib.get_close_matches(plain, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"there is no adapter {name!r}; {hint}Adapters: auto, {', '.join(known)}")
    table = tomllib.loads((FOLDER / f"{plain}.toml").read_text(encoding="utf-8"))
    weights = tuple(Weights(**row) for row in table.pop("weights", ()))
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in table.items()
    }
    return Adapter(name=plain, weights=weights, **fields)


def detect(script: str | Path) -> Adapter:
    """The adapter whose imports and files fit a script best, with all that `generic` has; `generic` where none does.

    What a script does not need stays out of its way, so a script that only resembles a pipeline runs all the same.
    """
    imported = set(imported_names(Path(script)))
    folder = Path(script).resolve().parent
    best = generic = read(GENERIC)
    score = 0
    for name in names():
        adapter = read(name)
        hits = sum(_imports(wanted, imported) for wanted in adapter.imports)
        found = sum((folder / file).exists() for file in adapter.files)
        # Every import that marks the pipeline must be there; the files decide between those that fit.
        if adapter.imports and hits == len(adapter.imports) and 10 * hits + 15 * found > score:
            best, score = adapter, 10 * hits + 15 * found
    return replace(
        best,
        aliases=tuple(dict.fromkeys(best.aliases + generic.aliases)),
        shims=tuple(dict.fromkeys(best.shims + generic.shims)),
    )


def imported_names(script: Path) -> Iterator[str]:
    """Dotted names of the modules that a script imports, and those that files beside it import in their turn."""
    todo = [script.resolve()]
    seen: set[Path] = set()
    while todo and len(seen) < MOST_FILES:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in _imports_of(path):
            yield name
            for folder in {script.resolve().parent, path.parent}:
                base = folder.joinpath(*name.split("."))
                todo += [
                    file
                    for file in (base.with_name(base.name + ".py"), base / "__init__.py")
                    if file.is_file()
                ]


def source_of(path: Path) -> str:
    """The Python source of a script or of a notebook. Raises ValueError if it is neither."""
    if is_notebook(path):
        return "\n".join(cell.source for cell in read_cells(path))
    try:
        with open(path, "rb") as file:
            data = file.read()
        import importlib.util

        return importlib.util.decode_source(data)
    except (UnicodeDecodeError, SyntaxError) as error:
        raise ValueError(f"{str(path)!r} is no Python source: {error}") from error


def _imports_of(path: Path) -> list[str]:
    try:
        tree = ast.parse(source_of(path))
    except (OSError, ValueError, SyntaxError):  # the interpreter will say it better
        return []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
    return found


def _imports(wanted: str, imported: set[str]) -> bool:
    return any(name == wanted or name.startswith(wanted + ".") for name in imported)


def as_table(adapter: Adapter) -> dict[str, Any]:
    """Name, title and tested commits, for a listing."""
    return {"name": adapter.name, "title": adapter.title, "tested": list(adapter.tested)}
