"""Intervals and tests over the units that were drawn: a prompt or a photograph counts once, however many its seeds.

Shares have Agresti & Coull's (1998) interval, their paired differences Newcombe's (1998) method 10, everything else
the ends midway between Student's and the studentised bootstrap's (Efron 1979): the first covers skewed data too
rarely, the second short-tailed data too often. Significance is the paired randomisation test (Fisher 1935), which is
McNemar's exact test where values are 0 or 1, after Holm's (1979) adjustment.

`units`: one sequence of labels for each factor that was drawn, a label for each value; values with one label are of
one unit. Without it every value is a unit. Of two crossed factors (photographs in styles) the half-widths add in
quadrature and the larger p counts, which is conservative.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

RESAMPLES = 10_000
CONFIDENCE = 0.95
FEWEST = 4  # units; fewer say nothing about a mean, and its interval is unbounded
EXACT = 13  # units up to which all 2^n swaps of a pair are counted
Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
Units = Sequence[Sequence[object]]


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside the interval."""
        return self.low > value or self.high < value


def share_interval(share: float, count: float, *, wilson: bool = False) -> Interval:
    """Agresti & Coull's interval of a share of `count` trials, or Wilson's (1927), which it contains."""
    if not 0 <= share <= 1 or count <= 0:
        raise ValueError(f"a share of {share} of {count} trials; it must be within 0 and 1 of some")
    centre = (share + Z * Z / (2 * count)) / (1 + Z * Z / count)
    if wilson:
        spread = share * (1 - share) / count + Z * Z / (4 * count * count)
        half = Z / (1 + Z * Z / count) * math.sqrt(spread)
    else:
        half = Z * math.sqrt(centre * (1 - centre) / (count + Z * Z))
    # At 0 and 1 Wilson's ends are exact only up to rounding.
    return Interval(share, max(min(centre - half, share), 0.0), min(max(centre + half, share), 1.0))


def mean(values: Sequence[float], units: Units = ()) -> Interval:
    """The mean of values with its interval."""
    data = _column(values)
    one = _share if _binary(data) else _real
    return _crossed([one(data, groups) for groups in _groups(units, len(data))])


def paired_difference(
    ours: Sequence[float], theirs: Sequence[float], units: Units = ()
) -> Interval:
    """mean(ours) - mean(theirs) over the same items, with its interval."""
    first, second = _pair(ours, theirs)
    groups = _groups(units, len(first))
    if _binary(first) and _binary(second):
        return _crossed([_newcombe(first, second, each) for each in groups])
    return _crossed([_real(first - second, each) for each in groups])


def p_value(ours: Sequence[float], theirs: Sequence[float], units: Units = ()) -> float:
    """Two-sided p that the models differ as they do if each unit had been either's with equal chance."""
    first, second = _pair(ours, theirs)
    return max(_swapped(_sums(first - second, g)[0]) for g in _groups(units, len(first)))


def holm(values: Sequence[float]) -> list[float]:
    """p values adjusted by Holm's (1979) step-down method: all at most a are true with a chance of at least 1 - a."""
    order = sorted(range(len(values)), key=lambda place: values[place])
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = largest
    return adjusted


def _share(data: Tensor, groups: Tensor, wilson: bool = False) -> Interval:
    return share_interval(float(data.mean()), _trials(data, groups), wilson=wilson)


def _trials(data: Tensor, groups: Tensor) -> float:
    """The independent trials that a share of several values a unit is worth (Korn & Graubard 1998)."""
    sums, sizes = _sums(data, groups)
    units, share = len(sums), float(data.mean())
    if units == len(data):
        return float(units)
    variance = _error(sums, sizes) ** 2
    trials = share * (1 - share) / variance if variance > 1e-12 else float(units)
    return min(max(trials, units), len(data)) * (Z / _student(units - 1)) ** 2


def _newcombe(first: Tensor, second: Tensor, groups: Tensor) -> Interval:
    """Newcombe's method 10; with several values a unit the correlation is that of the units' means."""
    one, two = (_share(data, groups, wilson=True) for data in (first, second))
    means = [sums / sizes for sums, sizes in (_sums(data, groups) for data in (first, second))]
    centred = [each - each.mean() for each in means]
    units = len(centred[0])
    covariance = float((centred[0] * centred[1]).sum()) * units
    if covariance > 0:
        covariance = max(covariance - units / 2, 0.0)  # his correction for continuity
    scale = units * math.sqrt(float(centred[0].square().sum() * centred[1].square().sum()))
    phi = covariance / scale if scale > 1e-12 else 0.0

    def reach(down: float, up: float) -> float:
        return math.sqrt(max(down * down - 2 * phi * down * up + up * up, 0.0))

    value = one.value - two.value
    return Interval(
        value,
        value - reach(one.value - one.low, two.high - two.value),
        value + reach(one.high - one.value, two.value - two.low),
    )


