"""Several workers on one job: who am I, what do the others have. Everything is a no-op for a single process.

The workers of `torchrun` share a batch: each encodes and attacks its own images, sees every feature, and computes
its rows of the loss. The features' gradients are summed, then the weights', which gives those of the one big batch.
Wrapping the model (DDP) would repeat that last sum for every micro-batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


@dataclass(frozen=True)
class Workers:
    """This process's place among `size` of them. `device`: where its share of the work runs."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def first(self) -> bool:
        """Whether this is the worker that writes files and talks."""
        return self.rank == 0

    def all(self, mine: Tensor) -> Tensor:
        """Everybody's rows, by rank, without a graph: (N, ...) each -> (size * N, ...)."""
        if self.size == 1:
            return mine.detach()
        rows = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(rows, mine.detach().contiguous())
        return torch.cat(rows)

    def sum(self, mine: Tensor) -> Tensor:
        """The sum of everybody's tensor; the given one is overwritten."""
        if self.size > 1:
            dist.all_reduce(mine)
        return mine

    def objects(self, mine: Any) -> list[Any]:
        """Everybody's picklable object, by rank."""
        if self.size == 1:
            return [mine]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, mine)
        return found

    def lists(self, mine: list[Any]) -> list[Any]:
        """Everybody's items, by rank."""
        return [item for each in self.objects(mine) for item in each]

    def sum_all(self, tensors: Iterable[Tensor]) -> None:
        """Replaces each tensor by its sum over the workers."""
        if self.size > 1:
            waiting = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
            for each in waiting:
                each.wait()

    def average_buffers(self, module: torch.nn.Module) -> None:
        """Averages floating-point buffers: the running statistics of batch normalisation, which each worker
        gathers from its own micro-batches, as gradient accumulation does."""
        if self.size > 1:
            buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
            self.sum_all(buffers)
            for buffer in buffers:
                buffer /= self.size

    def any(self, *mine: bool) -> list[bool]:
        """Whether each of them holds for any worker."""
        if self.size == 1:
            return list(mine)
        flags = torch.tensor([float(flag) for flag in mine], device=self.device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return [bool(flag) for flag in flags]


def connect(device: str = "") -> Workers:
    """Joins the job that torchrun's environment describes: nccl on CUDA, gloo on the CPU; alone without one.

    device: asked-for device, empty for CUDA where there is one. Each worker of a machine takes the GPU of its
    local rank.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if size == 1:
        return Workers(device=kind)
    if kind == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        torch.cuda.set_device(local)
        kind = f"cuda:{local}"
    if not dist.is_initialized():
        dist.init_process_group("nccl" if kind.startswith("cuda") else "gloo")
    return Workers(dist.get_rank(), size, kind)


def disconnect() -> None:
    """Leaves the job, where there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
