"""Half precision agrees with fp32 to the tolerance that docs/checkpoints.md states, for every architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clipag_plug.model import build
from clipag_plug.weights import configs, registry

TOLERANCE = {"fp16": 2e-3, "bf16": 2e-2}  # of the length of a feature
ARCHS = sorted({record.arch or "" for record in registry.checkpoints() if not record.bundled})


def shallow(arch: str, small: bool) -> dict[str, Any]:
    """The architecture with two blocks a tower; small: narrower too, where it is a vision transformer."""
    config = configs.named(arch)
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "layers" in vision:
        vision["layers"] = 2 if isinstance(vision["layers"], int) else [1, 1, 1, 1]
    text.pop("hf_tokenizer_name", None)
    text |= {"layers": 2, "vocab_size": 1000}
    if small:
        vision |= {"width": 128, "head_width": 64, "image_size": 4 * vision.get("patch_size", 16)}
        text |= {"width": 128, "heads": 2}
    return config


def differences(config: dict[str, Any]) -> dict[str, tuple[float, ...]]:
    """The largest relative error of a feature of an image and of a text, by precision."""
    torch.manual_seed(0)
    model = build(config, None)
    for name, value in model.state_dict().items():
        if name.endswith(("gamma", "bn3.weight")):
            value.fill_(
                0.3
            )  # near zero in a fresh network, which so computes nothing in its branches
    images = torch.randn(2, 3, *(model.visual.input_resolution,) * 2)
    tokens = torch.randint(1, 900, (2, model.context_length))
    tokens[:, 5] = 999
    found = {}
    for precision in ("fp32", "fp16", "bf16"):
        low = build(config, model.state_dict(), precision=precision)
        with torch.no_grad():
            found[precision] = low.encode_image(images).float(), low.encode_text(tokens).float()
    return {
        precision: tuple(
            float(((ours - exact).norm(dim=-1) / exact.norm(dim=-1)).max())
            for ours, exact in zip(found[precision], found["fp32"], strict=True)
        )
        for precision in TOLERANCE
    }


def agree(config: dict[str, Any]) -> None:
    for precision, errors in differences(config).items():
        assert max(errors) <= TOLERANCE[precision], (precision, errors)


@pytest.mark.parametrize("arch", [arch for arch in ARCHS if arch.startswith("ViT")])
def test_narrow_vision_transformers(arch: str) -> None:
    agree(shallow(arch, small=True))


@pytest.mark.long
@pytest.mark.parametrize("arch", ARCHS)
def test_every_architecture_at_its_width(arch: str) -> None:
    agree(shallow(arch, small=False))
