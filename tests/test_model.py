"""The model object against open_clip's own: same weights, same features, OpenAI's attributes."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, make_tiny
from torch import Tensor, nn

from clipag_plug import clip
from clipag_plug.mini import MiniVisual
from clipag_plug.model import CLIP, TEXT_CHUNK, build, wrap

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
MINI = {"mini": {"image_size": 16, "widths": [8, 16], "depths": [1, 1]}, "image_size": 224}
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
    return kind(**made, cast_dtype=low).eval()


def inputs(model: Any, images: int = 2, texts: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    side = model.visual.input_resolution
    tokens = torch.randint(1, model.vocab_size, (texts, model.context_length), generator=generator)
    return torch.randn(images, 3, side, side, generator=generator), tokens.int()


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
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            assert torch.equal(ours.encode_image(image), theirs.encode_image(image))
            assert torch.equal(ours.encode_text(tokens), theirs.encode_text(tokens))
    mine, other = image.clone().requires_grad_(), image.clone().requires_grad_()
    gradients = [
        torch.autograd.grad(model.encode_image(x).square().sum(), x)[0]
        for model, x in ((ours, mine), (theirs, other))
    ]
    assert torch.equal(*gradients)
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
        for mine, other in zip(ours.visual.parameters(), theirs.visual.parameters(), strict=True):
            assert mine.grad is None or (mine.grad - other.grad).norm() < 1e-4 * other.grad.norm()


def test_a_hooked_attention_is_called_as_it_is(tiny_clip: CLIP) -> None:
    seen: list[int] = []
    block = tiny_clip.requires_grad_(False).visual.transformer.resblocks[1]
    block.attn.register_forward_hook(lambda *_: seen.append(1))
    image, _ = inputs(tiny_clip)
    tiny_clip.encode_image(image.requires_grad_())
    assert seen == [1]


def test_the_given_tensors_become_the_parameters_without_a_copy(tiny_clip: CLIP) -> None:
    weights = {name: tensor.detach().clone() for name, tensor in tiny_clip.state_dict().items()}
    again = build(TINY, weights)
    for name, parameter in again.named_parameters():
        assert parameter.data_ptr() == weights[name].data_ptr(), name
        assert not parameter.is_meta
    assert not [name for name, buffer in again.named_buffers() if buffer.is_meta]


def test_half_precision_files_load_into_fp32(tiny_clip: CLIP) -> None:
    halves = {name: tensor.half() for name, tensor in tiny_clip.state_dict().items()}
    model = build(TINY, halves)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.visual.proj, halves["visual.proj"].float())


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


def test_the_bundled_kind_of_tower_with_fresh_and_with_given_weights() -> None:
    made = {**config(), "vision_cfg": MINI}
    fresh = build(made, None)
    assert isinstance(fresh.visual, MiniVisual) and fresh.visual.image_size == 16
    assert fresh.visual.input_resolution == 224 and fresh.visual.output_dim == 32
    weights = {
        key: tensor for key, tensor in fresh.state_dict().items() if "num_batches" not in key
    }
    again = build(made, weights)
    image, tokens = inputs(fresh)
    assert torch.equal(fresh.encode_image(image), again.encode_image(image))
    assert torch.equal(fresh.encode_text(tokens), again.encode_text(tokens))
    low = build(made, weights, precision="fp16")
    with torch.no_grad():
        assert (
            torch.cosine_similarity(
                low.encode_image(image).float(), fresh.encode_image(image)
            ).min()
            > 0.99
        )


def test_weights_that_do_not_fit_are_named(tiny_clip: CLIP) -> None:
    weights = dict(tiny_clip.state_dict())
    del weights["ln_final.bias"]
    weights["visual.extra"] = torch.zeros(1)
    weights["visual.proj"] = torch.zeros(3, 4)
    with pytest.raises(RuntimeError) as caught:
        build(TINY, weights)
    for part in (
        "missing: ln_final.bias",
        "unexpected: visual.extra",
        "visual.proj (3, 4) for (64, 32)",
    ):
        assert part in str(caught.value)


def test_scalars_of_openais_files_are_no_surplus(tiny_clip: CLIP) -> None:
    extra = {
        name: torch.tensor(64) for name in ("input_resolution", "context_length", "vocab_size")
    }
    assert build(TINY, {**tiny_clip.state_dict(), **extra}).context_length == 77


@pytest.mark.parametrize(
    "made, message",
    [
        ({"embed_dim": 8}, "lacks vision_cfg, text_cfg"),
        (config(multimodal_cfg={}), "multimodal_cfg"),
        (config(text={"hf_model_name": "roberta-base"}), "roberta-base"),
        (config({"patch": 3}), "patch"),
        (config({"image_size": [64, 32]}), "square"),
    ],
)
def test_unsupported_configs_are_refused_by_name(made: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(made, None)


def test_unknown_precision_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="fp32, fp16, bf16"):
        build(TINY, None, precision="int8")


def long_list(count: int) -> Tensor:
    words = ("a cat", "a painting of the sea at night", "an orange", "x")
    return clip.tokenize([f"{words[i % len(words)]} {i}" for i in range(count)])


def test_long_lists_of_texts_agree_with_open_clip(tiny_clip: CLIP) -> None:
    theirs = open_clip_model(TINY)
    theirs.load_state_dict(tiny_clip.state_dict())
    tokens = long_list(2 * TEXT_CHUNK + 7)
    with torch.no_grad():
        assert (tiny_clip.encode_text(tokens) - theirs.encode_text(tokens)).abs().max() < 1e-5
        assert torch.equal(
            tiny_clip.encode_text(tokens[:TEXT_CHUNK]), theirs.encode_text(tokens[:TEXT_CHUNK])
        )


def seen_shapes(model: CLIP, tokens: Tensor) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []
    handle = model.token_embedding.register_forward_hook(
        lambda _, __, out: shapes.append(tuple(out.shape[:2]))
    )
    model.encode_text(tokens)
    handle.remove()
    return shapes


def test_long_lists_are_taken_in_pieces_when_no_gradient_is_kept(tiny_clip: CLIP) -> None:
    tokens = long_list(TEXT_CHUNK + 1)
    with torch.no_grad():
        pieces = seen_shapes(tiny_clip, tokens)
    assert [count for count, _ in pieces] == [TEXT_CHUNK, 1]
    assert max(length for _, length in pieces) < 20
    assert seen_shapes(tiny_clip, tokens) == [
        (TEXT_CHUNK + 1, 77)
    ]  # the graph of all texts is wanted
    frozen = tiny_clip.requires_grad_(False)
    assert len(seen_shapes(frozen, tokens)) == 2  # gradients enabled, but nobody would receive one


def test_towers_that_are_not_causal_are_never_cut() -> None:
    made = ARCHITECTURES["CLIPA"]
    model, theirs = build(made, open_clip_model(made).state_dict()), open_clip_model(made)
    _, tokens = inputs(model, texts=TEXT_CHUNK + 3)
    with torch.no_grad():
        assert (model.encode_text(tokens) - theirs.encode_text(tokens)).abs().max() < 1e-5
    with pytest.raises(RuntimeError, match=r"model that reads \(N, 16\)"):
        model.encode_text(tokens[:2, :10])


def test_shorter_rows_give_the_same_features_and_longer_ones_an_error(tiny_clip: CLIP) -> None:
    tokens = clip.tokenize(["a cat", "a dog"])
    assert torch.allclose(
        tiny_clip.encode_text(tokens), tiny_clip.encode_text(tokens[:, :4]), atol=1e-5
    )
    with pytest.raises(RuntimeError, match="model.tokenize"):
        tiny_clip.encode_text(torch.zeros(2, 78, dtype=torch.int))
    with pytest.raises(RuntimeError, match="model.tokenize"):
        tiny_clip.encode_text(tokens[0])


def test_a_model_tokenizes_to_its_own_context_length() -> None:
    model = build(config(text={**TINY["text_cfg"], "context_length": 12}), None)
    assert model.tokenize("a cat").shape == (1, 12)
    assert torch.equal(model.tokenize(["a cat"]), clip.tokenize(["a cat"], 12))
    with pytest.raises(RuntimeError, match="context length 12"):
        model.tokenize("cat " * 20)
    assert model.tokenize("cat " * 20, truncate=True)[0, -1] == 49407


def test_a_model_with_a_foreign_tokenizer_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from open_clip import tokenizer as open_clip_tokenizer

    from clipag_plug import simple_tokenizer

    class Fake:
        def __init__(self, name: str, **options: Any) -> None:
            assert (name, options) == ("bert-base-uncased", {"strip_sep_token": True})
            self.clean_fn = str.lower
            self.tokenizer = lambda text: type("Ids", (), {"input_ids": [1, *map(ord, text), 2]})()

        def __call__(self, texts: list[str], context_length: int) -> Tensor:
            rows = [self.tokenizer(text.lower()).input_ids[:context_length] for text in texts]
            return torch.tensor([row + [0] * (context_length - len(row)) for row in rows])

    monkeypatch.setattr(open_clip_tokenizer, "HFTokenizer", Fake)
    simple_tokenizer._foreign.cache_clear()
    text = {**CLIPA_TEXT, "tokenizer_kwargs": {"strip_sep_token": True}}
    model = build(config(CLIPA_VISION, text), None)
    tokens = model.tokenize(["AB", "c"])
    assert tokens.dtype == torch.int32 and tokens[0, :5].tolist() == [1, 97, 98, 2, 0]
    assert model.encode_text(tokens).shape == (2, 32)
    with pytest.raises(RuntimeError, match="too long for context length 16"):
        model.tokenize("x" * 15)
    assert model.tokenize("x" * 15, truncate=True).shape == (1, 16)
    simple_tokenizer._foreign.cache_clear()


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


def test_gradient_checkpointing_changes_nothing(tiny_clip: CLIP) -> None:
    image, _ = inputs(tiny_clip)
    results = []
    for on in (False, True):
        tiny_clip.visual.set_grad_checkpointing(on)
        x = image.clone().requires_grad_()
        results.append(torch.autograd.grad(tiny_clip.encode_image(x).sum(), x)[0])
    assert torch.equal(*results)


class OpenAIBlocks(nn.Module):
    """Pre-norm attention blocks in OpenAI's form: a Sequential, (L, N, D), the mask inside."""

    class Block(nn.Module):
        def __init__(self, width: int, heads: int, mask: Tensor | None) -> None:
            super().__init__()

            class QuickGELU(nn.Module):
                def forward(self, x: Tensor) -> Tensor:
                    return x * torch.sigmoid(1.702 * x)

            self.attn = nn.MultiheadAttention(width, heads)
            self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            parts = [("c_fc", nn.Linear(width, 4 * width)), ("gelu", QuickGELU())]
            self.mlp = nn.Sequential(OrderedDict([*parts, ("c_proj", nn.Linear(4 * width, width))]))
            self.mask = mask

        def forward(self, x: Tensor) -> Tensor:
            y = self.ln_1(x)
            x = x + self.attn(y, y, y, need_weights=False, attn_mask=self.mask)[0]
            return x + self.mlp(self.ln_2(x))

    def __init__(self, width: int, heads: int, layers: int, mask: Tensor | None = None) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(self.Block(width, heads, mask) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x.permute(1, 0, 2)).permute(1, 0, 2)


