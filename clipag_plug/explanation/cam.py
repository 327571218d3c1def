"""Maps from gradients: Grad-CAM on any image tower, gScoreCAM, input gradients, integrated gradients.

Images are (N, 3, side, side) in [0, 1], texts unit features (N, M, D): M texts for each image. Maps are not scaled.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..attacks import value_and_gradient

if TYPE_CHECKING:
    from ..guide import Guide

CHANNELS = 300
# Where image towers keep their blocks or stages: OpenAI's and open_clip's ViT, timm's, the ResNets,
# timm's ConvNeXt, the bundled models. The last entry of each is the deepest one.
BLOCKS = ("transformer.resblocks", "trunk.blocks")
STAGES = ("layer4", "trunk.layer4", "trunk.stages", "stages", "blocks")
FIRST_NORM = ("ln_1", "norm1")
# A coarser map says little about a place; where the last stage is, an earlier one is read.
SMALLEST_GRID = 7


@dataclass(frozen=True)
class Layer:
    """A module of an image tower and the shape of what it gives.
    kind: "map" for (N, C, h, w), "tokens" for (N, L, C), "tokens-first" for (L, N, C). prefix: tokens in front of the
    patches (class token, registers). grid: (h, w)."""

    name: str
    module: nn.Module
    kind: str
    prefix: int
    grid: tuple[int, int]

    def as_map(self, output: Tensor) -> Tensor:
        """The layer's output, or the gradient of one, as (N, C, h, w)."""
        if self.kind == "map":
            return output
        return self._tokens(output)[:, self.prefix :].transpose(1, 2).unflatten(2, self.grid)

    def class_token(self, output: Tensor) -> Tensor:
        """The class token of the output, or of a gradient, (N, C)."""
        return self._tokens(output)[:, 0]

    def _tokens(self, output: Tensor) -> Tensor:
        return output.transpose(0, 1) if self.kind == "tokens-first" else output


def find_layer(guide: Guide, name: str | None = None, *, first_norm: bool = False) -> Layer:
    """The layer to explain from: the last block of a ViT, the last stage of a convolutional tower.

    A stage coarser than 4x4 (the bundled models' last one is 2x2) gives way to the one before it.

    Args:
        name: a module of the image tower instead, as in `visual.named_modules()`.
        first_norm: the first normalisation of a ViT's last block.
    Raises: ValueError for a tower with neither blocks nor stages, and for a layer whose output is no map.
    """
    visual: Any = guide.model.visual
    kind = type(visual).__name__
    names = [each for each, _ in visual.named_modules() if each.count(".") <= 1 and each]
    examples = f"for example, {', '.join(names[-6:])}"
    if name is not None:
        name = name.removeprefix("visual.")
        if not name or _module(visual, name) is None:
            raise ValueError(f"the image tower has no layer {name!r}; there are, {examples}")
        return _probe(guide, name)
    for path in BLOCKS:
        if blocks := _module(visual, path):
            last = f"{path}.{len(blocks) - 1}"
            norms = [f"{last}.{norm}" for norm in FIRST_NORM if _module(visual, f"{last}.{norm}")]
            if first_norm and not norms:
                raise ValueError(
                    f"{last} has neither {' nor '.join(FIRST_NORM)}; name a module with layer="
                )
            return _probe(guide, norms[0] if first_norm else last)
    if first_norm:
        raise ValueError(f"gradcam-ln1 reads a ViT's last block, and {kind} has none; use gradcam")
    for path in STAGES:
        if stages := _module(visual, path):
            if not path.endswith(("stages", "blocks")):
                return _probe(guide, path)
            layers = [_probe(guide, f"{path}.{number}") for number in range(len(stages))]
            fine = [layer for layer in layers if min(layer.grid) >= SMALLEST_GRID]
            return [*layers[:1], *fine][-1]
    raise ValueError(f"no known layer in {kind}; name one of its modules with layer=, {examples}")


def _module(visual: nn.Module, path: str) -> Any:
    try:
        return visual.get_submodule(path)
    except AttributeError:
        return None


def _probe(guide: Guide, name: str) -> Layer:
    """Shows the tower one blank image: with a batch of one, the axis of size one is the batch."""
    module = guide.model.visual.get_submodule(name)
    seen: list[Any] = []
    with _hooked(module, lambda module, inputs, output: seen.append(output)), torch.no_grad():
        guide.features(torch.zeros(1, 3, guide.side, guide.side, device=guide.device))
    shape = tuple(seen[-1].shape) if isinstance(seen[-1], Tensor) else ()
    if len(shape) == 4:
        return Layer(name, module, "map", 0, (shape[2], shape[3]))
    if len(shape) == 3 and 1 in shape[:2] and max(shape[:2]) > 1:
        side = math.isqrt(max(shape[:2]))
        kind = "tokens" if shape[0] == 1 else "tokens-first"
        return Layer(name, module, kind, max(shape[:2]) - side * side, (side, side))
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


