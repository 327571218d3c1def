"""What a loaded model gives, shows and lets hooks see (points 4 to 7 and 10 of the contract)."""

# ruff: noqa: F401, F811 (fixtures are imported and then named as arguments)

from __future__ import annotations

import pytest
import torch
from contract_helpers import model, tiny_224
from torch import Tensor
from torch.nn import functional as F

import clipag_plug as clip
from clipag_plug.model import CLIP


def test_point_4_features_are_raw_and_two_dimensional(model: CLIP, photos: Tensor) -> None:
    image, text = model.encode_image(photos), model.encode_text(clip.tokenize(["a cat", "a dog"]))
    assert image.shape == (4, 32) and text.shape == (2, 32)
    assert image.dtype == text.dtype == model.dtype
    assert not torch.allclose(image.norm(dim=-1), torch.ones(4), atol=1e-2)
    assert torch.allclose(
        model.encode_image(photos * 1.0)[2], model.encode_image(photos[2:3])[0], atol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_point_4_input_is_cast_to_the_models_dtype(
    model: CLIP, photos: Tensor, dtype: torch.dtype
) -> None:
    features = model.encode_image(photos.to(dtype))
    assert features.dtype == torch.float32
    assert torch.equal(features, model.encode_image(photos.to(dtype).float()))


@pytest.mark.parametrize("which", ["image", "text"])
def test_point_4_features_may_be_divided_in_place_under_autograd(
    model: CLIP, photos: Tensor, which: str
) -> None:
    def features() -> Tensor:
        return (
            model.encode_image(photos)
            if which == "image"
            else model.encode_text(clip.tokenize("a cat"))
        )

    def gradients(output: Tensor) -> list[Tensor]:
        weights = [
            p for n, p in model.named_parameters() if n.startswith("visual.") == (which == "image")
        ]
        return [
            g
            for g in torch.autograd.grad(output[:, 0].sum(), weights, allow_unused=True)
            if g is not None
        ]

    inplace = features()
    inplace /= inplace.clone().norm(dim=-1, keepdim=True)  # the clone is what CLIPStyler writes
    apart = features()
    expected = gradients(apart / apart.norm(dim=-1, keepdim=True))
    for got, want in zip(gradients(inplace), expected, strict=True):
        assert torch.allclose(got, want, atol=1e-6)


def test_point_4_prompts_encoded_without_gradients_stay_writable(model: CLIP) -> None:
    with torch.no_grad():
        features = model.encode_text(clip.tokenize([f"thing {i}" for i in range(300)]))
    assert not features.is_inference() and not features.requires_grad
    features /= features.norm(dim=-1, keepdim=True)
    assert torch.allclose(features.norm(dim=-1), torch.ones(300), atol=1e-5)


def test_point_5_forward_returns_two_scaled_cosine_matrices(model: CLIP, photos: Tensor) -> None:
    tokens = clip.tokenize(["a cat", "a dog", "a boat"])
    output = model(photos, tokens)
    assert isinstance(output, tuple) and len(output) == 2
    image = F.normalize(model.encode_image(photos), dim=-1)
    text = F.normalize(model.encode_text(tokens), dim=-1)
    expected = model.logit_scale.exp() * image @ text.T
    assert output[0].shape == (4, 3) and torch.allclose(output[0], expected, atol=1e-5)
    assert torch.equal(output[1], output[0].t())


def test_point_6_attributes_that_programs_read(model: CLIP) -> None:
    assert type(model.visual.input_resolution) is int and model.visual.input_resolution == 224
    assert type(model.visual.output_dim) is int and model.visual.output_dim == 32
    assert model.dtype is torch.float32
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07, rel=1e-4)
    assert model.logit_scale.device.type == "cpu"
    assert (model.context_length, model.vocab_size) == (77, 49408)
    assert model.visual.conv1.weight.shape == (64, 3, 56, 56)
    keys = set(model.state_dict())
    assert {
        "visual.conv1.weight",
        "token_embedding.weight",
        "text_projection",
        "logit_scale",
    } <= keys


def test_point_6_extras_of_this_package(model: CLIP, photos: Tensor) -> None:
    assert model.name == "clipag" and model.card == {} and model.vocabulary is None
    assert model.mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)
    assert model.normalize(photos).shape == photos.shape
    mini = clip.load("clipag-mini", "cpu")[0]
    assert mini.vocabulary and "goldfish" in mini.vocabulary


def test_point_7_hooks_on_the_blocks_see_openais_axis_order(model: CLIP, photos: Tensor) -> None:
    blocks = model.visual.transformer.resblocks
    assert isinstance(blocks, torch.nn.Sequential)
    assert [name for name, _ in blocks.named_children()] == ["0", "1"]
    seen: dict[int, Tensor] = {}
    for index, block in enumerate(blocks):
        block.register_forward_hook(lambda _, __, out, index=index: seen.__setitem__(index, out))
    features = model.encode_image(photos)
    assert [seen[i].shape for i in range(2)] == [(17, 4, 64)] * 2  # (L, N, D)
    pooled = model.visual.ln_post(seen[1][0]) @ model.visual.proj
    assert torch.allclose(pooled, features, atol=1e-5)
    gradient = torch.autograd.grad(features.sum(), seen[0])[0]
    assert gradient.shape == (17, 4, 64) and bool(gradient.any())


def test_point_7_a_hook_may_replace_what_passes(model: CLIP, photos: Tensor) -> None:
    handle = model.visual.transformer.resblocks[1].register_forward_hook(
        lambda _, __, out: out.flip(1)
    )
    flipped = model.encode_image(photos)
    handle.remove()
    assert torch.allclose(flipped, model.encode_image(photos).flip(0), atol=1e-5)


def test_point_10_thousands_of_prompts_in_one_call_stay_bounded(
    model: CLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = torch.cat([clip.tokenize([f"a drawing of number {i}" for i in range(1000)])])
    counts: list[int] = []
    pieces = model._text_features
    monkeypatch.setattr(
        model, "_text_features", lambda text: counts.append(len(text)) or pieces(text)
    )
    with torch.no_grad():
        features = model.encode_text(tokens)
    assert features.shape == (1000, 32) and sum(counts) == 1000 and max(counts) <= 256
    assert torch.allclose(features[700:703], model.encode_text(tokens[700:703]), atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fp16_on_cuda_on_request(photos: Tensor) -> None:
    model, _ = clip.load("clipag", "cuda", precision="fp16")
    reference, _ = clip.load("clipag", "cuda")
    image = photos.cuda()
    assert reference.dtype == torch.float32 and model.dtype == torch.float16
    features = model.encode_image(image)
    assert features.dtype == torch.float16
    assert torch.cosine_similarity(features.float(), reference.encode_image(image)).min() > 0.99
