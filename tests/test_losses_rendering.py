"""The losses for renderers against a plain writing of them; views of pictures and target alike; nothing left behind."""

from __future__ import annotations

import pytest
import torch
from conftest import make_tiny
from model_helpers import ARCHITECTURES
from torch import Tensor

from clipag_plug.guide import Guide
from clipag_plug.losses.rendering import SemanticLoss, VisualLoss
from clipag_plug.model import CLIP, build


def model(kind: str) -> CLIP:
    if kind == "vit":
        return make_tiny()
    torch.manual_seed(0)
    return build(ARCHITECTURES[kind], None)


def pictures(seed: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, 80, 72, generator=torch.Generator().manual_seed(seed))


def unit(x: Tensor) -> Tensor:
    return x / (x * x).sum(1, keepdim=True).sqrt()


@pytest.mark.parametrize("kind", ["vit", "residual network", "ConvNeXt"])
def test_semantic_loss_equals_its_plain_writing(kind: str) -> None:
    judge = model(kind)
    loss = SemanticLoss(judge, {"a cat": 1.0, "a red dog": 0.5}, negatives="text", views=3, seed=7)
    images = pictures(0).requires_grad_()
    views = loss.draw(images, 4)
    assert views.shape == (6, 3, 64, 64)
    expected = torch.zeros(())
    words = [("a cat", 1.0), ("a red dog", 0.5), ("text", -0.3)]
    for view in views:
        image = unit(judge.encode_image(((view - torch.tensor(judge.mean).view(3, 1, 1))
            / torch.tensor(judge.std).view(3, 1, 1))[None]))  # fmt: skip
        for text, weight in words:
            cosine = (image * unit(judge.encode_text(judge.tokenize(text)))).sum()
            expected = expected + (weight * (1 - cosine) if weight > 0 else -weight * cosine) / 6
    assert torch.allclose(loss(images, 4), expected, atol=1e-5)
    assert torch.autograd.grad(loss(images, 4), images)[0].any()
    assert not list(loss.parameters()) and not loss.state_dict()


@pytest.mark.parametrize("kind", ["vit", "residual network", "ConvNeXt"])
@pytest.mark.parametrize("distance", ["l2", "l1", "cosine"])
def test_visual_loss_equals_its_plain_writing(kind: str, distance: str) -> None:
    judge = model(kind)
    first, second = judge.layers[:2]
    weights = {first: 1.0, second: 0.5}
    loss = VisualLoss(judge, pictures(1, 1), layers=weights, distance=distance, views=2, seed=3)
    images = pictures(0).requires_grad_()
    drawn = loss.draw(images, 0)
    found: list[list[Tensor]] = []
    for part in drawn:
        kept: list[Tensor] = []
        handles = [
            judge.visual.get_submodule(name).register_forward_hook(
                lambda _, __, out, k=kept: k.append(out)
            )
            for name in weights
        ]
        output = judge.encode_image(judge.normalize(part))
        for handle in handles:
            handle.remove()
        found.append([*kept, output])
    expected = 0.1 * (1 - (unit(found[0][2]) * unit(found[1][2])).sum(1)).mean()
    for index, weight in enumerate(weights.values()):
        one, other = found[0][index], found[1][index]
        if distance == "cosine":
            if kind == "vit":  # (L, N, D), the class token first
                one, other = (x[1:].permute(1, 2, 0) for x in (one, other))
            between = (1 - (unit(one) * unit(other)).sum(1)).mean()
        else:
            between = ((one - other) ** 2 if distance == "l2" else (one - other).abs()).mean()
        expected = expected + weight * between
    assert torch.allclose(loss(images, 0), expected, atol=1e-5)
    assert torch.autograd.grad(loss(images, 0), images)[0].any()
    assert not any(module._forward_hooks for module in judge.modules())


def test_picture_and_target_are_seen_alike_and_equal_ones_have_no_distance() -> None:
    images = pictures(0)
    loss = VisualLoss(make_tiny(), images, views=3, blur=1.5)
    one, other = loss.draw(images)
    assert one.shape == (2 + 6, 3, 64, 64) and torch.equal(one, other)
    assert abs(float(loss(images))) < 1e-5
    sharp = VisualLoss(make_tiny(), images, views=0)
    assert one[:2].std() < sharp.draw(images)[0].std()


def test_views_follow_seed_and_step_and_no_global_state() -> None:
    images = pictures(0)
    judge = make_tiny()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again = (SemanticLoss(judge, "a cat", seed=5) for _ in range(2))
    assert torch.equal(first(images), again(images)) and torch.equal(
        first(images, 9), again(images, 9)
    )
    assert torch.equal(first(images), again(images, 1)) and first(images, 1) != first(images, 2)
    assert first(images, 1) != SemanticLoss(judge, "a cat", seed=6)(images, 1)
    assert torch.equal(before, torch.get_rng_state())


