"""The image tower of the bundled models: small enough to ship in the package and to train on a laptop."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .towers.vit import exporting

ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "relu": nn.ReLU}


def area_weights(size_in: int, size_out: int) -> Tensor:
    """Weights (size_out, size_in) of exact area averaging along one axis; every row sums to 1.

    Output pixel i is the mean of the input over [i, i+1) * size_in / size_out, pixels that the interval
    cuts counted by the part inside. Averaging this way cannot alias and its gradient has no holes.
    """
    scale = size_in / size_out
    starts = torch.arange(size_out, dtype=torch.float64)[:, None] * scale
    pixels = torch.arange(size_in, dtype=torch.float64)[None, :]
    overlap = torch.minimum(starts + scale, pixels + 1) - torch.maximum(starts, pixels)
    return (overlap.clamp(min=0) / scale).float()


class Block(nn.Module):
    """Residual block of two 3x3 convolutions (He et al. 2016).

    A smooth activation (SiLU) in place of ReLU gives smoother input gradients and a better robust
    accuracy (Xie et al. 2020).
    """

    def __init__(self, width_in: int, width: int, stride: int, act: type[nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.act = act()
        self.shortcut = (
            nn.Identity()
            if width_in == width and stride == 1
            else _Projection(width_in, width, stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn1(self.conv1(x)))
        return self.act(self.bn2(self.conv2(y)) + self.shortcut(x))


class _Projection(nn.Sequential):
    """Shortcut across a change of width or size: average pooling before the 1x1, so that no pixel is skipped."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        # ceil_mode keeps odd sides in step with the strided convolution: 5 -> 3.
        pool = (
            nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
            if stride > 1
            else nn.Identity()
        )
        super().__init__(pool, nn.Conv2d(width_in, width, 1, bias=False), nn.BatchNorm2d(width))


class MiniVisual(nn.Module):
    """A small residual network that takes CLIP's 224x224 input and works at `image_size` internally.

    widths, depths: channels and residual blocks of each stage; every stage after the first halves the side.
    stem: kernel of the first convolution; patch: its stride. activation: "silu" or "relu".
    forward: normalised images (N, 3, H, W) -> raw features (N, embed_dim). Any other side than `image_size`
    is reduced by exact area averaging, which is differentiable and free of aliasing.
    """

    def __init__(
        self,
        embed_dim: int,
        image_size: int = 32,
        widths: Sequence[int] = (40, 80, 160, 320),
        depths: Sequence[int] = (1, 1, 1, 1),
        stem: int = 4,
        patch: int = 2,
        activation: str = "silu",
        input_resolution: int = 224,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.input_resolution = input_resolution
        self.output_dim = embed_dim
        self.conv1 = nn.Conv2d(3, widths[0], stem, patch, (stem - patch) // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        act = ACTIVATIONS[activation]
        self.act = act()
        stages: list[nn.Module] = []
        width_in = widths[0]
        for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = [Block(width_in, width, 2 if index else 1, act)]
            blocks += [Block(width, width, 1, act) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
            width_in = width
        self.stages = nn.Sequential(*stages)
        self.proj = nn.Linear(width_in, embed_dim)

    def forward(self, images: Tensor) -> Tensor:
        x = self.reduce(images).contiguous(memory_format=torch.channels_last)
        x = self.act(self.bn1(self.conv1(x)))
        return self.proj(self.stages(x).mean((2, 3)))

    def reduce(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) area-averaged to (N, C, image_size, image_size); unchanged at that size."""
        height, width = images.shape[-2:]
        if (height, width) == (self.image_size, self.image_size):
            return images
        rows, columns = (_reducer(n, self.image_size, images) for n in (height, width))
        return rows @ images @ columns.T


def _reducer(size_in: int, size_out: int, like: Tensor) -> Tensor:
    key = (size_in, size_out, like.device, like.dtype)
    if exporting():  # a tensor of the recording must not outlive it
        return area_weights(size_in, size_out).to(like)
    if key not in _REDUCERS:
        # Made in inference mode it could never be differentiated through again.
        with torch.inference_mode(False):
            _REDUCERS[key] = area_weights(size_in, size_out).to(like)
    return _REDUCERS[key]


_REDUCERS: dict[tuple[int, int, torch.device, torch.dtype], Tensor] = {}


def grown(
    config: dict[str, Any], weights: dict[str, Tensor], factor: float
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The same model at `factor` times the internal side: config and weights (progressive resizing).

    A lite tower takes its weights to the new side. A mini tower starts as the same function, by whole factors:
    kernel and stride of the first convolution grow with the side, and each of its weights is spread over
    factor x factor pixels, so what it computes at first is what it computed on the averaged image; the detail
    is there to be learned. The other layers see maps of the size that they know.
    Raises ValueError where the config is of neither, the factor is below 1, or a mini tower's is not whole.
    """
    vision = config.get("vision_cfg", {})
    mini, lite = vision.get("mini"), vision.get("lite")
    if (
        (mini is None and lite is None)
        or factor < 1
        or (mini is not None and factor != int(factor))
    ):
        raise ValueError(
            "only a mini tower can grow, by a whole number of 1 or more, or a lite tower, by any; "
            f"got {sorted(vision)}, {factor:g}"
        )
    if mini is None:
        lite = {**lite, "image_size": round(lite.get("image_size", 96) * factor)}
        return {**config, "vision_cfg": {**vision, "lite": lite}}, weights
    factor = int(factor)
    stem, patch = mini.get("stem", 4), mini.get("patch", 2)
    if (stem - patch) % 2:
        # Only then is the padding, (stem - patch) // 2, whole at every factor.
        raise ValueError(f"stem {stem} and stride {patch} must differ by an even number")
    config = copy.deepcopy(config)
    config["vision_cfg"]["mini"] |= {
        "image_size": mini["image_size"] * factor,
        "stem": stem * factor,
        "patch": patch * factor,
    }
    kernel = weights["visual.conv1.weight"]
    spread = kernel.repeat_interleave(factor, 2).repeat_interleave(factor, 3) / factor**2
    return config, {**weights, "visual.conv1.weight": spread}
