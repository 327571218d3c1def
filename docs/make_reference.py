"""Writes the API reference from the docstrings: `python docs/make_reference.py -o reference.md`."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import clipag_plug
from clipag_plug import cli
from clipag_plug.files import write_text
from clipag_plug.options.base import flag

# What other people's code is meant to call, beside the top level.
MODULES = (
    "clipag_plug.attacks",
    "clipag_plug.losses",
    "clipag_plug.images",
    "clipag_plug.augment",
    "clipag_plug.priors",
    "clipag_plug.pipelines.runs",
    "clipag_plug.paint",
    "clipag_plug.explanation",
    "clipag_plug.strokes",
    "clipag_plug.pipelines",
    "clipag_plug.adapters",
)


def page() -> str:
    """The whole reference in Markdown."""
    parts = [
        f"# clipag_plug {clipag_plug.__version__}",
        inspect.getdoc(clipag_plug) or "",
        "## Functions",
    ]
    parts += [_entry(name, getattr(clipag_plug, name)) for name in clipag_plug.__all__]
    for name in MODULES:
        module = importlib.import_module(name)
        parts += [f"## {name}", inspect.getdoc(module) or ""]
        parts += [_entry(label, value) for label, value in public(module)]
    parts.append("## Command line")
    parts += [_command(name, command) for name, command in cli.COMMANDS.items()]
    return "\n\n".join(filter(None, parts)) + "\n"


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Functions and classes of a module: those in `__all__`, else those it defines, in the order of its source."""
    names = getattr(module, "__all__", None) or _defined(module)
    for name in names:
        value = getattr(module, name)
        if callable(value) and not name.startswith("_"):
            yield name, value


def _defined(module: ModuleType) -> list[str]:
    kinds = ast.FunctionDef | ast.ClassDef
    tree = ast.parse(inspect.getsource(module))
    return [node.name for node in tree.body if isinstance(node, kinds) and node.name[0] != "_"]


def _entry(name: str, value: Any) -> str:
    parts = [f"### `{name}`", _signature(name, value), inspect.getdoc(value) or ""]
    if inspect.isclass(value):
        for label, member in vars(value).items():
            if inspect.isfunction(member) and not label.startswith("_") and member.__doc__:
                parts += [_signature(f"{name}.{label}", member), inspect.getdoc(member) or ""]
    return "\n\n".join(filter(None, parts))


def _signature(name: str, value: Any) -> str:
    try:
        text = str(inspect.signature(value))
    except (TypeError, ValueError):
        text = "(...)"
    return f"```text\n{name}{text}\n```"


def _command(name: str, command: cli.Command) -> str:
    options = command.options
    lines = [f"### `clipag {name}`", "", f"{command.help[0].upper()}{command.help[1:]}.", ""]
    lines += [
        "```text",
        command.example,
        "```",
        "",
        "| option | default | meaning |",
        "|---|---|---|",
    ]
    for field in dataclasses.fields(options):
        spelled = field.name if field.metadata.get("positional") else flag(field.name)
        default = "" if field.default in (dataclasses.MISSING, None, "") else repr(field.default)
        meaning = (field.metadata.get("help") or "").replace("|", "\\|")
        choices = field.metadata.get("choices")
        meaning += f" ({', '.join(map(str, choices))})" if choices else ""
        lines.append(f"| `{spelled}` | {default} | {meaning} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "-o", "--output", default="reference.md", help="file to write [reference.md]"
    )
    print(write_text(parser.parse_args().output, page()))
