"""The networks of CLIPStyler (Kwon & Ye 2022): a U-Net that styles, and what measures that content is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .loading import read_tensors

FARTHEST = 10.0  # change of a residual network, in logits, that is passed on as it is
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as VGG19 was trained


class UNet(nn.Module):
    """Pictures (N, 3, H, W) in [0, 1] to pictures, sides multiples of 8.
    width: of the first level.
    residual: add the result to the picture in logit space, so that the network begins near the identity."""

    def __init__(self, width: int = 16, residual: bool = False) -> None:
        super().__init__()
        self.residual = residual
        self.stem = nn.Sequential(nn.Conv2d(3, width, 1), Pair(width, width))
        widths = [width, width, 2 * width, 4 * width]
        self.down = nn.ModuleList(Pair(a, b) for a, b in zip(widths, widths[1:]))
        self.shrink = nn.ModuleList(nn.Conv2d(b, b, 4, 2, 1) for b in widths[1:])
        self.middle = Pair(4 * width, 8 * width)
        self.up = nn.ModuleList(Pair(3 * times * width, times * width) for times in (4, 2, 1))
        self.last = Pair(2 * width, width)
        self.out = nn.Conv2d(width, 3, 1)
        if residual:
            for parameter in self.out.parameters():
                nn.init.zeros_(parameter)

    @classmethod
    def seeded(cls, width: int, seed: int, residual: bool = False) -> UNet:
        """A network whose weights depend on the seed alone; the global generator stays as it is."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(width, residual)

    def forward(self, images: Tensor) -> Tensor:
        first = x = self.stem(images)
        kept = []
        for block, shrink in zip(self.down, self.shrink):
            kept.append(block(x))
            x = shrink(kept[-1])
        x = self.middle(x)
        for block, skip in zip(self.up, reversed(kept)):
            x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
            x = block(torch.cat([x, skip], 1))
        x = self.out(self.last(torch.cat([x, first], 1)))
        if self.residual:
            # Bounded, or a long step drives the sigmoid to an exact 0, from which no gradient leads back.
            near = x.clamp(-FARTHEST, FARTHEST)
            x = near + F.softsign(x - near) + images.clamp(0.02, 0.98).logit()
        return x.sigmoid()


class Pair(nn.Module):
    """Two 3x3 convolutions with instance normalisation and ReLU, plus a 1x1 shortcut."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, 1, 1)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1)
        self.skip = nn.Conv2d(width_in, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(F.instance_norm(self.conv1(x)))
        return F.relu(F.instance_norm(self.conv2(h))) + self.skip(x)


def padded(images: Tensor) -> Tensor:
    """Sides made multiples of 8 by repeating the border; cut the result back to the old sides."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % 8, 0, -height % 8), mode="replicate")


class VggContent(nn.Module):
    """conv4_2 and conv5_2 of VGG19 (Simonyan & Zisserman 2015), rectified: the published code means the convolutions,
    whose results the in-place ReLUs after them overwrite. features: those of torchvision's `vgg19`."""

    def __init__(self, features: nn.Sequential) -> None:
        super().__init__()
        self.features = features

    def forward(self, images: Tensor) -> list[Tensor]:
        mean, std = (images.new_tensor(each).view(1, 3, 1, 1) for each in (MEAN, STD))
        middle = self.features[:23]((images - mean) / std)
        return [middle, self.features[23:32](middle)]


class MiniContent(nn.Module):
    """Two middle stages of a bundled tower, read at the picture's own resolution.
    Each is divided by its deviation over the first pictures seen, so that the loss counts in shares of it."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.visual: Any = model.visual
        self.register_buffer("mean", torch.tensor(model.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(model.std).view(1, 3, 1, 1))
        self.scales: list[Tensor] = []

    def forward(self, images: Tensor) -> list[Tensor]:
        visual, found = self.visual, list[Tensor]()
        lite = hasattr(visual, "conv_stem")
        stem, stages = (visual.conv_stem, visual.blocks) if lite else (visual.conv1, visual.stages)
        x = visual.act(visual.bn1(stem((images - self.mean) / self.std)))
        for stage in stages[: 5 if lite else -1]:
            x = stage(x)
            found.append(x)
        chosen = found[-3::2] if lite else found[-2:]  # strides of 8 and 16, or what comes nearest
        self.scales = self.scales or [part.detach().std() for part in chosen]
        return [part / scale for part, scale in zip(chosen, self.scales)]


def content_network(name: str, device: torch.device, weights: str | None = None) -> nn.Module:
    """The network that measures content, frozen, in evaluation mode.
    name: "vgg19", the published one, or "mini", a bundled tower.
    weights: a file with VGG19's, instead of the download.
    Raises: OSError where they cannot be had, ValueError where the file is another's."""
    if name == "mini":
        from .. import clip

        network: nn.Module = MiniContent(clip.load_model("clip-mini", device="cpu"))
    else:
        from torchvision.models import VGG19_Weights, vgg19

        model = vgg19(weights=None if weights else VGG19_Weights.IMAGENET1K_V1)
        try:
            if weights:
                model.load_state_dict(read_tensors(Path(weights)))
        except RuntimeError as error:
            raise ValueError(
                f"{weights!r} does not hold torchvision's VGG19; give vgg19-dcbb9e9d.pth"
            ) from error
        network = VggContent(model.features)
    return network.to(device).eval().requires_grad_(False)
