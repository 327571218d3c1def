"""The bundled models: what they weigh, what they share, and that robustness and its gradients are real."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import clipag_plug
from clipag_plug import clip
from clipag_plug.attacks import pgd, value_and_gradient
from clipag_plug.bundled.photos import bundled_photos
from clipag_plug.vocabulary import bundled_vocabulary, unheard

FOLDER = Path(clipag_plug.__file__).parent / "bundled"
KEYS = ("clip-mini", "clipag-mini", "judge-mini")


@pytest.fixture(scope="module")
def sample():
    photos = bundled_photos()
    rows = torch.arange(0, len(photos), 5)
    return photos.pixels(rows, side=224), photos.labels[rows]


def classifier(model):
    names = bundled_vocabulary().class_names
    prompts = model.encode_text(clip.tokenize([f"a photo of a {name}" for name in names]))
    prompts = F.normalize(prompts, dim=-1)
    return lambda x: F.normalize(model.encode_image(model.normalize(x)), dim=-1) @ prompts.T


def test_all_three_fit_in_the_package() -> None:
    assert sum((FOLDER / f"{key}.safetensors").stat().st_size for key in KEYS) <= 40e6


def test_the_register_and_the_card_name_the_same_attack() -> None:
    from clipag_plug.weights.registry import checkpoints

    (record,) = (each for each in checkpoints() if each.key == "clipag-mini")
    card = json.loads((FOLDER / "clipag-mini.json").read_text("utf-8"))["card"]
    assert (record.norm, record.eps) == (card["norm"], card["eps"])


def test_the_pair_shares_its_text_tower_to_the_bit(bundled_pair) -> None:
    vanilla, robust = (bundled_pair[key].state_dict() for key in KEYS[:2])
    text = [n for n in vanilla if not n.startswith("visual.") and n != "logit_scale"]
    assert text and all(torch.equal(vanilla[n], robust[n]) for n in text)
    assert not torch.equal(vanilla["visual.conv_stem.weight"], robust["visual.conv_stem.weight"])


def test_the_judge_is_another_network(bundled_pair) -> None:
    judge = clip.load("judge-mini", "cpu")[0]
    guide = bundled_pair["clip-mini"]
    assert judge.visual.output_dim != guide.visual.output_dim
    assert type(judge.visual) is not type(guide.visual)
    assert not torch.equal(judge.token_embedding.weight, guide.token_embedding.weight)


@pytest.mark.parametrize("key", KEYS)
def test_cards_say_what_the_models_can_do(key) -> None:
    model = clip.load(key, "cpu")[0]
    for field in (
        "description",
        "data",
        "licence",
        "results",
        "history",
        "can_draw",
        "cannot_draw",
    ):
        assert model.card[field], field
    if key == "judge-mini":
        assert set(bundled_vocabulary().words) <= set(model.vocabulary)
    else:
        assert len(model.vocabulary) >= 2600
        assert {"tench", "great white shark", "castle", "robot", "horse"} <= set(model.vocabulary)
    assert set(model.card["results"]) == {"clean", "l2 1.5"}


def test_accuracy_is_far_above_chance(bundled_pair, sample) -> None:
    images, labels = sample
    for model in bundled_pair.values():
        with torch.no_grad():
            found = classifier(model)(images).argmax(1)
        assert float((found == labels).float().mean()) > 20 / 202


def test_the_robust_model_withstands_what_breaks_the_vanilla_one(bundled_pair, sample) -> None:
    images, labels = sample
    kept = {}
    for key, model in bundled_pair.items():
        scores = classifier(model)

        def loss(x, scores=scores):
            return F.cross_entropy(100 * scores(x), labels, reduction="none")

        attacked = pgd(loss, images, eps=3.0, norm="l2", steps=5)
        with torch.no_grad():
            kept[key] = float((scores(attacked).argmax(1) == labels).float().mean())
    assert kept["clipag-mini"] > kept["clip-mini"] + 0.05


def test_robust_gradients_are_smoother(bundled_pair, sample) -> None:
    # Smoothness: how alike a gradient and its shift by one internal pixel (7 of 224) are.
    images, labels = sample
    alike = {}
    for key, model in bundled_pair.items():
        scores = classifier(model)
        _, gradient = value_and_gradient(
            lambda x, s=scores: s(x)[torch.arange(len(x)), labels[:32]], images[:32]
        )
        shifted = gradient.roll(7, dims=-1)
        alike[key] = float(F.cosine_similarity(gradient.flatten(1), shifted.flatten(1)).mean())
    assert alike["clipag-mini"] > alike["clip-mini"] + 0.05


def test_untaught_words_change_little(bundled_pair) -> None:
    model = bundled_pair["clipag-mini"]
    with torch.no_grad():
        plain, decorated, other = F.normalize(
            model.encode_text(clip.tokenize(["a goldfish", "a zyxqian goldfish", "a tractor"])),
            dim=-1,
        )
    assert float(plain @ decorated) > float(plain @ other) + 0.3


def test_words_are_shown_with_what_they_are_taken_for(capsys) -> None:
    from clipag_plug import cli

    assert cli.main(["words", "goldfish", "a school bus", "--count", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["goldfish"][0][0] == "goldfish" and found["a school bus"][0][0] == "school bus"
    assert all(len(near) == 2 and near[0][1] >= near[1][1] for near in found.values())
    assert unheard("a photo of a zyxqian") == ["zyxqian"]
    assert unheard("A zyxqian's lemon, Zyxqian\u2019s qwv") == ["zyxqian", "qwv"]
    assert unheard("\U0001f34b") == ["\U0001f34b"] and unheard(" 42 ") == ["42"]
    assert unheard("two goldfish") == unheard("an image") == unheard("lemons") == []
