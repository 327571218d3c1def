"""Equality with OpenAI's own model on equal weights: features, axis order, hooks, maps, traced and exported models."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from openai_clip import OpenAIModel, original
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clipag_plug.model import CLIP, as_open_clip, build, build_model, wrap

NORMS = ("ln_1", "ln_2", "attn", "mlp", "mlp.c_fc", "mlp.gelu")
HOOKED = [
    *("visual.conv1", "visual.ln_pre", "visual.transformer", "visual.ln_post", "ln_final"),
    *(f"visual.transformer.resblocks.1{part}" for part in ("", *(f".{n}" for n in NORMS))),
    *(f"transformer.resblocks.0{part}" for part in ("", *(f".{n}" for n in NORMS))),
    "transformer",
]
MINI = {"image_size": 64, "mini": {"image_size": 16, "widths": [8, 12], "depths": [1, 1]}}


@functools.cache
def pair(tower: str) -> tuple[OpenAIModel, CLIP]:
    theirs = original(tower).requires_grad_(False)
    ours = wrap(theirs)
    return theirs, ours


def mini() -> CLIP:
    torch.manual_seed(0)
    text = {"vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
    return build({"embed_dim": 32, "vision_cfg": MINI, "text_cfg": text}, None)


def batch(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    tokens = torch.randint(1, 49000, (count, 77), generator=generator)
    tokens[:, 60], tokens[:, 61:] = 49407, 0
    return torch.randn(count, 3, 64, 64, generator=generator), tokens.int()


def recorded(model: Any, names: list[str], count: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _, __, out, n=name: found.update({n: out[0] if isinstance(out, tuple) else out})
        )
        for name in names
    ]
    image, tokens = batch(count)
    model.encode_image(image), model.encode_text(tokens)
    for handle in handles:
        handle.remove()
    return found


def close(mine: Tensor, other: Tensor) -> bool:
    return mine.shape == other.shape and torch.allclose(mine, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tower", ["ViT", "ResNet"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_features_and_pixel_gradients_are_the_originals(tower: str, count: int) -> None:
    theirs, ours = pair(tower)
    image, tokens = batch(count)
    gradients = []
    for model in (theirs, ours):
        x = image.clone().requires_grad_()
        model.encode_image(x).square().sum().backward()
        assert x.grad.is_contiguous()
        gradients.append(x.grad)
    assert close(*gradients)
    with torch.no_grad():
        assert close(ours.encode_image(image), theirs.encode_image(image))
    assert close(ours.encode_text(tokens), theirs.encode_text(tokens))


@pytest.mark.parametrize("path", ["whole", "loop"])
def test_both_transformers_take_length_first_and_mask_themselves(path: str) -> None:
    theirs, ours = pair("ViT")
    image, tokens = batch(3)

    def blocks(transformer: Any, x: Tensor) -> Tensor:
        if path == "whole":
            return transformer(x)
        for block in transformer.resblocks:
            x = block(x)
        return x

    x = (ours.token_embedding(tokens) + ours.positional_embedding).permute(1, 0, 2)
    for start in (x, x.contiguous()):
        y = ours.ln_final(blocks(ours.transformer, start).permute(1, 0, 2))
        features = y[torch.arange(3), tokens.argmax(-1)] @ ours.text_projection
        assert close(features, theirs.encode_text(tokens))
        assert close(blocks(ours.visual.transformer, start), blocks(theirs.visual.transformer, x))
    assert torch.equal(ours.transformer.resblocks[0].attn_mask, ours.build_attention_mask())
    assert ours.visual.transformer.resblocks[0].attn_mask is None


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("grad", [False, True])
def test_hooks_receive_what_they_receive_in_the_original(count: int, grad: bool) -> None:
    theirs, ours = pair("ViT")
    with torch.set_grad_enabled(grad):
        want, got = recorded(theirs, HOOKED, count), recorded(ours, HOOKED, count)
    assert not [name for name in HOOKED if not close(got[name], want[name])]
    assert not any(module._forward_hooks for module in ours.modules())


@pytest.mark.parametrize("name", HOOKED)
@pytest.mark.parametrize("train", [False, True])
def test_backward_hooks_receive_what_they_receive_in_the_original(name: str, train: bool) -> None:
    found: list[tuple[Tensor, ...]] = []
    image, tokens = batch(3)
    for model in map(copy.deepcopy, pair("ViT")):
        model.train(train).get_submodule(name).register_full_backward_hook(
            lambda _, into, out: found.append(tuple(x for x in (*into, *out) if x is not None))
        )
        embedded = model.token_embedding.register_forward_hook(
            lambda _, __, out: out.requires_grad_()
        )
        features = model.encode_image(image.requires_grad_()), model.encode_text(tokens)
        embedded.remove()
        sum(value.square().sum() for value in features).backward()
    assert len(found) == 2 and len(found[0]) == len(found[1])
    assert all(close(mine, other) for mine, other in zip(found[1], found[0]))


class Wrapped(nn.Module):
    """A module somebody has put around one of the model's, as adapters and prompts do: it knows places by axis 0."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: Any, **options: Any) -> Any:
        out = self.inner(*inputs, **options)
        first = out[0] if isinstance(out, tuple) else out
        first = first + torch.linspace(0, 1, len(first)).view(-1, *[1] * (first.ndim - 1))
        return (first, *out[1:]) if isinstance(out, tuple) else first


