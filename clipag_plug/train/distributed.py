"""Several workers on one job: who am I, what do the others have. Everything is a no-op for a single process.

The workers of `torchrun` share a batch: each encodes and attacks its own images, all see every feature, and the
weights' gradients are summed. The loss is the same function of all features everywhere, so the sum is the gradient
of the one big batch. The collectives a step needs are few and small (the features) but for that sum, so a plain
all-reduce behind the backward pass does; wrapping the model (DDP) would repeat it for every micro-batch.
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
        """Everybody's rows, by rank: (N, ...) each -> (size * N, ...). Only the rows of this worker carry a graph."""
        if self.size == 1:
            return mine
        rows = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(rows, mine.detach().contiguous())
        rows[self.rank] = mine
        return torch.cat(rows)

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
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            pieces = flat.split([gradient.numel() for gradient in bucket])
            for gradient, piece in zip(bucket, pieces, strict=True):
                gradient.copy_(piece.view_as(gradient))

    def average_buffers(self, module: torch.nn.Module) -> None:
        """Averages floating-point buffers: the running statistics of batch normalisation, which each worker
        gathers from its own micro-batches, as gradient accumulation does."""
        if self.size == 1:
            return
        for buffer in module.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= self.size

    def any(self, mine: bool) -> bool:
        """Whether it holds for any worker."""
        if self.size == 1:
            return mine
        flag = torch.tensor(float(mine), device=self.device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            dist.barrier()


BUCKET = 25 * 2**20  # bytes: few calls, and no second copy of all gradients


def _buckets(gradients: list[Tensor]) -> Iterable[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and (size > BUCKET or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.numel() * gradient.element_size()
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
