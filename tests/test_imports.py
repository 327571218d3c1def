"""What importing the package and asking for help bring in, each tried in a fresh interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clipag_plug.cli import COMMANDS

ROOT = Path(__file__).parent.parent
HEAVY = (
    "torch",
    "torchvision",
    "open_clip",
    "timm",
    "numpy",
    "PIL",
    "huggingface_hub",
    "matplotlib",
)


def run(code: str) -> list[str]:
    """Runs code with `found = []` in a fresh interpreter and returns what it put there."""
    program = f"import json, sys\nfound = []\n{code}\nprint('\\n' + json.dumps(found))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


LOADED = f"found += [name for name in {HEAVY} if name in sys.modules]"


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert run(f"import clipag_plug\n{LOADED}") == []


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    assert run(f"from clipag_plug.cli import main\nassert main({arguments!r}) == 0\n{LOADED}") == []


def test_importing_touches_no_global_state() -> None:
    code = """
import logging, os, random, socket, warnings
def state():
    return [random.getstate(), dict(os.environ), list(warnings.filters), os.getcwd(), list(sys.path),
            list(logging.root.handlers), logging.root.level]
socket.socket = None  # any attempt to connect fails
before = state()
import clipag_plug, clipag_plug.cli, clipag_plug.adapters
if state() != before: found.append("changed")
"""
    assert run(code) == []


def test_importing_models_leaves_torch_as_it_was() -> None:
    code = """
import torch
def state():
    return [torch.random.get_rng_state().tolist(), torch.get_default_dtype(), torch.get_num_threads(),
            torch.is_grad_enabled(), torch.cuda.is_initialized()]
before = state()
import clipag_plug.clip, clipag_plug.paint, clipag_plug.explanation
if state() != before: found.append("changed")
found += [name for name in ("torchvision", "open_clip", "timm", "matplotlib") if name in sys.modules]
"""
    assert run(code) == []


def test_no_module_has_the_name_of_a_public_function() -> None:
    code = """
import os, clipag_plug
there = {name.removesuffix(".py") for name in os.listdir(os.path.dirname(clipag_plug.__file__))}
found += sorted(there & set(clipag_plug.__all__))
"""
    assert run(code) == []


def test_submodules_are_attributes_as_in_clip() -> None:
    code = """
import clipag_plug as clip
assert clip.clip.load is clip.load and clip.clip.tokenize is clip.tokenize
assert clip.model.__name__ == "clipag_plug.model"
assert clip.simple_tokenizer.__name__ == "clipag_plug.simple_tokenizer"
assert {"load", "tokenize", "available_models", "clip", "__version__"} <= set(dir(clip))
from clipag_plug import *
assert load is clip.load and tokenize is clip.tokenize
try:
    clip.laod
except AttributeError as error:
    found.append(str(error))
"""
    assert run(code) == ["module 'clipag_plug' has no attribute 'laod'"]
