"""The residual network of CLIP (Radford et al. 2021), with the modules and names of `clip`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Bottleneck(nn.Module):
    """A bottleneck block (He et al. 2016) that averages where others stride. forward: (N, C, H, W)."""

    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        wide = planes * self.expansion
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1, self.relu1 = nn.BatchNorm2d(planes), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2, self.relu2 = nn.BatchNorm2d(planes), nn.ReLU(inplace=True)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, wide, 1, bias=False)
        self.bn3, self.relu3 = nn.BatchNorm2d(wide), nn.ReLU(inplace=True)
        self.downsample, self.stride = None, stride
        if stride > 1 or inplanes != wide:
            # "-1" has no weights, so that those behind it have the numbers of torchvision's ResNet.
            parts = [("-1", nn.AvgPool2d(stride)), ("0", nn.Conv2d(inplanes, wide, 1, bias=False))]
            self.downsample = nn.Sequential(OrderedDict([*parts, ("1", nn.BatchNorm2d(wide))]))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(self.avgpool(y)))
        y += x if self.downsample is None else self.downsample(x)
        return cast(Tensor, self.relu3(y))


class AttentionPool2d(nn.Module):
    """Pools a map by attention from its mean. forward: (N, C, H, W) -> (N, output_dim)."""

    def __init__(
        self, spacial_dim: int, embed_dim: int, num_heads: int, output_dim: int | None = None
    ) -> None:
        super().__init__()
        places = torch.empty(spacial_dim**2 + 1, embed_dim)
        self.positional_embedding = nn.Parameter(nn.init.normal_(places, std=embed_dim**-0.5))
        self.k_proj, self.q_proj, self.v_proj = (nn.Linear(embed_dim, embed_dim) for _ in range(3))
        self.c_proj = nn.Linear(embed_dim, output_dim or embed_dim)
        self.num_heads = num_heads

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).permute(2, 0, 1)
        x = torch.cat([x.mean(dim=0, keepdim=True), x])
        x = x + self.positional_embedding[:, None].to(x.dtype)
        bias = torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias])
        weights = {f"{name}_proj_weight": getattr(self, f"{name}_proj").weight for name in "qkv"}
        pooled, _ = F.multi_head_attention_forward(
            *(x[:1], x, x, x.shape[-1], self.num_heads, None, bias, None, None, False, 0.0),
            *(self.c_proj.weight, self.c_proj.bias),
            training=self.training,
            need_weights=False,
            use_separate_proj_weight=True,
            **weights,
        )
        return pooled[0]


class ModifiedResNet(nn.Module):
    """CLIP's residual network: a stem of three convolutions, averages in place of strides, pooling by attention.

    Args:
        layers: blocks of each of the four stages. width: channels of the stem.
        heads, output_dim: of the pooling. input_resolution: side of the images (N, 3, R, R), in pixels.
    """

    def __init__(
        self,
        layers: Sequence[int],
        output_dim: int,
        heads: int,
        input_resolution: int = 224,
        width: int = 64,
    ) -> None:
        super().__init__()
        self.output_dim, self.input_resolution = output_dim, input_resolution
        half = width // 2
        self.conv1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False)
        self.bn1, self.relu1 = nn.BatchNorm2d(half), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.bn2, self.relu2 = nn.BatchNorm2d(half), nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(half, width, 3, padding=1, bias=False)
        self.bn3, self.relu3 = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.avgpool = nn.AvgPool2d(2)
        self._inplanes = width
        for index, blocks in enumerate(layers):
            stage = self._make_layer(width * 2**index, blocks, 2 if index else 1)
            self.add_module(f"layer{index + 1}", stage)
        self.attnpool = AttentionPool2d(input_resolution // 32, width * 32, heads, output_dim)
        self.initialize_parameters()

    def _make_layer(self, planes: int, blocks: int, stride: int = 1) -> nn.Sequential:
        first = Bottleneck(self._inplanes, planes, stride)
        self._inplanes = planes * Bottleneck.expansion
        return nn.Sequential(first, *(Bottleneck(self._inplanes, planes) for _ in range(1, blocks)))

    def initialize_parameters(self) -> None:
        """Draws the projections of the pooling; each residual branch starts at zero (Goyal et al. 2017)."""
        std = self.attnpool.c_proj.in_features**-0.5
        for name in "qkvc":
            nn.init.normal_(getattr(self.attnpool, f"{name}_proj").weight, std=std)
        for block in self.modules():
            if isinstance(block, Bottleneck):
                nn.init.zeros_(block.bn3.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = x.type(self.conv1.weight.dtype)
        for index in (1, 2, 3):
            conv, norm, relu = (getattr(self, f"{kind}{index}") for kind in ("conv", "bn", "relu"))
            x = relu(norm(conv(x)))
        x = self.avgpool(x)
        for index in (1, 2, 3, 4):
            x = getattr(self, f"layer{index}")(x)
        return cast(Tensor, self.attnpool(x))
