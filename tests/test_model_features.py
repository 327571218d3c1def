"""Features and gradients are open_clip's for the same weights, whichever way they are computed."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from model_helpers import ARCHITECTURES, inputs, open_clip_model
from torch.nn import functional as F

from clipag_plug.model import CLIP, build
from clipag_plug.towers import vit


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_features_gradients_and_keys_are_open_clips_to_the_last_bit(name: str) -> None:
    made = ARCHITECTURES[name]
    theirs = open_clip_model(made)
    weights = theirs.state_dict()
    before = copy.deepcopy(made)
    ours = build(made, weights, name="x")
    assert made == before
    assert set(ours.state_dict()) == set(weights)
    image, tokens = inputs(ours)
    # A residual tower pools as OpenAI's does, by one query; open_clip asks with every place and keeps the first answer.
    bits = 1e-6 if name == "residual network" else 0.0
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            assert torch.allclose(ours.encode_image(image), theirs.encode_image(image), bits, bits)
            assert torch.equal(ours.encode_text(tokens), theirs.encode_text(tokens))
    mine, other = image.clone().requires_grad_(), image.clone().requires_grad_()
    gradients = [
        torch.autograd.grad(model.encode_image(x).square().sum(), x)[0]
        for model, x in ((ours, mine), (theirs, other))
    ]
    assert (gradients[0] - gradients[1]).norm() <= bits * gradients[1].norm()
    logits, transposed = ours(image, tokens)
    assert torch.allclose(logits, theirs.get_logits(image, tokens)[0], atol=1e-5)
    assert torch.equal(logits.t(), transposed)
    assert ours.visual.output_dim == ours.encode_image(image).shape[1] == 32
    assert ours.visual.input_resolution == 64 and isinstance(ours.visual.input_resolution, int)
    assert not ours.training and all(parameter.requires_grad for parameter in ours.parameters())


@pytest.mark.parametrize("name", ["vit", "vit with QuickGELU", "CLIPA", "custom text"])
@pytest.mark.parametrize("training", [False, True])
def test_the_quicker_way_to_the_pixels_is_the_same_function(name: str, training: bool) -> None:
    """Frozen, or in training mode, the towers use larger matrix products than open_clip's."""
    theirs = open_clip_model(ARCHITECTURES[name]).train(training)
    ours = build(ARCHITECTURES[name], theirs.state_dict(), name="x").train(training)
    ours.requires_grad_(training)
    image, _ = inputs(ours)
    found = []
    for model in (ours, theirs):
        leaf = image.clone().requires_grad_()
        features = model.encode_image(leaf)
        features.square().sum().backward()
        found.append((features.detach(), leaf.grad))
    for mine, other in zip(*found, strict=True):
        assert (mine - other).norm() < 1e-5 * other.norm()
    if training:
        for name, other in theirs.visual.named_parameters():
            mine = ours.visual.get_parameter(name).grad
            assert mine is None or (mine - other.grad).norm() < 1e-4 * other.grad.norm()


def test_a_hooked_attention_is_called_as_it_is(tiny_clip: CLIP) -> None:
    seen: list[int] = []
    block = tiny_clip.requires_grad_(False).visual.transformer.resblocks[1]
    block.attn.register_forward_hook(lambda *_: seen.append(1))
    image, _ = inputs(tiny_clip)
    tiny_clip.encode_image(image.requires_grad_())
    assert seen == [1]