def _around(path: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        for tower in (model.visual, model):
            parents = [tower] if path == "transformer" else tower.transformer.resblocks
            for parent in parents:
                home, _, name = path.rpartition(".")
                owner = parent.get_submodule(home)
                setattr(owner, name, Wrapped(getattr(owner, name)))

    return change


def _patched(model: Any) -> None:
    model.encode_image = lambda image: model.visual(image) * torch.arange(32)


def _subclass(model: Any) -> None:
    kind = type(model)
    model.__class__ = type(
        "Changed", (kind,), {"encode_text": lambda self, text: kind.encode_text(self, text).flip(1)}
    )


def _denser(model: Any) -> None:
    model.visual.conv1.stride = (8, 8)  # overlapping patches, as in work on dense features
    model.visual.positional_embedding = nn.Parameter(torch.linspace(-1, 1, 50 * 64).view(50, 64))


def _own_attention(model: Any) -> None:
    for block in model.transformer.resblocks:
        block.attention = lambda x, block=block: block.attn(x, x, x, need_weights=False)[0] * 2


class Scaled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 1.25


def _parametrised(model: Any) -> None:
    """Weights that are properties, as LoRA and spectral normalisation make them."""
    for block in (*model.transformer.resblocks, *model.visual.transformer.resblocks):
        for part, name in ((block.attn, "in_proj_weight"), (block.mlp.c_fc, "weight")):
            nn.utils.parametrize.register_parametrization(part, name, Scaled())


def _mask(value: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        for block in model.transformer.resblocks:
            block.attn_mask = value

    return change


def _shorter(model: Any) -> None:
    model.visual.transformer.resblocks = model.visual.transformer.resblocks[:-1]
    model.visual.proj = None


CHANGES: dict[str, Callable[[Any], Any]] = {
    **{
        f"around {n}": _around(n)
        for n in ("transformer", "ln_1", "attn", "mlp", "mlp.c_fc", "mlp.gelu")
    },
    "encode_image replaced": _patched,
    "a subclass": _subclass,
    "overlapping patches": _denser,
    "attention replaced": _own_attention,
    "parametrised weights": _parametrised,
    "no mask": _mask(None),
    "another mask": _mask(torch.linspace(0, -9, 77).expand(77, 77)),
    "fewer blocks, no projection": _shorter,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_program_changes_in_the_model_has_the_same_effect(change: str) -> None:
    image, tokens = batch(2)
    found = []
    for model in map(copy.deepcopy, pair("ViT")):
        CHANGES[change](model.requires_grad_(False))
        x = image.clone().requires_grad_()
        features, texts = model.encode_image(x), model.encode_text(tokens)
        scores = () if "no projection" in change else model(image, tokens)
        gradient = torch.autograd.grad(features.square().sum(), x)[0]
        found.append((features, model.encode_image(image), texts, gradient, *scores))
    assert all(close(mine, other) for mine, other in zip(found[1], found[0]))


def _attention_looked_at(owner: Any, name: str) -> Callable[..., Any]:
    """Puts a function of the program's own in the place of torch's, which asks for the weights of each head."""

    def call(model: Any, image: Tensor, tokens: Tensor) -> list[Tensor]:
        original, seen = getattr(owner, name), []

        def looking(*arguments: Any, **options: Any) -> Any:
            out = original(
                *arguments, **options | {"need_weights": True, "average_attn_weights": False}
            )
            seen.append(out[1])
            return out

        with mock.patch.object(owner, name, looking):
            model.encode_image(image.requires_grad_())
            with torch.no_grad():
                model.encode_text(tokens), model.encode_image(image)
        assert len(seen) == 6
        return seen

    return call


def _forward_mode(model: Any, image: Tensor, tokens: Tensor) -> Any:
    with sdpa_kernel(SDPBackend.MATH):  # the only kernel with forward-mode differentiation
        return torch.func.jvp(model.encode_image, (image,), (torch.ones_like(image),))


def _operations(model: Any, image: Tensor, tokens: Tensor) -> list[Tensor]:
    with FlopCounterMode(display=False) as counter:
        model.encode_image(image.requires_grad_()).sum().backward()
        model.encode_text(tokens)
    return [torch.tensor(counter.get_total_flops())]


def _without_memory(model: Any, image: Tensor, tokens: Tensor) -> list[Tensor]:
    found = model.to("meta")(image.to("meta").requires_grad_(), tokens.to("meta"))
    return [torch.zeros(scores.shape) for scores in found]


WATCHED = {
    "MultiheadAttention replaced": _attention_looked_at(nn.MultiheadAttention, "forward"),
    "its function replaced": _attention_looked_at(nn.functional, "multi_head_attention_forward"),
    "forward mode": _forward_mode,
    "operations counted": _operations,
    "meta device": _without_memory,
}
HEAVY = ("forward mode", "operations counted")


@pytest.mark.parametrize(
    "way",
    # torch loads its decompositions for two of them, which takes seconds
    [pytest.param(way, marks=[pytest.mark.long] * (way in HEAVY)) for way in WATCHED],
)
def test_who_watches_or_transforms_the_operations_finds_the_originals(way: str) -> None:
    models = (copy.deepcopy(model).requires_grad_(False) for model in pair("ViT"))
    want, got = (WATCHED[way](model, *batch(2)) for model in models)
    assert all(close(mine, other) for mine, other in zip(got, want))


def test_a_picture_without_a_batch_fails_as_in_the_original() -> None:
    for model in pair("ViT"):
        with pytest.raises(RuntimeError, match="[Ss]izes? of tensors?"):
            model.encode_image(batch(1)[0][0].requires_grad_())


def test_a_hook_sees_a_long_list_of_texts_whole() -> None:
    theirs, ours = pair("ViT")
    tokens = batch(5)[1].repeat(60, 1)
    shapes = []
    for model in (theirs, ours):
        handle = model.transformer.register_forward_hook(
            lambda _, __, out: shapes.append(out.shape)
        )
        with torch.no_grad():
            model.encode_text(tokens)
        handle.remove()
    assert shapes == [(77, 300, 64)] * 2


@pytest.mark.parametrize("tower", ["ViT", "ResNet"])
def test_no_images_have_no_features(tower: str) -> None:
    model = copy.deepcopy(pair(tower)[1])
    for frozen in (False, True):
        x = torch.zeros(0, 3, 64, 64).requires_grad_()
        assert model.requires_grad_(not frozen).encode_image(x).shape == (0, 32)
    assert model.encode_text(batch(1)[1][:0]).shape == (0, 32)


def test_the_parts_of_a_residual_network_have_the_originals_names() -> None:
    theirs, ours = pair("ResNet")
    names = [
        "visual.relu1",
        "visual.relu3",
        "visual.layer2.0.relu2",
        "visual.layer4",
        "visual.layer3.0",
    ]
    want, got = recorded(theirs, names, 2), recorded(ours, names, 2)
    assert not [name for name in names if not close(got[name], want[name])]


@pytest.mark.parametrize("count", [1, 2, 50])
def test_grad_cam_with_the_published_reshape_gives_the_originals_map(count: int) -> None:
    """pytorch-grad-cam's sum: gradients averaged over places weigh the channels; tokens first in `clip`."""

    def reshape(tensor: Tensor) -> Tensor:
        tensor = tensor.permute(1, 0, 2)[:, 1:]
        return tensor.reshape(tensor.size(0), 4, 4, tensor.size(2)).permute(0, 3, 1, 2)

    maps = []
    image, _ = batch(count)
    for model in pair("ViT"):
        kept: list[Tensor] = []
        layer = model.visual.transformer.resblocks[-1].ln_1
        handle = layer.register_forward_hook(lambda _, __, out, kept=kept: kept.append(out))
        features = model.encode_image(image.clone().requires_grad_())
        (gradient,) = torch.autograd.grad(features[:, 3].sum(), kept[-1])
        handle.remove()
        weights = reshape(gradient).mean((2, 3), keepdim=True)
        maps.append((weights * reshape(kept[-1])).sum(1).relu())
    assert maps[0].any() and close(maps[1], maps[0])


@pytest.mark.parametrize("kind", ["ViT", "ResNet", "mini"])
@pytest.mark.parametrize("way", ["trace", "export"])
def test_recorded_models_hold_for_any_batch(kind: str, way: str) -> None:
    model = mini() if kind == "mini" else pair(kind)[1]

    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, tokens: Tensor) -> Tensor:
            return self.model.encode_text(tokens)

    class Image(Text):
        def forward(self, image: Tensor) -> Tensor:
            return self.model.encode_image(image)

    for module, index in ((Image(), 0), (Text(), 1)):
        with torch.no_grad():
            if way == "trace":
                made: Any = torch.jit.trace(module.eval(), batch(1)[index])
            else:
                size = {0: torch.export.Dim("batch", min=1, max=64)}
                made = torch.export.export(
                    module.eval(), (batch(3)[index],), dynamic_shapes=(size,)
                ).module()
            for count in (1, 2, 5):
                value = batch(count)[index]
                assert close(made(value), module(value)), (type(module).__name__, count)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["ViT", "ResNet", "mini"])
@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx_files_hold_for_any_batch(kind: str, dynamo: bool, tmp_path: Any) -> None:
    import onnxruntime as runtime

    model = mini() if kind == "mini" else pair(kind)[1]
    path, names = str(tmp_path / "both.onnx"), ["image", "text"]
    shapes: Any = {"dynamic_axes": {name: {0: "n"} for name in (*names, "scores", "transposed")}}
    if dynamo:
        size = torch.export.Dim("n", min=1, max=64)
        shapes = {"dynamic_shapes": {name: {0: size} for name in names}}
    outputs = ["scores", "transposed"]
    torch.onnx.export(
        model, batch(2), path, dynamo=dynamo, input_names=names, output_names=outputs, **shapes
    )
    session = runtime.InferenceSession(path)
    for count in (1, 2, 5):
        feed = {name: value.numpy() for name, value in zip(names, batch(count))}
        want = model(*batch(count))[0].detach()
        got = torch.from_numpy(session.run(None, feed)[0])
        assert got.shape == want.shape and torch.allclose(got, want, atol=2e-4)


def test_a_size_first_seen_in_inference_mode_can_be_differentiated_later() -> None:
    for model in (mini(), pair("ViT")[1]):
        image = torch.rand(1, 3, 96 if model is not pair("ViT")[1] else 64, 64)
        with torch.inference_mode():
            model.encode_image(image), model.encode_text(batch(1)[1])
        x = image.clone().requires_grad_()
        assert torch.autograd.grad(model.encode_image(x).sum(), x)[0].any()
        model.encode_text(batch(1)[1]).sum()


@pytest.mark.parametrize("kind", ["ViT", "ResNet", "mini", "timm"])
def test_layers_are_read_by_name_and_no_hook_stays(kind: str) -> None:
    from model_helpers import ARCHITECTURES

    model = {"mini": mini, "timm": lambda: build(ARCHITECTURES["ConvNeXt"], None)}.get(
        kind, lambda: pair(kind)[1]
    )()
    image = batch(3)[0].requires_grad_()
    rows, maps = model.features(image), model.features(image, model.layers[:-1], spatial=True)
    assert list(rows) == model.layers and rows["output"].shape == (3, 32)
    assert torch.allclose(rows["output"], model.encode_image(image))
    for name, row in rows.items():
        alone = model.features(image[1:2], [name])[name]
        assert row.ndim == 2 and torch.allclose(row[1:2], alone, atol=1e-4)
    for value in maps.values():
        assert value.ndim == 4 and value.shape[2] == value.shape[3]
    first = model.layers[0]
    assert torch.autograd.grad(maps[first].sum(), image)[0].any()
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match="no layer 'nosuch'"):
        model.features(image, ["nosuch"])
    with pytest.raises(ValueError, match="no places|no layer"):
        model.features(image, ["ln_post" if kind == "ViT" else "nosuch"], spatial=True)


