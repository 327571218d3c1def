"""FID, KID and Inception Score: torch-fidelity's numbers, known answers, and their jackknife intervals."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clipag_plug.bench import aesthetics, distribution
from clipag_plug.bench.statistics import mean, paired_difference

pytest.importorskip("torch_fidelity")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def test_fid_against_the_definition_and_between_gaussians_of_known_distance() -> None:
    scipy = pytest.importorskip("scipy.linalg")
    one, two = draw(60, 8), 1.5 * draw(50, 8, seed=1) + 0.3
    a, b = np.cov(one.numpy(), rowvar=False), np.cov(two.numpy(), rowvar=False)
    gap = (one.mean(0) - two.mean(0)).square().sum()
    expected = float(gap) + float(np.trace(a + b - 2 * scipy.sqrtm(a @ b).real))
    assert distribution.fid(one, two) == pytest.approx(expected, rel=1e-6)
    assert distribution.fid(one, one) == pytest.approx(0, abs=1e-6)
    assert distribution.fid(one, one + 2) == pytest.approx(
        4 * 8, rel=1e-6
    )  # a shift by 2 in 8 axes
    assert distribution.fid(one, two) == pytest.approx(distribution.fid(two, one), rel=1e-6)
    assert distribution.fid(one[torch.randperm(60)], two) == pytest.approx(expected, rel=1e-6)


def test_kid_against_the_sums_of_its_definition() -> None:
    one, two = draw(12, 6), draw(12, 6, seed=1) + 0.5

    def kernel(x: Tensor, y: Tensor) -> float:
        return float((x @ y / 6 + 1) ** 3)

    pairs = [(i, j) for i in range(12) for j in range(12) if i != j]
    within = sum(kernel(one[i], one[j]) + kernel(two[i], two[j]) for i, j in pairs) / len(pairs)
    across = sum(kernel(one[i], two[j]) for i in range(12) for j in range(12)) / 144
    assert distribution.kid(one, two) == pytest.approx(within - 2 * across, rel=1e-9)
    assert distribution.kid(one, torch.cat([two, draw(5, 6)])) == distribution.kid(one, two)


def test_inception_score_of_sure_unsure_and_split_classifiers() -> None:
    sure = 50 * torch.eye(10).repeat(3, 1)
    assert distribution.inception_score(sure) == pytest.approx(10, rel=1e-6)
    assert distribution.inception_score(torch.zeros(30, 10)) == pytest.approx(1)
    assert distribution.inception_score(sure[:1].repeat(30, 1)) == pytest.approx(1)
    logits = draw(40, 7)
    p = logits.softmax(1)
    kl = (p * (p / p.mean(0)).log()).sum(1).mean()
    assert distribution.inception_score(logits) == pytest.approx(math.exp(kl), rel=1e-9)


@pytest.mark.parametrize("count", [20, 57])
def test_the_jackknife_of_a_mean_is_the_error_of_the_mean(count: int) -> None:
    data = draw(count)
    found = distribution.values(lambda rows: float(data[rows].mean()), count, blocks=count)
    assert found == pytest.approx(
        data.tolist(), abs=1e-9
    )  # delete-one gives back the items themselves
    blocked = distribution.values(lambda rows: float(data[rows].mean()), count, blocks=10)
    assert float(torch.tensor(blocked).mean()) == pytest.approx(float(data.mean()), abs=1e-6)


def test_blocks_have_the_variance_of_items_and_pairs_cancel() -> None:
    spreads = []
    for seed in range(30):
        data = draw(200, seed=seed)
        blocked = distribution.values(lambda rows, data=data: float(data[rows].mean()), 200)  # type: ignore[misc]
        spreads.append(float(torch.tensor(blocked).var() / data.var()))
    assert sum(spreads) / 30 == pytest.approx(1, abs=0.2)
    one = draw(80, 5)
    real = draw(300, 5, seed=9)
    first = distribution.values(lambda rows: distribution.fid(one[rows], real), 80)
    second = distribution.values(lambda rows: distribution.fid(one[rows] + 0.5, real), 80)
    assert mean(first).value == pytest.approx(distribution.fid(one, real), rel=1e-6)
    gap = paired_difference(second, first)
    assert gap.low > 0 and gap.high - gap.low < mean(second).high - mean(second).low
    with pytest.raises(ValueError, match="at least 3"):
        distribution.values(lambda rows: 0.0, 2)


def test_the_same_numbers_every_time_whatever_the_global_seed() -> None:
    one, two = draw(30, 5), draw(40, 5, seed=1)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed), np.random.seed(seed)
        found.append(
            (
                distribution.values(lambda rows: distribution.fid(one[rows], two), 30),
                distribution.values(lambda rows: distribution.kid(one[rows], two[rows]), 30),
                distribution.values(lambda rows: distribution.inception_score(one[rows]), 30),
            )
        )
    assert found[0] == found[1]


def test_the_aesthetic_head_collapses_to_one_vector() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(12, 8), nn.Dropout(), nn.Linear(8, 5), nn.Dropout(), nn.Linear(5, 1)]
    head = nn.Sequential(*layers).eval()
    state = {f"layers.{key}": value for key, value in head.state_dict().items()}
    weight, bias = aesthetics.collapse(state)
    features = draw(6, 12).float()
    with torch.no_grad():
        expected = head(nn.functional.normalize(features, dim=1))[:, 0]
    predictor = aesthetics.Predictor(weight, bias, lambda images: images.flatten(1))
    images = features.view(6, 3, 2, 2)
    assert torch.allclose(predictor(images), expected, atol=1e-5)
    alone = torch.cat([predictor(image[None]) for image in images])
    assert torch.allclose(alone, expected, atol=1e-5)
    assert torch.allclose(predictor(7 * images), expected, atol=1e-5)  # of unit features
    with pytest.raises(ValueError, match="one number"):
        aesthetics.collapse({"layers.0.weight": torch.ones(2, 3), "layers.0.bias": torch.ones(2)})


def test_without_its_files_the_predictor_is_a_reason_and_never_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("", str(tmp_path)):
        reason = aesthetics.find_predictor(folder)
        assert isinstance(reason, str) and aesthetics.HEAD in reason and "--aesthetic" in reason
    (tmp_path / aesthetics.HEAD).write_bytes(b"another head")
    (tmp_path / aesthetics.BACKBONE).write_bytes(b"another backbone")
    with pytest.raises(ValueError, match=hashlib.sha256(b"another head").hexdigest()[:12]):
        aesthetics.find_predictor(str(tmp_path))
