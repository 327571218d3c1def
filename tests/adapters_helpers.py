"""What the tests of the adapters share: a folder of made-up libraries, and a checkpoint of old."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on sys.path; what is imported from it is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(tmp_path)):
            del sys.modules[name]


def old_file(folder: Path) -> Path:
    """A checkpoint with an object of a class that no longer exists, and one that wants to run something."""

    class Gone:
        def __reduce__(self) -> Any:
            return (os.putenv, ("CLIPAG_TEST_RAN", "1"))

    path = folder / "clipag-test-old.ckpt"
    torch.save({"state_dict": {"w": torch.arange(3.0)}, "callback": Gone()}, path)
    return path