def test_maps_of_a_transformer_are_its_tokens_without_the_class_token() -> None:
    _, model = pair("ViT")
    image = batch(2)[0]
    name = "transformer.resblocks.0"
    tokens = recorded(model, [f"visual.{name}"], 2)[f"visual.{name}"]  # (17, 2, 64)
    value = model.features(image, [name], spatial=True)[name]
    assert torch.equal(value[1, :, 2, 3], tokens[1 + 2 * 4 + 3, 1])


def test_as_open_clip_has_open_clips_calls_and_order() -> None:
    theirs, _ = pair("ViT")
    model = as_open_clip(wrap(theirs))
    image, tokens = batch(2)
    images, texts, scale = model(image, tokens)
    assert close(images, nn.functional.normalize(theirs.encode_image(image), dim=-1))
    assert torch.allclose(scale * images @ texts.T, model.get_logits(image, tokens)[0])
    assert model.visual.image_size == (64, 64)
    model.output_dict = True
    assert set(model(image, tokens)) == {"image_features", "text_features", "logit_scale"}
    x = model.token_embedding(tokens) + model.positional_embedding
    y = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))
    features = y[torch.arange(2), tokens.argmax(-1)] @ model.text_projection
    assert close(features, theirs.encode_text(tokens))
    shapes = {n: v.shape[:2] for n, v in recorded(model, HOOKED[2:3] + HOOKED[5:9], 2).items()}
    assert set(shapes.values()) == {(2, 17)}
    model.requires_grad_(True).lock_image_tower(unlocked_groups=2)
    trained = {name for name, p in model.visual.named_parameters() if p.requires_grad}
    assert "proj" in trained and "ln_post.weight" in trained and "conv1.weight" not in trained
    assert not any(".0." in name for name in trained)
    model.lock_text_tower(unlocked_layers=1)
    left = {n for n, p in model.named_parameters() if p.requires_grad and "visual" not in n}
    assert left == {"text_projection", "logit_scale"}
    model.lock_text_tower(unlocked_layers=2)
    left = {n for n, p in model.named_parameters() if p.requires_grad and "visual" not in n}
    assert {n.partition("s.")[2][:1] for n in left if "resblocks" in n} == {"1"}
    assert "ln_final.weight" in left and "positional_embedding" not in left
    before = model.encode_image(image)
    model.set_grad_checkpointing()
    assert torch.equal(model.encode_image(image), before)


