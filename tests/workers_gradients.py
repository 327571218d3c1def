"""Run under torchrun by test_train_workers: the summed gradients of one step, written by the first worker.

torchrun --nproc-per-node 2 tests/workers_gradients.py SHARD FOLDER ACCUMULATION [ACCUMULATION ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from test_train import gradients, prepared

from clipag_plug.train.distributed import connect, disconnect

SETTINGS = {
    "text": "train",
    "attack_steps": 2,
    "clean_weight": 0.5,
    "attack_objective": "tecoa",  # it does not look at the batch, and so not at how the batch is split
    "random_start": False,
}
NUMBER = 4  # images of a worker's micro-batch


def main() -> None:
    shard, folder = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    workers = connect("cpu")
    for accumulation in map(int, sys.argv[3:]):
        trainer = prepared(
            shard, folder, workers, batch_size=NUMBER, accumulation=accumulation, **SETTINGS
        )
        found = gradients(trainer)
        if workers.first:
            torch.save(found, folder / f"gradients-{accumulation}.pt")
    disconnect()


if __name__ == "__main__":
    main()
