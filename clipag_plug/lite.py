"""EfficientNet-Lite as an image tower: pretrained elsewhere, small enough to ship in the package."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .mini import area_weights

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
    """Convolution padded as TensorFlow pads "same": odd padding goes below and to the right."""

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for side, kernel, stride in zip(
            reversed(x.shape[-2:]), reversed(self.kernel_size), reversed(self.stride)
        ):
            missing = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
            pads += [missing // 2, missing - missing // 2]
        if pads[0] == pads[1] and pads[2] == pads[3]:
            return F.conv2d(x, self.weight, None, self.stride, (pads[2], pads[0]), 1, self.groups)
        return F.conv2d(F.pad(x, pads), self.weight, None, self.stride, 0, 1, self.groups)


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
        y = self.act(self.bn1(self.conv_dw(x)))
        y = self.bn2(self.conv_pw(y))
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
        y = self.act(self.bn1(self.conv_pw(x)))
        y = self.act(self.bn2(self.conv_dw(y)))
        y = self.bn3(self.conv_pwl(y))
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
        x = self.blocks(self.act(self.bn1(self.conv_stem(x))))
        return self.act(self.bn2(self.conv_head(x)))

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