class OpenAIVisual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_resolution, self.output_dim = 64, 32
        self.conv1 = nn.Conv2d(3, 64, 16, 16, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(64))
        self.positional_embedding = nn.Parameter(torch.randn(17, 64))
        self.ln_pre, self.ln_post = nn.LayerNorm(64), nn.LayerNorm(64)
        self.transformer = OpenAIBlocks(64, 2, 2)
        self.proj = nn.Parameter(torch.randn(64, 32))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.conv1(x).flatten(2).transpose(1, 2)
        x = (
            torch.cat([self.class_embedding.expand(len(x), 1, 64), patches], 1)
            + self.positional_embedding
        )
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class OpenAIModel(nn.Module):
    """A model with the attributes of OpenAI's `clip`, tiny."""

    def __init__(self) -> None:
        super().__init__()
        mask = torch.full((77, 77), float("-inf")).triu(1)
        self.visual = OpenAIVisual()
        self.transformer = OpenAIBlocks(16, 2, 2, mask)
        self.token_embedding = nn.Embedding(49408, 16)
        self.positional_embedding = nn.Parameter(torch.randn(77, 16))
        self.ln_final = nn.LayerNorm(16)
        self.text_projection = nn.Parameter(torch.randn(16, 32))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))

    def encode_image(self, image: Tensor) -> Tensor:
        return self.visual(image)

    def encode_text(self, text: Tensor) -> Tensor:
        x = self.ln_final(self.transformer(self.token_embedding(text) + self.positional_embedding))
        return x[torch.arange(len(x)), text.argmax(-1)] @ self.text_projection


