"""benchmarks/gpu.py, rehearsed on the CPU at a small size; what it measures there is of no interest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.long
def test_every_figure_of_a_gpu_comes_from_one_command(tmp_path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--tiny"]
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "gpu.json")], capture_output=True, text=True, env=settings
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found == json.loads(done.stdout)
    for case in ("synthesis step", "adversarial step"):
        assert set(found[case]["seconds"]) >= {"ours"} and found[case]["share of the peak"] > 0
        assert all(value > 0 for value in found[case]["operations a second"].values())
    assert {"published", "published, bf16"} <= set(found["synthesis step"]["seconds"])
    assert {"APGD", "data", "strokes"} <= set(found)


def test_without_a_gpu_the_command_says_so(tmp_path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py")]
    settings = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=settings)
    assert done.returncode == 2 and "--device cpu --tiny" in done.stderr
