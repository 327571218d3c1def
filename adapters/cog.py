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
from collections.abc import Callable, Sequence
from typing import Any

log = logging.getLogger("clipag_plug.adapters")
BASES = {"Predictor", "BasePredictor"}
KINDS = {"int": int, "float": float, "bool": bool, "Path": pathlib.Path}
Path = File = pathlib.Path


class RequestError(ValueError):
    """A request that the predictor cannot be run with; the message says what to type instead."""


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

    type: Any = None
    default: Any = ...


def input(name: str, type: Any = None, default: Any = ..., **more: Any) -> Callable[[Any], Any]:
    """The decorator of old cog: declares one input of `predict`."""

    def decorate(function: Any) -> Any:
        before = getattr(function, "cog_inputs", {})
        function.cog_inputs = {name: Declared(type, default), **before}
        return function

    return decorate


def Input(default: Any = ..., **limits: Any) -> Any:
    """An input of today's cog, as the default of a parameter of `predict`."""
    return Declared(None, default)


def is_predictor(source: str) -> bool:
    """Whether a script only defines a predictor, and leaves it to cog to run it."""
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return False
    bases = [base for node in body if isinstance(node, ast.ClassDef) for base in node.bases]
    derived = {ast.unparse(base).rpartition(".")[2] for base in bases} & BASES
    guarded = any(isinstance(n, ast.If) and "__name__" in ast.unparse(n.test) for n in body)
    return bool(derived) and not guarded and ("import cog" in source or "from cog" in source)


def parse(arguments: Sequence[str]) -> tuple[dict[str, str], str]:
    """`-i name=value` (or `name=value`) and `-o path` -> inputs, output. RequestError for anything else."""
    inputs, output, rest = {}, "", list(arguments)
    while rest:
        word = rest.pop(0)
        option, joined, value = word.partition("=")
        is_option = option in ("-i", "--input", "-o", "--output")
        if is_option and (joined or rest):
            word = value if joined else rest.pop(0)
        if is_option and option.strip("-")[0] == "o":
            output = word
        elif "=" in word and not word.startswith("-"):
            key, _, inputs[key] = word.partition("=")
        else:
            raise RequestError(f"a predictor takes -i NAME=VALUE and -o PATH, not {word!r}")
    return inputs, output


def predict(names: dict[str, Any], arguments: Sequence[str]) -> None:
    """Makes the predictor that a script defined, sets it up, and runs it on the given inputs.

    A file that it returns is copied to the output, by default `output` and the file's ending; a generator's last
    file wins. Raises RequestError for an input that is missing, or that the predictor does not declare.
    """
    inputs, output = parse(arguments)
    classes = [value for value in names.values() if inspect.isclass(value)]
    own = [kind for kind in classes if kind.__module__ == names["__name__"]]
    predictor: Any = [k for k in own if BASES & {base.__name__ for base in k.__mro__[1:]}][-1]()
    keywords = _keywords(predictor.predict, inputs)
    predictor.setup()
    results = predictor.predict(**keywords)
    several = inspect.isgenerator(results) or isinstance(results, list | tuple)
    for number, result in enumerate(results if several else [results]):
        log.info("output %d: %s", number, result)
        if isinstance(result, str | os.PathLike) and os.path.isfile(result):
            shutil.copyfile(result, output or "output" + os.path.splitext(result)[1])


def _keywords(function: Any, given: dict[str, str]) -> dict[str, Any]:
    declared = dict(getattr(function, "cog_inputs", {}))
    for name, parameter in inspect.signature(function).parameters.items():
        default = ... if parameter.default is parameter.empty else parameter.default
        default = default.default if isinstance(default, Declared) else default
        kind = None if parameter.annotation is parameter.empty else parameter.annotation
        declared.setdefault(name, Declared(kind, default))
    known = ", ".join(declared)
    for name in given:
        if name not in declared:
            raise RequestError(f"the predictor has no input {name!r}; its inputs: {known}")
    missing = [n for n, entry in declared.items() if n not in given and entry.default is ...]
    if missing:
        raise RequestError(f"the predictor needs {', '.join(missing)}; give -i {missing[0]}=VALUE")
    return {
        name: _convert(name, entry, given[name]) if name in given else entry.default
        for name, entry in declared.items()
    }


def _convert(name: str, entry: Declared, text: str) -> Any:
    kind = KINDS.get(entry.type, str) if isinstance(entry.type, str) else entry.type
    if kind is None and entry.default not in (..., None):
        kind = type(entry.default)
    if kind is bool:
        return text.lower() in ("1", "true", "yes", "on")
    try:
        return kind(text) if kind in (int, float, pathlib.Path) else text
    except ValueError:
        raise RequestError(f"{name} is {text!r}; it must be of type {kind.__name__}") from None