@pytest.mark.parametrize("tower", ["ViT", "ResNet"])
def test_build_model_reads_the_originals_state_dict_into_fp16(tower: str) -> None:
    theirs, _ = pair(tower)
    scalars = {"input_resolution": torch.tensor(64), "context_length": torch.tensor(77)}
    model = build_model({**theirs.state_dict(), **scalars})
    assert model.dtype == torch.float16 and model.ln_final.weight.dtype == torch.float32
    assert not model.training
    image, tokens = batch(2)
    assert torch.allclose(model.float().encode_text(tokens), theirs.encode_text(tokens), atol=0.05)
    similarity = torch.cosine_similarity(model.encode_image(image), theirs.encode_image(image))
    assert similarity.min() > 0.999
    with pytest.raises(RuntimeError, match="no state dict of OpenAI"):
        build_model({"weight": torch.zeros(1)})


@pytest.mark.parametrize("tower", ["ViT", "ResNet"])
def test_the_originals_constructor_makes_a_model_of_its_shape(tower: str) -> None:
    theirs, _ = pair(tower)
    vision = (2, 64, 16) if tower == "ViT" else ((2, 1, 1, 1), 16, None)
    model = CLIP(32, 64, *vision, 77, 49408, 64, 1, 2)
    model.load_state_dict(theirs.state_dict(), strict=True)
    image, tokens = batch(2)
    assert close(model.eval().encode_image(image), theirs.encode_image(image))
    assert close(model.encode_text(tokens), theirs.encode_text(tokens))
    order = [n for n, _ in model.named_parameters() if "." not in n]
    assert order == ["positional_embedding", "text_projection", "logit_scale"]
    model.initialize_parameters()
    assert float(model.token_embedding.weight.std()) == pytest.approx(0.02, rel=0.1)
