"""What the tests of the model share: configs of every kind, open_clip's own model of one, and inputs."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import TINY
from torch import Tensor, nn

CLIPA_TEXT = {
    "context_length": 16,
    "vocab_size": 1000,
    "width": 16,
    "heads": 2,
    "layers": 2,
    "pool_type": "last",
    "no_causal_mask": True,
    "hf_tokenizer_name": "bert-base-uncased",
}
CLIPA_VISION = {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
RESNET = {
    "layers": [1, 1, 1, 1],
    "width": 16,
    "head_width": 64,
    "patch_size": None,
    "image_size": 64,
}
TIMM = {
    "timm_model_name": "convnext_atto",
    "timm_model_pretrained": True,
    "timm_pool": "",
    "timm_proj": "linear",
    "timm_drop_path": 0.1,
    "image_size": 64,
}


def config(
    vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **extras: Any
) -> dict[str, Any]:
    made = copy.deepcopy(TINY)
    made["vision_cfg"] = {**made["vision_cfg"], **(vision or {})}
    made["text_cfg"] = text or made["text_cfg"]
    return {**made, **extras}


ARCHITECTURES = {
    "vit": config(),
    "vit with QuickGELU": config(quick_gelu=True),
    "vit with layer scale": config({"ls_init_value": 0.1}),
    "vit with other blocks": config({"qk_norm": True}),
    "CLIPA": config(CLIPA_VISION, CLIPA_TEXT),
    "custom text": config(custom_text=True),
    "SigLIP-like": config(custom_text=True, init_logit_bias=-10.0, nonscalar_logit_scale=True),
    "residual network": {**config(), "vision_cfg": RESNET},
    "ConvNeXt": {**config(), "vision_cfg": TIMM},
}


def open_clip_model(made: dict[str, Any], low: torch.dtype | None = None) -> nn.Module:
    """open_clip's own model of a config, random, by its own constructor."""
    from open_clip.model import CLIP as Plain
    from open_clip.model import CustomTextCLIP

    made = copy.deepcopy(made)
    kind = CustomTextCLIP if made.pop("custom_text", False) else Plain
    if "timm_model_pretrained" in made["vision_cfg"]:
        made["vision_cfg"]["timm_model_pretrained"] = False
    torch.manual_seed(0)
    try:
        return kind(**made, cast_dtype=low).eval()
    except TypeError as error:  # an option that an older open_clip lacks
        pytest.skip(str(error))


def inputs(model: Any, images: int = 2, texts: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    side = model.visual.input_resolution
    tokens = torch.randint(1, model.vocab_size, (texts, model.context_length), generator=generator)
    return torch.randn(images, 3, side, side, generator=generator), tokens.int()
