"""Several workers on one job: who am I, what do the others have. Everything is a no-op for a single process.

The workers of `torchrun` share a batch: each encodes and attacks its own images, sees every feature, and computes
its rows of the loss. The features' gradients are summed, then the weights', which gives those of the one big batch.
The collectives a step needs are few and small (the features) but for that last sum, so a plain all-reduce behind the
backward pass does; wrapping the model (DDP) would repeat it for every micro-batch.
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

    def sum_gradients(self, weights: Iterable[Tensor]) -> None:
        """Replaces the `.grad` of each weight by its sum over the workers, in buckets of one dtype."""
        if self.size == 1:
            return
        _sum_all([weight.grad for weight in weights if weight.grad is not None])

    def average_buffers(self, module: torch.nn.Module) -> None:
        """Averages floating-point buffers: the running statistics of batch normalisation, which each worker
        gathers from its own micro-batches, as gradient accumulation does."""
        if self.size == 1:
            return
        buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
        _sum_all(buffers)
        for buffer in buffers:
            buffer /= self.size

    def any(self, *mine: bool) -> list[bool]:
        """Whether each of them holds for any worker."""
        if self.size == 1:
            return list(mine)
        flags = torch.tensor([float(flag) for flag in mine], device=self.device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return [bool(flag) for flag in flags]

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            dist.barrier()


BUCKET = 25 * 2**20  # bytes: few calls, and no second copy of all gradients


def _sum_all(tensors: list[Tensor]) -> None:
    """Replaces each tensor by its sum over the workers, in buckets of one dtype."""
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.flatten() for tensor in bucket])
        dist.all_reduce(flat)
        pieces = flat.split([tensor.numel() for tensor in bucket])
        for tensor, piece in zip(bucket, pieces, strict=True):
            tensor.copy_(piece.view_as(tensor))


def _buckets(tensors: list[Tensor]) -> Iterable[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size > BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel() * tensor.element_size()
    if bucket:
        yield bucket


def connect(device: str = "") -> Workers:
    """Joins the job that torchrun's environment describes: nccl on CUDA, gloo on the CPU; alone without one.

    device: asked-for device, empty for CUDA where there is one. Each worker of a machine takes the GPU of its
    local rank.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if size == 1:
        return Workers(device=kind)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if kind == "cuda":
        torch.cuda.set_device(local)
        kind = f"cuda:{local}"
    if not dist.is_initialized():
        dist.init_process_group("nccl" if kind.startswith("cuda") else "gloo")
    return Workers(dist.get_rank(), size, kind)


def disconnect() -> None:
    """Leaves the job, where there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
