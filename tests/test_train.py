"""The trainer's core: exact accumulation, exact resume, a frozen text tower, honest data loading."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipag_plug.cli import main
from clipag_plug.options.train import Train
from clipag_plug.train import setup
from clipag_plug.train.data import Batch, read_shards
from clipag_plug.train.distributed import Workers
from clipag_plug.train.loop import Trainer
from clipag_plug.train.running import run
from clipag_plug.train.state import load_state, read_model

ARCHITECTURE = json.dumps(
    {
        "embed_dim": 16,
        "vision_cfg": {
            "image_size": 224,
            "mini": {"image_size": 16, "widths": [8, 16], "depths": [1, 1]},
        },
        "text_cfg": {
            "context_length": 77,
            "vocab_size": 49408,
            "width": 16,
            "heads": 2,
            "layers": 1,
        },
    }
)


def jpeg(rng: np.random.Generator) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


def write_shard(path: Path, samples: list[dict[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for number, sample in enumerate(samples):
            for suffix, data in sample.items():
                info = tarfile.TarInfo(f"{number:06d}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> Path:
    rng = np.random.default_rng(0)
    samples = [{"jpg": jpeg(rng), "cls": str(i % 5).encode(), "txt": b"a thing"} for i in range(24)]
    return write_shard(tmp_path_factory.mktemp("shards") / "train.tar", samples)


def options(shard: Path, folder: Path, **changes) -> Train:
    values = {
        "data": [str(shard)],
        "captions": "vocabulary",
        "architecture": ARCHITECTURE,
        "resolution": 16,
        "samples": 48,
        "batch_size": 8,
        "attack_steps": 2,
        "eps": 3.0,
        "lr": 1e-2,
        "output": str(folder),
        "device": "cpu",
        "quiet": True,
        "save_every": 0.0,
    }
    return Train(**{**values, **changes})


def prepared(shard: Path, folder: Path, workers: Workers | None = None, **changes) -> Trainer:
    return setup.prepare(options(shard, folder, **changes), workers)[0]


def gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The weights' gradients of one step, with batch norm on its running statistics so that the split cannot matter."""
    trainer.model.train = lambda mode=True: trainer.model  # type: ignore[method-assign]
    trainer.model.eval = lambda: trainer.model  # type: ignore[method-assign]
    for module in trainer.model.modules():
        module.training = False
    trainer.optimizer.step = lambda: None  # type: ignore[method-assign]
    trainer.step()
    return {name: p.grad.clone() for name, p in trainer.weights.items() if p.grad is not None}


def one_batch(trainer: Trainer, count: int) -> Batch:
    """The first micro-batches as a single one."""
    parts = [trainer.batches[index] for index in range(count)]

    def joined(field: str) -> torch.Tensor | list[str] | None:
        values = [getattr(part, field) for part in parts]
        if isinstance(values[0], torch.Tensor):
            return torch.cat(values)
        return None if values[0] is None else [each for value in values for each in value]

    return Batch(**{field.name: joined(field.name) for field in dataclasses.fields(Batch)})


@pytest.mark.parametrize("text", ["train", "frozen"])
@pytest.mark.parametrize("attack_steps", [0, 2])
@pytest.mark.parametrize("clean_weight", [0.0, 0.5])
def test_accumulation_equals_the_single_batch(
    shard, tmp_path, text, attack_steps, clean_weight
) -> None:
    # The inner attack sees its micro-batch only, so it is compared on an objective that does not look at the batch.
    common = {
        "text": text,
        "attack_steps": attack_steps,
        "clean_weight": clean_weight,
        "attack_objective": "tecoa",
        "flip": False,
        "crop": 1.0,
        "random_start": False,
    }
    whole = prepared(shard, tmp_path, batch_size=24, **common)
    split = prepared(shard, tmp_path, batch_size=8, accumulation=3, **common)
    merged = one_batch(split, 3)
    whole.batches = type(
        "Fixed", (), {"__getitem__": lambda self, i: merged, "matches": split.batches.matches}
    )()
    expected, got = gradients(whole), gradients(split)
    assert expected.keys() == got.keys()
    for name in expected:
        scale = expected[name].norm().clamp_min(1e-6)
        assert float((expected[name] - got[name]).norm() / scale) < 1e-4, name


