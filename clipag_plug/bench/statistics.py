"""Intervals: Wilson's for a share, the percentile bootstrap for means, paired differences and ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its confidence interval. A ratio to zero is `inf`, 0 / 0 is NaN."""

    value: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Whether `value` lies outside the interval: the significance mark of the tables."""
        return self.low > value or self.high < value


def wilson(hits: int, count: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's (1927) score interval of a share; it stays inside [0, 1] and is sensible for 0 and for all hits."""
    if not 0 <= hits <= count or count == 0:
        raise ValueError(
            f"{hits} hits of {count}; there must be between 0 and the count, and a count above 0"
        )
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = hits / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = (
        z
        / (1 + z * z / count)
        * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    )
    # At the ends the formula gives 0 and 1 only up to rounding.
    low = 0.0 if hits == 0 else max(centre - half, 0.0)
    high = 1.0 if hits == count else min(centre + half, 1.0)
    return Interval(share, low, high)


def mean(values: Sequence[float], confidence: float = CONFIDENCE, seed: int = 0) -> Interval:
    """The mean and its bootstrap interval; Wilson's interval where all values are 0 or 1."""
    if all(value in (0, 1) for value in values):
        return wilson(int(sum(values)), len(values), confidence)
    data = _column(values)
    return _interval(float(data.mean()), _resampled(data[None], seed)[0], confidence)


def paired_difference(
    ours: Sequence[float], theirs: Sequence[float], confidence: float = CONFIDENCE, seed: int = 0
) -> Interval:
    """mean(ours) - mean(theirs) over the same items, with a bootstrap (Efron 1979) over items."""
    first, second = _pair(ours, theirs)
    return _interval(
        float(first.mean() - second.mean()), _resampled((first - second)[None], seed)[0], confidence
    )


def paired_ratio(
    ours: Sequence[float], theirs: Sequence[float], confidence: float = CONFIDENCE, seed: int = 0
) -> Interval:
    """mean(ours) / mean(theirs) over the same items, with a bootstrap over items.

    A resample in which theirs is zero counts as infinite, and as NaN-free zero where ours is zero as well.
    """
    first, second = _pair(ours, theirs)
    above, below = _resampled(torch.stack([first, second]), seed)
    ratios = torch.where(below == 0, torch.where(above == 0, 0.0, math.inf), above / below)
    value = float(first.mean() / second.mean())
    return _interval(value, ratios, confidence)


def _resampled(data: Tensor, seed: int) -> Tensor:
    """Means (R, RESAMPLES) of the rows of `data` (R, N), each resample drawing the same items for every row."""
    generator = torch.Generator().manual_seed(seed)
    count = data.shape[1]
    means = []
    for start in range(0, RESAMPLES, 1000):  # a thousand at a time keeps the index small
        rows = min(1000, RESAMPLES - start)
        index = torch.randint(count, (rows, count), generator=generator)
        means.append(data[:, index].mean(dim=-1))
    return torch.cat(means, dim=1)


def _interval(value: float, samples: Tensor, confidence: float) -> Interval:
    """The percentile interval, by ranks: interpolating towards an infinite ratio would give NaN."""
    ordered = samples.sort().values
    tail = (1 - confidence) / 2
    last = len(ordered) - 1
    return Interval(
        value, float(ordered[math.floor(tail * last)]), float(ordered[math.ceil((1 - tail) * last)])
    )


def _column(values: Sequence[float]) -> Tensor:
    if len(values) == 0:
        raise ValueError("no values to average")
    return torch.tensor(list(values), dtype=torch.float64)


def _pair(ours: Sequence[float], theirs: Sequence[float]) -> tuple[Tensor, Tensor]:
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} values are not pairs over the same items")
    return _column(ours), _column(theirs)
