"""Number formats, broken numbers, other attacks and objectives, and being killed."""

from __future__ import annotations

import csv
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from train_helpers import gradients, options, prepared
from train_processes import started

from clipag_plug import losses
from clipag_plug.train.command import train
from clipag_plug.train.state import find, load


def test_bf16_gradients_point_where_fp32_ones_do(shard, tmp_path) -> None:
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


def test_fp16_scales_its_gradients_back(shard, tmp_path) -> None:
    exact = gradients(prepared(shard, tmp_path, attack_steps=1))
    trainer = prepared(shard, tmp_path, attack_steps=1, precision="fp16")
    trainer.precision.scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    found = gradients(trainer)
    a, b = (torch.cat([g[name].flatten() for name in exact]) for g in (exact, found))
    assert float(F.cosine_similarity(a, b, dim=0)) > 0.99
    assert float(b.norm() / a.norm()) == pytest.approx(1, abs=0.05)


def test_fp16_leaves_out_steps_that_overflow(shard, tmp_path) -> None:
    trainer = prepared(shard, tmp_path, attack_steps=0, precision="fp16")
    trainer.precision.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = {name: weight.detach().clone() for name, weight in trainer.weights.items()}
    trainer.step()
    assert all(torch.equal(before[name], weight) for name, weight in trainer.weights.items())
    assert trainer.precision.scaler.get_scale() < 2.0**40


def test_a_broken_layer_is_named_and_the_checkpoint_stays(shard, tmp_path) -> None:
    trainer = prepared(shard, tmp_path, samples=16)
    train(trainer, tmp_path)
    kept = find(tmp_path).read_bytes()
    broken = prepared(shard, tmp_path, attack_steps=0)
    with torch.no_grad():
        broken.model.visual.stages[1][0].conv2.weight[0, 0] = torch.nan
    with pytest.raises(
        FloatingPointError, match=r"batch 0 .*'contrastive'.*visual\.stages\.1\.0\.conv2"
    ):
        train(broken, tmp_path)
    assert find(tmp_path).read_bytes() == kept


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_broken_layer_of_a_compiled_tower_is_named(
    shard, tmp_path, monkeypatch, accumulation
) -> None:
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f: compiler(f, backend="eager"))
    trainer = prepared(shard, tmp_path, attack_steps=1, compile=True, accumulation=accumulation)
    plain = prepared(shard, tmp_path, attack_steps=1, accumulation=accumulation)
    assert trainer.step().loss == pytest.approx(plain.step().loss, rel=1e-4)
    with torch.no_grad():
        trainer.model.visual.stages[1][0].conv2.weight[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"visual\.stages\.1\.0\.conv2"):
        trainer.step()


def test_an_overflown_gradient_is_named(shard, tmp_path) -> None:
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
def test_variants_train_on_finite_losses(shard, tmp_path, changes) -> None:
    trainer = prepared(shard, tmp_path, **changes)
    seen: list[float] = []
    train(trainer, tmp_path, report=lambda step: seen.append(step.loss))
    assert len(seen) == trainer.steps and all(torch.isfinite(torch.tensor(seen)))


@pytest.mark.long
def test_killed_at_random_moments_it_ends_with_the_same_weights(shard, tmp_path) -> None:
    """kill -9 five times; whatever the moment, the resumed run equals the one that nobody stopped, bit for bit, and
    its log has one row for every step."""
    settings = {
        "samples": 8 * 150,
        "save_every": "0.01s",
        "attack_steps": 1,
        "ema": 0.9,
        "threads": 1,
    }
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    first = started(["--recipe", _recipe(tmp_path, shard, straight, settings)])
    first.join()
    assert first.exitcode == 0
    arguments = ["--recipe", _recipe(tmp_path, shard, killed, settings), "--resume", "latest"]
    rng, log = random.Random(0), killed / "log.csv"
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
        reached.append(load(killed)["index"])
    assert reached == sorted(reached) and reached[0] > 0 and reached[-1] < 150
    last = started(arguments)
    last.join()
    assert last.exitcode == 0
    found, expected = (load_file(each / "model.safetensors") for each in (killed, straight))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert {path.name for path in killed.glob(".*")} == {".lock"}, "no temporary file is left"
    rows, expected = (list(csv.DictReader((p / "log.csv").open())) for p in (killed, straight))
    assert [row["index"] for row in rows] == [str(n) for n in range(1, 151)]
    assert [row["loss"] for row in rows] == [row["loss"] for row in expected]


def _recipe(folder: Path, data: Path, output: Path, settings: dict[str, object]) -> str:
    path = folder / f"{output.name}.json"
    path.write_text(options(data, output, **settings).to_json())
    return str(path)