@pytest.mark.parametrize(("given", "side"), [({}, 91), ({"decode_side": 64}, 64)])
def test_photographs_are_decoded_to_the_side_asked_for(shard, tmp_path, given, side) -> None:
    trainer = prepared(shard, tmp_path, resolution=64, crop=0.5, **given)
    (feed,) = trainer.batches.mixture.feeds
    assert feed.photos.images.shape[1:3] == (side, side)
    assert trainer.batches[0].images.shape[-2:] == (64, 64)


def test_text_tower_is_bit_identical_after_adversarial_training(shard, tmp_path) -> None:
    trainer = prepared(shard, tmp_path, text="frozen")
    before = {n: v.clone() for n, v in trainer.model.state_dict().items()}
    run(trainer, tmp_path)
    after = trainer.result()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("visual.") for name in changed)
    assert torch.equal(before["logit_scale"], after["logit_scale"])


@pytest.mark.parametrize("stop", [1, 3])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_resume_repeats_the_uninterrupted_run(shard, tmp_path, stop, ema) -> None:
    straight = prepared(shard, tmp_path / "a", ema=ema)
    run(straight, tmp_path / "a")
    first = prepared(shard, tmp_path / "b", ema=ema)
    for _ in range(stop):
        first.step()
    first.save(tmp_path / "b")
    second = prepared(shard, tmp_path / "b", ema=ema, seed=0)
    second.restore(tmp_path / "b")
    run(second, tmp_path / "b")
    expected, got = straight.result(), second.result()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_attack_raises_the_inner_loss(shard, tmp_path) -> None:
    from clipag_plug.train.objective import per_image

    trainer = prepared(shard, tmp_path, attack_steps=5, eps=20.0)
    part = trainer.batches[0]
    attacked = trainer._attack(part, trainer.eps_at(0), 0)
    trainer.model.eval()
    with torch.no_grad():
        scale = trainer.model.logit_scale.exp()
        matches = trainer.batches.matches(part.words, part.labels)
        targets = trainer.aims(
            trainer.index, trainer.text(part.texts), matches, part.labels, None, scale, None
        )
        clean, moved = (
            per_image("image_to_text", trainer._encode(x), targets) for x in (part.images, attacked)
        )
    assert float(moved.mean()) > float(clean.mean())
    assert float((attacked - part.images).flatten(1).norm(dim=1).max()) <= 20.0 * 16 / 224 + 1e-5


@pytest.mark.parametrize("objective", ["contrastive", "image_to_text", "cosine", "fare"])
def test_every_objective_trains(shard, tmp_path, objective) -> None:
    trainer = prepared(
        shard, tmp_path, objective=objective, attack_objective=objective, samples=16, lr=1e-3
    )
    before = {n: p.clone() for n, p in trainer.weights.items()}
    run(trainer, tmp_path)
    assert any(not torch.equal(before[n], p) for n, p in trainer.weights.items())


