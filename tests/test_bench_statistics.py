"""Intervals against published values, against normal theory, and in the cases with a known answer."""

from __future__ import annotations

import math

import pytest
import torch

from clipag_plug.bench.statistics import mean, paired_difference, paired_ratio, wilson


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    # Newcombe (1998), Two-sided confidence intervals for the single proportion, table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_equals_published_values(hits: int, count: int, low: float, high: float) -> None:
    interval = wilson(hits, count)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=6e-5)
    mirrored = wilson(count - hits, count)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((interval.low, interval.high))


def test_wilson_refuses_nonsense() -> None:
    for hits, count in ((0, 0), (3, 2), (-1, 5)):
        with pytest.raises(ValueError, match="hits"):
            wilson(hits, count)


def test_bootstrap_agrees_with_normal_theory() -> None:
    generator = torch.Generator().manual_seed(1)
    theirs = torch.randn(400, generator=generator)
    ours = theirs + 0.3 + 0.8 * torch.randn(400, generator=generator)
    gaps = (ours - theirs).double()
    error = float(gaps.std()) / math.sqrt(400)
    interval = paired_difference(ours.tolist(), theirs.tolist())
    assert interval.value == pytest.approx(float(gaps.mean()))
    assert interval.low == pytest.approx(float(gaps.mean()) - 1.96 * error, abs=0.1 * error)
    assert interval.high == pytest.approx(float(gaps.mean()) + 1.96 * error, abs=0.1 * error)
    # Pairing is the point: taken as two independent samples the interval would be wider.
    assert interval.high - interval.low < 2 * 1.96 * math.sqrt(
        float(ours.var() + theirs.var()) / 400
    )


def test_known_answers() -> None:
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    same = paired_difference(values, values)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    assert not same.excludes(0)
    shifted = paired_difference([value + 2 for value in values], values)
    assert (shifted.value, shifted.low, shifted.high) == (2, 2, 2)
    assert shifted.excludes(0)
    tripled = paired_ratio([3 * value + 3 for value in values], [value + 1 for value in values])
    assert (tripled.value, tripled.low, tripled.high) == pytest.approx((3, 3, 3))


def test_a_ratio_to_zero_is_infinite_and_never_nan() -> None:
    interval = paired_ratio([1.0, 1.0], [0.0, 0.0])
    assert (interval.value, interval.low, interval.high) == (math.inf, math.inf, math.inf)
    sparse = paired_ratio([1.0] * 10, [1.0] + [0.0] * 9)
    assert sparse.value == pytest.approx(10)
    assert not math.isnan(sparse.low) and not math.isnan(sparse.high)
    assert sparse.low < 10 < sparse.high
    assert math.isnan(paired_ratio([0.0], [0.0]).value)


def test_mean_takes_wilson_for_shares_and_the_bootstrap_otherwise() -> None:
    shares = [1.0] * 81 + [0.0] * 182
    assert mean(shares) == wilson(81, 263)
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(300, generator=generator).tolist()
    interval = mean(values)
    error = float(torch.tensor(values).std()) / math.sqrt(300)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert mean([5.0]).low == mean([5.0]).high == 5.0


def test_intervals_are_the_same_every_time_whatever_the_global_seed() -> None:
    values = torch.rand(50, generator=torch.Generator().manual_seed(3)).tolist()
    torch.manual_seed(1)
    first = paired_difference(values, values[::-1])
    torch.manual_seed(2)
    assert paired_difference(values, values[::-1]) == first


def test_pairs_must_be_pairs() -> None:
    with pytest.raises(ValueError, match="pairs"):
        paired_difference([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="no values"):
        mean_of_nothing: list[float] = []
        paired_difference(mean_of_nothing, mean_of_nothing)
