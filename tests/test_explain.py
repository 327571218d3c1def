"""Heatmaps: equality with grad-cam and with definitions, layouts, layers, refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import TINY, make_tiny
from torch import Tensor, nn
from torch.nn import functional as F

import clipag_plug
from clipag_plug.explanation import heatmaps, negation_attack, text_features
from clipag_plug.explanation.cam import (
    Layer,
    find_layer,
    integrated_gradients,
    maps_and_gradients,
    masks,
)
from clipag_plug.explanation.maps import rescaled, squash
from clipag_plug.guide import Guide, frozen
from clipag_plug.images import resize
from clipag_plug.losses import cosine
from clipag_plug.model import CLIP, build
from clipag_plug.options.explain import METHODS

TEXTS = ("a dog", "the deep blue sea")
MINI = {"mini": {"image_size": 32, "widths": [8, 16, 24, 32]}, "image_size": 224}
RESNET = {"layers": [1, 1, 1, 1], "width": 8, "patch_size": None, "image_size": 128}


def tower(vision: dict[str, Any], seed: int = 0) -> CLIP:
    """A random CLIP with this image tower."""
    config = copy.deepcopy(TINY)
    config["vision_cfg"] = dict(vision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(config, None, name="random")


def scene(guide: Guide, count: int = 3) -> tuple[Tensor, Tensor]:
    """Smooth random images for a guide, and the features of TEXTS."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    images = F.interpolate(coarse, guide.side, mode="bicubic").clamp(0, 1)
    return images, text_features(guide, TEXTS)


class Logits(nn.Module):
    """Normalised images to logits. The scale keeps grad-cam's own 1e-7 in its denominator small."""

    def __init__(self, guide: Guide, texts: Tensor) -> None:
        super().__init__()
        self.model, self.guide, self.texts = guide.model, guide, texts

    def forward(self, images: Tensor) -> Tensor:
        return 1e4 * self.guide.features(images, normalize=False) @ self.texts.T


def oracle(guide: Guide, layer: Layer, images: Tensor, texts: Tensor, number: int) -> Tensor:
    """grad-cam's map of one text, with the `reshape_transform` that its users write for a ViT."""
    pytorch_grad_cam = pytest.importorskip("pytorch_grad_cam")

    def patches(output: Tensor) -> Tensor:
        output = output.transpose(0, 1) if layer.kind == "tokens-first" else output
        side = round((output.shape[1] - 1) ** 0.5)
        return output[:, 1:].reshape(len(output), side, side, -1).permute(0, 3, 1, 2)

    reshape = None if layer.kind == "map" else patches
    with pytorch_grad_cam.GradCAM(Logits(guide, texts), [layer.module], reshape) as cam:
        found = cam((images - guide.mean) / guide.std, [lambda row: row[number]] * len(images))
    return torch.from_numpy(found)


@pytest.mark.parametrize("vision", [MINI, RESNET], ids=["mini", "resnet"])
def test_gradcam_of_convolutional_towers_equals_grad_cam(vision) -> None:
    guide = Guide(tower(vision, seed=1))
    images, texts = scene(guide)
    found = heatmaps(guide, images, texts)
    assert found.amax() == 1
    for number in range(len(TEXTS)):
        expected = oracle(guide, find_layer(guide), images, texts, number)
        assert torch.allclose(found[:, number], expected, atol=1e-5)


def test_gradcam_ln1_of_a_vit_equals_grad_cam(tiny_clip) -> None:
    guide = Guide(tiny_clip)
    images, texts = scene(guide)
    found = heatmaps(guide, images, texts, method="gradcam-ln1")
    layer = find_layer(guide, first_norm=True)
    assert layer.name == "transformer.resblocks.1.ln_1"
    for number in range(len(TEXTS)):
        expected = oracle(guide, layer, images, texts, number)
        assert expected.amax() > 0.99
        assert torch.allclose(found[:, number], expected, atol=1e-5)


