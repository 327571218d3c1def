"""What the text tower learns before any image is seen."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F
from train_helpers import ARCHITECTURE, TEXT, prepared

from clipag_plug.model import build
from clipag_plug.train import setup
from clipag_plug.train.lessons import SCALE, TextFeatures, spread_classes
from clipag_plug.vocabulary import Vocabulary, bundled_vocabulary


def words_of(model, words: list[str]) -> torch.Tensor:
    return F.normalize(TextFeatures(model, trained=False)([f"a {word}" for word in words]), dim=-1)


def test_the_lesson_spreads_classes() -> None:
    torch.manual_seed(0)
    text = TEXT | {"width": 64, "heads": 4, "layers": 2}
    model = build({**json.loads(ARCHITECTURE), "embed_dim": 64, "text_cfg": text}, None)
    few = Vocabulary(bundled_vocabulary().names[:6], {"thing": (0, 1)})
    visual = {n: p.clone() for n, p in model.visual.state_dict().items()}
    fresh = words_of(model, few.class_names)
    spread_classes(model, few, 12)
    known = words_of(model, few.class_names)
    mean = [float((f @ f.T - torch.eye(6)).mean()) for f in (fresh, known)]
    assert mean[1] < mean[0] - 0.1
    assert float(model.logit_scale.exp()) == pytest.approx(SCALE, rel=1e-5)
    assert all(torch.equal(visual[n], p) for n, p in model.visual.state_dict().items())
    assert not any(p.requires_grad for p in model.parameters())


def test_a_resumed_run_has_the_lesson_of_its_checkpoint(shard, tmp_path, monkeypatch) -> None:
    first = prepared(shard, tmp_path, text_steps=2)
    first.step()
    monkeypatch.setattr(setup, "teach", lambda *_: pytest.fail("a resumed run was taught again"))
    asked = first.options
    again = setup.prepare(asked, None, first.state()).trainer
    for name, value in first.model.state_dict().items():
        if not name.startswith("visual.") and name != "logit_scale":
            assert torch.equal(value, again.model.state_dict()[name]), name
