"""The style network of CLIPStyler (Kwon & Ye 2022): a small U-Net from picture to picture."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FARTHEST = 10.0  # change of a residual network, in logits, that is passed on as it is


class UNet(nn.Module):
    """Pictures (N, 3, H, W) in [0, 1] to pictures, sides multiples of 8.

    width: of the first level. residual: add the result to the picture in logit space, so that the network begins
    near the identity, as the published fast network does by beginning as the inverse of its encoder.
    """

    def __init__(self, width: int = 16, residual: bool = False) -> None:
        super().__init__()
        self.width, self.residual = width, residual
        self.stem = nn.Sequential(nn.Conv2d(3, width, 1), Pair(width, width))
        widths = [width, width, 2 * width, 4 * width]
        self.down = nn.ModuleList(Pair(a, b) for a, b in zip(widths, widths[1:]))
        self.shrink = nn.ModuleList(nn.Conv2d(b, b, 4, 2, 1) for b in widths[1:])
        self.middle = Pair(4 * width, 8 * width)
        self.up = nn.ModuleList(
            [Pair(12 * width, 4 * width), Pair(6 * width, 2 * width), Pair(3 * width, width)]
        )
        self.last = Pair(2 * width, width)
        self.out = nn.Conv2d(width, 3, 1)
        if residual:
            nn.init.zeros_(self.out.weight)
            nn.init.constant_(self.out.bias, 0.0)  # type: ignore[arg-type]

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
        out: Tensor = F.relu(F.instance_norm(self.conv2(h))) + self.skip(x)
        return out


def padded(images: Tensor) -> Tensor:
    """Sides made multiples of 8 by repeating the border; cut the result back to the old sides."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % 8, 0, -height % 8), mode="replicate")


def seeded_unet(width: int, seed: int, residual: bool = False) -> UNet:
    """A network whose weights depend on the seed alone; the global generator stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet(width, residual)
