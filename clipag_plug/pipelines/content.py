"""What keeps a picture's content: features of VGG19 where its weights are asked for, else of a bundled tower."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .weights import VGG19, obtain, read

NETWORKS = ("mini", "vgg19")
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_VGG_WIDTHS = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512)


class VggContent(nn.Module):
    """conv4_2 and conv5_2 of VGG19, rectified: the published code means the convolutions, whose results the in-place
    ReLUs after them overwrite. weights: a state dict of torchvision."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for new in _VGG_WIDTHS:
            if new:
                layers += [nn.Conv2d(width, new, 3, 1, 1), nn.ReLU()]
                width = new
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        mine = self.features.state_dict()
        kept = {name: weights.get(f"features.{name}", torch.empty(0)) for name in mine}
        if any(kept[name].shape != mine[name].shape for name in mine):
            raise ValueError("the file does not hold torchvision's VGG19; give vgg19-dcbb9e9d.pth")
        self.features.load_state_dict(kept)
        self.taps = (22, len(layers) - 1)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = (images - images.new_tensor(_MEAN).view(1, 3, 1, 1)) / images.new_tensor(_STD).view(
            1, 3, 1, 1
        )
        found = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                found.append(x)
        return found


class MiniContent(nn.Module):
    """Two middle stages of a bundled tower, read at the picture's own resolution.

    Each is divided by its deviation over the first pictures seen, so that the loss counts in shares of it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.visual: Any = model.visual
        self.register_buffer("mean", torch.tensor(model.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(model.std).view(1, 3, 1, 1))
        self.scales: list[Tensor] = []

    def forward(self, images: Tensor) -> list[Tensor]:
        visual = self.visual
        x = visual.act(visual.bn1(visual.conv1((images - self.mean) / self.std)))
        found = []
        for stage in list(visual.stages)[:-1]:
            x = stage(x)
            found.append(x)
        found = found[-2:]
        if not self.scales:
            self.scales = [part.detach().std() for part in found]
        return [part / scale for part, scale in zip(found, self.scales)]


def content_network(name: str, device: torch.device, weights: str | None = None) -> nn.Module:
    """The network of this name, frozen, in evaluation mode.

    weights: a file with VGG19's. FetchError or FileNotFoundError where they cannot be had.
    """
    network: nn.Module
    if name == "vgg19":
        from pathlib import Path

        if weights and not Path(weights).is_file():
            raise FileNotFoundError(
                f"weights {weights!r} do not exist; leave --vgg out to fetch them"
            )
        network = VggContent(read(Path(weights) if weights else obtain(VGG19)))
    else:
        from .. import clip

        network = MiniContent(clip.load_model("clip-mini", device="cpu"))
    return network.to(device).eval().requires_grad_(False)
