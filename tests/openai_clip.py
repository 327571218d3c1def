"""OpenAI's published networks written a second time from their description: the oracle, slow and plain."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """Pre-norm attention, (L, N, D) in and out, the mask inside."""

    def __init__(self, width: int, heads: int, mask: Tensor | None) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        parts = [("c_fc", nn.Linear(width, 4 * width)), ("gelu", QuickGELU())]
        self.mlp = nn.Sequential(OrderedDict([*parts, ("c_proj", nn.Linear(4 * width, width))]))
        self.attn_mask = mask

    def attention(self, x: Tensor) -> Tensor:
        mask = None if self.attn_mask is None else self.attn_mask.to(x)
        return self.attn(x, x, x, need_weights=False, attn_mask=mask)[0]

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Blocks(nn.Module):
    def __init__(self, width: int, heads: int, layers: int, mask: Tensor | None = None) -> None:
        super().__init__()
        self.width, self.layers = width, layers
        self.resblocks = nn.Sequential(*(Block(width, heads, mask) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x)


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_resolution, self.output_dim = 64, 32
        self.conv1 = nn.Conv2d(3, 64, 16, 16, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(64))
        self.positional_embedding = nn.Parameter(torch.randn(17, 64))
        self.ln_pre, self.ln_post = nn.LayerNorm(64), nn.LayerNorm(64)
        self.transformer = Blocks(64, 1, 2)
        self.proj = nn.Parameter(torch.randn(64, 32) / 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, 64), x], 1)
        x = self.ln_pre(x + self.positional_embedding).permute(1, 0, 2)
        x = self.transformer(x).permute(1, 0, 2)
        x = self.ln_post(x[:, 0])
        return x if self.proj is None else x @ self.proj


class Bottleneck(nn.Module):
    def __init__(self, inside: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inside, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2, self.bn3 = nn.BatchNorm2d(planes), nn.BatchNorm2d(planes * 4)
        self.conv3 = nn.Conv2d(planes, planes * 4, 1, bias=False)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.pool = stride
        self.downsample = None
        if stride > 1 or inside != planes * 4:
            conv = nn.Conv2d(inside, planes * 4, 1, bias=False)
            norm = nn.BatchNorm2d(planes * 4)
            self.downsample = nn.Sequential(
                OrderedDict([("-1", nn.AvgPool2d(stride)), ("0", conv), ("1", norm)])
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(F.avg_pool2d(y, self.pool)))
        return self.relu3(y + (x if self.downsample is None else self.downsample(x)))


class Pool(nn.Module):
    def __init__(self, places: int, width: int, heads: int, out: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(places + 1, width) / 8)
        self.k_proj, self.q_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.c_proj = nn.Linear(width, width), nn.Linear(width, out)
        self.num_heads = heads

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positional_embedding
        parts = (self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x))
        q, k, v = (p.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for p in parts)
        y = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1) @ v
        return self.c_proj(y.transpose(1, 2).flatten(2)[:, 0])


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_resolution, self.output_dim, width = 64, 32, 16
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.conv3 = nn.Conv2d(8, 16, 3, padding=1, bias=False)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.BatchNorm2d(16)
        self.relu1, self.relu2, self.relu3 = nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.avgpool = nn.AvgPool2d(2)
        self.layer1 = nn.Sequential(Bottleneck(16, 16, 1), Bottleneck(64, 16, 1))
        self.layer2 = nn.Sequential(Bottleneck(64, 32, 2))
        self.layer3 = nn.Sequential(Bottleneck(128, 64, 2))
        self.layer4 = nn.Sequential(Bottleneck(256, 128, 2))
        self.attnpool = Pool(4, width * 32, width * 32 // 64, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        x = self.avgpool(self.relu3(self.bn3(self.conv3(x))))
        return self.attnpool(self.layer4(self.layer3(self.layer2(self.layer1(x)))))


class OpenAIModel(nn.Module):
    """A tiny model with the attributes and the axis order of OpenAI's `clip`, random."""

    def __init__(self, tower: str = "ViT") -> None:
        super().__init__()
        self.context_length, self.vocab_size = 77, 49408
        mask = torch.full((77, 77), float("-inf")).triu(1)
        self.visual: Any = {"ViT": ViT, "ResNet": ResNet}[tower]()
        self.transformer = Blocks(64, 1, 2, mask)
        self.token_embedding = nn.Embedding(49408, 64)
        self.positional_embedding = nn.Parameter(torch.randn(77, 64))
        self.ln_final = nn.LayerNorm(64)
        self.text_projection = nn.Parameter(torch.randn(64, 32) / 8)
        self.logit_scale = nn.Parameter(torch.tensor(4.6))

    def encode_image(self, image: Tensor) -> Tensor:
        return self.visual(image)

    def encode_text(self, text: Tensor) -> Tensor:
        x = (self.token_embedding(text) + self.positional_embedding).permute(1, 0, 2)
        x = self.ln_final(self.transformer(x).permute(1, 0, 2))
        return x[torch.arange(len(x)), text.argmax(-1)] @ self.text_projection

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        images, texts = self.encode_image(image), self.encode_text(text)
        images, texts = (x / x.norm(dim=1, keepdim=True) for x in (images, texts))
        scores = self.logit_scale.exp() * images @ texts.t()
        return scores, scores.t()


def original(tower: str = "ViT") -> OpenAIModel:
    """A random original in evaluation mode, whose normalisations have seen some data."""
    torch.manual_seed(0)
    model = OpenAIModel(tower)
    with torch.no_grad():
        model.train().visual(torch.randn(8, 3, 64, 64))
    return model.eval()
