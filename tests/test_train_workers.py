"""Several workers are one trainer: the same gradient as one process with the whole batch, whatever the split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from train_data_helpers import encoded
from train_helpers import as_one, differ, gradients, options, prepared, write_shard
from train_processes import torchrun, train
from workers_gradients import NUMBER, SETTINGS, write_gradients

from clipag_plug.train.state import load

ACCUMULATIONS = (1, 2, 5)
TRADES = {"trades": 3.0, "train_scale": True}
FARE = {"objective": "fare", "text": "frozen", "clean_weight": 0.0}
CASES = [
    *((f"plain-{n}", n, {}) for n in ACCUMULATIONS),
    ("trades", 2, TRADES),
    ("fare", 2, FARE),
    ("disk", 2, {"keep": "disk"}),
]


@pytest.fixture(scope="module")
def two_workers(shard, tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    torchrun(write_gradients, shard, folder, CASES)
    return {name: torch.load(folder / f"gradients-{name}.pt") for name, *_ in CASES}


@pytest.mark.parametrize("name, accumulation, changes", CASES)
def test_two_workers_give_the_gradient_of_the_whole_batch(
    two_workers,
    shard,
    tmp_path,
    name,
    accumulation,
    changes,
) -> None:
    settings = {**SETTINGS, **changes}
    parts = prepared(shard, tmp_path, batch_size=2 * NUMBER, accumulation=accumulation, **settings)
    whole = prepared(shard, tmp_path, batch_size=2 * NUMBER, **settings)
    as_one(whole, parts, accumulation)
    assert differ(gradients(whole), two_workers[name]) < 1e-5


def test_a_run_of_two_workers_leaves_one_model_and_resumes(tmp_path) -> None:
    """One row a step, from one worker; and what either of them had to skip is counted, also behind a resume."""
    samples = [{"jpg": encoded(seed=n), "cls": b"1"} for n in range(24)]
    for place in (2, 9, 14, 21):
        samples[place]["jpg"] = b"no image at all"
    data = write_shard(tmp_path / "data.tar", samples)
    settings = {"batch_size": 2, "memory": 0.0, "max_bad_fraction": 0.5}
    recipe = tmp_path / "recipe.json"
    recipe.write_text(options(data, tmp_path / "run", samples=48, **settings).to_json())
    torchrun(train, ["--recipe", str(recipe), "--samples", "24"])
    log = tmp_path / "run" / "log.csv"
    assert len(log.read_text().splitlines()) == 1 + 24 // 4
    skipped = {"not an image": 4}
    card = json.loads((tmp_path / "run" / "model.json").read_text())["card"]
    assert card["skipped"] == skipped
    assert len(load(tmp_path / "run")["tally"]["bad"]) == 4, "of both workers"
    torchrun(train, ["--recipe", str(recipe), "--resume", "latest"])
    assert len(log.read_text().splitlines()) == 1 + 48 // 4
    card = json.loads((tmp_path / "run" / "model.json").read_text())["card"]
    assert card["skipped"] == skipped and Path(log).is_file()
