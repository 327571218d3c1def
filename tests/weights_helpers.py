"""What the tests of weight files share: a small model with ViT-B/32's names, and its features."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Every name of a ViT-B/32 checkpoint, at a width that keeps files small.
B32: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 64, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 12},
}
# The least that is still a CLIP: for faults, where only the bytes matter.
SMALL: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 64, "layers": 1, "width": 64, "patch_size": 32},
    "text_cfg": {"context_length": 8, "vocab_size": 300, "width": 64, "heads": 1, "layers": 1},
}


def config(quick_gelu: bool = False, base: dict[str, Any] = B32) -> dict[str, Any]:
    return {**copy.deepcopy(base), "quick_gelu": quick_gelu}


@functools.cache
def _reference(quick_gelu: bool, small: bool) -> Any:
    import open_clip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        net = open_clip.CLIP(**config(quick_gelu, SMALL if small else B32)).eval()
    with torch.no_grad():
        for name, value in net.named_parameters():
            # open_clip starts biases at zero and gains at one, which would hide a mix-up.
            if value.ndim < 2 and name != "logit_scale":
                value.add_(torch.linspace(-0.2, 0.2, value.numel()))
    return net


def reference(quick_gelu: bool = False, small: bool = False) -> Any:
    """open_clip's model itself, random, the same in every test."""
    return _reference(quick_gelu, small)


def weights(quick_gelu: bool = False, small: bool = False) -> dict[str, Tensor]:
    return {
        name: value.clone() for name, value in reference(quick_gelu, small).state_dict().items()
    }


def inputs(small: bool = False) -> tuple[Tensor, Tensor]:
    side, length, last = (64, 8, 299) if small else (224, 77, 49407)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, side, side, generator=generator)
    tokens = torch.randint(1, last, (2, length), generator=generator)
    tokens[:, 5] = last
    return images, tokens


def features(model: Any, small: bool = False) -> tuple[Tensor, Tensor]:
    images, tokens = inputs(small)
    with torch.no_grad():
        return model.encode_image(images), model.encode_text(tokens)


def assert_same_features(model: Any, other: Any, small: bool = False) -> None:
    for mine, wanted in zip(features(model, small), features(other, small), strict=True):
        assert torch.equal(mine, wanted)


def save(path: Path, value: Any) -> str:
    torch.save(value, path)
    return str(path)


def arch(folder: Path, small: bool = False) -> str:
    """`arch=FILE` of a config file for the weights here: no config of open_clip has their shapes."""
    path = folder / "arch.json"
    path.write_text(json.dumps(SMALL if small else B32))
    return f"arch={path}"


def build(state: dict[str, Tensor], made: dict[str, Any]) -> Any:
    """open_clip's model of a config with these weights."""
    import open_clip

    net = open_clip.CLIP(**{"quick_gelu": False, **made}).eval()
    net.load_state_dict(state)
    return net
