"""The share of small random changes of a module that its tests notice.

    python benchmarks/mutate.py clipag_plug/augment.py --tests tests/test_augment.py -n 100 --seed 0

Each change is one of OPERATORS below, a number plus one, a negated condition, a `not` or minus dropped, or True for
False; docstrings, annotations and messages are left alone. One process per change is forked with torch loaded, sees
the changed source in place of the file, and runs the tests until one fails or the time is over: then it is noticed.
Changes listed in benchmarks/mutants.txt (`FILE | line of source | change`) are equivalent and counted apart.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.abc
import importlib.util
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Read in pairs: each becomes the other.
OPERATORS = "Add Sub Mult Div Lt LtE Gt GtE Eq NotEq Is IsNot And Or BitAnd BitOr In NotIn"
NAMES = "min max amin amax floor ceil sum mean ones_like zeros_like sin cos"


def partner(name: str, pairs: str) -> str:
    """The other one of the pair that `name` belongs to; nothing if it is in none."""
    names = pairs.split()
    return names[names.index(name) ^ 1] if name in names else ""


def changes(node: ast.AST) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What can be changed at a node: a description, and a function that does it."""
    for field in ("op", "ops"):
        value = getattr(node, field, None)
        old, *rest = value if isinstance(value, list) and value else [value]
        if other := partner(type(old).__name__, OPERATORS):
            new: Any = getattr(ast, other)()
            new = [new, *rest] if field == "ops" else new
            yield f"{type(old).__name__} -> {other}", partial(setattr, node, field, new)
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        new = not node.value if isinstance(node.value, bool) else node.value + 1
        yield f"{node.value} -> {new}", partial(setattr, node, "value", new)
    if isinstance(node, ast.If | ast.IfExp):
        yield "condition negated", lambda: setattr(node, "test", ast.UnaryOp(ast.Not(), node.test))
    if isinstance(node, ast.UnaryOp):
        yield f"{type(node.op).__name__} dropped", partial(setattr, node, "op", ast.UAdd())
    if isinstance(node, ast.Attribute) and (name := partner(node.attr, NAMES)):
        yield f"{node.attr} -> {name}", partial(setattr, node, "attr", name)


def walk(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs: no annotations, messages or raised errors."""
    yield node
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            skip = name in ("annotation", "returns") or isinstance(child, ast.Raise | ast.JoinedStr)
            if isinstance(child, ast.AST) and not skip:
                yield from walk(child)


def mutants(source: str) -> list[tuple[int, str, str]]:
    """Line, change and changed source of every mutant."""
    found = []
    for index, node in enumerate(walk(ast.parse(source))):
        for number, (text, _) in enumerate(changes(node)):
            tree = ast.parse(source)
            twin = next(each for at, each in enumerate(walk(tree)) if at == index)
            list(changes(twin))[number][1]()
            found.append((node.lineno, text, ast.unparse(ast.fix_missing_locations(tree))))
    return found


class Changed(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports one module from a given source."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        self.name, self.path, self.source = name, path, source

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name == self.name:
            return importlib.util.spec_from_file_location(name, self.path, loader=self)
        return None

    def get_filename(self, name: str) -> str:
        return str(self.path)

    def get_data(self, path: str | bytes) -> bytes:
        return self.source.encode()

    def path_stats(self, path: str) -> Any:
        raise OSError  # no cached bytecode


def noticed(name: str, path: Path, source: str, tests: list[str], limit: float) -> bool:
    """Whether the tests fail, or do not end within `limit` seconds, with this source of the module."""
    child = os.fork()
    if not child:
        with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
            os.dup2(null.fileno(), 1), os.dup2(null.fileno(), 2)
            import pytest

            sys.meta_path.insert(0, Changed(name, path, source))
            options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]
            os._exit(int(pytest.main(options)) != 0)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status != 0
        time.sleep(0.05)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("module", help="file of the module, as clipag_plug/augment.py")
    parser.add_argument("--tests", nargs="+", required=True, help="test files")
    parser.add_argument("-n", "--count", type=int, default=100, help="random mutants [100]")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import torch

    with contextlib.suppress(ImportError):
        import foolbox  # noqa: F401  (loaded once, not in every process)
    torch.set_num_threads(1)
    path, source = ROOT / given.module, (ROOT / given.module).read_text(encoding="utf-8")
    name = given.module.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
    name = name if name.startswith("clipag_plug") else f"clipag_plug.{name}"
    begun = time.monotonic()
    if noticed(name, path, source, given.tests, 600):
        sys.stderr.write("the tests fail without a change\n")
        return 2
    limit = 5 * (time.monotonic() - begun) + 20
    every, lines = mutants(source), source.splitlines()
    chosen = random.Random(given.seed).sample(every, min(given.count, len(every)))
    listed = (ROOT / "benchmarks" / "mutants.txt").read_text(encoding="utf-8").splitlines()
    counts = {"noticed": 0, "equivalent": 0, "missed": 0}
    for line, text, changed in sorted(chosen):
        entry = f"{given.module} | {lines[line - 1].strip()} | {text}"
        verdict = "equivalent" if entry in listed else "missed"
        if verdict == "missed" and noticed(name, path, changed, given.tests, limit):
            verdict = "noticed"
        counts[verdict] += 1
        if verdict == "missed":
            print(f"{line}: {entry}", flush=True)
    share = counts["noticed"] / max(len(chosen) - counts["equivalent"], 1)
    print(f"{given.module}: {share:.1%} noticed of {len(chosen)} of {len(every)} changes; {counts}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