def test_bank_adds_negatives_to_the_image_half_alone(shard, tmp_path) -> None:
    from clipag_plug import losses
    from clipag_plug.train.objective import Targets, per_image, whole_batch

    generator = torch.Generator().manual_seed(0)
    image, text, more = (torch.randn(n, 8, generator=generator) for n in (4, 4, 6))
    own, other = torch.eye(4, dtype=torch.bool), torch.rand(4, 6, generator=generator) < 0.3
    targets = Targets(text, own, torch.tensor(10.0), bank=more, bank_positives=other)
    everything = losses.logits(image, torch.cat([text, more]), 10.0)
    image_half = losses.multi_positive(everything, torch.cat([own, other], dim=1))
    text_half = losses.multi_positive(everything[:, :4].T, own)
    assert torch.allclose(per_image("contrastive", image, targets), image_half, atol=1e-5)
    expected = (image_half.mean() + text_half.mean()) / 2
    assert torch.allclose(whole_batch("contrastive", image, targets), expected, atol=1e-5)
    trainer = prepared(shard, tmp_path, bank=True, samples=16)
    texts, words = trainer.batches.bank(0)
    assert len(texts) == 202 and words == trainer.batches.vocabulary.class_names
    run(trainer, tmp_path)
    with pytest.raises(ValueError, match="--bank needs"):
        prepared(shard, tmp_path, bank=True, text="train")


def test_text_training_spreads_the_classes_and_leaves_the_images_alone(shard, tmp_path) -> None:
    from clipag_plug.train.evaluate import class_prompts
    from clipag_plug.train.textual import SCALE

    before = prepared(shard, tmp_path)
    after = prepared(shard, tmp_path, text_steps=80)
    visual = before.model.visual.state_dict()
    assert all(torch.equal(visual[n], v) for n, v in after.model.visual.state_dict().items())
    means = []
    for trainer in (before, after):
        prompts = class_prompts(trainer.model, trainer.batches.vocabulary)
        means.append(float((prompts @ prompts.T - torch.eye(202)).mean()))
    assert means[1] < means[0] - 0.1
    assert float(after.model.logit_scale.exp()) == pytest.approx(SCALE, rel=1e-5)
    assert not any(p.requires_grad for n, p in after.model.named_parameters() if "visual" not in n)
    with pytest.raises(ValueError, match="vocabulary"):
        prepared(shard, tmp_path, text_steps=1, captions="text")


def test_unknown_tokens_stay_silent(shard, tmp_path) -> None:
    from clipag_plug.clip import tokenize

    trainer = prepared(shard, tmp_path, text="train", attack_steps=0)
    run(trainer, tmp_path)
    weight = trainer.result()["token_embedding.weight"]
    unknown, known = (int(tokenize([word])[0, 1]) for word in ("zeppelin", "lemon"))
    assert not weight[unknown].any() and weight[known].any()


def test_broken_samples_are_skipped_and_counted(tmp_path) -> None:
    rng = np.random.default_rng(1)
    good = jpeg(rng)
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
    whole = path.read_bytes()
    (tmp_path / "t.tar").write_bytes(whole[: len(whole) // 2])
    assert read_shards([str(tmp_path / "t.tar")], 64).skipped["truncated shard"] == 1


def test_command_line_trains_and_writes_everything(shard, tmp_path, capsys) -> None:
    recipe = tmp_path / "r.json"
    recipe.write_text(options(shard, tmp_path / "run", samples=16).to_json())
    assert main(["train", "--recipe", str(recipe)]) == 0
    folder = tmp_path / "run"
    assert {p.name for p in folder.iterdir()} == {
        "checkpoint.safetensors",
        "log.csv",
        "log.jsonl",
        "model.json",
        "model.safetensors",
        "recipe.json",
    }
    config, card, weights = read_model(folder)
    assert config == json.loads(ARCHITECTURE) and card["images_seen"] == 16
    assert load_state(folder)["index"] == 2
    assert str(folder / "model.safetensors") in capsys.readouterr().out
    assert (
        main(
            ["train", "--init", str(folder), "--recipe", str(recipe), "-o", str(tmp_path / "next")]
        )
        == 0
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--data", "nowhere/*.tar", "--samples", "10"], "no model"),
        (["--samples", "10"], "no training data"),
        (["--recipe", "clip-nano"], "clipag-mini"),
        (["--attack-steps", "-1"], "at least 0"),
        (["--objective", "magic"], "one of"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message, capsys, tmp_path) -> None:
    assert main(["train", *arguments, "-o", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error and "Traceback" not in error
