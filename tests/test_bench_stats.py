"""Intervals and tests against published values, exact sums and simulated data with a known truth."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from clipag_plug.bench import stats
from clipag_plug.bench.stats import holm, mean, p_value, paired_difference, share_interval


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
def test_shares_have_published_intervals(hits: int, count: int, low: float, high: float) -> None:
    wilson = share_interval(hits / count, count, wilson=True)
    assert (wilson.low, wilson.high) == pytest.approx((low, high), abs=6e-5)
    wider = share_interval(hits / count, count)
    # Agresti & Coull (1998): the same centre, from z^2 more trials of which half are hits.
    z = 1.959964
    share = (hits + z * z / 2) / (count + z * z)
    half = z * math.sqrt(share * (1 - share) / (count + z * z))
    assert wider.low == pytest.approx(max(share - half, 0), abs=1e-6)
    assert wider.high == pytest.approx(share + half, abs=1e-6)
    mirrored = share_interval(1 - hits / count, count)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((wider.low, wider.high))
    values = [1.0] * hits + [0.0] * (count - hits)
    assert mean(values) == wider


def test_nonsense_is_refused() -> None:
    for share, count in ((0.5, 0), (1.2, 3), (-0.1, 5)):
        with pytest.raises(ValueError, match="share"):
            share_interval(share, count)
    with pytest.raises(ValueError, match="pairs"):
        paired_difference([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="no values"):
        paired_difference([], [])
    with pytest.raises(ValueError, match="labels"):
        mean([1.0, 2.0], [["a"]])


def test_differences_of_shares_have_newcombes_interval_and_mcnemars_p() -> None:
    # Airway reactivity before and after transplantation, as in Fagerland, Lydersen & Laake (2014): 1, 1, 7, 12 pairs.
    before = [1.0, 1.0] + [0.0] * 19
    after = [1.0, 0.0] + [1.0] * 7 + [0.0] * 12
    gap = paired_difference(before, after)
    assert (gap.value, gap.low, gap.high) == pytest.approx((-6 / 21, -0.507, -0.026), abs=1e-3)
    assert p_value(before, after) == pytest.approx(2 * (1 + 8) / 2**8)
    turned = paired_difference(after, before)
    assert (turned.low, turned.high) == pytest.approx((-gap.high, -gap.low))
    same = paired_difference(after, after)
    assert same.low < 0 < same.high and p_value(after, after) == 1  # ten alike are no proof
    ten = paired_difference([1.0] * 10, [0.0] * 10)
    assert ten.low < 0.8 and ten.high == pytest.approx(1)


def test_swaps_are_counted_exactly_where_they_can_be() -> None:
    gaps = [0.3, -0.1, 0.8, 0.4, 0.05, -0.2, 0.6]
    total = sum(gaps)
    hits = [
        abs(sum(sign * gap for sign, gap in zip(signs, gaps))) >= abs(total) - 1e-12
        for signs in itertools.product((-1, 1), repeat=7)
    ]
    assert p_value(gaps, [0.0] * 7) == pytest.approx(sum(hits) / 2**7)
    many = draw(40) + 0.4
    z = float(many.sum() / many.norm())
    assert p_value(many.tolist(), [0.0] * 40) == pytest.approx(math.erfc(z / 2**0.5), abs=0.01)
    assert p_value((many + 5).tolist(), [0.0] * 40) == pytest.approx(1 / 10_001)


def test_holm_is_the_step_down_of_its_definition() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1, 1] and holm([]) == []
    assert holm([0.02]) == [0.02]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def test_means_agree_with_normal_theory_and_pairing_is_the_point() -> None:
    theirs = draw(400, seed=1)
    ours = theirs + 0.3 + 0.8 * draw(400, seed=2)
    gaps = ours - theirs
    error = float(gaps.std()) / 20
    interval = paired_difference(ours.tolist(), theirs.tolist())
    assert interval.value == pytest.approx(float(gaps.mean()))
    assert interval.low == pytest.approx(float(gaps.mean()) - 1.96 * error, abs=0.05 * error)
    assert interval.high == pytest.approx(float(gaps.mean()) + 1.96 * error, abs=0.05 * error)
    apart = 2 * 1.96 * math.sqrt(float(ours.var() + theirs.var()) / 400)
    assert interval.high - interval.low < apart


@pytest.mark.parametrize(("freedom", "published"), [(3, 3.182), (9, 2.262), (30, 2.042)])
def test_students_quantile_is_the_published_one(freedom: int, published: float) -> None:
    assert stats._student(freedom) == pytest.approx(published, abs=4e-3)


def test_known_answers() -> None:
    values = [0.1, 1.5, 1.0, 0.0, 1.0]
    assert paired_difference(values, values) == stats.Interval(0, 0, 0)
    shifted = paired_difference([value + 2 for value in values], values)
    assert (shifted.low, shifted.high) == pytest.approx((2, 2)) and shifted.excludes(0)
    few = mean([0.2, 0.4, 0.9])
    assert few.value == pytest.approx(0.5) and (few.low, few.high) == (-math.inf, math.inf)
    assert stats.Interval(1, 0, 2).excludes(-0.1) and not stats.Interval(1, 0, 2).excludes(0)
    rare = mean([0.0] * 39 + [2.0])  # most resamples lack the 2
    assert 0 > rare.low > -0.2 and 0.1 < rare.high < 1
    skewed = mean([0.1, 0.2, 0.1, 0.3, 0.2, 0.1, 0.2, 4.0])
    assert skewed.high - skewed.value > 1.5 * (skewed.value - skewed.low)


@pytest.mark.parametrize("binary", [True, False])
def test_repeating_a_unit_narrows_nothing(binary: bool) -> None:
    """Twenty seeds of a deterministic task say no more than one."""
    ours, theirs = draw(12), draw(12, seed=1)
    if binary:
        ours, theirs = (ours > -0.5).double(), (theirs > 0.5).double()
    one = paired_difference(ours.tolist(), theirs.tolist())
    units = [[str(item) for item in range(12)] * 20]
    repeated = ours.repeat(20).tolist(), theirs.repeat(20).tolist()
    many = paired_difference(*repeated, units)
    assert many.value == pytest.approx(one.value)
    assert many.high - many.low >= (one.high - one.low) * 0.999
    assert many.high - many.low == pytest.approx(one.high - one.low, rel=0.25)
    assert p_value(*repeated, units) == pytest.approx(p_value(ours.tolist(), theirs.tolist()))
    as_items = paired_difference(*repeated)
    assert as_items.high - as_items.low < 0.5 * (many.high - many.low)  # the mistake
    alone, whole = mean(ours.tolist()), mean(repeated[0], units)
    assert whole.high - whole.low >= (alone.high - alone.low) * 0.999


def test_units_of_different_sizes_count_by_their_values() -> None:
    values = [1.0, 2.0, 3.0, 10.0, 12.0, 4.0, 6.0, 5.0, 5.5]
    units = [list("aaabbcdef")]
    interval = mean(values, units)
    assert interval.value == pytest.approx(sum(values) / 9)
    sums, sizes = torch.tensor([6.0, 22, 4, 6, 5, 5.5]), torch.tensor([3.0, 2, 1, 1, 1, 1])
    without = [sum(v for v, u in zip(values, units[0]) if u != unit) for unit in "abcdef"]
    moved = torch.tensor(without) / (9 - sizes) - sum(values) / 9
    error = math.sqrt(float(moved.square().sum()) * 5 / 6)  # the jackknife's
    assert stats._error(sums.double(), sizes.double()) == pytest.approx(error)
    assert (
        interval.low < interval.value - 1.5 * error < interval.value + 1.5 * error < interval.high
    )


def test_two_crossed_factors_are_wider_than_either() -> None:
    values = draw(48).tolist()
    rows, columns = [n // 6 for n in range(48)], [n % 6 for n in range(48)]
    one, two, both = (mean(values, units) for units in ([rows], [columns], [rows, columns]))
    assert both.high - both.value == pytest.approx(
        math.hypot(one.high - one.value, two.high - two.value)
    )
    assert both.value - both.low == pytest.approx(
        math.hypot(one.value - one.low, two.value - two.low)
    )
    zero = [0.0] * 48
    assert p_value(values, zero, [rows, columns]) == max(
        p_value(values, zero, [rows]), p_value(values, zero, [columns])
    )


def test_intervals_are_the_same_every_time_whatever_the_global_seed() -> None:
    values = torch.rand(50, generator=torch.Generator().manual_seed(3)).tolist()
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        stats._resamples.cache_clear()
        found.append((paired_difference(values, values[::-1]), p_value(values, [0.5] * 50)))
    assert found[0] == found[1]


def test_a_shares_interval_covers_it() -> None:
    """Exactly, over true shares .05 to .95: on average at least 94 %, nowhere under 90 %."""
    for count in (10, 20, 50):
        intervals = [share_interval(hits / count, count) for hits in range(count + 1)]
        covered = []
        for share in torch.linspace(0.05, 0.95, 181).tolist():
            chances = [
                math.comb(count, hits) * share**hits * (1 - share) ** (count - hits)
                for hits, interval in enumerate(intervals)
                if interval.low <= share <= interval.high
            ]
            covered.append(sum(chances))
        assert sum(covered) / len(covered) >= 0.94 and min(covered) >= 0.90


def coverage(runs: int, count: int, kind: str, seeds: int = 1, correlation: float = 0.0) -> float:
    """The share of intervals that hold the true mean, of `count` units with `seeds` values each, 0 for 1 to 9."""
    generator = torch.Generator().manual_seed(count)
    hits = 0
    units = [unit for unit in range(count) for _ in range(seeds or 1 + unit * 7 % 9)]
    for _ in range(runs):
        own = torch.rand(len(units), generator=generator, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
        shared = torch.rand(count, generator=generator, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
        a, b, truth = {
            "normal": (torch.special.ndtri(own), torch.special.ndtri(shared), 0.0),
            "uniform": (own, shared, 0.5),
            "exponential": (-own.log(), -shared.log(), 1.0),
        }[kind]
        weights = (1 - correlation) ** 0.5, correlation**0.5
        interval = mean((a * weights[0] + b[units] * weights[1]).tolist(), [units])
        hits += interval.low <= truth * sum(weights) <= interval.high
    return hits / runs


CASES = [
    (kind, count, 1, 0.0) for kind in ("normal", "uniform", "exponential") for count in (12, 30)
]
CASES += [
    (kind, count, seeds, rho)
    for kind in ("normal", "exponential")
    for seeds in (5, 0)
    for count in (12, 30)
    for rho in (0.0, 0.5, 0.9)
]


@pytest.mark.parametrize(("kind", "count", "seeds", "correlation"), [CASES[0], CASES[8], CASES[14]])
def test_intervals_of_means_cover_them(
    kind: str, count: int, seeds: int, correlation: float
) -> None:
    assert 0.90 <= coverage(200, count, kind, seeds, correlation) <= 0.99


@pytest.mark.long
@pytest.mark.parametrize(("kind", "count", "seeds", "correlation"), CASES)
def test_intervals_of_means_cover_them_at_length(
    kind: str, count: int, seeds: int, correlation: float
) -> None:
    assert 0.92 <= coverage(3000, count, kind, seeds, correlation) <= (0.97 if seeds == 1 else 0.98)


@pytest.mark.parametrize("runs", [60, pytest.param(1000, marks=pytest.mark.long)])
def test_families_of_null_rows_rarely_get_a_star(runs: int) -> None:
    """Both models alike, 20 rows of 12 units: a star anywhere in at most 5 % of families (Wilson's upper end)."""
    generator = torch.Generator().manual_seed(0)
    false = 0
    for _ in range(runs):
        ours, theirs = torch.randn(2, 20, 12, generator=generator).double()
        ours[:10], theirs[:10] = (ours[:10] > 0).double(), (theirs[:10] > 0).double()
        false += min(holm([p_value(a.tolist(), b.tolist()) for a, b in zip(ours, theirs)])) <= 0.05
    assert share_interval(false / runs, runs, wilson=True).low <= 0.05
