"""The layer that a class-activation map is read from: finding it, and reading its tensor as a map."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..guide import Guide

# Where image towers keep their blocks or stages: OpenAI's and open_clip's ViT, timm's, the ResNets,
# timm's ConvNeXt, the bundled models. The last entry of each is the deepest one.
BLOCKS = ("transformer.resblocks", "trunk.blocks")
STAGES = ("layer4", "trunk.layer4", "trunk.stages", "stages")
FIRST_NORM = ("ln_1", "norm1")
# A coarser map says little about a place; where the last stage is, an earlier one is read.
SMALLEST_GRID = 4


@dataclass(frozen=True)
class Layer:
    """A module of an image tower and the shape of what it gives.

    kind: "map" for (N, C, h, w), "tokens" for (N, L, C), "tokens-first" for (L, N, C).
    prefix: tokens in front of the patches (class token, registers). grid: (h, w).
    """

    name: str
    module: nn.Module
    kind: str
    prefix: int
    grid: tuple[int, int]

    def as_map(self, output: Tensor) -> Tensor:
        """The layer's output, or the gradient of one, as (N, C, h, w)."""
        if self.kind == "map":
            return output
        tokens = self._batch_first(output)[:, self.prefix :]
        return tokens.transpose(1, 2).unflatten(2, self.grid)

    def class_token(self, output: Tensor) -> Tensor:
        """The class token of the output, or of a gradient, (N, C)."""
        return self._batch_first(output)[:, 0]

    def _batch_first(self, output: Tensor) -> Tensor:
        return output.transpose(0, 1) if self.kind == "tokens-first" else output


def find_layer(guide: Guide, name: str | None = None, *, first_norm: bool = False) -> Layer:
    """The layer to explain from: the last block of a ViT, the last stage of a convolutional tower.

    name: a module of the image tower instead, as in `visual.named_modules()`. first_norm: the first
    normalisation of the last block. A stage coarser than 4x4 (the bundled models' last one is 2x2)
    gives way to the one before it. Raises ValueError for a tower with neither blocks nor stages.
    """
    visual: Any = guide.model.visual
    if name is not None:
        return _probe(guide, name, _module(visual, name))
    blocks = [(path, _child(visual, path)) for path in BLOCKS if _child(visual, path) is not None]
    if blocks:
        path, module = blocks[0]
        return _from_block(guide, path, module, first_norm)
    if first_norm:
        raise ValueError(
            f"gradcam-ln1 reads a ViT's last block, and {type(visual).__name__} has none; use gradcam"
        )
    found = [(path, _child(visual, path)) for path in STAGES]
    stages = [(path, module) for path, module in found if module is not None]
    if not stages:
        raise ValueError(
            f"no known layer in {type(visual).__name__}; name one of its modules with layer=, "
            f"such as {_examples(visual)}"
        )
    path, module = stages[0]
    if not path.endswith("stages"):
        return _probe(guide, path, module)
    layers = [_probe(guide, f"{path}.{i}", stage) for i, stage in enumerate(module.children())]
    fine = [layer for layer in layers if min(layer.grid) >= SMALLEST_GRID]
    return fine[-1] if fine else layers[0]


@contextlib.contextmanager
def cut_at(layer: Layer) -> Iterator[list[Tensor]]:
    """Records the layer's outputs as leaves that gradients can be asked of.

    The graph starts at the layer: no gradient runs through what lies below, which saves its time
    and memory, and frozen weights are no obstacle.
    """
    leaves: list[Tensor] = []

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_(True)
        leaves.append(leaf)
        return leaf.clone()  # what follows may write in place, which a leaf forbids

    with _hooked(layer.module, hook):
        yield leaves


def _from_block(guide: Guide, path: str, blocks: Any, first_norm: bool) -> Layer:
    last = len(blocks) - 1
    if not first_norm:
        return _probe(guide, f"{path}.{last}", blocks[last])
    for norm in FIRST_NORM:
        if hasattr(blocks[last], norm):
            return _probe(guide, f"{path}.{last}.{norm}", getattr(blocks[last], norm))
    raise ValueError(
        f"{type(blocks[last]).__name__} has neither {' nor '.join(FIRST_NORM)}; name a module with layer="
    )


def _probe(guide: Guide, name: str, module: nn.Module) -> Layer:
    """Shows the tower one blank image: with a batch of one, the axis of size one is the batch."""
    shapes: list[tuple[int, ...]] = []

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        shapes.append(tuple(output.shape) if isinstance(output, Tensor) else ())

    with _hooked(module, hook), torch.no_grad():
        guide.features(torch.zeros(1, 3, guide.side, guide.side, device=guide.device))
    shape = shapes[-1] if shapes else ()
    if len(shape) == 4:
        return Layer(name, module, "map", 0, (shape[2], shape[3]))
    if len(shape) == 3 and 1 in shape[:2] and max(shape[:2]) > 1:
        length = max(shape[:2])
        side = math.isqrt(length)
        kind = "tokens" if shape[0] == 1 else "tokens-first"
        return Layer(name, module, kind, length - side * side, (side, side))
    raise ValueError(
        f"layer {name!r} gives {shape or 'no tensor'}; a map (1, C, h, w) or tokens (1, L, C) are needed"
    )


@contextlib.contextmanager
def _hooked(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _child(module: nn.Module, path: str) -> nn.Module | None:
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, nn.Module) else None


def _module(visual: nn.Module, name: str) -> nn.Module:
    name = name.removeprefix("visual.")
    modules = dict(visual.named_modules())
    if not name or name not in modules:
        raise ValueError(
            f"the image tower has no layer {name!r}; there are, for example, {_examples(visual)}"
        )
    return modules[name]


def _examples(visual: nn.Module) -> str:
    names = [name for name, _ in visual.named_modules() if name.count(".") <= 1 and name]
    return ", ".join(names[-6:])
