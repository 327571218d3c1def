"""Run on every worker by test_train_workers: the summed gradients of one step, written by the first worker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from train_helpers import gradients, prepared

from clipag_plug.train.distributed import connect, disconnect

SETTINGS = {
    "text": "train",
    "attack_steps": 2,
    "clean_weight": 0.5,
    "attack_objective": "tecoa",  # it does not look at the batch, and so not at how the batch is split
    "random_start": False,
}
NUMBER = 4  # images of a worker's micro-batch


def write_gradients(shard: Path, folder: Path, cases: Sequence[tuple[str, int, dict]]) -> None:
    """cases: the file's name, the number of accumulation steps, and settings beside SETTINGS."""
    torch.set_num_threads(1)
    workers = connect("cpu")
    for name, accumulation, changes in cases:
        settings = {**SETTINGS, **changes}
        trainer = prepared(
            shard, folder, workers, batch_size=NUMBER, accumulation=accumulation, **settings
        )
        found = gradients(trainer)
        if workers.first:
            torch.save(found, folder / f"gradients-{name}.pt")
    disconnect()
