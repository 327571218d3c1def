"""Captions that say more than the subject: what images have of it, what the text tower learns, what the loss is."""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn import functional as F
from train_helpers import ARCHITECTURE, TEXT, prepared

from clipag_plug.losses import attributes as colours
from clipag_plug.losses.attributes import ATTRIBUTES, KINDS, Attribute, amounts
from clipag_plug.model import build
from clipag_plug.options.train import Train
from clipag_plug.train import setup
from clipag_plug.train.lessons import (
    SCALE,
    TextFeatures,
    free_directions,
    spread_classes,
    teach_compositions,
)
from clipag_plug.train.terms import Targets, extra
from clipag_plug.vocabulary import Vocabulary, bundled_vocabulary

RED, BLUE = colours.NAMES.index("red"), colours.NAMES.index("blue")


def test_the_kinds_part_the_attributes() -> None:
    assert [row for kind in KINDS for row in range(24)[kind]] == list(range(len(ATTRIBUTES)))
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
    same = torch.eye(5, dtype=torch.bool)
    told = {"captions": captions, "own": own, "amounts": shares}
    targets = Targets(features, same, scale, Train(attributes=0.5), **told)
    expected = []
    for row in range(5):
        parts = []
        for kind in KINDS:
            texts = captions[own[row], kind]
            scores = scale * F.cosine_similarity(features[row][None], texts)
            parts.append(F.cross_entropy(scores[None], shares[row, kind][None]))
        expected.append(0.5 * sum(parts) / 3)
    assert torch.allclose(extra(features, targets), torch.stack(expected), atol=1e-5)
    some = slice(1, 3)
    part = extra(features[some], targets.of(some))
    assert torch.allclose(part, torch.stack(expected)[some], atol=1e-5)


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


def words_of(model, words: list[str]) -> torch.Tensor:
    return F.normalize(TextFeatures(model, trained=False)([f"a {word}" for word in words]), dim=-1)


def test_lessons_spread_classes_and_teach_compositions() -> None:
    torch.manual_seed(0)
    text = TEXT | {"width": 64, "heads": 4, "layers": 2}
    model = build({**setup.json.loads(ARCHITECTURE), "embed_dim": 64, "text_cfg": text}, None)
    few = Vocabulary(bundled_vocabulary().names[:6], {"thing": (0, 1)})
    visual = {n: p.clone() for n, p in model.visual.state_dict().items()}
    fresh = words_of(model, few.class_names)
    spread_classes(model, few, 12)
    known = words_of(model, few.class_names)
    mean = [float((f @ f.T - torch.eye(6)).mean()) for f in (fresh, known)]
    assert mean[1] < mean[0] - 0.1
    assert float(model.logit_scale.exp()) == pytest.approx(SCALE, rel=1e-5)
    losses: list[float] = []
    teach_compositions(model, few, 24, lr=1e-2, report=lambda step, loss: losses.append(loss))
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    assert float((known * words_of(model, few.class_names)).sum(1).mean()) > 0.9
    assert all(torch.equal(visual[n], p) for n, p in model.visual.state_dict().items())
    assert not any(p.requires_grad for p in model.parameters())


def test_a_resumed_run_has_the_lesson_of_its_checkpoint(shard, tmp_path, monkeypatch) -> None:
    wide = ARCHITECTURE.replace('"width": 16', '"width": 32').replace(
        '"embed_dim": 16', '"embed_dim": 32'
    )
    given = {"architecture": wide, "text_steps": 2, "composing_steps": 2}
    first = prepared(shard, tmp_path, **given)
    first.step()
    monkeypatch.setattr(setup, "teach", lambda *_: pytest.fail("a resumed run was taught again"))
    asked = first.options
    again = setup.prepare(asked, None, first.state()).trainer
    for name, value in first.model.state_dict().items():
        if not name.startswith("visual.") and name != "logit_scale":
            assert torch.equal(value, again.model.state_dict()[name]), name
