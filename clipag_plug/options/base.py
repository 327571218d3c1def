"""One dataclass per job: the API, the command line, the saved recipe and the help text read the same fields."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import re
import secrets
import tomllib
import types
import typing
from fractions import Fraction
from pathlib import Path
from typing import Any, Self


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    choices: tuple[Any, ...] | None = None,
    low: float | None = None,
    high: float | None = None,
    short: str | None = None,
    positional: bool = False,
    metavar: str | None = None,
    bare: str | None = None,
    drawn: bool = False,
) -> Any:
    """A dataclass field that also carries its help text, its choices and its range.

    `low` and `high` are inclusive. A list default is copied for each instance. `bare` is what the flag means where
    it stands without a value. `drawn`: a command line that leaves it out gets a random number instead of the default.
    """
    metadata = {"help": help, "choices": choices, "low": low, "high": high, "short": short}
    metadata |= {"positional": positional, "metavar": metavar, "bare": bare, "drawn": drawn}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


PRECISIONS = ("auto", "fp32", "bf16", "fp16")
PRECISION = (
    "of the encoder; auto is bf16 where it was measured to be quicker and as good, else fp32"
)
DEVICE = "cpu, cuda or mps; empty takes cuda where there is one"


@dataclasses.dataclass
class Options:
    """Base of every option set: checks its fields, and reads and writes itself as JSON or TOML."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            name = field.name if field.metadata.get("positional") else flag(field.name)
            _check(name, getattr(self, field.name), hints[field.name], field.metadata)
        device = getattr(self, "device", None)
        if device and not re.fullmatch(r"cpu|mps|cuda(:\d+)?", device):
            raise ValueError(f"--device is {device!r}; it must be cpu, cuda, cuda:1 or mps")

    def to_dict(self) -> dict[str, Any]:
        """Field names and values, ready for JSON."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """The options as indented JSON, non-ASCII text kept readable."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def replace(self, **changes: Any) -> Self:
        """A checked copy with some fields changed; an unknown name is a ValueError."""
        return type(self).from_dict({**self.to_dict(), **changes})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Builds the options; an unknown name raises ValueError and names the closest known one."""
        fields = dataclasses.fields(cls)
        known = [field.name for field in fields]
        for name in values:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = (
                    f"did you mean {close[0]!r}?" if close else f"known options: {', '.join(known)}"
                )
                raise ValueError(f"{cls.__name__} has no option {name!r}; {hint}")
        none = dataclasses.MISSING
        required = [f.name for f in fields if f.default is none and f.default_factory is none]
        if missing := [name for name in required if name not in values]:
            raise ValueError(f"{cls.__name__} needs a value for {', '.join(missing)}")
        return cls(**values)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Reads a recipe: `.json`, or `.toml` through the standard library."""
        return cls.from_dict(read_recipe(path))


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The table in a `.json` or `.toml` file. Raises FileNotFoundError, or ValueError if it is neither."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"recipe {str(path)!r} does not exist")
    if path.suffix.lower() == ".png":
        raise ValueError(
            f"{str(path)!r} is a picture; what it was made with is read by: clipag generate --from {path}"
        )
    try:
        read = tomllib.loads if path.suffix == ".toml" else json.loads
        values = read(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"recipe {str(path)!r} is not valid {path.suffix or 'JSON'}: {error}"
        ) from error
    if not isinstance(values, dict):
        raise ValueError(
            f"recipe {str(path)!r} must hold a table of options, not a {type(values).__name__}"
        )
    return values


# Headings of a command's help and the options below them, results first; all others are settings.
HEADINGS = {
    "result": "output overwrite svg animation frames sheet log records report format cell name json quiet",
    "models": "model models compare vanilla ensemble against judge init device precision compile threads memory",
}


def flag(name: str) -> str:
    """`batch_size` -> `--batch-size`."""
    return "--" + name.replace("_", "-")


