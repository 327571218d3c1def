"""Number formats, broken numbers, other attacks and objectives, and being killed."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_train import gradients, options, prepared, shard  # noqa: F401
from torch.nn import functional as F
from train_processes import started

from clipag_plug import losses
from clipag_plug.train.running import run
from clipag_plug.train.state import load_state


def test_bf16_gradients_point_where_fp32_ones_do(shard, tmp_path) -> None:  # noqa: F811
    exact = gradients(prepared(shard, tmp_path, attack_steps=0))
    for accumulation in (1, 2):
        low = gradients(
            prepared(
                shard, tmp_path, attack_steps=0, precision="bf16", batch_size=8 // accumulation,
                accumulation=accumulation,
            )
        )  # fmt: skip
        a, b = (torch.cat([g[name].flatten() for name in exact]) for g in (exact, low))
        if accumulation == 1:
            assert float(F.cosine_similarity(a, b, dim=0)) > 0.99
        assert b.dtype == torch.float32 and bool(b.isfinite().all())


def test_fp16_scales_its_gradients_back(shard, tmp_path) -> None:  # noqa: F811
    exact = gradients(prepared(shard, tmp_path, attack_steps=1))
    trainer = prepared(shard, tmp_path, attack_steps=1, precision="fp16")
    trainer.precision.scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    found = gradients(trainer)
    a, b = (torch.cat([g[name].flatten() for name in exact]) for g in (exact, found))
    assert float(F.cosine_similarity(a, b, dim=0)) > 0.99
    assert float(b.norm() / a.norm()) == pytest.approx(1, abs=0.05)


def test_fp16_leaves_out_steps_that_overflow(shard, tmp_path) -> None:  # noqa: F811
    trainer = prepared(shard, tmp_path, attack_steps=0, precision="fp16")
    trainer.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = {name: weight.detach().clone() for name, weight in trainer.weights.items()}
    trainer.step()
    assert all(torch.equal(before[name], weight) for name, weight in trainer.weights.items())
    assert trainer.precision.scaler.get_scale() < 2.0**40


def test_a_broken_layer_is_named_and_the_checkpoint_stays(shard, tmp_path) -> None:  # noqa: F811
    trainer = prepared(shard, tmp_path, samples=16)
    run(trainer, tmp_path)
    kept = (tmp_path / "checkpoint.safetensors").read_bytes()
    broken = prepared(shard, tmp_path, attack_steps=0)
    with torch.no_grad():
        broken.model.visual.stages[1][0].conv2.weight[0, 0] = torch.nan
    with pytest.raises(
        FloatingPointError, match=r"batch 0 .*'contrastive'.*visual\.stages\.1\.0\.conv2"
    ):
        run(broken, tmp_path)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == kept


def test_an_overflown_gradient_is_named(shard, tmp_path) -> None:  # noqa: F811
    trainer = prepared(shard, tmp_path, attack_steps=0)
    name, weight = next(iter(trainer.weights.items()))
    weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(FloatingPointError, match=f"gradient.*{name}"):
        trainer.step()


def test_trades_is_the_divergence_of_clean_from_attacked() -> None:
    generator = torch.Generator().manual_seed(0)
    attacked, clean, text = (torch.randn(n, 6, generator=generator) for n in (5, 5, 7))
    p, q = (
        torch.softmax(9.0 * F.cosine_similarity(x[:, None], text[None], dim=2), dim=1)
        for x in (clean, attacked)
    )
    expected = F.kl_div(q.log(), p, reduction="none").sum(1)
    assert torch.allclose(losses.trades(attacked, clean, text, 9.0), expected, atol=1e-5)
    assert torch.allclose(losses.trades(clean, clean, text, 9.0), torch.zeros(5), atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"trades": 6.0},
        {"attack": "apgd"},
        {"momentum": 0.9, "best": True},
        {"trades": 1.0, "objective": "tecoa", "accumulation": 2, "attack_objective": "kl"},
        {"trades": 6.0, "bank": True, "accumulation": 2, "keep": "disk"},
    ],
)
def test_variants_train_on_finite_losses(shard, tmp_path, changes) -> None:  # noqa: F811
    trainer = prepared(shard, tmp_path, **changes)
    seen: list[float] = []
    run(trainer, tmp_path, lambda step: seen.append(step.loss))
    assert len(seen) == trainer.steps and all(torch.isfinite(torch.tensor(seen)))


def test_apgd_raises_the_loss_as_far_as_pgd(shard, tmp_path) -> None:  # noqa: F811
    reached = {}
    for attack in ("pgd", "apgd"):
        trainer = prepared(
            shard, tmp_path, attack=attack, attack_steps=10, random_start=False, eps=20.0
        )
        part = trainer.batches[0]
        moved = trainer._attack(part, trainer.eps_at(0), 0)
        trainer.model.eval()
        with torch.no_grad():
            text = trainer.text(part.texts)
            scores = losses.logits(trainer._encode(moved), text, trainer.model.logit_scale.exp())
            positives = trainer.batches.positives(part.words, part.labels)
            reached[attack] = float(losses.multi_positive(scores, positives).mean())
    assert reached["apgd"] > 0.97 * reached["pgd"]


def test_killed_at_random_moments_it_ends_with_the_same_weights(shard, tmp_path) -> None:  # noqa: F811
    """kill -9 five times; whatever the moment, the resumed run equals the one that nobody stopped, bit for bit, and
    its log has one row for every step."""
    settings = {"samples": 8 * 150, "save_every": 0.01, "attack_steps": 1, "ema": 0.9, "threads": 1}
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    first = started(["--recipe", _recipe(tmp_path, shard, straight, settings)])
    first.join()
    assert first.exitcode == 0
    arguments = ["--recipe", _recipe(tmp_path, shard, killed, settings), "--resume", "latest"]
    rng, log = random.Random(0), killed / "log.jsonl"
    reached = []
    for turn in range(5):
        process = started(arguments)
        wanted = 150 * (turn + 1) // 8
        while process.is_alive() and (not log.is_file() or log.read_bytes().count(b"\n") < wanted):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        reached.append(load_state(killed)["index"])
    assert reached == sorted(reached) and reached[0] > 0 and reached[-1] < 150
    last = started(arguments)
    last.join()
    assert last.exitcode == 0
    found, expected = (load_file(each / "model.safetensors") for each in (killed, straight))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not list(killed.glob(".*")), "no temporary file is left"
    rows = [json.loads(row) for row in log.read_text().splitlines()]
    assert [row["index"] for row in rows] == list(range(1, 151))
    table = [row.split(",")[0] for row in (killed / "log.csv").read_text().splitlines()]
    assert table == ["index", *map(str, range(1, 151))]
    losses_of = [json.loads(r)["loss"] for r in (straight / "log.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == losses_of


def _recipe(folder: Path, data: Path, output: Path, settings: dict[str, object]) -> str:
    path = folder / f"{output.name}.json"
    path.write_text(options(data, output, **settings).to_json())
    return str(path)
