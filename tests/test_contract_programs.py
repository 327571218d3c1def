"""OpenAI's example and what well-known programs do with `clip`, in miniature, run with `clipag_plug`."""

# ruff: noqa: F401, F811 (fixtures are imported and then named as arguments)

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contract_helpers import picture, tiny_224
from torch import Tensor
from torch.nn import functional as F

import clipag_plug as clip


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
