"""Muon against an SVD, against torch's own and against what a fixed norm promises; AdamW untouched beside it."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F
from train_helpers import architecture, options, prepared

from clipag_plug.model import build
from clipag_plug.options.train import Train
from clipag_plug.train.optim import (
    AdamWMuon,
    decays,
    learning_rate,
    make_optimizer,
    orthogonal,
    trained_weights,
    turn,
)
from clipag_plug.train.trainer import Trainer


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 24)])
def test_singular_values_go_to_one_and_directions_stay(shape) -> None:
    given = matrix(*shape) @ torch.diag(torch.linspace(0.3, 3, shape[1]))
    left, _, right = torch.linalg.svd(given, full_matrices=False)
    core = left.T @ orthogonal(given) @ right.T
    values = core.diagonal()
    assert float(values.min()) > 0.6 and float(values.max()) < 1.3
    assert float((core - core.diagonal().diag()).abs().max()) < 1e-3


@pytest.mark.parametrize("shape", [(24, 216), (216, 24), (48, 64)])
def test_rounds_in_bf16_turn_the_same_way(shape) -> None:
    for spread in (1.0, 30.0):
        given = matrix(*shape) @ torch.diag(torch.linspace(1 / spread, 1, shape[1]))
        low, full = orthogonal(given, low=True), orthogonal(given)
        assert low.dtype == given.dtype
        assert float(F.cosine_similarity(low.flatten(), full.flatten(), dim=0)) > 0.97
        assert float(torch.linalg.svdvals(low).max()) < 1.35


def test_the_direction_is_that_of_torch() -> None:
    gradients = [matrix(24, 90, seed) for seed in range(3)]
    theirs = torch.nn.Parameter(torch.zeros(24, 90))
    muon = torch.optim.Muon([theirs], lr=1.0, weight_decay=0.0, momentum=0.95, nesterov=True)
    kernel, state = matrix(24, 90, 9).reshape(24, 10, 3, 3), {}
    for gradient in gradients:
        before, old = theirs.detach().clone(), kernel.clone()
        theirs.grad = gradient
        muon.step()
        turn(kernel, gradient.reshape(24, 10, 3, 3), state, 1e-4)
        step = (kernel - old).reshape(24, 90)
        # What keeps the norm is no part of torch's step: the share along the kernel.
        along = old.reshape(24, 90) / old.norm()
        mine, other = (s - (s * along).sum() * along for s in (step, theirs.detach() - before))
        assert float(F.cosine_similarity(mine.flatten(), other.flatten(), dim=0)) > 0.995


def test_a_step_has_the_length_asked_for_and_keeps_the_norm() -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        kernel = matrix(32, 144).reshape(32, 16, 3, 3).contiguous(memory_format=layout)
        old, norm = kernel.clone(), float(kernel.norm())
        turn(kernel, matrix(32, 144, 1).reshape(32, 16, 3, 3) * 1e-5, {}, 0.02)
        assert float(kernel.norm()) == pytest.approx(norm, rel=1e-5)
        assert float((kernel - old).norm()) / norm == pytest.approx(0.02, rel=0.25)


def test_a_kernel_or_a_gradient_of_zeros_stays_finite() -> None:
    zeros, given = torch.zeros(6, 4, 3, 3), matrix(6, 36).reshape(6, 4, 3, 3)
    for kernel, gradient in ((zeros, given), (given, zeros)):
        moved = kernel.clone()
        turn(moved, gradient, {}, 0.05)
        assert torch.allclose(moved, kernel, atol=1e-6)


def test_memory_layout_does_not_matter() -> None:
    kernel, gradient = (matrix(12, 90, seed).reshape(12, 10, 3, 3) for seed in (0, 1))
    ends = []
    for layout in (torch.contiguous_format, torch.channels_last):
        turned = kernel.clone(memory_format=layout)
        turn(turned, gradient.clone(memory_format=layout), {}, 0.05)
        ends.append(turned)
    assert torch.allclose(*ends, atol=1e-6)


def test_the_scale_of_a_normalised_kernel_does_not_matter() -> None:
    x = torch.randn(4, 6, 8, 8, generator=torch.Generator().manual_seed(3))

    def after(scale: float) -> torch.Tensor:
        kernel = (scale * matrix(10, 54).reshape(10, 6, 3, 3)).requires_grad_()
        y = F.batch_norm(F.conv2d(x, kernel), None, None, training=True, eps=1e-12)
        (gradient,) = torch.autograd.grad((y**3).sum() + y[:, 0].relu().sum(), kernel)
        with torch.no_grad():
            turn(kernel, gradient, {}, 0.03)
        return kernel.detach() / scale

    assert torch.allclose(after(1.0), after(50.0), atol=1e-4)


def groups_of(trainer: Trainer) -> tuple[set[str], set[str]]:
    """Names that Muon and AdamW take."""
    names = {id(p): n for n, p in trainer.weights.items()}
    muon, rest = (
        {
            names[id(p)]
            for g in trainer.optimizer.param_groups
            if g.get("muon", False) is kind
            for p in g["params"]
        }
        for kind in (True, False)
    )
    return muon, rest


def test_muon_takes_inner_kernels_and_adamw_everything_else(shard, tmp_path) -> None:
    muon, rest = groups_of(prepared(shard, tmp_path, optimizer="muon"))
    assert not muon & rest and muon | rest == set(prepared(shard, tmp_path).weights)
    assert {"visual.stages.0.0.conv1.weight", "visual.stages.1.0.shortcut.1.weight"} <= muon
    assert {"visual.conv1.weight", "visual.proj.weight", "visual.bn1.weight"} <= rest


def test_muon_multiplies_in_the_format_of_the_run(shard, tmp_path) -> None:
    for precision, low in (("bf16", True), ("fp32", False)):
        trainer = prepared(shard, tmp_path, optimizer="muon", precision=precision)
        assert [g["low"] for g in trainer.optimizer.param_groups if g.get("muon")] == [low]


def test_beside_muon_adamw_takes_the_same_steps() -> None:
    weights = [torch.nn.Parameter(matrix(4, 5, seed)) for seed in (1, 1)]
    kernel = torch.nn.Parameter(matrix(4, 45).reshape(4, 5, 3, 3))
    both = AdamWMuon(
        [{"params": [weights[0]]}, {"params": [kernel], "muon": True}], lr=0.01, weight_decay=0.1
    )
    plain = torch.optim.AdamW([weights[1]], lr=0.01, weight_decay=0.1)
    for seed in range(4):
        for weight in weights:
            weight.grad = matrix(4, 5, 20 + seed)
        kernel.grad = matrix(4, 45, seed).reshape(4, 5, 3, 3)
        both.step()
        plain.step()
    assert torch.equal(*weights)


def test_the_schedule_scales_both(shard, tmp_path) -> None:
    trainer = prepared(shard, tmp_path, optimizer="muon", muon_lr=0.04, lr=0.01, warmup=0.5)
    lr = trainer.step().lr
    assert lr < 0.01
    assert {g["lr"] / lr for g in trainer.optimizer.param_groups} == {1.0, 4.0}


def test_a_tower_without_such_kernels_is_refused(shard, tmp_path) -> None:
    tower = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
    model = build(json.loads(architecture(tower)), None)
    asked = options(shard, tmp_path, optimizer="muon")
    with pytest.raises(ValueError, match="--optimizer adamw"):
        make_optimizer(model, trained_weights(model, asked), asked)


def test_what_decays_is_a_choice() -> None:
    matrix_, vector = torch.zeros(2, 2), torch.zeros(2)
    names = {
        "proj": matrix_,
        "positional_embedding": matrix_,
        "bias": vector,
        "ln_post.weight": vector,
    }
    found = {
        rule: [name for name, weight in names.items() if decays(name, weight, rule)]
        for rule in ("matrices", "open_clip", "all")
    }
    assert found["matrices"] == ["proj"] and found["all"] == list(names)
    assert found["open_clip"] == ["proj", "positional_embedding"]


def test_adamw_takes_its_settings_from_the_options(shard, tmp_path) -> None:
    given = {"beta1": 0.8, "beta2": 0.99, "adam_eps": 1e-4, "weight_decay": 0.3}
    groups = prepared(shard, tmp_path, **given).optimizer.param_groups
    assert all(g["betas"] == (0.8, 0.99) and g["eps"] == 1e-4 for g in groups)
    assert [g["weight_decay"] for g in groups] == [0.3, 0.0]


def test_schedules_are_those_of_open_clip() -> None:
    import math

    def rates(**given) -> list[float]:
        return [learning_rate(Train(lr=1.0, warmup=0.2, **given), n, 20) for n in range(20)]

    warm = [(n + 1) / 4 for n in range(4)]
    assert rates() == pytest.approx(
        [*warm, *(0.5 * (1 + math.cos(math.pi * n / 16)) for n in range(16))]
    )
    assert rates(schedule="constant") == pytest.approx([*warm, *[1.0] * 16])
    cool = rates(schedule="const-cooldown", cooldown=0.25)
    assert cool == pytest.approx([*warm, *[1.0] * 11, 1.0, 0.8, 0.6, 0.4, 0.2])