def test_a_guide_and_numbers_from_outside_give_the_same_loss() -> None:
    judge, images = make_tiny(), pictures(0)
    plain = SemanticLoss(judge, {"a cat": 2.0}, negatives="text", seed=5)
    guided = SemanticLoss(Guide(judge), [("a cat", 2.0)], negatives=[("text", 0.3)])
    numbers = plain._generator(9)
    assert torch.allclose(guided(images, numbers), plain(images, 9), atol=1e-6)
    assert torch.allclose(2.0 - plain.scores(images, 9).mean(), plain(images, 9))
    later, again = guided(images, numbers), guided(images, numbers)  # they go on
    assert later != again


@pytest.mark.parametrize("kind", ["half", "bfloat16", "double"])
def test_pictures_of_any_precision_are_seen_as_those_of_fp32(kind: str) -> None:
    """Places are never told in half precision, whose steps would be pixels wide."""
    judge, images = make_tiny(), getattr(pictures(0), kind)()
    for loss in (SemanticLoss(judge, "a cat"), VisualLoss(judge, pictures(1), blur=1.0)):
        value, want = loss(images.requires_grad_(), 3), loss(images.detach().float(), 3)
        assert torch.allclose(value.float(), want, atol=1e-6)
        assert torch.autograd.grad(value, images)[0].any()
        getattr(loss, kind)()(images, 3).backward()  # a loss that was cast along with a program


def test_a_loss_made_under_inference_mode_can_be_descended() -> None:
    judge, images = make_tiny(), pictures(0).requires_grad_()
    with torch.inference_mode():
        losses = SemanticLoss(judge, "a cat"), VisualLoss(judge, pictures(1) * 1, blur=1.0)
    for loss in losses:
        assert torch.autograd.grad(loss(images), images)[0].any()


def test_a_perspective_shows_the_fill_colour_around_the_picture() -> None:
    loss = SemanticLoss(make_tiny(), "x", fill=(1.0, 0.0, 0.5), crop=(1.0, 1.0), distortion=1.0)
    views = loss.draw(torch.zeros(1, 3, 64, 64))
    corner = views.permute(0, 2, 3, 1).reshape(-1, 3)
    assert (corner - torch.tensor([1.0, 0.0, 0.5])).abs().sum(1).min() < 1e-4
    whole = SemanticLoss(make_tiny(), "x", views=0).draw(torch.full((1, 3, 64, 64), 0.25))
    assert torch.allclose(whole, torch.full((1, 3, 64, 64), 0.25), atol=1e-6)


@pytest.mark.parametrize(
    "make, word",
    [
        (lambda m: SemanticLoss(m, []), "no prompts"),
        (lambda m: SemanticLoss(m, "a", fill=(1, 2)), "fill"),
        (lambda m: VisualLoss(m, pictures(0), distance="l3"), "l2, l1, cosine"),
        (lambda m: VisualLoss(m, torch.rand(3, 8, 8)), "target"),
        (lambda m: VisualLoss(m, (pictures(0) * 255).byte()), "target has shape .* torch.uint8"),
        (lambda m: VisualLoss(m, pictures(0) * 255), r"target has values .* in \[0, 1\]"),
        (lambda m: VisualLoss(m, pictures(0, 3))(pictures(0)), "3 targets for 2 pictures"),
        (lambda m: VisualLoss(m, pictures(0))(pictures(0)[0]), "images has shape"),
        (lambda m: SemanticLoss(m, "a")((pictures(0) * 255).byte()), "uint8"),
        (lambda m: SemanticLoss(m, "a")(torch.rand(1, 4, 8, 8)), "images has shape"),
        (lambda m: SemanticLoss(m, "a", views=-1), "views is -1"),
        (lambda m: SemanticLoss(m, "cat " * 100), "too long"),
        (lambda m: SemanticLoss(m, "a", views=2.5), "views is 2.5"),
        (lambda m: SemanticLoss(m, "a", crop=(0.9, 0.7)), "crop is"),
        (lambda m: SemanticLoss(m, "a", crop=(0.0, 2.0)), "crop is"),
        (lambda m: SemanticLoss(m, "a", distortion=float("nan")), "distortion nan"),
        (lambda m: SemanticLoss(m, "a", fill=255), "fill is 255"),
        (lambda m: SemanticLoss(m, {"a": float("nan")}), "prompts are"),
        (lambda m: SemanticLoss(m, None), "prompts are None"),
        (lambda m: SemanticLoss("clipag-mini", "a"), "'clipag-mini' is no model"),
        (lambda m: SemanticLoss(m, "a")(pictures(0)[:0]), r"shape \(0, 3, 80, 72\)"),
        (lambda m: SemanticLoss(m, "a")(pictures(0)[..., :1]), "80x1 pixels"),
        (lambda m: VisualLoss(m, pictures(0), blur=-1.0), "blur is -1.0"),
        (lambda m: VisualLoss(m, pictures(0), blur=50.0), "blur is 50.0"),
        (lambda m: VisualLoss(m, pictures(0), crop=2.0), "crop is"),
        (lambda m: VisualLoss(m, pictures(0)[:0]), "target has shape"),
    ],
)
def test_what_makes_no_loss_is_named(make, word: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=word):
        make(make_tiny())