def _real(data: Tensor, groups: Tensor) -> Interval:
    """Midway between Student's interval and the studentised bootstrap's, over units of any size."""
    sums, sizes = _sums(data, groups)
    units, value = len(sums), float(data.mean())
    if units < FEWEST:
        return Interval(value, -math.inf, math.inf)
    error = _error(sums, sizes)
    if error < 1e-12 * max(abs(value), 1e-300):
        return Interval(value, value, value)
    rest = sums - value * sizes
    columns = torch.stack([rest, sizes, rest**2, rest * sizes, sizes**2], dim=1)
    off, size, squares, crossed, sizes2 = (_resamples(units) @ columns).T
    moved = off / size
    spread = (squares - 2 * moved * crossed + moved**2 * sizes2).clamp_min(0)
    t = moved * size / (spread * units / (units - 1)).sqrt()
    t = t[spread > 1e-9 * rest.square().sum()].sort().values  # one unit alone has no spread
    last, tail = len(t) - 1, (1 - CONFIDENCE) / 2
    low, high = float(t[math.floor(tail * last)]), float(t[math.ceil((1 - tail) * last)])
    student = _student(units - 1)
    return Interval(
        value, value - (high + student) / 2 * error, value + (student - low) / 2 * error
    )


def _error(sums: Tensor, sizes: Tensor) -> float:
    """Jackknife standard error of the mean of all values: how it moves without each unit. Large units weigh more."""
    units, total = len(sums), sizes.sum()
    if units < 2:
        return 0.0
    moved = (sums - sums.sum() / total * sizes) / (total - sizes)
    return float((moved.square().sum() * (units - 1) / units).sqrt())


def _swapped(sums: Tensor) -> float:
    """The randomisation test on a sum of differences for each unit."""
    sums = sums[sums.abs() > 1e-12]
    units, sizes = len(sums), sums.abs()
    if units == 0:
        return 1.0
    if float(sizes.max() - sizes.min()) < 1e-12:  # all alike: the binomial, as in McNemar's test
        fewer = min(int((sums > 0).sum()), int((sums < 0).sum()))
        return min(1.0, 2 * sum(math.comb(units, k) for k in range(fewer + 1)) / 2**units)
    observed = float(sums.sum().abs()) * (1 - 1e-9)
    if units <= EXACT:
        places = torch.arange(2**units)[:, None] >> torch.arange(units) & 1
        return float(((2.0 * places.double() - 1) @ sums).abs().ge(observed).double().mean())
    generator = torch.Generator().manual_seed(0)
    signs = 2.0 * torch.randint(2, (RESAMPLES, units), generator=generator).double() - 1
    return (int((signs @ sums).abs().ge(observed).sum()) + 1) / (RESAMPLES + 1)


def _crossed(parts: Sequence[Interval]) -> Interval:
    value = parts[0].value
    if len(parts) == 1:
        return parts[0]
    low = math.hypot(*(value - part.low for part in parts))
    return Interval(value, value - low, value + math.hypot(*(part.high - value for part in parts)))


@functools.lru_cache(maxsize=2)
def _resamples(units: int) -> Tensor:
    """How often each of `units` is drawn in each resample, (RESAMPLES, units); the same in every process."""
    drawn = torch.randint(units, (RESAMPLES, units), generator=torch.Generator().manual_seed(0))
    counts = torch.zeros(RESAMPLES, units, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(counts))


def _student(freedom: int) -> float:
    """Student's t quantile, by Fisher & Cornish's expansion (1960); within 0.1 % from three degrees of freedom on."""
    z, n = Z, max(freedom, 3)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / n**power for power, term in enumerate(terms, 1))


def _groups(units: Units, count: int) -> list[Tensor]:
    """The number of its unit for each value, for each factor."""
    found = []
    for labels in units or [range(count)]:
        if len(labels) != count:
            raise ValueError(f"{len(labels)} labels of units for {count} values")
        numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
        found.append(torch.tensor([numbers[label] for label in labels]))
    return found


def _sums(data: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and number of the values of each unit."""
    empty = torch.zeros(int(groups.max()) + 1, dtype=torch.float64)
    return empty.index_add(0, groups, data), empty.index_add(0, groups, torch.ones_like(data))


def _binary(data: Tensor) -> bool:
    return bool(((data == 0) | (data == 1)).all())


def _column(values: Sequence[float]) -> Tensor:
    if len(values) == 0:
        raise ValueError("no values to average")
    return torch.tensor(list(values), dtype=torch.float64)


def _pair(ours: Sequence[float], theirs: Sequence[float]) -> tuple[Tensor, Tensor]:
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} values are not pairs over the same items")
    return _column(ours), _column(theirs)
