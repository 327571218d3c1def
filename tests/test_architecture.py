"""The house: who may import whom, no circles, few floors, and what may be imported at the top of a module."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import clipag_plug

ROOT = Path(__file__).parent.parent
SOURCES = {"clipag_plug": ROOT / "clipag_plug", "clipag_plug.adapters": ROOT / "adapters"}

# Rooms from top to bottom (docs/architecture.md): a file imports from its own row or from rows below.
ROWS = (
    ("cli", "__main__"),
    ("bench", "demo"),
    ("adapters", "pipelines", "paint"),
    ("train", "explanation"),
    ("attacks", "strokes", "priors"),
    ("losses", "augment"),
    ("bundled",),
    ("images",),
    ("guide",),
    ("clip",),
    ("model",),
    ("towers", "lite", "mini", "simple_tokenizer"),
    ("weights",),
    ("options", "vocabulary", "version", "files", "precision"),
)
RANK = {name: len(ROWS) - row for row, names in enumerate(ROWS) for name in names}
KNOW_NO_MODEL = (*ROWS[4], *ROWS[5], *ROWS[6], *ROWS[7])
FLOORS = 11  # longest chain of imports, in files; the aim is 10
NOT_AT_THE_TOP = {
    *("open_clip", "torchvision", "timm", "matplotlib", "webdataset", "huggingface_hub", "foolbox"),
    *("torch_fidelity", "imageio", "av", "pytorch_grad_cam", "kornia", "taming", "pydiffvg"),
    *("datasets", "pyarrow", "pyautoattack", "pytorch_pretrained_biggan", "transformers", "jinja2"),
}


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, of every module of the package, the adapters included."""
    found = {}
    for package, folder in SOURCES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


def room(module: str) -> str:
    """`clipag_plug.train.loop` -> `train`; a `__main__` belongs to the command line wherever it is."""
    parts = module.split(".")
    return "__main__" if parts[-1] == "__main__" else parts[1] if len(parts) > 1 else ""


def statements(body: list[ast.stmt], functions: bool) -> Iterator[ast.AST]:
    """Statements outside TYPE_CHECKING; those inside functions only if asked for."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        if functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for inner in ("body", "orelse", "finalbody"):
                yield from statements(getattr(node, inner, []), functions)
            for handler in getattr(node, "handlers", []):
                yield from statements(handler.body, functions)


def imported(module: str, *, functions: bool = True) -> set[str]:
    """Dotted names that a module imports: modules where they are ours, `package.name` otherwise."""
    path = modules()[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in statements(ast.parse(path.read_text(encoding="utf-8")).body, functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(parts if node.level else ()), *filter(None, [node.module])])
            for alias in node.names:
                home = clipag_plug._HOME.get(alias.name) if base == "clipag_plug" else None
                name = f"{base}.{home or alias.name}"
                found.add(name if name in modules() else base if base in modules() else name)
    return found - {module}


@cache
def graph() -> dict[str, set[str]]:
    """Each file and the files of the project that it imports, inside functions too."""
    return {module: imported(module) & modules().keys() for module in modules()}


def circles() -> list[set[str]]:
    """Groups of files that reach each other."""
    reach: dict[str, set[str]] = {}
    for module in graph():
        seen, waiting = set(), [module]
        while waiting:
            for other in graph()[waiting.pop()] - seen:
                seen.add(other)
                waiting.append(other)
        reach[module] = seen
    groups = {frozenset(o for o in reach[m] if m in reach[o]) for m in reach if m in reach[m]}
    return sorted(map(set, groups), key=sorted)


def longest_chain() -> list[str]:
    """The longest path of imports; files of a circle count as one."""
    member = {module: min(group) for group in circles() for module in group}
    merged: dict[str, set[str]] = {}
    for module, others in graph().items():
        mine = member.get(module, module)
        merged.setdefault(mine, set()).update({member.get(o, o) for o in others} - {mine})
    best: dict[str, list[str]] = {}
    for module in graphlib.TopologicalSorter(merged).static_order():
        best[module] = [module, *max((best[o] for o in merged[module]), key=len, default=[])]
    return max(best.values(), key=len)


def test_files_import_downwards() -> None:
    for module, others in graph().items():
        mine = room(module)
        for other in {room(name) for name in others} - {mine, ""}:
            assert mine in RANK or not mine, f"{mine!r} is in no row of this test"
            assert not mine or RANK[other] <= RANK[mine], f"{module} imports {other!r} from above"
            if mine in KNOW_NO_MODEL:
                assert other in (*KNOW_NO_MODEL, *ROWS[-1]), (
                    f"{module} knows no model, yet imports {other!r}"
                )


def test_every_row_names_a_room_that_exists() -> None:
    assert set(RANK) == {room(module) for module in modules()} - {""}


def test_no_circles_and_few_floors() -> None:
    assert not circles()
    assert len(longest_chain()) <= FLOORS, " -> ".join(longest_chain())


def test_heavy_packages_are_imported_where_they_are_used() -> None:
    for module in modules():
        found = {name.split(".")[0] for name in imported(module, functions=False)}
        assert not found & NOT_AT_THE_TOP, module


def test_adapters_import_the_package_relatively() -> None:
    for path in SOURCES["clipag_plug.adapters"].glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            assert not [name for name in names if name.split(".")[0] == "clipag_plug"], path
