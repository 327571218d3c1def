"""The trainer's core: exact accumulation, exact resume, a frozen text tower, attacks, averages, the command."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from train_helpers import (
    ARCHITECTURE,
    VIT,
    architecture,
    as_one,
    differ,
    gradients,
    jpeg,
    options,
    prepared,
    write_shard,
)

from clipag_plug.cli import main
from clipag_plug.train import state
from clipag_plug.train.command import train
from clipag_plug.train.data import read_shards
from clipag_plug.train.lessons import TextFeatures


@pytest.mark.parametrize(
    "changes",
    [
        {"text": "train", "attack_steps": 0},
        {"text": "train", "clean_weight": 0.5},
        {"text": "frozen"},
        {"text": "frozen", "trades": 2.0, "bank": True},
        {"objective": "fare", "keep": "disk"},
    ],
)
def test_accumulation_equals_the_single_batch(shard, tmp_path, changes) -> None:
    # The inner attack sees its micro-batch only, so it is compared on an objective that does not look at the batch.
    common = {"attack_objective": "tecoa", "crop": 1.0, "random_start": False, "flip": False}
    whole = prepared(shard, tmp_path, batch_size=24, **common, **changes)
    split = prepared(shard, tmp_path, batch_size=8, accumulation=3, **common, **changes)
    as_one(whole, split, 3)
    assert differ(gradients(whole), gradients(split)) < 1e-4


@pytest.mark.parametrize(("given", "side"), [({}, 91), ({"decode_side": 64}, 64)])
def test_photographs_are_decoded_to_the_side_asked_for(shard, tmp_path, given, side) -> None:
    trainer = prepared(shard, tmp_path, resolution=64, crop=0.5, **given)
    (feed,) = trainer.batches.mixture.feeds
    assert feed.photos.images.shape[1:3] == (side, side)
    assert trainer.batches[0].images.shape[-2:] == (64, 64)


def test_what_is_frozen_stays_bit_identical(shard, tmp_path) -> None:
    trainer = prepared(shard, tmp_path, text="frozen")
    with torch.no_grad():
        trainer.model.logit_scale.fill_(6.0)  # above the limit of one that trains
    before = {n: v.clone() for n, v in trainer.model.state_dict().items()}
    train(trainer, tmp_path)
    after = trainer.result()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("visual.") for name in changed)


@pytest.mark.parametrize(
    "changes", [{}, {"ema": 0.9}, {"optimizer": "muon"}, {"text": "train", "accumulation": 2}]
)
def test_resume_repeats_the_uninterrupted_run(shard, tmp_path, changes) -> None:
    straight = prepared(shard, tmp_path / "a", **changes)
    train(straight, tmp_path / "a")
    first = prepared(shard, tmp_path / "b", **changes)
    first.step()
    state.save(tmp_path / "b", first.state(), 1)
    found = state.load(tmp_path / "b")
    second = prepared(shard, tmp_path / "b", **changes)
    second.restore(found)
    train(second, tmp_path / "b")
    expected, got = straight.result(), second.result()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.mark.parametrize("objective", ["image_to_text", "contrastive", "cosine", "tecoa", "fare"])
@pytest.mark.parametrize("attack", ["pgd", "apgd"])
def test_attacks_raise_the_inner_loss_within_the_ball(shard, tmp_path, objective, attack) -> None:
    if (objective, attack) == ("contrastive", "apgd"):
        with pytest.raises(ValueError, match="no single image"):
            prepared(shard, tmp_path, attack_objective=objective, attack=attack)
        return
    trainer = prepared(
        shard, tmp_path, attack_steps=5, eps=20.0, attack_objective=objective, attack=attack
    )
    batch = trainer.batches[0]
    attacked = trainer.attack(batch, trainer.rows(batch), trainer.eps_at(0), 0)
    before, after, success = trainer.measured
    assert after > before and 0 <= success <= 1
    assert float((attacked - batch.images).flatten(1).norm(dim=1).max()) <= 20.0 * 16 / 224 + 1e-5
    step = trainer.step()
    assert step.inner_attacked is not None and step.inner_attacked > step.inner_clean
    assert trainer.step().inner_attacked is None, "not every step pays for it"


def test_the_symmetric_inner_loss_is_that_of_the_whole_micro_batch(shard, tmp_path) -> None:
    from clipag_plug import losses
    from clipag_plug.train.terms import inner_loss

    trainer = prepared(shard, tmp_path, attack_objective="contrastive")
    batch = trainer.batches[0]
    with torch.no_grad():
        text, features = trainer.text(batch.texts), trainer.encode(batch.images)
        scale = trainer.model.logit_scale.exp()
        targets = trainer.targets(text, batch.words, trainer.rows(batch), [scale])
        expected = losses.contrastive(features, text, scale, targets.positives[:])
        assert float(inner_loss(features, targets)) == pytest.approx(8 * float(expected), rel=1e-5)


def test_the_ball_can_be_one_of_normalised_pixels(shard, tmp_path) -> None:
    """eps 0.1 after the normalisation is 0.1 * std of each channel before it."""
    ball = {"norm": "linf", "eps": 0.1, "attack_steps": 9}
    for space in ("normalized", "pixel"):
        trainer = prepared(shard, tmp_path, **ball, eps_space=space)
        batch = trainer.batches[0]
        moved = trainer.attack(batch, trainer.rows(batch), 0.1, 0) - batch.images
        std = torch.tensor(trainer.model.std) if space == "normalized" else torch.ones(3)
        assert torch.allclose(moved.abs().amax((0, 2, 3)), 0.1 * std, atol=1e-6)


def test_the_attack_of_trades_raises_the_divergence(shard, tmp_path) -> None:
    from clipag_plug import losses

    settings = {"trades": 6.0, "eps": 20.0, "attack_steps": 8, "norm": "l2"}
    trainer = prepared(shard, tmp_path, attack_objective="kl", **settings)
    batch, scale = trainer.batches[0], trainer.model.logit_scale.exp().detach()
    attacked = trainer.attack(batch, trainer.rows(batch), trainer.eps_at(0), 0).chunk(2)[0]
    noise = torch.randn(attacked.shape, generator=torch.Generator().manual_seed(0))
    noise *= trainer.eps_at(0) / noise.flatten(1).norm(dim=1)[:, None, None, None]
    with torch.no_grad():
        text, clean = trainer.text(batch.texts), trainer.encode(batch.images)
        reached = [
            losses.trades(trainer.encode(images), clean, text, scale).mean()
            for images in (attacked, (batch.images + noise).clamp(0, 1))
        ]
    # Not against the other inner loss: the divergence has a maximum on either side of the clean image.
    assert reached[0] > 3 * reached[1] > 0


def test_the_attack_keeps_nothing_for_the_weights(shard, tmp_path) -> None:
    trainer = prepared(shard, tmp_path)
    needed = []
    original = trainer.tower
    trainer.tower = lambda x: (
        needed.append(any(p.requires_grad for p in trainer.model.parameters())),
        original(x),
    )[1]
    batch, trainer.measured = trainer.batches[0], [0.0]
    trainer.attack(batch, trainer.rows(batch), 1.0, 0)
    assert needed and not any(needed)
    assert all(p.requires_grad for p in trainer.weights.values())


def test_dropout_is_the_same_in_both_passes(shard, tmp_path) -> None:
    """Gradient caching with a tower that draws: two passes of micro-batches against autograd through all at once."""
    from clipag_plug.train.terms import whole_batch

    settings = {
        "architecture": architecture(VIT),
        "patch_dropout": 0.5,
        "resolution": 32,
        "attack_steps": 0,
        "accumulation": 3,
    }
    trainer, other = (prepared(shard, tmp_path, **settings) for _ in range(2))
    trainer.optimizer.step = lambda: None
    random = torch.random.get_rng_state()
    trainer.step()
    assert torch.equal(torch.random.get_rng_state(), random), "towers draw inside a step alone"
    found = {name: p.grad.clone() for name, p in trainer.weights.items() if p.grad is not None}
    parts = [other.batches[number] for number in range(3)]
    outputs = [other._features(p.images, p.texts, n) for n, p in enumerate(parts)]
    image, text = (torch.cat(side) for side in zip(*outputs, strict=True))
    labels = {"labels": torch.cat([p.labels for p in parts])}
    words = [word for part in parts for word in part.words]
    targets = other.targets(text, words, labels, [other.model.logit_scale.exp()])
    whole_batch("contrastive", image, targets).backward()
    assert differ(found, {name: other.weights[name].grad for name in found}) < 1e-5


def test_the_average_holds_weights_and_statistics_and_is_what_is_evaluated(shard, tmp_path) -> None:
    trainer = prepared(shard, tmp_path, ema=0.5, attack_steps=0)
    buffer = trainer.model.visual.bn1.running_mean
    weight = trainer.model.visual.conv1.weight
    expected = [weight.detach().clone(), buffer.clone()]
    for step in range(2):
        trainer.step()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = [
            decay * e + (1 - decay) * v.detach() for e, v in zip(expected, (weight, buffer))
        ]
    result, live = trainer.result(), weight.detach().clone()
    assert torch.allclose(result["visual.conv1.weight"], expected[0], atol=1e-6)
    assert torch.allclose(result["visual.bn1.running_mean"], expected[1], atol=1e-6)
    seen = []
    trainer.steps = 3
    train(trainer, tmp_path, lambda model: seen.append(model.visual.conv1.weight.clone()) or {})
    assert torch.equal(seen[0], trainer.result()["visual.conv1.weight"])
    assert not torch.equal(seen[0], weight) and not torch.equal(weight, live)


def test_unknown_tokens_stay_silent(shard, tmp_path) -> None:
    from clipag_plug.clip import tokenize

    trainer = prepared(shard, tmp_path, text="train", attack_steps=0)
    train(trainer, tmp_path)
    weight = trainer.result()["token_embedding.weight"]
    unknown, known = (int(tokenize([word])[0, 1]) for word in ("zeppelin", "lemon"))
    assert not weight[unknown].any() and weight[known].any()


def test_broken_samples_are_skipped_and_counted(tmp_path) -> None:
    import io

    good = jpeg(np.random.default_rng(1))
    stream = io.BytesIO()
    Image.new("L", (10, 30), 99).save(stream, "PNG")
    samples = [
        {"jpg": good, "cls": b"1"},
        {"jpg": good[:200], "cls": b"1"},
        {"cls": b"1"},
        {"png": stream.getvalue(), "cls": b"2"},
    ]
    path = write_shard(tmp_path / "s.tar", samples)
    photos = read_shards([str(path)], 64)
    assert len(photos) == 2 and photos.labels.tolist() == [1, 2]
    assert photos.skipped == {"broken image": 1, "no image": 1}


def test_command_line_trains_and_writes_everything(shard, tmp_path, capsys) -> None:
    recipe = tmp_path / "r.json"
    recipe.write_text(options(shard, tmp_path / "run", samples=16).to_json())
    assert main(["train", "--recipe", str(recipe)]) == 0
    folder = tmp_path / "run"
    assert {p.name for p in folder.iterdir() if p.name != ".lock"} == {
        "checkpoint-00000002.pt",
        "log.csv",
        "model.json",
        "model.safetensors",
        "recipe.json",
    }
    config, card, weights = state.read_model(folder)
    assert config == json.loads(ARCHITECTURE) and card["images_seen"] == 16 and weights
    assert state.load(folder)["index"] == 2
    assert str(folder / "model.safetensors") in capsys.readouterr().out
    again = ["--init", str(folder), "--recipe", str(recipe), "-o", str(tmp_path / "next")]
    assert main(["train", *again]) == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data", "nowhere/*.tar", "--samples", "10"], "nowhere"),
        (["--data", "synthetic:4", "--samples", "10"], "no model"),
        (["--samples", "10"], "no training data"),
        (["--recipe", "clip-nano"], "clipag-mini"),
        (["--attack-steps", "-1"], "at least 0"),
        (["--objective", "magic"], "one of"),
        (["--norm", "linf", "--eps", "8"], "8/255"),
        (["--save-every", "soon"], "300s"),
        (["--samples", "9", "--epochs", "1"], "one of them"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message, capsys, tmp_path) -> None:
    assert main(["train", *arguments, "-o", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error and "Traceback" not in error


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"samples": 96, "accumulation": 50}, "a step takes 400"),
        ({"bank": True, "text": "train"}, "--bank needs"),
        ({"text_steps": 2, "captions": "text"}, "--text-steps needs"),
        ({"attack_objective": "kl", "random_start": False}, "--random-start"),
        ({"objective": "sigmoid"}, "logit bias"),
        ({"image": "frozen", "text": "frozen"}, "nothing trains"),
        ({"optimizer": "muon", "lr": 0.0}, "--lr is 0"),
    ],
)
def test_what_cannot_be_is_refused(shard, tmp_path, changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        prepared(shard, tmp_path, **changes)


def test_four_255ths_and_lengths_in_units_are_understood(shard, tmp_path) -> None:
    from clipag_plug.options.base import number
    from clipag_plug.options.train import Train

    for written in ("4/255", "4 / 255", "4/255.", "8/510"):
        assert Train(norm="linf", eps=written).eps == 4 / 255
    for written in ("4/255/2", "4/", "/255", "nan", "inf", "0,5", "4/0"):
        with pytest.raises(ValueError):
            number(written)
    trainer = prepared(shard, tmp_path, samples=0, epochs=2.0, batch_size=6)
    assert trainer.steps == 2 * 24 // 6
    assert TextFeatures(trainer.model, trained=False)(["a cat"]).shape == (1, 16)