@pytest.mark.parametrize("precision, dtype", [("fp16", torch.float16), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("name", ["vit", "CLIPA", "residual network"])
def test_low_precision_keeps_norms_in_fp32_and_stays_close(
    name: str, precision: str, dtype: torch.dtype
) -> None:
    weights = open_clip_model(ARCHITECTURES[name]).state_dict()
    full = build(ARCHITECTURES[name], weights)
    low = build(ARCHITECTURES[name], weights, precision=precision)
    assert low.dtype == low.visual.conv1.weight.dtype == dtype
    assert low.ln_final.weight.dtype == low.token_embedding.weight.dtype == torch.float32
    image, tokens = inputs(full)
    with torch.no_grad():
        for mine, reference in (
            (low.encode_image(image), full.encode_image(image)),
            (low.encode_text(tokens), full.encode_text(tokens)),
        ):
            assert mine.dtype == dtype
            assert torch.cosine_similarity(mine.float(), reference).min() > 0.99
        assert low(image, tokens)[0].dtype == dtype
    assert low.float().encode_image(image).dtype == torch.float32


def test_gradient_checkpointing_changes_nothing(tiny_clip: CLIP) -> None:
    image, _ = inputs(tiny_clip)
    results = []
    for on in (False, True):
        tiny_clip.visual.set_grad_checkpointing(on)
        x = image.clone().requires_grad_()
        results.append(torch.autograd.grad(tiny_clip.encode_image(x).sum(), x)[0])
    assert torch.equal(*results)


def test_normalize_is_the_usual_formula_at_any_dtype(tiny_clip: CLIP) -> None:
    images = torch.rand(2, 3, 5, 5, requires_grad=True)
    expected = torch.stack(
        [(images[:, c] - tiny_clip.mean[c]) / tiny_clip.std[c] for c in range(3)], 1
    )
    assert torch.allclose(tiny_clip.normalize(images), expected)
    assert tiny_clip.normalize(images.double()).dtype == torch.float64
    assert tiny_clip.normalize(images).requires_grad


def test_models_survive_deepcopy_pickle_and_chaining(tiny_clip: CLIP) -> None:
    image, tokens = inputs(tiny_clip)
    for other in (copy.deepcopy(tiny_clip), pickle.loads(pickle.dumps(tiny_clip))):
        assert torch.equal(other.encode_image(image), tiny_clip.encode_image(image))
        assert torch.equal(other.encode_text(tokens), tiny_clip.encode_text(tokens))
        assert other.visual is not tiny_clip.visual
    assert tiny_clip.eval().requires_grad_(False).to("cpu") is tiny_clip
    assert not any(parameter.requires_grad for parameter in tiny_clip.parameters())


@pytest.fixture
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As on a processor of AMD with AVX-512; counts the products that oneDNN is given."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    calls, product = [], vit._product
    monkeypatch.setattr(vit, "_amd", lambda: True)
    monkeypatch.setattr(vit, "_product", lambda *given: calls.append(1) or product(*given))
    return calls


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 7, 12), (5, 12), (12,)])
def test_products_of_onednn_are_torchs(shape, bias: bool, by_onednn: list[int]) -> None:
    torch.manual_seed(0)
    like = {"dtype": torch.float32, "requires_grad": True}
    x, weight = torch.randn(shape, **like), torch.randn(9, 12, **like)
    given = (x, weight, torch.randn(9, **like)) if bias else (x, weight)
    gradient = torch.randn(*shape[:-1], 9)

    def derivatives(layer):
        y = layer(*given)
        first = torch.autograd.grad(y, given, gradient, create_graph=True)
        return [
            y,
            *first,
            *torch.autograd.grad(first[0].square().sum() + first[1].sum(), given[:2]),
        ]

    for ours, theirs in zip(derivatives(vit.linear), derivatives(F.linear), strict=True):
        assert ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert by_onednn


def test_gradients_to_the_pixels_by_onednn_are_open_clips(by_onednn: list[int]) -> None:
    made = ARCHITECTURES["vit"]
    theirs = open_clip_model(made).requires_grad_(False)
    ours = build(made, theirs.state_dict(), name="x").requires_grad_(False)
    image, _ = inputs(ours)
    mine, other = image.clone().requires_grad_(), image.clone().requires_grad_()
    gradients = [
        torch.autograd.grad(model.encode_image(x).square().sum(), x)[0]
        for model, x in ((ours, mine), (theirs, other))
    ]
    assert by_onednn and torch.allclose(*gradients, rtol=1e-4, atol=1e-5)


def test_what_records_or_transforms_sees_torchs_own_product(by_onednn: list[int]) -> None:
    x, weight = torch.randn(4, 12), torch.randn(9, 12)
    wanted = F.linear(x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert vit.linear(x, weight).dtype == torch.bfloat16
    assert torch.allclose(torch.vmap(lambda row: vit.linear(row, weight))(x), wanted, atol=1e-6)
    assert torch.allclose(
        torch.jit.trace(vit.linear, (x, weight), check_trace=False)(x, weight), wanted
    )
    assert vit.linear(x.double(), weight.double()).dtype == torch.float64
    assert vit.linear(x[:0], weight).shape == (0, 9)
    _, tangent = torch.func.jvp(lambda each: vit.linear(each, weight), (x,), (x,))
    assert torch.allclose(tangent, wanted, atol=1e-6) and not by_onednn
