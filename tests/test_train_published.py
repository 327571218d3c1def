"""FARE and TeCoA: three optimiser steps against RobustVLM's loop, written down plainly from its description."""

from __future__ import annotations

import copy
import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from train_helpers import VIT, architecture

import clipag_plug.train
from clipag_plug.options.train import Train
from clipag_plug.train import setup
from clipag_plug.train.data import Batch

RECIPES = Path(clipag_plug.train.__file__).parent / "recipes"
STEPS, BATCH = 3, 8


class Inside:
    """Batches whose pixels stay so far from 0 and 1 that no start leaves the valid values: theirs is not cut there."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __getitem__(self, index: int) -> Batch:
        batch = self.batches[index]
        return dataclasses.replace(batch, images=0.1 + 0.8 * batch.images)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.batches, name)


def robust_vlm(
    encode: Any, images: Tensor, loss: Any, perturbation: Tensor, eps: float, iterations: int
) -> Tensor:
    """Their attack: momentum 0.9 on a direction that is made a sign again, after the image is cut to [0, 1]."""
    velocity = torch.zeros_like(images)
    for _ in range(iterations):
        perturbation = perturbation.detach().requires_grad_(True)
        gradient = torch.autograd.grad(loss(encode(images + perturbation)), perturbation)[0]
        velocity = torch.sign(0.9 * velocity + torch.sign(gradient))
        moved = (perturbation.detach() + velocity / 255).clamp(-eps, eps)
        perturbation = (images + moved).clamp(0, 1) - images
    return images + perturbation


def known(tower: torch.nn.Module) -> Tensor:
    """All weights but the biases of the attention's keys: a softmax does not see them, so that their gradient is
    rounding, of which Adam makes a whole step."""
    parts = []
    for key, value in tower.state_dict().items():
        if key.endswith("in_proj_bias"):
            query, _, rest = value.chunk(3)
            value = torch.cat([query, rest])
        parts.append(value.flatten())
    return torch.cat(parts)


@pytest.mark.parametrize("name", ["fare", "tecoa"])
def test_three_steps_are_those_of_robust_vlm(name: str, shard: Path, tmp_path: Path) -> None:
    given = tomllib.loads((RECIPES / f"{name}.toml").read_text(encoding="utf-8"))
    del given["init"]
    (tmp_path / "names.txt").write_text("tench\ngoldfish\nwhite shark\nray\nhen\n")
    given |= {
        "architecture": architecture(VIT),
        "data": [str(shard)],
        "output": str(tmp_path),
        "quiet": True,
    }
    given |= {
        "batch_size": BATCH,
        "samples": STEPS * BATCH,
        "warmup": 0.0,
        "schedule": "constant",
        "device": "cpu",
    }
    given |= {"class_names": str(tmp_path / "names.txt")} if name == "tecoa" else {}
    trainer = setup.prepare(Train(**given)).trainer
    model = trainer.model
    with torch.no_grad():
        model.logit_scale.fill_(torch.tensor(100.0).log())  # as in OpenAI's models; theirs is fixed
    trainer.batches = Inside(trainer.batches)  # type: ignore[assignment]

    tower, original = copy.deepcopy(model.visual), copy.deepcopy(model.visual).eval()
    optimizer = torch.optim.AdamW(tower.parameters(), lr=1e-5, weight_decay=1e-4)
    classes = ["tench", "goldfish", "white shark", "ray", "hen"]
    with torch.no_grad():
        tokens = model.tokenize([f"This is a photo of a {each}" for each in classes])
        prompts = F.normalize(model.encode_text(tokens), dim=-1)
    eps = 4 / 255
    for number in range(STEPS):
        batch = trainer.batches[number]
        images, labels = batch.images, batch.labels
        with torch.no_grad():
            wanted = original(model.normalize(images))

        def encode(x: Tensor) -> Tensor:
            features = tower(model.normalize(x))
            return features if name == "fare" else F.normalize(features, dim=-1)

        def loss(features: Tensor, wanted: Tensor = wanted, labels: Tensor = labels) -> Tensor:
            if name == "fare":
                return (features - wanted).square().sum(1).mean()
            return F.cross_entropy(features @ (100 * prompts.T), labels)

        generator = torch.Generator().manual_seed(trainer._seed(number))
        start = (2 * torch.rand(images.shape, generator=generator) - 1) * eps
        tower.eval()
        attacked = robust_vlm(encode, images, loss, start, eps, 10)
        tower.train()
        optimizer.zero_grad()
        value = loss(encode(attacked))
        value.backward()
        optimizer.step()
        mine = trainer.attack(batch, trainer.rows(batch), eps, number)
        assert float(((mine - attacked).abs() > 1e-6).float().mean()) < 1e-3
        assert trainer.step().loss == pytest.approx(value.item(), rel=1e-4), number
    ours, theirs, start = map(known, (model.visual, tower, original))
    assert (ours - theirs).norm() < 1e-5 * theirs.norm()
    # A pixel whose gradient is rounding may take the other sign; so may, under Adam, a weight with such a gradient.
    assert (ours - theirs).norm() < 0.03 * (theirs - start).norm()
    assert float(((ours - theirs).abs() > 1e-6).float().mean()) < 1e-3
    assert (theirs - start).abs().max() > 2e-5, "three steps of 1e-5"