def maps_and_gradients(
    guide: Guide, images: Tensor, texts: Tensor, layer: Layer
) -> tuple[Tensor, list[Tensor]]:
    """The layer's maps (N, C, h, w), and for each text the gradient of its cosine to the layer's raw output.
    The graph starts at the layer: no gradient runs through what lies below, which saves its time and memory, and frozen
    weights are no obstacle."""
    leaves: list[Tensor] = []

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_(True))
        return leaves[-1].clone()  # what follows may write in place, which a leaf forbids

    with torch.enable_grad(), _hooked(layer.module, hook):
        features, count = guide.features(images), texts.shape[1]
        leaf = leaves[-1]
        gradients = [
            torch.autograd.grad((features * texts[:, i]).sum(), leaf, retain_graph=i + 1 < count)[0]
            for i in range(count)
        ]
    return layer.as_map(leaf.detach()).float(), gradients


def _weights(layer: Layer, gradients: list[Tensor], naive: bool = False) -> Tensor:
    """Weights (N, M, C) of the channels: the mean gradient over the places of the map.
    Behind the last block of a ViT that pools its class token, patches reach no output and their gradient is zero; the
    gradient at the class token takes its place, unless `naive` (as in the implementation that CLIPAG's figure used)."""
    rows = []
    for gradient in gradients:
        places = layer.as_map(gradient)
        token = layer.prefix and not naive and not places.any()
        rows.append((layer.class_token(gradient) if token else places.mean((2, 3))).float())
    return torch.stack(rows, dim=1)


def gradcam(
    guide: Guide, images: Tensor, texts: Tensor, *, layer: Layer, naive: bool = False
) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017), (N, M, h, w): ReLU of the layer's channels, each weighted by the score's
    gradient for it. Raises: ValueError where the `naive` gradient of the patches is zero everywhere."""
    maps, gradients = maps_and_gradients(guide, images, texts, layer)
    if naive and not any(layer.as_map(gradient).any() for gradient in gradients):
        raise ValueError(
            f"gradcam-naive is identically zero at {layer.name!r}: behind it only the class token reaches the "
            "output, so no patch has a gradient; use gradcam (gradient at the class token) or gradcam-ln1"
        )
    return torch.einsum("nmc,nchw->nmhw", _weights(layer, gradients, naive), maps).relu()


def gscorecam(
    guide: Guide,
    images: Tensor,
    texts: Tensor,
    *,
    layer: Layer,
    channels: int = CHANNELS,
    batch_size: int = 64,
) -> Tensor:
    """gScoreCAM (Chen et al. 2022): channels weighted by what CLIP scores through them; (N, M, h, w).
    For each text the `channels` of largest Grad-CAM weight are kept. Each, upsampled and scaled to [0, 1], masks the
    normalised image; the softmax of the logits of the masked images, with 0 for the channels left out, weighs the
    channels. Masks are encoded `batch_size` at a time, a mask that several texts ask for only once."""
    maps, gradients = maps_and_gradients(guide, images, texts, layer)
    importance = _weights(layer, gradients)
    kept = importance.topk(min(channels, importance.shape[2]), dim=2).indices
    scale = guide.model.logit_scale.detach().float().exp().squeeze()
    rows = []
    for image, text, activation, chosen in zip(images, texts, maps, kept):
        union, place = torch.unique(chosen, return_inverse=True)
        seen = (image - guide.mean[0]) / guide.std[0]
        with torch.no_grad():
            features = [
                guide.features(masks(piece, guide.side) * seen, normalize=False)
                for piece in activation[union].split(batch_size)
            ]
        logits = scale * torch.cat(features) @ text.T
        scores = torch.zeros(importance.shape[1:], device=images.device)
        scores.scatter_(1, chosen, logits.T.gather(1, place))
        rows.append(torch.einsum("mc,chw->mhw", scores.softmax(1), activation))
    return torch.stack(rows).relu()


def masks(activations: Tensor, side: int) -> Tensor:
    """Channels (K, h, w) as masks (K, 1, side, side): upsampled, each scaled to [0, 1]; one of zeros stays 0."""
    up = F.interpolate(activations[:, None], size=(side, side), mode="bilinear", align_corners=True)
    low, high = up.amin((2, 3), keepdim=True), up.amax((2, 3), keepdim=True)
    return (up - low) / (high - low + 1e-6)


def input_gradient(guide: Guide, images: Tensor, texts: Tensor) -> Tensor:
    """Largest magnitude over the colours of the cosine's gradient at each pixel (Simonyan et al. 2014):
    (N, M, side, side)."""
    rows = [_gradient(guide, images, text).abs().amax(1) for text in texts.unbind(1)]
    return torch.stack(rows, dim=1)


def integrated_gradients(guide: Guide, images: Tensor, texts: Tensor, *, steps: int = 32) -> Tensor:
    """What each pixel adds to the cosine on the straight way from black (Sundararajan et al. 2017): (N, M, side, side),
    negative where a place lowers it.
    The integral is taken at the midpoints of `steps` pieces; the attributions of an image sum to its cosine minus that
    of black, up to that rule's error."""
    rows = []
    for text in texts.unbind(1):
        total = sum(_gradient(guide, (k + 0.5) / steps * images, text) for k in range(steps))
        rows.append((images * total / steps).sum(1))
    return torch.stack(rows, dim=1)


def _gradient(guide: Guide, images: Tensor, text: Tensor) -> Tensor:
    return value_and_gradient(lambda x: (guide.features(x) * text).sum(1), images)[1]