def add_arguments(parser: argparse.ArgumentParser, cls: type[Options], shown: str = "") -> Any:
    """Adds one flag per field of `cls` and returns the last group of them.

    Where `shown` names fields, the help is silent about the others.

    Flags that are not given stay absent from the namespace, so that `from_arguments` can lay them over a recipe file.
    """
    hints = typing.get_type_hints(cls)
    groups = {title: parser.add_argument_group(title) for title in (*HEADINGS, "settings")}
    titles = {name: title for title, names in HEADINGS.items() for name in names.split()}
    for field in dataclasses.fields(cls):
        meta = field.metadata
        group = groups[titles.get(field.name, "settings")]
        silent = shown and field.name not in shown.split() and not meta.get("positional")
        text = argparse.SUPPRESS if silent else _help(field)
        keywords: dict[str, Any] = {"help": text, "default": argparse.SUPPRESS}
        item, is_list = _item_type(hints[field.name])
        if meta.get("positional"):
            # never demanded here: a recipe may hold it, and from_dict names what is missing
            keywords["nargs"] = "*" if is_list else "?"
            parser.add_argument(field.name, type=item, metavar=meta.get("metavar"), **keywords)
            continue
        if item is bool:
            keywords["action"] = argparse.BooleanOptionalAction
        else:
            letter = {int: "N", float: "X"}.get(item, "TEXT")
            keywords |= {"type": number if item is float else item}
            keywords |= {"metavar": meta.get("metavar") or letter}
            if is_list:
                keywords["nargs"] = "+"
            elif meta.get("bare"):
                keywords |= {"nargs": "?", "const": meta["bare"]}
        names = filter(None, (flag(field.name), meta.get("short")))
        group.add_argument(*names, dest=field.name, **keywords)
    return groups["settings"]


def from_arguments(
    cls: type[Options], arguments: argparse.Namespace, recipe: str | None = None
) -> Any:
    """Options from parsed flags, laid over a recipe file where one is given: flags win."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    values = read_recipe(recipe) if recipe else {}
    values.update({key: value for key, value in vars(arguments).items() if key in fields})
    for name, field in fields.items():
        if field.metadata.get("drawn") and name not in values and not values.get("replay"):
            values[name] = secrets.randbelow(2**31)
    return cls.from_dict(values)


def number(text: str) -> float:
    """`0.5`, `4/255` or `4 / 255.`; what is no number is a ValueError."""
    try:
        parts = [Fraction(part) for part in text.split("/")]
        if len(parts) > 2:
            raise ValueError(f"{text!r} is no number")
        return float(parts[0] / parts[-1] if len(parts) == 2 else parts[0])
    except ZeroDivisionError as error:
        raise ValueError(str(error)) from error


def _item_type(kind: Any) -> tuple[Any, bool]:
    """The scalar type behind `X`, `X | None` and `list[X]`, and whether it is a list."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        inner = [part for part in typing.get_args(kind) if part is not type(None)]
        return _item_type(inner[0])
    if origin is list:
        return typing.get_args(kind)[0], True
    return kind, False


def _help(field: dataclasses.Field[Any]) -> str:
    text = field.metadata.get("help", "")
    if field.metadata.get("choices"):
        text += f" ({', '.join(map(str, field.metadata['choices']))})"
    default = field.default
    if field.metadata.get("drawn") or default is True:
        text += " [random]" if field.metadata["drawn"] else f" [on; --no{flag(field.name)[1:]}]"
    elif default is not False and default not in (dataclasses.MISSING, None, ""):
        text += f" [{default:.4g}]" if isinstance(default, float) else f" [{default}]"
    return text.replace("%", "%%")


_ACCEPTED: dict[type, Any] = {bool: bool, int: int, float: (int, float), str: str}


def _check(name: str, value: Any, kind: Any, meta: Any) -> None:
    if value is None and types.NoneType in typing.get_args(kind):
        return
    kind, is_list = _item_type(kind)
    if is_list and not isinstance(value, list):
        raise ValueError(f"{name} is {value!r}; it must be a list")
    choices, low, high = meta.get("choices"), meta.get("low"), meta.get("high")
    span = f"at least {low}" if high is None else f"between {low} and {high}"
    span = f"at most {high}" if low is None else span
    for item in value if is_list else [value]:
        # bool is a subclass of int, but `steps = true` in a recipe is a mistake
        mistaken = isinstance(item, bool) and kind in (int, float)
        if mistaken or not isinstance(item, _ACCEPTED.get(kind, object)):
            raise ValueError(f"{name} is {item!r}; it must be of type {kind.__name__}")
        if choices and item not in choices:
            known = ", ".join(map(repr, choices))
            raise ValueError(f"{name} is {item!r}; it must be one of {known}")
        # written so that NaN, for which every comparison is false, is refused
        if (low is not None and not item >= low) or (high is not None and not item <= high):
            raise ValueError(f"{name} is {item!r}; it must be {span}")
