"""Processes of their own for the tests of the trainer, forked from a server that has imported what they need once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["torch.distributed", "open_clip", "clipag_plug.train.command"])


def train(arguments: list[str]) -> None:
    """`clipag train`, in a fresh process."""
    import torch

    from clipag_plug.cli import main

    torch.set_num_threads(1)
    if code := main(["train", *arguments]):
        raise SystemExit(code)


def started(arguments: list[str]) -> Any:
    """A process that runs `clipag train` and that can be killed."""
    process = FORK.Process(target=train, args=(arguments,))
    process.start()
    return process


def torchrun(run: Callable[..., Any], *arguments: Any, workers: int = 2) -> None:
    """Runs `run(*arguments)` on workers as torchrun does, by its own launcher."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=workers,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        start_method="forkserver",
        max_restarts=0,
        monitor_interval=0.05,
    )
    elastic_launch(config, run)(*arguments)
