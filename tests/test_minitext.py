"""The text tower of the bundled models is open_clip's, and loading them takes nothing but torch."""

from __future__ import annotations

import pytest
import torch
from test_imports import run

from clipag_plug.model import CLIP, build

CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 224, "mini": {"image_size": 32, "widths": [8, 8, 8, 8]}},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module")
def mini() -> CLIP:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(CONFIG, None, name="mini")


def of_open_clip(model: CLIP) -> torch.nn.Module:
    """open_clip's own text tower on the same weights."""
    from open_clip.model import CLIPTextCfg, _build_text_tower

    tower = _build_text_tower(CONFIG["embed_dim"], CLIPTextCfg(**CONFIG["text_cfg"])).eval()
    own = {n: v for n, v in model.state_dict().items() if n in tower.state_dict()}
    tower.load_state_dict(own)  # every tensor of it is there, under the same name
    return tower


@torch.no_grad()
def test_text_features_are_open_clips_to_the_bit(mini: CLIP) -> None:
    tokens = mini.tokenize(["a goldfish", "a photo of a bird, isn't it", "x " * 60])
    assert torch.equal(mini.encode_text(tokens), of_open_clip(mini)(tokens))


def test_a_fresh_text_tower_is_drawn_as_open_clips() -> None:
    """The spread of each tensor agrees; the numbers themselves come in another order."""
    config = {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "width": 64}}
    torch.manual_seed(0)
    ours = build(config, None).state_dict()
    from open_clip.model import CLIPTextCfg, _build_text_tower

    theirs = _build_text_tower(24, CLIPTextCfg(**config["text_cfg"])).state_dict()
    for name, tensor in theirs.items():
        assert ours[name].shape == tensor.shape
        if tensor.numel() > 1:
            assert float(ours[name].std()) == pytest.approx(float(tensor.std()), rel=0.3, abs=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@torch.no_grad()
def test_lower_precision_changes_matrices_alone(precision: str) -> None:
    from clipag_plug import clip

    low = clip.load_model("clip-mini", "cpu", precision=precision)
    full = clip.load_model("clip-mini", "cpu")
    assert low.text_projection.dtype == low.transformer.get_cast_dtype() != torch.float32
    assert low.ln_final.weight.dtype == torch.float32
    tokens = low.tokenize(["a goldfish", "a lemon"])
    close = torch.cosine_similarity(
        low.encode_text(tokens).float(), full.encode_text(tokens), dim=-1
    )
    assert bool((close > 0.999).all())


@pytest.mark.parametrize("extra", [{"quick_gelu": True}, {"custom_text": True}, {"depth": 3}])
def test_an_option_that_it_does_not_have_is_refused(extra: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        build({**CONFIG, **extra}, None)


def test_loading_and_painting_import_neither_open_clip_nor_torchvision() -> None:
    code = """
from clipag_plug import synthesize
synthesize("a goldfish", steps=1)
import sys
heavy = ("open_clip", "torchvision", "timm", "transformers", "torch._dynamo")
found += [name for name in heavy if name in sys.modules]
"""
    assert run(code) == []
