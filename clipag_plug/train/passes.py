"""What differs between the passes of a step: frozen weights, frozen running statistics, recomputed activations."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..mini import Block


@contextlib.contextmanager
def frozen(weights: Iterable[nn.Parameter]) -> Iterator[None]:
    """The weights need no gradient inside: an attack then neither keeps the activations that their gradients would
    take nor computes anything for them."""
    needing = [weight for weight in weights if weight.requires_grad]
    for weight in needing:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in needing:
            weight.requires_grad_(True)


@contextlib.contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Batch normalisation works as in training, by the batch's own statistics, and leaves the running ones alone.

    For passes that see images which another pass of the same step counts.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    kept = [dict(layer._buffers) for layer in layers]
    for layer in layers:  # copies take what this pass counts, and go
        layer._buffers.update({n: b if b is None else b.clone() for n, b in layer._buffers.items()})
    try:
        yield
    finally:
        for layer, buffers in zip(layers, kept, strict=True):
            layer._buffers.update(buffers)


def return_memory() -> None:
    """Hands freed memory back to the system where the C library is glibc, which else keeps what the loss of a large
    batch took, in pieces too small for the next attack."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def recompute_activations(tower: nn.Module) -> None:
    """Activation checkpointing (Chen et al. 2016): every block keeps its input alone and is run again on the way back.

    For open_clip's vision transformers and ResNets, the mini towers, and timm models that can do it. Raises ValueError
    for any other tower.
    """
    transformer: Any = getattr(tower, "transformer", None)
    if hasattr(transformer, "grad_checkpointing"):
        transformer.grad_checkpointing = True
        return
    if hasattr(tower, "trunk"):
        _recompute_timm(tower.trunk)
        return
    blocks = [module for module in tower.modules() if isinstance(module, _residual_blocks())]
    if not blocks:
        raise ValueError(_cannot(type(tower).__name__))
    for block in blocks:
        block.forward = _recomputed(block, block.forward)


def _recompute_timm(trunk: Any) -> None:
    try:
        trunk.set_grad_checkpointing(True)
    except (AttributeError, AssertionError, NotImplementedError) as error:
        raise ValueError(_cannot(f"timm's {type(trunk).__name__}")) from error


def _cannot(kind: str) -> str:
    return (
        f"--checkpointing does not know the blocks of this image tower ({kind}); it takes vision transformers, "
        "ResNets, the mini towers and timm models with set_grad_checkpointing. Use a smaller --batch-size with more "
        "--accumulation instead"
    )


def _residual_blocks() -> tuple[type[nn.Module], ...]:
    from ..towers import Bottleneck

    return Block, Bottleneck


def _recomputed(
    block: nn.Module, forward: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    def contexts() -> tuple[Any, Any]:
        return contextlib.nullcontext(), frozen_statistics(block)  # the first run counts

    def run(x: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        if not torch.is_grad_enabled():
            return forward(x)
        found: Tensor = checkpoint(forward, x, use_reentrant=False, context_fn=contexts)
        return found

    return run
