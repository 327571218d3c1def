"""The losses in blocks and shares; what is kept between passes; activations recomputed; statistics counted once."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F
from train_helpers import CONVNEXT, MINI, RESNET, VIT, architecture, differ, gradients, prepared

from clipag_plug import losses
from clipag_plug.options.train import Train
from clipag_plug.train import accumulate, terms
from clipag_plug.train.accumulate import Kept, recompute_activations
from clipag_plug.train.matches import Matches
from clipag_plug.train.tally import Tally


def made(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_images_come_back_bit_for_bit_in_any_order(where, tmp_path) -> None:
    given = [torch.rand(n, 3, 5, 4).permute(0, 1, 3, 2) for n in (3, 3, 2)]
    with Kept(where, 3, tmp_path / "run") as store:
        for images in given:
            store.append(images)
            assert torch.equal(store[0], given[0])
        assert all(torch.equal(store[place], given[place]) for place in (2, 0, 1))
        assert [len(images) for images in store] == [3, 3, 2]
        assert not list(tmp_path.glob("run/*")), "the file has no name"


def test_auto_goes_to_disk_above_the_limit_and_a_full_disk_is_told(tmp_path, monkeypatch) -> None:
    images = torch.rand(2, 3, 8, 8)

    def on_disk(where: str, count: int) -> bool:
        with Kept(where, count, tmp_path) as store:
            store.append(images)
            return store._file is not None

    monkeypatch.setattr(accumulate, "IN_MEMORY", 4 * images.nbytes)
    assert [on_disk("auto", n) for n in (1, 4, 5)] == [False, False, True]
    assert [on_disk("disk", n) for n in (1, 2)] == [False, True]
    assert not on_disk("memory", 99)
    store = Kept("disk", 2, tmp_path)
    full = open("/dev/full", "wb")  # noqa: SIM115
    monkeypatch.setattr(accumulate.tempfile, "TemporaryFile", lambda dir: full)
    with store, pytest.raises(OSError, match=r"--keep memory"):
        store.append(torch.rand(1, 3, 400, 400))


@pytest.mark.parametrize("vision", [MINI, VIT, RESNET, CONVNEXT], ids=str)
def test_checkpointing_changes_nothing_but_the_memory(shard, tmp_path, vision) -> None:
    """Gradients, and the running statistics, which the second run of a block must not count again."""
    found, saved, states = [], [], []
    for checkpointing in (False, True):
        trainer = prepared(
            shard, tmp_path, architecture=architecture(vision), checkpointing=checkpointing,
            attack_steps=1, resolution=vision.get("mini", vision)["image_size"], lr=0.0,
        )  # fmt: skip
        kept_bytes = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept_bytes
            kept_bytes += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trainer._features(trainer.batches[0].images, ["a"], 0)
        trainer.step()
        found.append({n: p.grad.clone() for n, p in trainer.weights.items() if p.grad is not None})
        saved.append(kept_bytes)
        buffers = trainer.model.visual.named_buffers()
        states.append({n: b.clone() for n, b in buffers if b.is_floating_point()})
    assert differ(*found) < 1e-5
    assert saved[1] < 0.75 * saved[0]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_checkpointing_says_where_it_cannot() -> None:
    timm = torch.nn.Module()
    timm.trunk = torch.nn.Conv2d(1, 1, 1)
    for tower, kind in (
        (torch.nn.Sequential(torch.nn.Linear(2, 2)), "Sequential"),
        (timm, "Conv2d"),
    ):
        with pytest.raises(ValueError, match=rf"--checkpointing.*{kind}.*--accumulation"):
            recompute_activations(tower)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_running_statistics_count_each_micro_batch_once(shard, tmp_path, accumulation) -> None:
    """The oracle: the same layers shown the same micro-batches once each, in order."""
    trainer = prepared(shard, tmp_path, accumulation=accumulation, attack_steps=0, lr=0.0)
    expected = prepared(shard, tmp_path, attack_steps=0).model.train()
    trainer.step()
    with torch.no_grad():
        for number in range(accumulation):
            expected.encode_image(expected.normalize(trainer.batches[number].images))
    found = dict(trainer.model.visual.named_buffers())
    assert [name for name in found if name.endswith(("running_mean", "num_batches_tracked"))]
    for name, value in expected.visual.named_buffers():
        assert torch.allclose(found[name].float(), value.float(), atol=1e-6), name


@pytest.mark.parametrize("name", [*terms.OBJECTIVES, "extra"])
def test_blocks_and_shares_add_up_to_the_whole(monkeypatch, name) -> None:
    image, text, clean, prompts = (made(12, 6, seed=s) for s in range(4))
    labels = torch.randint(0, 4, (12,), generator=torch.Generator().manual_seed(0))
    covers, objective = made(12, 12) < -0.5, "cosine" if name == "extra" else name

    def loss_and_gradient(block: int, shares: int) -> tuple[torch.Tensor, torch.Tensor]:
        monkeypatch.setattr(terms, "BLOCK", block)
        leaf = image.clone().requires_grad_()
        targets = terms.Targets(text, Matches(labels, covers), torch.tensor(8.0), bias=-3.0)
        targets.original = targets.clean = targets.taught = clean
        targets.labels, targets.prompts = labels, prompts if name == "tecoa" else None
        size = 12 // shares
        whole = sum(
            terms.whole_batch(objective, leaf, targets, slice(at, at + size), name == "extra")
            for at in range(0, 12, size)
        )
        whole.backward()
        return whole.detach(), leaf.grad

    expected = loss_and_gradient(10**9, 1)
    for block, shares in ((25, 1), (10**9, 3), (12, 2)):
        for a, b in zip(expected, loss_and_gradient(block, shares), strict=True):
            assert torch.allclose(a, b, atol=1e-6)


def test_objectives_are_the_ones_written_down() -> None:
    image, text, other = (made(5, 6, seed=s) for s in range(3))
    own, labels = torch.eye(5, dtype=torch.bool), torch.tensor([1, 0, 4, 2, 1])
    t = terms.Targets(text, own, torch.tensor(9.0), bias=-2.0, labels=labels, prompts=other)
    t.original = t.clean = other
    cosines = F.cosine_similarity(image[:, None], text[None], dim=2)
    logits = 9.0 * cosines
    to_prompts, clean = (
        9.0 * F.cosine_similarity(x[:, None], other[None], dim=2) for x in (image, other)
    )
    p, q = clean.softmax(1), to_prompts.softmax(1)
    signs = 2.0 * own.float() - 1
    expected = {
        "image_to_text": F.cross_entropy(logits, torch.arange(5), reduction="none"),
        "sigmoid": -F.logsigmoid(signs * (logits - 2.0)).sum(1),
        "cosine": 1 - cosines.diagonal(),
        "fare": (image - other).square().sum(1),
        "tecoa": F.cross_entropy(to_prompts, labels, reduction="none"),
        "kl": F.kl_div(q.log(), p, reduction="none").sum(1),
    }
    for name, value in expected.items():
        assert torch.allclose(terms.OBJECTIVES[name](image, t), value, atol=1e-5), name
    whole = terms.whole_batch("contrastive", image, terms.Targets(text, own, torch.tensor(9.0)))
    both = [F.cross_entropy(x, torch.arange(5)) for x in (logits, logits.T)]
    assert torch.allclose(whole, sum(both) / 2, atol=1e-5)


def test_bank_adds_negatives_to_the_image_half_alone(shard, tmp_path) -> None:
    image, text, more = (made(n, 8, seed=n) for n in (4, 5, 6))
    text, own, other = text[:4], torch.eye(4, dtype=torch.bool), made(4, 6) < -0.5
    t = terms.Targets(text, own, torch.tensor(10.0), bank=more, bank_positives=other)
    everything = losses.logits(image, torch.cat([text, more]), 10.0)
    image_half = losses.multi_positive(everything, torch.cat([own, other], dim=1))
    text_half = losses.multi_positive(everything[:, :4].T, own)
    assert torch.allclose(terms.image_to_text(image, t), image_half, atol=1e-5)
    expected = (image_half.mean() + text_half.mean()) / 2
    assert torch.allclose(terms.whole_batch("contrastive", image, t), expected, atol=1e-5)
    trainer = prepared(shard, tmp_path, bank=True)
    texts, words = trainer.batches.bank(0)
    assert len(texts) == 202 and words == trainer.batches.vocabulary.class_names


@pytest.mark.parametrize("weights", [{"clean_weight": 0.5}, {"trades": 3.0}, {}])
def test_the_outer_loss_mixes_clean_and_attacked_as_written(weights) -> None:
    attacked, clean, text = (made(5, 6, seed=s) for s in range(3))
    own = torch.eye(5, dtype=torch.bool)
    t = terms.Targets(text, own, torch.tensor(9.0), Train(**weights))
    one, two = (losses.contrastive(x, text, 9.0) for x in (attacked, clean))
    kl = losses.trades(attacked, clean, text, 9.0).mean()
    expected = two + 3 * kl if "trades" in weights else (one + 0.5 * two) / 1.5 if weights else one
    features = [attacked, clean] if weights else [attacked]
    assert torch.allclose(terms.outer_loss(features, t), expected, atol=1e-5)


def test_matches_are_made_piece_by_piece(shard, tmp_path) -> None:
    batches = prepared(shard, tmp_path).batches
    batch = batches[0]
    whole = torch.tensor(
        [[int(c) in batches.vocabulary.cover[w] for w in batch.words] for c in batch.labels]
    )
    matches = batches.matches(batch.words, batch.labels)
    assert torch.equal(matches[:], whole) and torch.equal(matches[1:7, 3:4], whole[1:7, 3:4])
    texts = ["a", "b", "a", "c"]
    for given, equal in (("positive", lambda i, j: texts[i] == texts[j]), ("negative", int.__eq__)):
        plain = prepared(shard, tmp_path, captions="text", duplicates=given).batches
        found = plain.matches(texts, torch.zeros(4))[:].tolist()
        assert found == [[equal(i, j) for j in range(4)] for i in range(4)]


def test_a_tally_goes_on_with_what_all_workers_had_found() -> None:
    tally = Tally({"a": "no image"}, workers=2)
    tally.resume({"bad": {"b": "no image", "c": "broken image"}, "seen": 100}, workers=2)
    assert tally.fraction() == pytest.approx(3 / 100), "what is known of all workers counts once"
    tally.add({"d": "no image", "b": "no image"}, 200, None)
    assert tally.fraction() == pytest.approx((3 + 2) / 200), "what it finds itself stands for both"


def test_the_step_is_the_same_from_disk(shard, tmp_path) -> None:
    common = {"accumulation": 3, "clean_weight": 0.5}
    found = [gradients(prepared(shard, tmp_path, keep=k, **common)) for k in ("memory", "disk")]
    assert differ(*found) == 0 and json.loads(architecture())["embed_dim"] == 16


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_every_image_draws_a_radius_of_its_own(norm) -> None:
    images, text = torch.full((200, 3, 4, 4), 0.5), made(1, 48)
    positives = torch.ones(200, 1, dtype=torch.bool)
    asked = Train(
        norm=norm,
        eps=0.1,
        eps_low=0.25,
        attack_steps=3,
        random_start=True,
        attack_objective="cosine",
    )
    t = terms.Targets(text.expand(200, -1), positives, torch.tensor(10.0), asked)
    attacked = terms.attack_images(
        lambda x: x.flatten(1), images, t, 0.1, torch.Generator().manual_seed(0)
    )
    moved = (attacked - images).flatten(1)
    sizes = moved.norm(dim=1) if norm == "l2" else moved.abs().amax(1)
    assert 0.025 <= float(sizes.min()) < 0.03 and 0.095 < float(sizes.max()) <= 0.1 + 1e-6
    assert 0.05 < float(sizes.mean()) < 0.075