def test_gradcam_of_a_vit_takes_the_gradient_at_the_class_token(tiny_clip) -> None:
    """Against the definition, with the features taken from the block's output by hand."""
    guide = Guide(tiny_clip)
    images, texts = scene(guide)
    caught: list[Tensor] = []
    handle = tiny_clip.visual.transformer.resblocks[-1].register_forward_hook(
        lambda module, given, output: caught.append(output)
    )
    with torch.enable_grad():
        guide.features(images)
    handle.remove()
    tokens = caught[0].transpose(0, 1).detach().requires_grad_(True)  # (N, L, C)
    features = F.normalize(tiny_clip.visual.ln_post(tokens[:, 0]) @ tiny_clip.visual.proj, dim=-1)
    (gradient,) = torch.autograd.grad((features @ texts[1]).sum(), tokens)
    assert not gradient[:, 1:].any()
    expected = torch.einsum("nc,nlc->nl", gradient[:, 0], tokens[:, 1:]).relu().unflatten(1, (4, 4))
    expected = rescaled(resize(rescaled(expected)[:, None], 64, "bilinear"))[:, 0]
    assert torch.allclose(heatmaps(guide, images, texts)[:, 1], expected, atol=1e-5)


def test_naive_gradcam_of_a_vit_is_refused_with_the_reason(tiny_clip) -> None:
    guide = Guide(tiny_clip)
    images, texts = scene(guide)
    with pytest.raises(
        ValueError, match="identically zero at 'transformer.resblocks.1'.*gradcam-ln1"
    ):
        heatmaps(guide, images, texts, method="gradcam-naive")
    # One block earlier the patches still reach the class token.
    assert heatmaps(
        guide, images, texts, method="gradcam-naive", layer="transformer.resblocks.0"
    ).any()


@pytest.mark.parametrize("vision", [MINI, TINY["vision_cfg"]], ids=["mini", "vit"])
def test_gscorecam_equals_a_transcription_of_its_definition(vision) -> None:
    guide = Guide(tower(vision))
    images, texts = scene(guide, 2)
    layer = find_layer(guide)
    found = heatmaps(guide, images, texts, method="gscorecam", channels=9)
    for image, row in zip(images, found):
        for text, heat in zip(texts, row):
            assert torch.allclose(heat, transcribed(guide, layer, image, text, 9), atol=1e-5)


def transcribed(guide: Guide, layer: Layer, image: Tensor, text: Tensor, channels: int) -> Tensor:
    """gScoreCAM as it is written down: one image, one text, one mask at a time."""
    maps, gradients = maps_and_gradients(guide, image[None], text[None, None], layer)
    activation, gradient = maps[0], gradients[0]
    places = layer.as_map(gradient)[0]
    importance = places.mean((1, 2)) if layer.kind == "map" else layer.class_token(gradient)[0]
    scores = torch.zeros(len(activation))
    scale = guide.model.logit_scale.exp()
    normalised = (image - guide.mean[0]) / guide.std[0]
    with torch.no_grad():
        for channel in importance.argsort(descending=True)[:channels].tolist():
            size = (guide.side, guide.side)
            mask = F.interpolate(
                activation[None, None, channel], size, mode="bilinear", align_corners=True
            )
            mask = (mask - mask.min()) / (mask.max() - mask.min() + 1e-6)
            masked = guide.features(mask * normalised, normalize=False)[0]
            scores[channel] = scale * masked @ text
        heat = sum(
            weight * channel for weight, channel in zip(scores.softmax(0), activation)
        ).relu()
    heat = rescaled(heat[None, None])
    return rescaled(resize(heat, guide.side, "bilinear"))[0, 0]


def test_masks_are_in_the_unit_interval_and_a_dead_channel_masks_everything() -> None:
    channels = torch.cat([torch.randn(3, 4, 4), torch.zeros(1, 4, 4)])
    found = masks(channels, 16)
    assert found.shape == (4, 1, 16, 16) and found.min() == 0 and found.max() <= 1
    assert not found[3].any()
    assert torch.allclose(found[:3].amax((1, 2, 3)), torch.ones(3), atol=1e-4)


def test_integrated_gradients_add_up_to_the_difference_of_the_scores(tiny_clip) -> None:
    guide = Guide(tiny_clip)
    images, texts = scene(guide)
    images, texts = images[:1], texts[:1]
    with frozen([tiny_clip]):
        parts = integrated_gradients(guide, images, texts[None], steps=64)
        black = guide.features(torch.zeros_like(images))
        expected = (guide.features(images) - black) @ texts.T
    assert torch.allclose(parts.sum((2, 3)), expected, atol=2e-3)
    assert expected.abs().min() > 5e-3


