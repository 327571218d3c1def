"""Learning from teachers: their mean, the loss against torch's own, exact parts, and who may teach whom."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_train import gradients, one_batch, options, prepared, shard  # noqa: F401
from torch.nn import functional as F

from clipag_plug import losses
from clipag_plug.model import build
from clipag_plug.train import setup
from clipag_plug.train.running import run
from clipag_plug.train.state import read_model, save_model
from clipag_plug.train.teachers import Ensemble


def made(count: int, size: int, seed: int) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def test_the_loss_is_the_divergence_up_to_the_teachers_entropy() -> None:
    own, taught, text = made(5, 8, 0).requires_grad_(), made(5, 8, 1), made(7, 8, 2)
    scale = torch.tensor(9.0, requires_grad=True)
    p = losses.logits(taught, text, 9.0).softmax(1)
    q = losses.logits(own, text, scale).log_softmax(1)
    divergence = F.kl_div(q, p, reduction="none").sum(1)
    entropy = -(p * p.log()).sum(1)
    found = losses.distillation(own, taught, text, scale)
    assert torch.allclose(found, divergence + entropy, atol=1e-5)
    # The teacher's side is a constant, also where the scale trains.
    got = torch.autograd.grad(found.sum(), (own, scale))
    expected = torch.autograd.grad(divergence.sum(), (own, scale))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(got, expected, strict=True))
    assert float(losses.distillation(taught, taught, text, 9.0).sum()) <= float(found.sum())


@pytest.fixture(scope="module")
def folders(shard, tmp_path_factory) -> list[Path]:  # noqa: F811
    """A model, two with its text tower and other image towers, and a stranger: run folders."""
    place = tmp_path_factory.mktemp("teachers")
    _, config, _ = setup.prepare(options(shard, place / "run"))
    models = [build(config, None, name=str(seed)) for seed in range(4)]
    for seed, model in enumerate(models):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.05 * made(1, weight.numel(), seed).view_as(weight))
        if 0 < seed < 3:
            first = models[0].state_dict()
            text = {n: w for n, w in first.items() if not n.startswith("visual.")}
            model.load_state_dict(text, strict=False)
        save_model(place / str(seed), model.state_dict(), config, {"name": str(seed)})
    return [place / str(seed) for seed in range(4)]


def model_of(folder: Path):
    config, _, weights = read_model(folder)
    return build(config, weights, name=folder.name).eval()


def test_teachers_say_the_mean_of_their_unit_features(folders) -> None:
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    first, second = map(model_of, folders[1:3])
    found = Ensemble([first, second], model_of(folders[0]))(images)
    each = [F.normalize(m.encode_image(m.normalize(images)), dim=-1) for m in (first, second)]
    assert torch.allclose(found, (each[0] + each[1]) / 2, atol=1e-6)
    assert not found.requires_grad and not any(p.requires_grad for p in first.parameters())


def test_another_text_tower_cannot_teach(folders) -> None:
    with pytest.raises(ValueError, match="--teachers '3' reads texts otherwise"):
        Ensemble([model_of(folders[3])], model_of(folders[0]))


def taught(shard, tmp_path, folders, **changes):  # noqa: F811
    given = {
        "architecture": "",
        "init": str(folders[0]),
        "teachers": [str(folder) for folder in folders[1:3]],
        "bank": True,
        "flip": False,
        "crop": 1.0,
    }
    return prepared(shard, tmp_path, **{**given, **changes})


def test_a_step_in_parts_learns_as_a_whole_one(shard, tmp_path, folders) -> None:  # noqa: F811
    quiet = {"attack_steps": 0}
    whole = taught(shard, tmp_path, folders, batch_size=24, **quiet)
    split = taught(shard, tmp_path, folders, batch_size=8, accumulation=3, **quiet)
    alone = taught(shard, tmp_path, folders, batch_size=24, teachers=[], **quiet)
    merged = one_batch(split, 3)
    for trainer in (whole, alone):
        batches = trainer.batches
        fixed = {
            "__getitem__": lambda self, i: merged,
            "matches": split.batches.matches,
            "vocabulary": batches.vocabulary,
            "bank": batches.bank,
            "positives": batches.positives,
        }
        trainer.batches = trainer.aims.batches = type("Fixed", (), fixed)()
    expected, got, without = gradients(whole), gradients(split), gradients(alone)
    for name in expected:
        scale = expected[name].norm().clamp_min(1e-6)
        assert float((expected[name] - got[name]).norm() / scale) < 1e-4, name
        if name.startswith("visual."):
            assert float((expected[name] - without[name]).norm() / scale) > 1e-2, name


def test_a_pupil_comes_to_say_what_its_teachers_say(shard, tmp_path, folders) -> None:  # noqa: F811
    for steps in (0, 1):
        trainer = taught(
            shard, tmp_path, folders, distil=20.0, attack_steps=steps, samples=320, lr=3e-2
        )
        images = torch.cat([trainer.batches[i].images for i in range(3)])
        trainer.model.eval()
        wanted = trainer.teachers(images)

        def apart(trainer=trainer, images=images, wanted=wanted) -> float:
            trainer.model.eval()
            with torch.no_grad():
                own = trainer.model.encode_image(trainer.model.normalize(images))
            text = trainer.text(trainer.batches.bank(0)[0])
            return float(losses.trades(own, wanted, text, trainer.model.logit_scale.exp()).mean())

        before = apart()
        run(trainer, tmp_path)
        assert apart() < 0.7 * before


def test_texts_that_train_cannot_be_taught_about(shard, tmp_path, folders) -> None:  # noqa: F811
    with pytest.raises(ValueError, match="--teachers needs --text frozen"):
        taught(shard, tmp_path, folders, text="train", bank=False)


def test_fare_has_its_own_teacher(shard, tmp_path, folders) -> None:  # noqa: F811
    with pytest.raises(ValueError, match="leave --teachers out"):
        taught(shard, tmp_path, folders, objective="fare")