def test_an_openai_model_handed_in_is_wrapped_on_its_own_weights() -> None:
    torch.manual_seed(0)
    theirs = OpenAIModel()
    theirs.ln_final.weight.requires_grad_(False)
    ours = wrap(theirs)
    image, tokens = inputs(ours)
    assert torch.allclose(ours.encode_image(image), theirs.encode_image(image), atol=1e-4)
    assert torch.allclose(ours.encode_text(tokens), theirs.encode_text(tokens), atol=1e-4)
    assert ours.visual.proj.data_ptr() == theirs.visual.proj.data_ptr()
    assert not ours.ln_final.weight.requires_grad and ours.visual.proj.requires_grad


@pytest.mark.parametrize("name", ["vit", "custom text", "residual network"])
def test_an_open_clip_model_handed_in_is_wrapped_as_it_is(name: str) -> None:
    theirs = open_clip_model(ARCHITECTURES[name])
    ours = wrap(theirs, name="mine")
    image, tokens = inputs(ours)
    assert torch.equal(ours.encode_image(image), theirs.encode_image(image))
    assert torch.equal(ours.encode_text(tokens), theirs.encode_text(tokens))
    assert ours.visual is theirs.visual and ours.name == "mine" and not ours.training
    assert wrap(ours) is ours


def test_what_is_no_clip_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear is no CLIP"):
        wrap(nn.Linear(2, 2))


def test_a_file_loads_through_the_real_reader(tiny_checkpoint: Path, tiny_clip: CLIP) -> None:
    model, preprocess = clip.load(str(tiny_checkpoint), "cpu")
    image, tokens = inputs(tiny_clip)
    assert torch.equal(model.encode_image(image), tiny_clip.encode_image(image))
    assert torch.equal(model.encode_text(tokens), tiny_clip.encode_text(tokens))
    assert model.card["note"] == "random" and model.name == str(tiny_checkpoint)
    assert preprocess.transforms[0].size == 64
    with pytest.raises(FileNotFoundError, match=r"absent\.pt"):
        clip.load("absent.pt", "cpu")


def test_fresh_weights_follow_the_seed() -> None:
    first, same, other = make_tiny(3), make_tiny(3), make_tiny(4)
    assert torch.equal(first.visual.proj, same.visual.proj)
    assert not torch.equal(first.visual.proj, other.visual.proj)
