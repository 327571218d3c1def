"""EfficientNet-Lite as an image tower: pretrained elsewhere, small enough to ship in the package."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .mini import area_weights
from .towers.vit import exporting, hooked

# Blocks of each stage: kernel, stride, expansion, channels, repeats (Tan & Le 2019, table 1).
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
# EfficientNet-Lite 0 to 4: multipliers of width and depth.
SCALES = ((1.0, 1.0), (1.0, 1.1), (1.1, 1.2), (1.2, 1.4), (1.4, 1.8))
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
}
STEM, HEAD = (
    32,
    1280,
)  # channels of the first and the last convolution, which the Lite variants do not scale
EPS = 1e-3  # of the batch normalisations


class SameConv2d(nn.Conv2d):
    """Convolution padded as TensorFlow pads "same": odd padding goes below and to the right.

    On a CPU a depthwise one is computed in fp32 where torch's way back in bf16 takes 3 to 40 times as long: to the
    weights, and across a stride.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        quick = self.groups == 1 or not (weight.requires_grad or max(self.stride) > 1)
        if quick or x.device.type != "cpu" or exporting():
            return self._padded(x, weight, bias)
        with torch.autocast("cpu", enabled=False):
            rest = None if bias is None else bias.float()
            return self._padded(x.float(), weight.float(), rest).to(x.dtype)

    def _padded(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        pads = []
        for side, kernel, stride in zip(
            reversed(x.shape[-2:]), reversed(self.kernel_size), reversed(self.stride)
        ):
            missing = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
            pads += [missing // 2, missing - missing // 2]
        if pads[0] == pads[1] and pads[2] == pads[3]:
            return F.conv2d(x, weight, bias, self.stride, (pads[2], pads[0]), 1, self.groups)
        return F.conv2d(F.pad(x, pads), weight, bias, self.stride, 0, 1, self.groups)


def normed(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """norm(conv(x)); where a gradient flows to the pixels of a frozen network, as one convolution.

    The normalisation is then a factor and an offset of the kernel, and a sixth of the time goes with it.
    """
    moving = norm.training or conv.weight.requires_grad or norm.weight.requires_grad
    mean, variance = norm.running_mean, norm.running_var
    plain = moving or not x.requires_grad or hooked(conv) or hooked(norm)
    if plain or mean is None or variance is None:
        return cast(Tensor, norm(conv(x)))
    factor = norm.weight * (variance + norm.eps).rsqrt()
    return conv._conv_forward(x, conv.weight * factor.view(-1, 1, 1, 1), norm.bias - mean * factor)


class Separable(nn.Module):
    """Depthwise and pointwise convolution, the block of the first stage."""

    def __init__(self, width_in: int, width: int, kernel: int, stride: int, act: type) -> None:
        super().__init__()
        self.conv_dw = SameConv2d(width_in, width_in, kernel, stride, groups=width_in, bias=False)
        self.bn1 = nn.BatchNorm2d(width_in, EPS)
        self.conv_pw = nn.Conv2d(width_in, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width, EPS)
        self.act = act()
        self.skip = stride == 1 and width_in == width

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(normed(self.conv_dw, self.bn1, x))
        y = normed(self.conv_pw, self.bn2, y)
        return x + y if self.skip else y


class InvertedResidual(nn.Module):
    """Expansion, depthwise and projecting convolution (Sandler et al. 2018), without squeeze-and-excitation."""

    def __init__(
        self, width_in: int, width: int, kernel: int, stride: int, expansion: int, act: type
    ) -> None:
        super().__init__()
        inner = width_in * expansion
        self.conv_pw = nn.Conv2d(width_in, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner, EPS)
        self.conv_dw = SameConv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner, EPS)
        self.conv_pwl = nn.Conv2d(inner, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width, EPS)
        self.act = act()
        self.skip = stride == 1 and width_in == width

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(normed(self.conv_pw, self.bn1, x))
        y = self.act(normed(self.conv_dw, self.bn2, y))
        y = normed(self.conv_pwl, self.bn3, y)
        return x + y if self.skip else y


class LiteVisual(nn.Module):
    """EfficientNet-Lite (Tan & Le 2019) that takes CLIP's 224x224 input and works at `image_size` inside.

    Args:
        embed_dim: Numbers of a feature.
        variant: 0 to 4, the size of the network.
        image_size: Side in pixels at which the network works; other sides are averaged over areas.
        activation: "relu6" as published, "silu" or "hardswish".
        input_resolution: Side of the pictures that `preprocess` makes.

    Names of modules and weights are those of timm's `tf_efficientnet_lite*`, so that weights made for it fit; in place
    of its classifier there is `proj` (1280 -> embed_dim). forward: normalised images (N, 3, H, W) -> (N, embed_dim).
    """

    def __init__(
        self,
        embed_dim: int,
        variant: int = 0,
        image_size: int = 96,
        activation: str = "relu6",
        input_resolution: int = 224,
    ) -> None:
        super().__init__()
        self.image_size, self.input_resolution, self.output_dim = (
            image_size,
            input_resolution,
            embed_dim,
        )
        act = ACTIVATIONS[activation]
        widen, deepen = SCALES[variant]
        self.conv_stem = SameConv2d(3, STEM, 3, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM, EPS)
        self.act = act()
        stages: list[nn.Module] = []
        width_in = STEM
        for index, (kernel, stride, expansion, width, repeats) in enumerate(STAGES):
            width = round_width(width * widen)
            if 0 < index < len(STAGES) - 1:  # the Lite variants keep the ends as they are
                repeats = math.ceil(repeats * deepen)
            blocks: list[nn.Module] = []
            for number in range(repeats):
                step = 1 if number else stride
                blocks.append(
                    InvertedResidual(width_in, width, kernel, step, expansion, act)
                    if expansion > 1
                    else Separable(width_in, width, kernel, step, act)
                )
                width_in = width
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv_head = nn.Conv2d(width_in, HEAD, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(HEAD, EPS)
        self.proj = nn.Linear(HEAD, embed_dim)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(self.maps(images).mean((2, 3)))

    def maps(self, images: Tensor) -> Tensor:
        """Activations (N, 1280, h, w) in front of the pooling, of normalised images (N, 3, H, W)."""
        x = self.reduce(images).contiguous(memory_format=torch.channels_last)
        x = self.blocks(self.act(normed(self.conv_stem, self.bn1, x)))
        return self.act(normed(self.conv_head, self.bn2, x))

    def reduce(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) averaged over areas to (N, C, image_size, image_size); unchanged at that size."""
        if images.shape[-2:] == (self.image_size, self.image_size):
            return images
        rows, columns = (
            area_weights(side, self.image_size).to(images) for side in images.shape[-2:]
        )
        return rows @ images @ columns.T


def round_width(width: float, divisor: int = 8) -> int:
    """Channels rounded to a multiple of `divisor`, never by more than a tenth downwards (Howard et al. 2017)."""
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * width else rounded
