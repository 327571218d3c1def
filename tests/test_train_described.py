"""Captions that say more than the subject: what images have of it, what the text tower learns, what the loss is."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from test_train import ARCHITECTURE, gradients, one_batch, prepared, shard  # noqa: F401
from torch.nn import functional as F

from clipag_plug.losses import attributes as colours
from clipag_plug.losses.attributes import ATTRIBUTES, KINDS, Attribute, amounts
from clipag_plug.model import build
from clipag_plug.options.train import Train
from clipag_plug.train import setup
from clipag_plug.train.composing import WEIGHT, _Kept, free_directions, teach_compositions
from clipag_plug.train.described import Described
from clipag_plug.vocabulary import Vocabulary, bundled_vocabulary

RED, BLUE = colours.NAMES.index("red"), colours.NAMES.index("blue")


def test_the_kinds_part_the_attributes() -> None:
    assert [row for kind in KINDS for row in range(kind.start, kind.stop)] == list(
        range(len(ATTRIBUTES))
    )
    assert all(len({a.kind for a in ATTRIBUTES[kind]}) == 1 for kind in KINDS)
    assert [len(ATTRIBUTES[kind]) for kind in KINDS] == [11, 11, 2]


def test_a_red_square_on_blue_is_told_as_such() -> None:
    image = torch.zeros(1, 3, 40, 40)
    image[:, 2] = 1
    image[:, :, 8:32, 8:32] = torch.tensor([0.9, 0.1, 0.1])[:, None, None]
    found = amounts(image)
    assert all(torch.allclose(found[:, k].sum(1), torch.ones(1), atol=1e-5) for k in KINDS)
    assert found[0, RED] == 1 and found[0, 11 + BLUE] == 1
    light = amounts(torch.stack([torch.zeros(3, 40, 40), torch.ones(3, 40, 40)]))[:, KINDS[2]]
    assert torch.allclose(light, torch.tensor([[0.0, 1.0], [1.0, 0.0]]), atol=1e-3)


def test_captions_fit_their_articles_and_name_both() -> None:
    assert Attribute("subject", "red").caption("orange") == "a red orange"
    assert Attribute("subject", "orange").caption("cat") == "an orange cat"
    assert Attribute("background", "orange").caption("orange") == (
        "an orange on an orange background"
    )
    assert Attribute("light", "dark").caption("ox") == "a dark photo of an ox"
    rng = random.Random(0)
    for attribute in ATTRIBUTES:
        texts = {attribute.caption("lemon", rng) for _ in range(40)}
        assert len(texts) > 2 and all("lemon" in text for text in texts)


def test_the_loss_is_the_cross_entropy_within_the_own_class() -> None:
    generator = torch.Generator().manual_seed(0)
    captions, features = (torch.randn(s, generator=generator) for s in ((3, 24, 8), (5, 8)))
    own, scale = torch.tensor([2, 0, 0, 1, 2]), torch.tensor(7.0)
    shares = torch.rand(5, 24, generator=generator)
    for kind in KINDS:
        shares[:, kind] /= shares[:, kind].sum(1, keepdim=True)
    described = Described(captions, own, shares, 0.5)
    expected = []
    for row in range(5):
        parts = []
        for kind in KINDS:
            texts = captions[own[row], kind]
            scores = scale * F.cosine_similarity(features[row][None], texts)
            parts.append(F.cross_entropy(scores[None], shares[row, kind][None]))
        expected.append(0.5 * sum(parts) / 3)
    assert torch.allclose(described.loss(features, scale), torch.stack(expected), atol=1e-5)
    assert torch.allclose(
        described[slice(1, 3)].loss(features[1:3], scale), torch.stack(expected)[1:3], atol=1e-5
    )


def test_free_directions_avoid_what_is_there_and_stay_within_reach() -> None:
    generator = torch.Generator().manual_seed(0)
    projection = torch.randn(6, 10, generator=generator)
    taken = F.normalize(torch.randn(20, 3, generator=generator) @ projection[:3], dim=-1)
    free = free_directions(taken, projection, 3)
    assert torch.allclose(free @ free.T, torch.eye(3), atol=1e-5)
    assert float((taken @ free.T).abs().max()) < 1e-5
    inside = torch.linalg.lstsq(projection.T, free.T).residuals
    assert inside.numel() == 0 or float(inside.abs().max()) < 1e-8
    with pytest.raises(ValueError, match="reaches 6"):
        free_directions(taken, projection, 7)


def test_a_lesson_teaches_compositions_and_keeps_the_rest() -> None:
    torch.manual_seed(0)
    config = setup.read_config(ARCHITECTURE)
    config["embed_dim"] = 64
    config["text_cfg"] |= {"width": 64, "heads": 4, "layers": 2}
    model = build(config, None, name="x")
    whole = bundled_vocabulary()
    few = Vocabulary(whole.names[:6], {"thing": (0, 1)})
    setup.train_text(model, few, 8)
    before = _Kept(model, few.words)
    visual = {n: p.clone() for n, p in model.visual.state_dict().items()}
    losses: list[float] = []
    teach_compositions(model, few, 24, lr=1e-2, report=lambda step, loss: losses.append(loss))
    after = _Kept(model, few.words)
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    assert float((before.features * after.features).sum(1).mean()) > 0.95
    assert all(torch.equal(visual[n], p) for n, p in model.visual.state_dict().items())
    assert not any(p.requires_grad for p in model.parameters())
    assert 0 < WEIGHT < 1


def test_a_step_in_parts_tells_attributes_as_a_whole_one(shard, tmp_path) -> None:  # noqa: F811
    told = {"attributes": 0.7, "attack_steps": 0, "flip": False, "crop": 1.0}
    whole = prepared(shard, tmp_path, batch_size=24, **told)
    split = prepared(shard, tmp_path, batch_size=8, accumulation=3, **told)
    plain = prepared(shard, tmp_path, batch_size=24, **{**told, "attributes": 0.0})
    assert plain.batches[0].attributes is None
    merged = one_batch(split, 3)
    for trainer in (whole, plain):
        fixed = {"__getitem__": lambda self, i: merged, "matches": split.batches.matches}
        trainer.batches = type("Fixed", (), fixed)()
    merged_plain = dataclasses.replace(merged, attributes=None)
    plain.batches = type("Fixed", (), {**fixed, "__getitem__": lambda self, i: merged_plain})()
    expected, got, without = gradients(whole), gradients(split), gradients(plain)
    for name in expected:
        scale = expected[name].norm().clamp_min(1e-6)
        assert float((expected[name] - got[name]).norm() / scale) < 1e-4, name
        assert float((expected[name] - without[name]).norm() / scale) > 1e-2, name


def test_attributes_need_a_vocabulary_and_a_frozen_text_tower(shard, tmp_path) -> None:  # noqa: F811
    with pytest.raises(ValueError, match="--attributes needs --text frozen"):
        prepared(shard, tmp_path, captions="text", attributes=1.0)
    with pytest.raises(ValueError, match="--composing-steps needs --captions vocabulary"):
        prepared(shard, tmp_path, captions="text", composing_steps=2)


def test_a_resumed_run_has_the_lesson_of_its_checkpoint(shard, tmp_path, monkeypatch) -> None:  # noqa: F811
    wide = ARCHITECTURE.replace('"width": 16', '"width": 32').replace(
        '"embed_dim": 16', '"embed_dim": 32'
    )
    given = {"architecture": wide, "text_steps": 2, "composing_steps": 2}
    first = prepared(shard, tmp_path, **given)
    first.step()
    first.save(tmp_path)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a resumed run was taught again")

    monkeypatch.setattr(setup, "train_text", never)
    monkeypatch.setattr(setup, "teach_compositions", never)
    again = prepared(shard, tmp_path, **given, resume="latest", seed=5)
    for name, value in first.model.state_dict().items():
        if not name.startswith("visual.") and name != "logit_scale":
            assert torch.equal(value, again.model.state_dict()[name]), name
    assert Train().composing_steps == 0
