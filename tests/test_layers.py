"""Who may import whom, and what may be imported at the top of a module (table in CONTRIBUTING.md)."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import clipag_plug

ROOT = Path(__file__).parent.parent
SOURCES = {"clipag_plug": ROOT / "clipag_plug", "clipag_plug.adapters": ROOT / "adapters"}

# From top to bottom: a module imports from its own row or from rows below, never from above.
ROWS = (
    ("cli", "__main__", "completion"),
    ("bench", "demo"),
    ("adapters", "ports", "search"),
    ("train", "synthesis", "explanation", "gradients"),
    (
        "attacks",
        "apgd",
        "ascent",
        "margins",
        "losses",
        "views",
        "viewparts",
        "priors",
        "images",
        "colours",
        "attributes",
        "photos",
        "strokes",
        "sampling",
        "runs",
    ),
    ("clip",),
    ("model",),
    ("towers", "mini", "minitext", "blocks", "simple_tokenizer"),
    ("checkpoints",),
    ("options", "vocabulary", "bundled"),
)
RANK = {name: len(ROWS) - row for row, names in enumerate(ROWS) for name in names}
KNOW_NO_MODEL = ROWS[4]
NOT_AT_THE_TOP = {
    *("open_clip", "torchvision", "timm", "matplotlib", "webdataset", "huggingface_hub", "foolbox"),
    *("torch_fidelity", "imageio", "av", "pytorch_grad_cam", "kornia", "taming", "pydiffvg"),
    *("datasets", "pyarrow", "pytorch_pretrained_biggan"),
}


def modules() -> dict[str, Path]:
    """Dotted name -> file, of every module of the package, the adapters included."""
    found = {}
    for package, folder in SOURCES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def component(module: str) -> str:
    """`clipag_plug.train.loop` -> `train`; a `__main__` belongs to the command line wherever it is."""
    parts = module.split(".")
    return "__main__" if parts[-1] == "__main__" else parts[1] if len(parts) > 1 else ""


def imports(module: str, nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Dotted names that the import statements among the nodes refer to."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join(
                    [*parts[: len(parts) - node.level + 1], *filter(None, [node.module])]
                )
            for alias in node.names:
                home = clipag_plug._HOME.get(alias.name) if base == "clipag_plug" else None
                yield f"{base}.{home or alias.name}"


def project_imports(module: str) -> set[str]:
    """Components that a module imports anywhere, its functions included."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    names = [name for name in imports(module, ast.walk(tree)) if name.startswith("clipag_plug.")]
    return {part for part in (name.split(".")[1] for name in names) if not part.startswith("__")}


def top_level(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Statements that run at import: not those of functions, nor those under TYPE_CHECKING."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        for inner in ("body", "orelse", "finalbody"):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from top_level(getattr(node, inner, []))


INNER = [name for name in MODULES if component(name)]


@pytest.mark.parametrize("module", INNER)
def test_imports_point_downwards(module: str) -> None:
    mine = component(module)
    assert mine in RANK, f"{mine!r} is not in the table: add it here and in CONTRIBUTING.md"
    for other in project_imports(module) - {mine}:
        assert other in RANK, f"{module} imports {other!r}, which is not in the table"
        assert RANK[other] <= RANK[mine], f"{module} imports {other!r}, which lies above {mine!r}"
        if mine in KNOW_NO_MODEL:
            allowed = (*KNOW_NO_MODEL, *ROWS[-1])
            assert other in allowed, f"{module} knows no model, but imports {other!r}"


def test_no_two_components_import_each_other() -> None:
    graph: dict[str, set[str]] = {}
    for module in INNER:
        mine = component(module)
        graph.setdefault(mine, set()).update(project_imports(module) - {mine})
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, naming the cycle


@pytest.mark.parametrize("module", list(MODULES))
def test_heavy_packages_are_imported_where_they_are_used(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    found = {name.split(".")[0] for name in imports(module, top_level(tree.body))}
    assert not found & NOT_AT_THE_TOP


@pytest.mark.parametrize("module", [name for name in INNER if component(name) == "adapters"])
def test_adapters_import_the_package_relatively(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        assert not [name for name in names if name.split(".")[0] == "clipag_plug"]


def test_the_table_is_the_one_that_contributors_read() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for names in ROWS:
        assert "  ".join(names) in text
