"""Several workers are one trainer: the same gradient as one process with the whole batch, whatever the split."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_train import gradients, prepared, shard  # noqa: F401
from workers_gradients import NUMBER, SETTINGS

ACCUMULATIONS = (1, 2, 5)
HERE = Path(__file__).parent


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def two_workers(shard, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("workers")
    numbers = map(str, ACCUMULATIONS)
    torchrun(str(HERE / "workers_gradients.py"), str(shard), str(folder), *numbers)
    return {n: torch.load(folder / f"gradients-{n}.pt") for n in ACCUMULATIONS}


@pytest.mark.parametrize("accumulation", ACCUMULATIONS)
def test_two_workers_give_the_gradient_of_the_whole_batch(
    two_workers,
    shard,  # noqa: F811
    tmp_path,
    accumulation,
) -> None:
    parts = prepared(shard, tmp_path, batch_size=2 * NUMBER, accumulation=accumulation, **SETTINGS)
    batches = [parts.batches[place] for place in range(accumulation)]
    merged = type(batches[0])(
        torch.cat([b.images for b in batches]),
        sum((b.texts for b in batches), []),
        sum((b.words for b in batches), []),
        torch.cat([b.labels for b in batches]),
    )
    whole = prepared(shard, tmp_path, batch_size=2 * NUMBER, **SETTINGS)
    fixed = {"__getitem__": lambda self, i: merged, "positives": parts.batches.positives}
    whole.batches = type("Fixed", (), fixed)()
    expected, found = gradients(whole), two_workers[accumulation]
    assert expected.keys() == found.keys() and len(found) > 5
    total = torch.cat([g.flatten() for g in expected.values()])
    difference = total - torch.cat([found[name].flatten() for name in expected])
    assert float(difference.norm() / total.norm()) < 1e-5


def test_a_run_of_two_workers_leaves_one_model_and_resumes(shard, tmp_path) -> None:  # noqa: F811
    from test_train import options

    recipe = tmp_path / "recipe.json"
    recipe.write_text(options(shard, tmp_path / "run", batch_size=4, samples=32).to_json())
    done = torchrun("-m", "clipag_plug.train", "--recipe", str(recipe))
    assert done.stdout.strip() == str(tmp_path / "run" / "model.safetensors")
    log = (tmp_path / "run" / "log.csv").read_text().splitlines()
    assert len(log) == 1 + 32 // 8, "one row a step, from one worker"
    torchrun("-m", "clipag_plug.train", "--recipe", str(recipe), "--samples", "48", "--resume")
    assert len((tmp_path / "run" / "log.csv").read_text().splitlines()) == 1 + 48 // 8
