"""What programs written for OpenAI's `clip` do with it, done with `clipag_plug` under that name.

Each test is one point of the contract; the last ones repeat, in miniature, how well-known programs
use the package. The model is random and tiny, for 224x224 images.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_tiny
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import clipag_plug as clip
from clipag_plug.clip import ROBUST_COUNTERPART
from clipag_plug.model import CLIP

VISION = {"image_size": 224, "patch_size": 56}


@pytest.fixture(autouse=True)
def tiny_224(local_models: Callable[..., None], tiny_config: dict[str, Any]) -> None:
    """Every key loads a random 2-layer ViT with CLIP's input size and vocabulary."""
    tiny_config["vision_cfg"].update(VISION)
    local_models(tiny_config, make_tiny(**VISION).state_dict())


@pytest.fixture
def model() -> CLIP:
    return clip.load("clipag", "cpu")[0]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "CLIP.png"
    pixels = np.random.default_rng(0).integers(0, 255, (240, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


# 1. load


def test_point_1_signature_is_openais_with_precision_added() -> None:
    load = inspect.signature(clip.load).parameters
    assert list(load) == ["name", "device", "jit", "download_root", "precision"]
    assert load["precision"].kind is inspect.Parameter.KEYWORD_ONLY
    assert str(inspect.signature(clip.tokenize)).startswith("(texts")
    assert list(inspect.signature(clip.tokenize).parameters) == [
        "texts",
        "context_length",
        "truncate",
    ]


@pytest.mark.parametrize(
    "arguments, keywords",
    [
        (("clipag", "cpu"), {}),
        (("clipag", torch.device("cpu")), {"jit": False}),
        ((), {"name": "clipag", "device": "cpu"}),
        (("clipag",), {"device": torch.device("cpu"), "download_root": "models"}),
        (("clipag", "cpu", False, None), {"precision": "fp32"}),
    ],
)
def test_point_1_load_takes_what_programs_pass(arguments: tuple, keywords: dict[str, Any]) -> None:
    model, preprocess = clip.load(*arguments, **keywords)
    assert isinstance(model, CLIP) and callable(preprocess)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert model.dtype == torch.float32


def test_point_1_the_default_device_is_asked_for_at_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert clip.load("clipag")[0].logit_scale.device.type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    wanted = []
    monkeypatch.setattr(CLIP, "to", lambda self, device: wanted.append(device) or self)
    clip.load("clipag")
    assert wanted[-1] == "cuda"


def test_point_1_jit_is_ignored_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        clip.load("clipag", "cpu", jit=False)
        assert caplog.messages == []
        model, _ = clip.load("clipag", "cpu", jit=True)
    assert "jit=True is ignored" in caplog.text
    assert isinstance(model, CLIP)


def test_point_1_precision_by_keyword() -> None:
    assert clip.load("clipag", "cpu", precision="fp16")[0].dtype == torch.float16
    with pytest.raises(ValueError, match="fp32, fp16, bf16"):
        clip.load("clipag", "cpu", precision="half")


def test_point_1_a_path_may_be_given(tiny_checkpoint: Path) -> None:
    assert clip.load(str(tiny_checkpoint), "cpu")[0].name == str(tiny_checkpoint)
    assert clip.load(tiny_checkpoint, "cpu")[0].name == str(tiny_checkpoint)


# 2. names


@pytest.mark.parametrize("name", ["ViT-B/33", "nonsense", "", "RN18"])
def test_point_2_an_unknown_name_lists_what_is_available(name: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        clip.load(name, "cpu")
    assert str(caught.value).startswith(f"Model {name} not found")
    assert f"available models = {clip.available_models()}" in str(caught.value)


def test_point_2_a_bare_repository_name_is_refused_with_both_spellings() -> None:
    with pytest.raises(RuntimeError, match="'hf-hub:org/name' or 'local-dir:org/name'"):
        clip.load("org/name", "cpu")


def test_point_2_generic_names_mean_their_robust_counterpart_and_say_so_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip.clip, "_said", set())
    assert clip.load("ViT-B/32", "cpu")[0].name == "clipag"
    assert clip.load("ViT-B/32", "cpu")[0].name == "clipag"
    (record,) = caplog.records
    assert record.name == "clipag_plug.clip"
    assert "'ViT-B/32' gives 'clipag'" in record.getMessage().replace("load(", "").replace(")", "")
    assert "openai/ViT-B/32" in record.getMessage()
    assert clip.load("ViT-B/16", "cpu")[0].name == "fare4-b16-laion"
    assert len(caplog.records) == 2


@pytest.mark.parametrize("name", ["openai/ViT-B/32", "laion/ViT-B/32", "clipag", "fare2-l14"])
def test_point_2_keys_give_themselves_in_silence(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert clip.load(name, "cpu")[0].name == name
    assert caplog.records == []


@pytest.mark.parametrize("name", [name for name, key in ROBUST_COUNTERPART.items() if key is None])
def test_point_2_without_a_counterpart_there_are_no_other_weights(name: str) -> None:
    assert name not in clip.available_models()
    with pytest.raises(RuntimeError) as caught:
        clip.load(name, "cpu")
    assert "no robust counterpart" in str(caught.value) and "'clipag'" in str(caught.value)
    assert "CLIPAG_PLUG_MODEL" in str(caught.value)


@pytest.mark.parametrize("name", ROBUST_COUNTERPART)
def test_point_2_the_environment_redirects_every_generic_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPAG_PLUG_MODEL", "clipag-mini")
    assert clip.load(name, "cpu")[0].name == "clipag-mini"
    assert name in clip.available_models()
    assert clip.load("openai/ViT-B/32", "cpu")[0].name == "openai/ViT-B/32"


def test_point_2_a_redirection_may_itself_be_a_generic_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CLIPAG_PLUG_MODEL", "ViT-L/14")
    assert clip.load("RN50", "cpu")[0].name == "fare4-l14"
    monkeypatch.setenv("CLIPAG_PLUG_MODEL", "RN50")
    with pytest.raises(RuntimeError, match="Model RN50 not found"):
        clip.load("ViT-B/32", "cpu")


def test_point_2_every_counterpart_is_a_robust_model_of_the_registry() -> None:
    from clipag_plug.checkpoints import registry

    for name, key in ROBUST_COUNTERPART.items():
        if key is not None:
            record = registry.find(key)
            assert record.key == key and record.method != "vanilla"
            assert record.arch == name.replace("/", "-")
    models = clip.available_models()
    assert len(models) == len(set(models))
    assert {"ViT-B/32", "clipag", "clipag-mini", "openai/ViT-B/32"} <= set(models)


# 3. a module of one's own


def test_point_3_every_load_is_a_new_module_in_evaluation_mode() -> None:
    first, second = clip.load("clipag", "cpu")[0], clip.load("clipag", "cpu")[0]
    assert first is not second and first.visual is not second.visual
    assert not first.training and not any(module.training for module in first.modules())
    seen: list[Tensor] = []
    first.visual.transformer.resblocks[0].register_forward_hook(lambda _, __, out: seen.append(out))
    second.encode_image(torch.rand(1, 3, 224, 224))
    assert seen == []
    assert all(parameter.requires_grad for parameter in first.parameters())


def test_point_3_freezing_and_moving_chain_on_the_same_module() -> None:
    loaded = clip.load("clipag", jit=False)[0]
    assert loaded.eval().requires_grad_(False).to("cpu") is loaded
    assert loaded.requires_grad_(False).eval().to(torch.device("cpu")) is loaded
    assert sum(p.numel() for p in loaded.parameters()) > 0
    x = torch.rand(1, 3, 224, 224, requires_grad=True)
    loaded.encode_image(x).sum().backward()
    assert x.grad is not None and all(p.grad is None for p in loaded.parameters())
    loaded.zero_grad()


def test_point_3_loading_inside_inference_mode_gives_ordinary_parameters() -> None:
    with torch.inference_mode():
        loaded, _ = clip.load("clipag", "cpu")
    assert not any(parameter.is_inference() for parameter in loaded.parameters())
    x = torch.rand(1, 3, 224, 224, requires_grad=True)
    assert torch.autograd.grad(loaded.encode_image(x).sum(), x)[0].abs().sum() > 0


# 4. features


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


# 5. forward


def test_point_5_forward_returns_two_scaled_cosine_matrices(model: CLIP, photos: Tensor) -> None:
    tokens = clip.tokenize(["a cat", "a dog", "a boat"])
    output = model(photos, tokens)
    assert isinstance(output, tuple) and len(output) == 2
    image = F.normalize(model.encode_image(photos), dim=-1)
    text = F.normalize(model.encode_text(tokens), dim=-1)
    expected = model.logit_scale.exp() * image @ text.T
    assert output[0].shape == (4, 3) and torch.allclose(output[0], expected, atol=1e-5)
    assert torch.equal(output[1], output[0].t())


# 6. attributes


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


# 7. hooks


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


# 8. preprocess


def test_point_8_preprocess_has_openais_five_steps() -> None:
    _, preprocess = clip.load("clipag", "cpu")
    resize, crop, _, _, normalize = preprocess.transforms
    assert len(preprocess.transforms) == 5
    assert resize.size == 224 and crop.size == (224, 224)
    assert str(resize.interpolation.value) == "bicubic"
    assert normalize.mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1"])
def test_point_8_preprocess_takes_any_picture(mode: str, picture: Path) -> None:
    _, preprocess = clip.load("clipag", "cpu")
    image = Image.open(picture).convert(mode)
    output = preprocess(image)
    assert output.shape == (3, 224, 224) and output.dtype == torch.float32
    pixels = np.asarray(
        image.resize((280, 224), Image.Resampling.BICUBIC).crop((28, 0, 252, 224)).convert("RGB")
    )
    expected = torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(getattr(preprocess.transforms[-1], key)) for key in ("mean", "std"))
    assert torch.allclose(output, (expected - mean[:, None, None]) / std[:, None, None], atol=1e-5)


def test_point_8_preprocess_takes_tensors_and_keeps_their_gradient(photos: Tensor) -> None:
    _, preprocess = clip.load("clipag", "cpu")
    x = torch.rand(2, 3, 250, 300, requires_grad=True)
    output = preprocess(x)
    assert output.shape == (2, 3, 224, 224)
    assert torch.autograd.grad(output.sum(), x)[0].abs().sum() > 0
    assert torch.allclose(preprocess(photos), preprocess.transforms[-1](photos))
    assert preprocess(torch.rand(1, 224, 224)).shape == (3, 224, 224)
    byte = (photos[0] * 255).round().to(torch.uint8)
    assert torch.allclose(preprocess(byte), preprocess(byte.float() / 255), atol=1e-6)


def test_point_8_the_list_of_steps_is_an_ordinary_list(photos: Tensor) -> None:
    import pickle

    from torchvision import transforms

    _, preprocess = clip.load("clipag", "cpu")
    head_and_tail = transforms.Compose(preprocess.transforms[:2] + preprocess.transforms[4:])
    assert torch.allclose(head_and_tail(photos), preprocess(photos))
    assert torch.allclose(pickle.loads(pickle.dumps(preprocess))(photos), preprocess(photos))
    preprocess.transforms[0] = transforms.Resize(64)
    preprocess.transforms.insert(0, transforms.RandomHorizontalFlip(0.0))
    assert len(preprocess.transforms) == 6
    assert len(clip.load("clipag", "cpu")[1].transforms) == 5


# 9. tokenize


def test_point_9_tokenize_gives_int32_rows_and_raises_on_long_texts(model: CLIP) -> None:
    assert clip.tokenize("a cat").dtype == torch.int32
    assert clip.tokenize(["a", "b"]).shape == (2, model.context_length)
    with pytest.raises(RuntimeError, match="too long for context length 77"):
        clip.tokenize("cat " * 100)
    assert clip.tokenize("cat " * 100, truncate=True)[0, -1] == 49407
    assert torch.equal(
        model.encode_text(clip.tokenize("a")), model.encode_text(clip.tokenize("a").long())
    )


# 10. long lists


def test_point_10_thousands_of_prompts_in_one_call_stay_bounded(model: CLIP) -> None:
    tokens = torch.cat([clip.tokenize([f"a drawing of number {i}" for i in range(1000)])])
    counts: list[int] = []
    model.ln_final.register_forward_hook(lambda _, inputs, __: counts.append(len(inputs[0])))
    with torch.no_grad():
        features = model.encode_text(tokens)
    assert features.shape == (1000, 32) and sum(counts) == 1000 and max(counts) <= 256
    assert torch.allclose(features[700:703], model.encode_text(tokens[700:703]), atol=1e-5)


# 11. the package


def test_point_11_the_packages_names_and_submodules() -> None:
    from clipag_plug import clip as submodule
    from clipag_plug.clip import __all__ as names
    from clipag_plug.simple_tokenizer import SimpleTokenizer

    assert sorted(names) == ["available_models", "load", "tokenize"]
    assert submodule.load is clip.load and submodule.tokenize is clip.tokenize
    assert clip.model.CLIP is CLIP and clip.simple_tokenizer.SimpleTokenizer is SimpleTokenizer


def test_openais_readme_example_with_only_the_import_changed(
    picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(picture.parent)
    example = """
import torch
import clipag_plug as clip
from PIL import Image

device = "cuda" if torch.cuda.is_available() else "cpu"
model, preprocess = clip.load("ViT-B/32", device=device)

image = preprocess(Image.open("CLIP.png")).unsqueeze(0).to(device)
text = clip.tokenize(["a diagram", "a dog", "a cat"]).to(device)

with torch.no_grad():
    image_features = model.encode_image(image)
    text_features = model.encode_text(text)

    logits_per_image, logits_per_text = model(image, text)
    probs = logits_per_image.softmax(dim=-1).cpu().numpy()
"""
    names: dict[str, Any] = {}
    exec(compile(example, "readme", "exec"), names)
    assert names["probs"].shape == (1, 3) and names["probs"].sum() == pytest.approx(1, abs=1e-5)
    assert names["logits_per_text"].shape == (3, 1)
    features = (
        F.normalize(names["image_features"], dim=-1) @ F.normalize(names["text_features"], dim=-1).T
    )
    expected = (names["model"].logit_scale.exp() * features).softmax(-1)
    assert torch.allclose(torch.from_numpy(names["probs"]), expected.detach().cpu(), atol=1e-5)


def views(image: Tensor, count: int) -> Tensor:
    """`count` crops of one picture at 224, as the programs below make theirs."""
    from torchvision import transforms

    torch.manual_seed(0)
    return torch.cat(
        [transforms.RandomResizedCrop(224, scale=(0.7, 0.9))(image) for _ in range(count)]
    )


def descends(
    loss: Callable[[], Tensor], parameters: list[Tensor], lr: float = 0.05, steps: int = 5
) -> None:
    """A few steps of Adam lower the loss: gradients reach the parameters and point the right way."""
    optimiser = torch.optim.Adam(parameters, lr=lr)
    first = loss().item()
    for _ in range(steps):
        optimiser.zero_grad()
        value = loss()
        value.backward()
        optimiser.step()
    assert value.item() < first


def test_pattern_clipdraw(photos: Tensor) -> None:
    device = torch.device("cpu")
    model, _ = clip.load("ViT-B/32", device, jit=False)
    nouns = torch.cat([clip.tokenize([f"a {i}" for i in range(300)])]).to(device)
    with torch.no_grad():
        text_features = model.encode_text(clip.tokenize("a cat").to(device))
        noun_features = model.encode_text(nouns)
    canvas = photos[:1].clone().requires_grad_()

    def loss() -> Tensor:
        image_features = model.encode_image(views(canvas, 4))
        return -sum(
            torch.cosine_similarity(text_features, image_features[n : n + 1], dim=1).sum()
            for n in range(4)
        )

    descends(loss, [canvas])
    with torch.no_grad():
        image_norm = model.encode_image(canvas)
        image_norm /= image_norm.norm(dim=-1, keepdim=True)
        noun_norm = noun_features / noun_features.norm(dim=-1, keepdim=True)
        values, indices = (100.0 * image_norm @ noun_norm.T).softmax(dim=-1)[0].topk(5)
    assert values.shape == indices.shape == (5,)


def test_pattern_vqgan_clip(photos: Tensor) -> None:
    from torchvision import transforms

    perceptor = clip.load("ViT-B/32", jit=False)[0].eval().requires_grad_(False).to("cpu")
    side = perceptor.visual.input_resolution
    embed = perceptor.encode_text(clip.tokenize("a cat").to("cpu")).float()
    noise = torch.empty([1, perceptor.visual.output_dim]).normal_(
        generator=torch.Generator().manual_seed(0)
    )
    normalize = transforms.Normalize(mean=perceptor.mean, std=perceptor.std)
    z = photos[:1].clone().requires_grad_()

    def spherical(target: Tensor) -> Tensor:
        images = F.adaptive_avg_pool2d(z, (side, side)).repeat(8, 1, 1, 1)
        features = F.normalize(
            perceptor.encode_image(normalize(images)).float().unsqueeze(1), dim=2
        )
        distance = features.sub(F.normalize(target.unsqueeze(0), dim=2)).norm(dim=2).div(2)
        return distance.arcsin().pow(2).mul(2).mean()

    descends(lambda: spherical(embed) + 0.1 * spherical(noise), [z])
    with torch.inference_mode():
        z.copy_(z.clamp(0, 1))
        perceptor.encode_image(z)


def test_pattern_clipstyler(photos: Tensor) -> None:
    model, _ = clip.load("ViT-B/32", "cpu", jit=False)
    templates = [
        template.format("fire") for template in ("a {}.", "a bad photo of a {}.", "itap of the {}.")
    ]
    with torch.no_grad():
        text_features = model.encode_text(clip.tokenize(templates)).detach()
        text_features = text_features.mean(axis=0, keepdim=True)
        text_features /= text_features.norm(dim=-1, keepdim=True)
        source_features = model.encode_image(photos[:1])
        source_features /= source_features.clone().norm(dim=-1, keepdim=True)
    target = photos[:1].clone().requires_grad_()

    def loss() -> Tensor:
        image_features = model.encode_image(views(target, 3))
        image_features /= image_features.clone().norm(dim=-1, keepdim=True)
        direction = image_features - source_features
        direction /= direction.clone().norm(dim=-1, keepdim=True)
        return (1 - torch.cosine_similarity(direction, text_features.expand(3, -1), dim=1)).mean()

    descends(loss, [target])


def test_pattern_styleclip(photos: Tensor) -> None:
    model, _ = clip.load("ViT-B/32", device="cpu")
    text = torch.cat([clip.tokenize("a person with purple hair")])
    latent = photos[:1].clone().requires_grad_()
    upsample, pool = torch.nn.Upsample(scale_factor=7), torch.nn.AvgPool2d(kernel_size=224 // 32)

    def loss() -> Tensor:
        return (1 - model(pool(upsample(latent)), text)[0] / 100).mean()

    descends(loss, [latent])
    assert model.encode_text(text).detach().cpu().numpy().dtype == np.float32


def test_pattern_stylegan_nada(photos: Tensor) -> None:
    from torchvision import transforms

    model, clip_preprocess = clip.load("ViT-B/32", device="cpu")
    model.requires_grad_(False)
    from_generator = [transforms.Normalize(mean=[-1.0] * 3, std=[2.0] * 3)]  # [-1, 1] to [0, 1]
    preprocess = transforms.Compose(
        from_generator + clip_preprocess.transforms[:2] + clip_preprocess.transforms[4:]
    )
    generated = photos * 2 - 1
    assert torch.allclose(preprocess(generated), clip_preprocess(photos), atol=1e-5)
    logits, _ = model(preprocess(generated), clip.tokenize(["a", "b"]))
    assert (logits / 100).shape == (4, 2)


def test_pattern_clipasso(photos: Tensor) -> None:
    from torchvision import transforms

    model, preprocess = clip.load("ViT-B/32", "cpu", jit=False)
    other, _ = clip.load("ViT-B/32", device="cpu", jit=False)
    model.eval().to("cpu")
    size = preprocess.transforms[1].size
    normalize = transforms.Compose(
        [preprocess.transforms[0], preprocess.transforms[1], preprocess.transforms[-1]]
    )
    assert size == (224, 224)
    features: dict[int, Tensor] = {}
    for i, block in enumerate(dict(model.visual.transformer.resblocks.named_children()).values()):
        block.register_forward_hook(
            lambda _, __, out, i=i: features.__setitem__(i, out.permute(1, 0, 2))  # LND -> NLD
        )
    sketch = photos[:1].clone().requires_grad_()
    with torch.no_grad():
        model.encode_image(normalize(photos[1:2]))
        target = {i: feature.detach() for i, feature in features.items()}
    assert target[0].shape == (1, 17, 64)

    def loss() -> Tensor:
        model.encode_image(normalize(sketch))
        return (
            torch.square(features[0] - target[0]).mean()
            + torch.square(features[1] - target[1]).mean()
        )

    descends(loss, [sketch])
    kept = features[0]
    other.encode_image(photos[:1])
    assert features[0] is kept
    other.zero_grad()


def test_pattern_big_sleep_and_deep_daze(photos: Tensor) -> None:
    perceptor, preprocess = clip.load("ViT-B/32", jit=False, device="cpu")
    for parameter in perceptor.parameters():
        parameter.requires_grad = False
    assert (perceptor.visual.input_resolution, perceptor.context_length) == (224, 77)
    x = photos[:2].clone().requires_grad_()
    with torch.autocast("cpu", enabled=False):
        features = perceptor.encode_image(preprocess(x))
    similarity = torch.cosine_similarity(perceptor.encode_text(clip.tokenize("a cat")), features)
    (-100 * similarity.mean()).backward()
    assert x.grad is not None and bool(x.grad.any())


def test_pattern_pixray_and_disco(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from clipag_plug import clip as pixray_clip

    assert "ViT-B/32" in pixray_clip.available_models()
    model = pixray_clip.load("ViT-B/32", jit=False, download_root=str(tmp_path))[0]
    model = model.requires_grad_(False).eval().to("cpu")
    assert model.encode_text(pixray_clip.tokenize("a cat", truncate=True)).float().shape == (1, 32)
    assert max(p.numel() for p in model.parameters()) == 49408 * 16


def test_pattern_clipig(photos: Tensor) -> None:
    model, preprocess = clip.load(name="ViT-B/32", device="cpu")
    device = model.logit_scale.device
    pixels = preprocess.transforms[-1](photos).to(device)
    text = clip.tokenize(["a cat"]).to(device)
    assert model.encode_image(pixels).shape == model.encode_text(text).expand(4, -1).shape
    preprocess.transforms = [preprocess.transforms[-1]]
    assert torch.allclose(preprocess(photos), pixels)


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


def test_nothing_is_written_and_no_path_is_assumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    clip.load("clipag", "cpu", download_root="models")
    assert os.listdir(tmp_path) == []
