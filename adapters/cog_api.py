"""cog's interface of predictors, old and new, and what `cog predict` does with one.

clipag run predict.py -i prompt="a cat" -i num_iterations=10 -o out.png
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .errors import RequestError

_log = logging.getLogger("clipag_plug.adapters")
BASES = ("Predictor", "BasePredictor")
Path = pathlib.Path
File = pathlib.Path


class BasePredictor:
    """What a predictor derives from."""

    def setup(self) -> None:
        """Nothing, unless the predictor has something to load."""


Predictor = BasePredictor


class BaseModel:
    """Base of structured outputs: keeps its fields."""

    def __init__(self, **fields: Any) -> None:
        vars(self).update(fields)


@dataclasses.dataclass
class Declared:
    """One input: type (None: as annotated), default (... for none)."""

    name: str
    type: Any = None
    default: Any = ...


def input(
    name: str, type: Any = None, default: Any = ..., help: str = "", **limits: Any
) -> Callable[[Any], Any]:
    """The decorator of old cog: declares one input of `predict`."""

    def decorate(function: Any) -> Any:
        declared = vars(function).setdefault("__cog_inputs__", [])
        declared.insert(0, Declared(name, type, default))
        return function

    return decorate


def Input(default: Any = ..., **limits: Any) -> Any:
    """An input of today's cog, as the default of a parameter of `predict`."""
    return Declared("", None, default)


def is_predictor(source: str) -> bool:
    """Whether a script only defines a predictor, and leaves it to cog to run it."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return False
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    bases = {ast.unparse(base).rpartition(".")[2] for node in classes for base in node.bases}
    guarded = any(
        isinstance(node, ast.If) and "__name__" in ast.unparse(node.test) for node in tree.body
    )
    imported = any(
        (isinstance(node, ast.Import) and any(a.name == "cog" for a in node.names))
        or (isinstance(node, ast.ImportFrom) and node.module == "cog")
        for node in tree.body
    )
    return imported and bool(bases & set(BASES)) and not guarded


def parse(arguments: Sequence[str]) -> tuple[dict[str, str], str]:
    """`-i name=value` and `-o path` -> inputs, output. Raises RequestError for anything else."""
    inputs, output, rest = {}, "", list(arguments)
    while rest:
        word = rest.pop(0)
        name, joined, value = word.partition("=")
        if word in ("-i", "--input", "-o", "--output") and rest:
            value = rest.pop(0)
        elif not (joined and name in ("-i", "--input", "-o", "--output")):
            raise RequestError(f"a predictor takes -i NAME=VALUE and -o PATH, not {word!r}")
        if name.strip("-")[0] == "o":
            output = value
            continue
        key, equals, text = value.partition("=")
        if not equals:
            raise RequestError(f"-i is {value!r}; it must be NAME=VALUE")
        inputs[key] = text
    return inputs, output


def predict(names: dict[str, Any], arguments: Sequence[str]) -> None:
    """Makes the predictor that a script defined, sets it up, and runs it on the given inputs.

    A file that it returns is copied to the output, by default `output` and the file's ending; a generator's last
    file wins. Raises RequestError for an input that is missing, or that the predictor does not declare.
    """
    inputs, output = parse(arguments)
    kinds = [
        value
        for value in names.values()
        if inspect.isclass(value)
        and value.__module__ == "__main__"
        and {base.__name__ for base in value.__mro__[1:]} & set(BASES)
    ]
    predictor: Any = kinds[-1]()
    keywords = _keywords(predictor.predict, inputs)
    predictor.setup()
    for number, result in enumerate(_results(predictor.predict(**keywords))):
        _log.info("output %d: %s", number, result)
        if isinstance(result, str | os.PathLike) and os.path.isfile(result):
            target = output or "output" + os.path.splitext(os.fspath(result))[1]
            shutil.copyfile(result, target + ".partial")
            os.replace(target + ".partial", target)


def _results(value: Any) -> Iterator[Any]:
    if inspect.isgenerator(value) or isinstance(value, list | tuple):
        yield from value
    elif value is not None:
        yield value


def _keywords(function: Any, given: dict[str, str]) -> dict[str, Any]:
    declared = {entry.name: entry for entry in getattr(function, "__cog_inputs__", ())}
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in declared:
            default = ... if parameter.default is parameter.empty else parameter.default
            default = default.default if isinstance(default, Declared) else default
            kind = None if parameter.annotation is parameter.empty else parameter.annotation
            declared[name] = Declared(name, kind, default)
    for name in given:
        if name not in declared:
            raise RequestError(
                f"the predictor has no input {name!r}; its inputs: {', '.join(declared)}"
            )
    missing = [n for n, entry in declared.items() if n not in given and entry.default is ...]
    if missing:
        raise RequestError(f"the predictor needs {', '.join(missing)}; give -i {missing[0]}=VALUE")
    return {
        name: _convert(entry, given[name]) if name in given else entry.default
        for name, entry in declared.items()
    }


def _convert(entry: Declared, text: str) -> Any:
    kind = entry.type
    if isinstance(kind, str):
        kind = {"int": int, "float": float, "bool": bool, "Path": Path}.get(kind, str)
    if kind is None and entry.default not in (..., None):
        kind = type(entry.default)
    if kind is bool:
        return text.lower() in ("1", "true", "yes", "on")
    try:
        return kind(text) if kind in (int, float) or kind is Path else text
    except ValueError:
        raise RequestError(
            f"the input {entry.name} is {text!r}; it must be of type {kind.__name__}"
        ) from None
