"""What the tests of `clipag run` share: the call, and a check that nothing is left behind."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import _get_current_function_mode_stack

from clipag_plug import cli

SCRIPTS = Path(__file__).parent / "upstream_scripts"


def surroundings() -> dict[str, Any]:
    """Everything that a patch or a script could leave behind."""
    import numpy
    import open_clip
    import torchvision
    from PIL import Image

    owners = {
        "torch": torch,
        "torch.cuda": torch.cuda,
        "torch.hub": torch.hub,
        "torch.jit": torch.jit,
        "torchvision.utils": torchvision.utils,
        "open_clip": open_clip,
        "open_clip.factory": open_clip.factory,
        "numpy": numpy,
        "PIL.Image": Image,
        "Thread": threading.Thread,
        "Popen": subprocess.Popen,
        "logging": logging.getLogger(),
    }
    return {
        "environment": {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"},
        "folder": os.getcwd(),
        "argv": (sys.argv, list(sys.argv)),
        "path": (sys.path, list(sys.path)),
        "finders": list(sys.meta_path),
        "modes": _get_current_function_mode_stack(),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
        "streams": (sys.stdout, sys.stderr, sys.excepthook),
        "torch": (
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.backends.cudnn.benchmark,
        ),
        "attributes": {name: dict(vars(owner)) for name, owner in owners.items()},
    }


def same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for name in before.keys() - {"attributes"}:
        assert before[name] == after[name], name
    for name, values in before["attributes"].items():
        now = after["attributes"][name]
        # A library may have imported a submodule of its own in between; nothing may be changed or gone.
        for key, value in values.items():
            assert now.get(key) is value or now.get(key) == value, f"{name}.{key}"
        extra = {k for k in now.keys() - values.keys() if not isinstance(now[k], type(sys))}
        assert not extra, f"{name}: {extra}"


@pytest.fixture(autouse=True)
def nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Holds for every test here, whether its script ends well, raises or exits."""
    import torch._dynamo  # what imports of a script bring in plainly is not the patch's

    assert torch._dynamo
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    modules, before = dict(sys.modules), surroundings()
    yield
    same(before, surroundings())
    for name, module in modules.items():
        assert sys.modules.get(name) is module, name
    new = set(sys.modules) - set(modules)
    names = (
        "clip",
        "CLIP",
        "CLIP_",
        "cog",
        "pydiffvg",
        "wandb",
        "deep_daze",
        "styler_helper",
        "taming_like",
        "torch._six",
    )
    assert not {
        name for name in new if name in names or name.startswith(tuple(f"{n}." for n in names))
    }


def clipag_run(*arguments: str, model: str = "clipag-mini") -> int:
    own = ["--model", model] if model else []
    return cli.main(["run", *own, "--device", "cpu", *arguments])
