"""The passes of a step: images kept exactly, activations recomputed, statistics counted once, the loss in blocks."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from test_train import ARCHITECTURE, gradients, options, prepared, shard  # noqa: F401

from clipag_plug.cli import main
from clipag_plug.model import build
from clipag_plug.options.train import Train
from clipag_plug.train import kept, objective
from clipag_plug.train.kept import Kept
from clipag_plug.train.matches import Matches
from clipag_plug.train.passes import recompute_activations
from clipag_plug.train.running import run
from clipag_plug.train.tally import Tally

TEXT = json.loads(ARCHITECTURE)["text_cfg"]
VIT = {"image_size": 32, "layers": 3, "width": 64, "patch_size": 16}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
CONVNEXT = {
    "image_size": 32,
    "timm_model_name": "convnext_atto",
    "timm_model_pretrained": False,
    "timm_pool": "",
    "timm_proj": "linear",
}


def architecture(vision: dict) -> str:
    return json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT})


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], most: float) -> bool:
    assert first.keys() == second.keys() and first
    a, b = (torch.cat([g.flatten() for g in grads.values()]) for grads in (first, second))
    return float((a - b).norm() / a.norm()) <= most


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_images_come_back_bit_for_bit_in_any_order(where, tmp_path) -> None:
    given = [torch.rand(n, 3, 5, 4).permute(0, 1, 3, 2) for n in (3, 3, 2)]
    with Kept(where, 3, tmp_path / "run") as store:
        for images in given:
            store.append(images)
            assert torch.equal(store[0], given[0])
        assert len(store) == 3
        assert all(torch.equal(store[place], given[place]) for place in (2, 0, 1))
        assert [len(images) for images in store] == [3, 3, 2]
        assert not list(tmp_path.glob("run/*")), "the file has no name"


def test_auto_goes_to_disk_above_the_limit(tmp_path, monkeypatch) -> None:
    images = torch.rand(2, 3, 8, 8)

    def on_disk(where: str, count: int) -> bool:
        with Kept(where, count, tmp_path) as store:
            store.append(images)
            return not store._held

    monkeypatch.setattr(kept, "IN_MEMORY", 4 * images.nbytes)
    assert [on_disk("auto", n) for n in (1, 4, 5)] == [False, False, True]
    assert [on_disk("disk", n) for n in (1, 2)] == [False, True]
    assert not on_disk("memory", 99)


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch) -> None:
    store = Kept("disk", 2, tmp_path)
    monkeypatch.setattr(
        kept, "_write", lambda file, data: (_ for _ in ()).throw(OSError(28, "full"))
    )
    with store, pytest.raises(OSError, match=r"full.*--keep memory"):
        store.append(torch.rand(1, 3, 4, 4))


def test_the_step_is_the_same_from_disk(shard, tmp_path) -> None:  # noqa: F811
    common = {"accumulation": 3, "clean_weight": 0.5}
    first, second = (
        gradients(prepared(shard, tmp_path, keep=keep, **common)) for keep in ("memory", "disk")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "vision", [json.loads(ARCHITECTURE)["vision_cfg"], VIT, RESNET, CONVNEXT], ids=str
)
def test_checkpointing_changes_nothing_but_the_memory(shard, tmp_path, vision) -> None:  # noqa: F811
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
    assert same(*found, 1e-5)
    assert saved[1] < 0.75 * saved[0]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_checkpointing_says_where_it_cannot() -> None:
    with pytest.raises(ValueError, match=r"--checkpointing.*Sequential.*--accumulation"):
        recompute_activations(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    timm = torch.nn.Module()
    timm.trunk = torch.nn.Conv2d(1, 1, 1)
    with pytest.raises(ValueError, match="--checkpointing.*timm's Conv2d"):
        recompute_activations(timm)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_running_statistics_count_each_micro_batch_once(shard, tmp_path, accumulation) -> None:  # noqa: F811
    """The oracle: the same layers shown the same micro-batches once each, in order."""
    trainer = prepared(shard, tmp_path, accumulation=accumulation, attack_steps=0, lr=0.0)
    expected = prepared(shard, tmp_path, attack_steps=0).model.train()
    trainer.step()
    with torch.no_grad():
        for number in range(accumulation):
            expected.encode_image(expected.normalize(trainer.batches[number].images))
    found = dict(trainer.model.visual.named_buffers())
    moved = [name for name in found if name.endswith(("running_mean", "num_batches_tracked"))]
    assert moved
    for name, value in expected.visual.named_buffers():
        assert torch.allclose(found[name].float(), value.float(), atol=1e-6), name


def test_dropout_is_the_same_in_both_passes(shard, tmp_path) -> None:  # noqa: F811
    """Gradient caching with a tower that draws: two passes of micro-batches against autograd through all at once."""
    settings = {
        "architecture": architecture({**VIT, "patch_dropout": 0.5}),
        "resolution": 32,
        "attack_steps": 0,
        "accumulation": 3,
    }
    trainer = prepared(shard, tmp_path, **settings)
    trainer.optimizer.step = lambda: None
    trainer.step()
    found = {name: p.grad.clone() for name, p in trainer.weights.items() if p.grad is not None}
    other = prepared(shard, tmp_path, **settings)
    parts = [other.batches[number] for number in range(3)]
    outputs = [other._features(p.images, p.texts, n) for n, p in enumerate(parts)]
    image, text = (torch.cat(side) for side in zip(*outputs, strict=True))
    labels = torch.cat([p.labels for p in parts])
    matches = other.batches.matches(sum((p.words for p in parts), []), labels)
    scale = other.model.logit_scale.exp()
    targets = other.aims(other.index, text, matches, labels, None, scale, None)
    objective.whole_batch("contrastive", image, targets).backward()
    assert same(found, {name: other.weights[name].grad for name in found}, 1e-5)


@pytest.mark.parametrize("name", ["contrastive", "image_to_text", "cosine", "kl", "tecoa", "fare"])
def test_blocks_and_shares_add_up_to_the_whole(monkeypatch, name) -> None:
    generator = torch.Generator().manual_seed(0)
    image, text, clean, prompts = (torch.randn(12, 6, generator=generator) for _ in range(4))
    labels = torch.randint(0, 4, (12,), generator=generator)
    covers = torch.rand(12, 12, generator=generator) < 0.3

    def loss_and_gradient(block: int, shares: int) -> tuple[torch.Tensor, torch.Tensor]:
        monkeypatch.setattr(objective, "BLOCK", block)
        leaf = image.clone().requires_grad_()
        matches = Matches(labels, covers)
        targets = objective.Targets(
            text, matches, torch.tensor(8.0), clean, labels, prompts if name == "tecoa" else None
        )
        targets.clean = clean
        size = 12 // shares
        whole = sum(
            objective.whole_batch(name, leaf, targets, slice(at, at + size))
            for at in range(0, 12, size)
        )
        whole.backward()
        return whole.detach(), leaf.grad

    expected = loss_and_gradient(10**9, 1)
    for block, shares in ((25, 1), (10**9, 3), (12, 2)):
        for a, b in zip(expected, loss_and_gradient(block, shares), strict=True):
            assert torch.allclose(a, b, atol=1e-6)


def test_matches_are_made_piece_by_piece(shard, tmp_path) -> None:  # noqa: F811
    batches = prepared(shard, tmp_path).batches
    batch = batches[0]
    whole = torch.tensor(
        [[int(c) in batches.vocabulary.cover[w] for w in batch.words] for c in batch.labels]
    )
    matches = batches.matches(batch.words, batch.labels)
    assert torch.equal(matches[:], whole) and torch.equal(matches[2:5], whole[2:5])
    assert torch.equal(matches[1:7, 3:4], whole[1:7, 3:4])
    batches.vocabulary = None
    texts = ["a", "b", "a", "c"]
    plain = batches.matches(texts, torch.zeros(4))[:]
    assert plain.tolist() == [[a == b for b in texts] for a in texts]


def test_the_ball_can_be_one_of_normalised_pixels(shard, tmp_path) -> None:  # noqa: F811
    """eps 0.1 after the normalisation is 0.1 * std of each channel before it."""
    trainer = prepared(
        shard, tmp_path, norm="linf", eps=0.1, eps_space="normalized", attack_steps=9
    )
    batch = trainer.batches[0]
    moved = (trainer._attack(batch, 0.1, 0) - batch.images).abs().amax((0, 2, 3))
    assert torch.allclose(moved, 0.1 * torch.tensor(trainer.model.std), atol=1e-6)
    pixels = prepared(shard, tmp_path, norm="linf", eps=0.1, attack_steps=9)
    moved = (pixels._attack(batch, 0.1, 0) - batch.images).abs().amax()
    assert float(moved) == pytest.approx(0.1, abs=1e-6)


def test_the_attack_of_trades_raises_the_divergence(shard, tmp_path) -> None:  # noqa: F811
    settings = {"trades": 6.0, "eps": 20.0, "attack_steps": 8, "norm": "l2"}
    trainer = prepared(shard, tmp_path, attack_objective="kl", **settings)
    batch, scale = trainer.batches[0], trainer.model.logit_scale.exp().detach()
    attacked = trainer._attack(batch, trainer.eps_at(0), 0).chunk(2)[0]
    noise = torch.randn(attacked.shape, generator=torch.Generator().manual_seed(0))
    noise *= trainer.eps_at(0) / noise.flatten(1).norm(dim=1)[:, None, None, None]
    with torch.no_grad():
        text, clean = trainer.text(batch.texts), trainer._encode(batch.images)
        reached = [
            objective.losses.trades(trainer._encode(images), clean, text, scale).mean()
            for images in (attacked, (batch.images + noise).clamp(0, 1))
        ]
    # Not against the other inner loss: the divergence has a maximum on either side of the clean image.
    assert reached[0] > 3 * reached[1] > 0
    with pytest.raises(ValueError, match="kl needs --random-start"):
        prepared(shard, tmp_path, attack_objective="kl", random_start=False)


def test_the_attack_keeps_nothing_for_the_weights(shard, tmp_path) -> None:  # noqa: F811
    trainer = prepared(shard, tmp_path)
    needed = []
    original = trainer._encode
    trainer._encode = lambda x: (
        needed.append(any(p.requires_grad for p in trainer.model.parameters())),
        original(x),
    )[1]
    trainer._attack(trainer.batches[0], 1.0, 0)
    assert needed and not any(needed)
    assert all(p.requires_grad for p in trainer.weights.values())


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_broken_layer_of_a_compiled_tower_is_named(
    shard,  # noqa: F811
    tmp_path,
    monkeypatch,
    accumulation,
) -> None:
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: compiler(f, backend="eager"))
    trainer = prepared(shard, tmp_path, attack_steps=1, compile=True, accumulation=accumulation)
    plain = prepared(shard, tmp_path, attack_steps=1, accumulation=accumulation)
    assert trainer.step() == pytest.approx(plain.step(), rel=1e-4)
    with torch.no_grad():
        trainer.model.visual.stages[1][0].conv2.weight[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"visual\.stages\.1\.0\.conv2"):
        trainer.step()


def test_resume_takes_latest_a_folder_or_a_file(shard, tmp_path, capsys) -> None:  # noqa: F811
    recipe, folder = tmp_path / "r.json", tmp_path / "run"
    recipe.write_text(options(shard, folder, samples=16, quiet=False).to_json())
    command = ["train", "--recipe", str(recipe)]
    assert main([*command, "--resume", "latest"]) == 0, "the first start of a job"
    assert "no checkpoint in" in capsys.readouterr().err
    weights = (folder / "model.safetensors").read_bytes()
    for number, ways in enumerate(
        (["latest"], [], [str(folder)], [str(folder / "checkpoint.safetensors")])
    ):
        before = (folder / "checkpoint.safetensors").read_bytes()
        assert main([*command, "--samples", "16", "--resume", *ways]) == 0
        assert (folder / "model.safetensors").read_bytes() == weights, number
        assert (folder / "checkpoint.safetensors").read_bytes() == before
    assert main([*command, "--resume", str(tmp_path / "nowhere")]) == 2
    assert "nothing to resume" in capsys.readouterr().err
    assert main([*command, "--resume", str(folder / "model.safetensors")]) == 2
    assert "--init" in capsys.readouterr().err
    assert (Train(resume=True).resume, Train(resume=False).resume) == ("latest", "")


def test_the_checkpoint_of_an_earlier_version_is_read(shard, tmp_path) -> None:  # noqa: F811
    first = prepared(shard, tmp_path, ema=0.5)
    first.step()
    state = {
        "weights": first.model.state_dict(), "index": 1, "optimizer": first.optimizer.state_dict(),
        "average": first.average, "scaler": {}, "tally": {"bad": {"x": "no image"}, "seen": 9},
    }  # fmt: skip
    torch.save(state, tmp_path / "checkpoint.pt")
    second = prepared(shard, tmp_path, ema=0.5)
    second.restore(tmp_path)
    assert second.step() == first.step() and second.batches.tally.bad == {"x": "no image"}
    second.save(tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists(), "one checkpoint, the newest"


def test_the_log_forgets_what_the_checkpoint_does_not_know(shard, tmp_path) -> None:  # noqa: F811
    trainer = prepared(shard, tmp_path, samples=32, save_every=9999.0)
    run(trainer, tmp_path)
    whole = {name: (tmp_path / name).read_text() for name in ("log.csv", "log.jsonl")}
    early = prepared(shard, tmp_path, samples=32)
    early.step()
    early.save(tmp_path)
    with (tmp_path / "log.csv").open("a") as stream:
        stream.write("5,40,1.2")  # killed in the middle of a row
    again = prepared(shard, tmp_path, samples=32)
    again.restore(tmp_path)
    run(again, tmp_path)
    for name, text in whole.items():
        found = (tmp_path / name).read_text()
        assert found.count("\n") == text.count("\n")
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [row["index"] for row in rows] == ["1", "2", "3", "4"]
    fresh = prepared(shard, tmp_path, samples=16)
    run(fresh, tmp_path)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2, "a new run, a new log"


def test_a_tally_goes_on_with_what_all_workers_had_found() -> None:
    tally = Tally({"a": "no image"}, workers=2)
    tally.resume({"bad": {"b": "no image", "c": "broken image"}, "seen": 100}, workers=2)
    assert tally.fraction() == pytest.approx(3 / 100), "what is known of all workers counts once"
    tally.add({"d": "no image", "b": "no image"}, 200, None)
    assert tally.fraction() == pytest.approx((3 + 2) / 200), "what it finds itself stands for both"


def test_towers_draw_from_the_global_generator_alone_inside_a_step(shard, tmp_path) -> None:  # noqa: F811
    trainer = prepared(shard, tmp_path)
    state = torch.random.get_rng_state()
    trainer.step()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_convnext_is_built_without_a_network() -> None:
    assert build(json.loads(architecture(CONVNEXT)), None).visual.trunk is not None
