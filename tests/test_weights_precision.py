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


def agree(config: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = build(config, None)
    images = torch.randn(2, 3, *(model.visual.input_resolution,) * 2)
    tokens = torch.randint(1, 900, (2, model.context_length))
    tokens[:, 5] = 999
    found = {}
    for precision in ("fp32", "fp16", "bf16"):
        low = build(config, model.state_dict(), precision=precision)
        with torch.no_grad():
            found[precision] = low.encode_image(images).float(), low.encode_text(tokens).float()
    for precision, tolerance in TOLERANCE.items():
        for ours, exact in zip(found[precision], found["fp32"], strict=True):
            assert ((ours - exact).norm(dim=-1) <= tolerance * exact.norm(dim=-1)).all(), precision


@pytest.mark.parametrize("arch", [arch for arch in ARCHS if arch.startswith("ViT")])
def test_narrow_vision_transformers(arch: str) -> None:
    agree(shallow(arch, small=True))


@pytest.mark.long
@pytest.mark.parametrize("arch", ARCHS)
def test_every_architecture_at_its_width(arch: str) -> None:
    agree(shallow(arch, small=False))