def test_input_gradient_is_the_derivative_of_the_cosine(tiny_clip) -> None:
    guide = Guide(tiny_clip)
    images, texts = scene(guide, 1)
    images.requires_grad_(True)
    (gradient,) = torch.autograd.grad((guide.features(images) * texts[0]).sum(), images)
    expected = rescaled(gradient.abs().amax(1))
    found = heatmaps(guide, images.detach(), texts, method="input-gradient")[:, 0]
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "gradcam-naive"])
def test_maps_do_not_depend_on_the_batch_and_leave_the_model_alone(tiny_clip, method) -> None:
    tiny_clip.train()
    weights = {name: tensor.clone() for name, tensor in tiny_clip.state_dict().items()}
    guide = Guide(tiny_clip)
    images, texts = scene(guide)
    together = heatmaps(guide, images, texts, method=method, channels=5, samples=3)
    assert together.shape == (3, 2, 64, 64) and together.min() >= 0 and together.max() == 1
    alone = [
        heatmaps(guide, x[None], texts[1:], method=method, channels=5, samples=3) for x in images
    ]
    assert torch.allclose(together[:, 1:], torch.cat(alone), atol=1e-4)
    own = torch.stack([texts, texts.flip(0), texts])
    crossed = heatmaps(guide, images, own, method=method, channels=5, samples=3)
    assert torch.allclose(crossed[1], together[1].flip(0), atol=1e-4)
    assert tiny_clip.training and all(
        p.requires_grad and p.grad is None for p in tiny_clip.parameters()
    )
    assert all(
        torch.equal(weights[name], tensor) for name, tensor in tiny_clip.state_dict().items()
    )
    assert not any(m._forward_hooks for m in tiny_clip.modules())


def test_the_attack_is_equation_1(tiny_clip) -> None:
    guide = Guide(tiny_clip)
    images, _ = scene(guide)
    wanted, negated = (text_features(guide, [text]) for text in ("a dog", "not a dog"))
    attacked = negation_attack(guide, images, wanted, negated)
    assert (attacked - images).abs().max() <= 8 / 255 + 1e-6
    assert attacked.min() >= 0 and attacked.max() <= 1

    def objective(x: Tensor) -> Tensor:
        features = guide.features(x)
        return cosine(features, wanted) - cosine(features, negated)

    assert (objective(attacked) > objective(images)).all()
    # One step is the sign of the gradient of the objective, of length 1/255.
    one = negation_attack(guide, images, wanted, negated, steps=1)
    x = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(objective(x).sum(), x)
    assert torch.allclose(one, (images + gradient.sign() / 255).clamp(0, 1), atol=1e-6)
    assert torch.equal(negation_attack(guide, images, wanted, negated, steps=0), images)


def test_squash_shows_the_tower_what_its_preprocessing_does() -> None:
    guide = Guide(tower(MINI))
    picture = torch.rand(1, 3, 224, 224)
    small = squash(picture, guide)
    assert small.shape == (1, 3, 32, 32)
    assert torch.allclose(guide.features(small), guide.features(picture), atol=1e-4)
    stretched = squash(picture[..., :100], guide)
    assert stretched.shape == small.shape and not torch.allclose(stretched, small, atol=0.1)


def test_explain_refuses_what_it_cannot_explain(tiny_clip) -> None:
    picture = torch.rand(3, 8, 8)
    with pytest.raises(ValueError, match="a text is empty"):
        clipag_plug.explain(tiny_clip, picture, ["a dog", " "])
    with pytest.raises(ValueError, match="a text is empty"):
        clipag_plug.explain(tiny_clip, picture, [])
    with pytest.raises(ValueError, match="method is 'cam'; it must be one of 'gradcam'"):
        clipag_plug.explain(tiny_clip, picture, "a dog", method="cam")
    with pytest.raises(ValueError, match="leaves \\[0, 1\\]"):
        clipag_plug.explain(tiny_clip, picture * 255, "a dog")
    with pytest.raises(ValueError, match="of shape \\(8, 8\\)"):
        clipag_plug.explain(tiny_clip, picture[0], "a dog")
    with pytest.raises(ValueError, match="is no CLIP"):
        clipag_plug.explain(nn.Linear(1, 1), picture, "a dog")


def test_explain_returns_maps_of_the_pictures_own_size() -> None:
    model = make_tiny()
    single = clipag_plug.explain(model, torch.rand(3, 37, 80), TEXTS)
    assert single.shape == (2, 37, 80) and single.amax((1, 2)).tolist() == [1, 1]
    assert clipag_plug.explain(model, torch.rand(2, 3, 37, 80), "a dog").shape == (2, 1, 37, 80)
