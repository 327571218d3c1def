"""Public names, their parameters and the flags of every command, compared with a recorded list.

`.venv/bin/python tests/test_api_surface.py` records the present state.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import clipag_plug
from clipag_plug import cli
from clipag_plug.options.base import flag

RECORD = Path(__file__).with_name("api_surface.json")
# Beside the top level: modules whose functions other people's code is meant to call.
MODULES = (
    "clipag_plug.attacks",
    "clipag_plug.losses",
    "clipag_plug.losses.margins",
    "clipag_plug.files",
    "clipag_plug.images",
    "clipag_plug.adapters",
)


def surface() -> dict[str, Any]:
    """The public API and the command line, ready for JSON."""
    names = {name: parameters(getattr(clipag_plug, name)) for name in clipag_plug.__all__}
    return {
        "clipag_plug": names,
        **{name: public_functions(name) for name in MODULES},
        "clipag": {name: flags(command) for name, command in cli.COMMANDS.items()},
    }


def public_functions(module_name: str) -> dict[str, str]:
    """Functions and classes defined in a module or a package's files, without the underscored ones."""
    module = importlib.import_module(module_name)
    return {
        name: parameters(value)
        for name, value in sorted(vars(module).items())
        if callable(value) and not name.startswith("_") and value.__module__.startswith(module_name)
    }


def parameters(function: Any) -> str:
    """`(image, *, eps, norm='l2')`: names, kinds and defaults; annotations may change freely."""
    signature = inspect.signature(function)
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))


def flags(command: cli.Command) -> list[str]:
    """Positional arguments by name and options as they are typed, sorted."""
    fields = dataclasses.fields(command.options)
    return sorted(f.name if f.metadata.get("positional") else flag(f.name) for f in fields)


def test_the_public_surface_is_the_recorded_one() -> None:
    recorded = json.loads(RECORD.read_text(encoding="utf-8"))
    present = surface()
    assert sorted(present) == sorted(recorded)
    for place, names in recorded.items():
        assert present[place] == names, f"{place} changed; see the head of this file"


def test_every_public_name_is_listed() -> None:
    assert sorted(clipag_plug.__all__) == clipag_plug.__all__
    assert set(clipag_plug._HOME) == set(clipag_plug.__all__)


if __name__ == "__main__":
    RECORD.write_text(json.dumps(surface(), indent=2) + "\n", encoding="utf-8")
