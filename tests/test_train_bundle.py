"""Packing a run: of several runs of one network the mean of their weights, of different ones nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.make.bundle import read_mean
from clipag_plug.model import build
from clipag_plug.train.state import save_model

CONFIG = {
    "embed_dim": 8,
    "vision_cfg": {
        "image_size": 224,
        "mini": {
            "image_size": 16,
            "widths": [4, 8],
            "depths": [1, 1],
            "stem": 4,
            "patch": 4,
            "activation": "relu",
        },
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 8,
        "heads": 1,
        "layers": 1,
    },
}


def saved(place: Path, seed: int, config: dict = CONFIG) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    weights = build(config, None, name=str(seed)).state_dict()
    save_model(place / str(seed), weights, config, {"name": str(seed)})
    return weights


def test_a_mean_of_runs(tmp_path: Path) -> None:
    weights = [saved(tmp_path, seed) for seed in range(3)]
    config, card, mean = read_mean([tmp_path / str(seed) for seed in range(3)])
    assert card["name"] == "2"
    assert set(mean) == set(weights[0])
    for name, value in mean.items():
        if value.is_floating_point():
            expected = torch.stack([each[name].double() for each in weights]).mean(0)
            torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=1e-5)
        else:
            assert torch.equal(value, weights[2][name])
    assert not build(config, mean, name="mean").training


def test_the_mean_of_one_is_itself(tmp_path: Path) -> None:
    weights = saved(tmp_path, 0)
    _, _, mean = read_mean([tmp_path / "0"])
    assert all(torch.equal(mean[name], value) for name, value in weights.items())


def test_different_networks_have_no_mean(tmp_path: Path) -> None:
    other = {**CONFIG, "embed_dim": 16}
    saved(tmp_path, 0)
    saved(tmp_path, 1, other)
    with pytest.raises(ValueError, match="different networks"):
        read_mean([tmp_path / "0", tmp_path / "1"])
