"""Every example runs as its reader would run it, and writes what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


SLOW = ("02", "03", "04", "05", "06", "07", "08")  # 20 to 50 seconds each: part of `make test-long`


def marked(path: Path) -> Any:
    marks = [pytest.mark.long] if path.name.startswith(SLOW) else []
    return pytest.param(path, id=path.stem, marks=marks)


@pytest.mark.parametrize("path", [marked(path) for path in EXAMPLES])
def test_example_runs(path: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(path)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    printed = [line for line in done.stdout.splitlines() if line.startswith("runs/")]
    assert done.stdout and all((tmp_path / line).is_file() for line in printed)


def test_the_list_names_every_example() -> None:
    listed = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert len(EXAMPLES) >= 5 and all(f"`{path.name}`" in listed for path in EXAMPLES)
