"""Where a run went wrong: the first layer whose output, or the first weight whose gradient, is not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def first_bad_layer(
    model: torch.nn.Module, encode: Callable[[Tensor], Tensor], images: Tensor
) -> str:
    """Name of the first layer, in the order of computation, whose output for the images is not finite; '' for none.

    An attack through a broken layer makes broken images: their pixels that are not finite are replaced by grey.
    """
    images = torch.where(images.isfinite(), images, 0.5)
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not bool(output.isfinite().all()):
                found.append(name)

        return hook

    leaves = [
        (name, module) for name, module in model.named_modules() if not any(module.children())
    ]
    hooks = [module.register_forward_hook(watch(name)) for name, module in leaves]
    try:
        encode(images)
    finally:
        for handle in hooks:
            handle.remove()
    return found[0] if found else ""


def bad_gradients(weights: dict[str, torch.nn.Parameter]) -> list[str]:
    """Names of the weights whose gradient is not finite, the last layer first: gradients come from behind."""
    return [
        name
        for name, weight in reversed(weights.items())
        if weight.grad is not None and not bool(weight.grad.isfinite().all())
    ]


def diagnose(
    tower: torch.nn.Module,
    encode: Callable[[Tensor], Tensor],
    inputs: Iterable[Tensor],
    weights: dict[str, torch.nn.Parameter],
) -> str:
    """A clause that names the layer at fault: that of the first such output, else of the first such gradient."""
    for images in inputs:
        if layer := first_bad_layer(tower, encode, images):
            return f"the output of layer visual.{layer} is not finite"
    if bad := bad_gradients(weights):
        return f"the first such gradient on the way back is that of {bad[0]}"
    return "the outputs of all layers are finite"
