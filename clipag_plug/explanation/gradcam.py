"""Grad-CAM (Selvaraju et al. 2017) on any image tower, and gScoreCAM (Chen et al. 2022).

Images are (N, 3, side, side) in [0, 1], texts unit features (N, M, D): M texts for each image.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..guide import Guide
from .layers import Layer, cut_at

CHANNELS = 300


def gradcam(guide: Guide, images: Tensor, texts: Tensor, *, layer: Layer) -> Tensor:
    """ReLU of the layer's channels, each weighted by the score's gradient for it; (N, M, h, w), not scaled.

    The weight of a channel is its mean gradient over the places of the map. Behind the last block of
    a ViT that pools its class token, patches reach no output and their gradient is zero; the
    gradient at the class token takes its place (as in the implementation that CLIPAG's figure used).
    """
    maps, gradients = maps_and_gradients(guide, images, texts, layer)
    weights = torch.stack([_weights(layer, gradient) for gradient in gradients], dim=1)
    return torch.einsum("nmc,nchw->nmhw", weights, maps).relu()


def plain_gradcam(guide: Guide, images: Tensor, texts: Tensor, *, layer: Layer) -> Tensor:
    """Grad-CAM with the mean gradient of the patches, whatever the tower; see `gradcam`.

    Raises ValueError where that gradient is zero everywhere, so that no blank map is shown as a finding.
    """
    maps, gradients = maps_and_gradients(guide, images, texts, layer)
    if not any(layer.as_map(gradient).any() for gradient in gradients):
        raise ValueError(
            f"gradcam-naive is identically zero at {layer.name!r}: behind it only the class token reaches the "
            "output, so no patch has a gradient; use gradcam (gradient at the class token) or gradcam-ln1"
        )
    weights = torch.stack([layer.as_map(gradient).mean((2, 3)) for gradient in gradients], dim=1)
    return torch.einsum("nmc,nchw->nmhw", weights.float(), maps).relu()


def gscorecam(
    guide: Guide,
    images: Tensor,
    texts: Tensor,
    *,
    layer: Layer,
    channels: int = CHANNELS,
    batch_size: int = 64,
) -> Tensor:
    """gScoreCAM (Chen et al. 2022): channels weighted by what CLIP scores through them; (N, M, h, w), not scaled.

    For each text the `channels` of largest Grad-CAM weight are kept. Each, upsampled and scaled to
    [0, 1], masks the normalised image; the softmax of the logits of the masked images, with 0 for
    the channels left out, weighs the channels. Masks are encoded `batch_size` at a time, a mask that
    several texts ask for only once.
    """
    maps, gradients = maps_and_gradients(guide, images, texts, layer)
    importance = torch.stack([_weights(layer, gradient) for gradient in gradients], dim=1)
    kept = importance.topk(min(channels, importance.shape[2]), dim=2).indices
    scale = _logit_scale(guide)
    rows = []
    for image, text, activation, chosen in zip(images, texts, maps, kept):
        union, place = torch.unique(chosen, return_inverse=True)
        logits = scale * _masked_features(guide, image, activation[union], batch_size) @ text.T
        scores = torch.zeros(importance.shape[1:], device=images.device)
        scores.scatter_(1, chosen, logits.T.gather(1, place))
        rows.append(torch.einsum("mc,chw->mhw", scores.softmax(1), activation))
    return torch.stack(rows).relu()


def maps_and_gradients(
    guide: Guide, images: Tensor, texts: Tensor, layer: Layer
) -> tuple[Tensor, list[Tensor]]:
    """The layer's maps (N, C, h, w), and for each text the gradient of its cosine to the layer's raw output."""
    with torch.enable_grad(), cut_at(layer) as leaves:
        features = guide.features(images)
        leaf, count = leaves[-1], texts.shape[1]
        gradients = [
            torch.autograd.grad((features * texts[:, i]).sum(), leaf, retain_graph=i + 1 < count)[0]
            for i in range(count)
        ]
    return layer.as_map(leaf.detach()).float(), gradients


def masks(activations: Tensor, side: int) -> Tensor:
    """Channels (K, h, w) as masks (K, 1, side, side): upsampled, each scaled to [0, 1]; one of zeros stays 0."""
    up = F.interpolate(activations[:, None], size=(side, side), mode="bilinear", align_corners=True)
    low, high = up.amin((2, 3), keepdim=True), up.amax((2, 3), keepdim=True)
    return (up - low) / (high - low + 1e-6)


@torch.no_grad()
def _masked_features(guide: Guide, image: Tensor, activations: Tensor, batch_size: int) -> Tensor:
    """Unit features (K, D) of one image (3, side, side) behind each of K channels."""
    seen = (image - guide.mean[0]) / guide.std[0]
    pieces = [
        guide.features(masks(piece, guide.side) * seen, normalize=False)
        for piece in activations.split(batch_size)
    ]
    return torch.cat(pieces)


def _weights(layer: Layer, gradient: Tensor) -> Tensor:
    """Channel weights (N, C) from a gradient of the layer's output."""
    places = layer.as_map(gradient)
    if layer.prefix and not places.any():
        return layer.class_token(gradient).float()
    return places.mean((2, 3)).float()


def _logit_scale(guide: Guide) -> Tensor:
    scale: Tensor = guide.model.logit_scale
    return scale.detach().float().exp().squeeze()
