"""What a step in micro-batches needs: images kept between the passes, frozen parts, recomputed activations."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ..mini import Block
from ..towers.resnet import Bottleneck

IN_MEMORY = 256 * 2**20  # bytes that "auto" keeps in memory: below any model that trains on more


class Kept:
    """The images of a step's micro-batches, bit for bit, in memory or in a file.

    where: "memory", on the device that made them; "disk", in a file without a name in `folder`, gone with the process
    however that ends; "auto", there if `count` micro-batches like the first exceed IN_MEMORY. A single micro-batch
    stays in memory. The file is not mapped: its pages would count as the process's own.
    Use as a context manager. Raises OSError where the file cannot be written.
    """

    def __init__(self, where: str, count: int, folder: Path) -> None:
        self.where, self.count, self.folder = where, count, folder
        self._held: list[Any] = []  # tensors; or shape, device and place in the file
        self._file: Any = None

    def append(self, images: Tensor) -> None:
        """Keeps the images (N, 3, H, W) of the next micro-batch; contiguous when they come back."""
        images = images.detach().contiguous()
        large = self.where == "disk" or images.nbytes * self.count > IN_MEMORY
        if not self._held and self.count > 1 and self.where != "memory" and large:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115
        if self._file is None:
            self._held.append(images)
            return
        try:
            self._held.append((images.shape, images.device, self._file.seek(0, 2)))
            images.cpu().numpy().tofile(self._file)
            self._file.flush()
        except OSError as error:
            raise OSError(
                f"the adversarial images of a step do not fit on the disk of {str(self.folder)!r} ({error}); "
                "free some space, choose another --output, or use --keep memory"
            ) from error

    def __getitem__(self, place: int) -> Tensor:
        if self._file is None:
            return torch.as_tensor(self._held[place])
        shape, device, start = self._held[place]
        self._file.seek(start)
        found = np.fromfile(self._file, np.float32, shape.numel())
        return torch.from_numpy(found).view(shape).to(device)

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[place] for place in range(len(self)))

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *error: object) -> None:
        self._held.clear()
        if self._file is not None:
            self._file.close()


class Stack:
    """A preallocated tensor for equal tensors of `count` micro-batches.

    Kept one by one, small tensors between the large temporaries of the attacks leave the heap in pieces, and the
    process grows with the number of micro-batches.
    """

    def __init__(self, count: int) -> None:
        self.count, self.taken = count, 0
        self.rows: Tensor | None = None

    def put(self, value: Tensor) -> Tensor:
        """A copy of the next tensor, here; itself where it is the only one."""
        if self.count == 1:
            return value
        if self.rows is None:
            self.rows = value.new_empty(self.count, *value.shape)
        self.taken += 1
        return self.rows[self.taken - 1].copy_(value)


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


def recompute_activations(tower: Any) -> None:
    """Activation checkpointing (Chen et al. 2016): every block keeps its input alone and is run again on the way back.

    For open_clip's vision transformers and ResNets, the mini towers, and timm models that can do it. Raises ValueError
    for any other tower.
    """
    blocks: list[Any] = [m for m in tower.modules() if isinstance(m, Block | Bottleneck)]
    for block in blocks:
        block.forward = _recomputed(block, block.forward)
    try:
        if hasattr(tower, "transformer"):
            tower.transformer.grad_checkpointing = True
        elif not blocks:
            tower.trunk.set_grad_checkpointing(True)
    except (AttributeError, AssertionError, NotImplementedError) as error:
        kind = type(getattr(tower, "trunk", tower)).__name__
        raise ValueError(
            f"--checkpointing does not know the blocks of this image tower ({kind}); it takes vision transformers, "
            "ResNets, the mini towers and timm models with set_grad_checkpointing. Use a smaller --batch-size with "
            "more --accumulation instead"
        ) from error


def _recomputed(
    block: nn.Module, forward: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    def contexts() -> tuple[Any, Any]:
        return contextlib.nullcontext(), frozen_statistics(block)  # the first run counts

    def run(x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return forward(x)
        found: Tensor = checkpoint(forward, x, use_reentrant=False, context_fn=contexts)
        return found

    return run


def diagnose(
    tower: nn.Module,
    run: Callable[[Tensor], Tensor],
    inputs: Iterable[Tensor],
    weights: dict[str, nn.Parameter],
) -> str:
    """A clause that names the layer at fault: that of the first such output, else of the first such gradient."""
    for images in inputs:
        if layer := first_bad_layer(tower, run, images):
            return f"the output of layer visual.{layer} is not finite"
    for name, weight in reversed(weights.items()):  # gradients come from behind
        if weight.grad is not None and not bool(weight.grad.isfinite().all()):
            return f"the first such gradient on the way back is that of {name}"
    return "the outputs of all layers are finite"


@torch.no_grad()
def first_bad_layer(tower: nn.Module, run: Callable[[Tensor], Tensor], images: Tensor) -> str:
    """Name of the first layer, in the order of computation, whose output for the images is not finite; '' for none.

    An attack through a broken layer makes broken images: their pixels that are not finite are replaced by grey.
    """
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not bool(output.isfinite().all()):
                found.append(name)

        return hook

    leaves = [(name, layer) for name, layer in tower.named_modules() if not any(layer.children())]
    hooks = [layer.register_forward_hook(watch(name)) for name, layer in leaves]
    try:
        run(torch.where(images.isfinite(), images, 0.5))
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else ""
