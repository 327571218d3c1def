"""What a data set had to skip: one cause for each bad sample, each sample counted once however often it comes up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

CHECKED_FROM = 1000  # samples: earlier, a few bad ones would say nothing about the share


@dataclass
class Tally:
    """bad: name of a sample, shard or command -> cause. seen: samples looked at so far, at most all there are.

    workers: how many share the work, each of which finds its own part of the bad ones; 1 once they are merged.
    limit: largest share of bad samples that `add` lets pass.
    """

    bad: dict[str, str] = field(default_factory=dict)
    seen: int = 0
    workers: int = 1
    limit: float = 1.0
    # Of the bad ones, those that every worker knows: from opening the data, or from the run that this one continues.
    common: int = field(init=False)

    def __post_init__(self) -> None:
        self.common = len(self.bad)

    def add(self, bad: dict[str, str], seen: int, length: int | None) -> None:
        """Takes in a batch: its bad samples, and how many were seen once it is out, of `length` in all (None: not
        known). Raises ValueError above the limit, once CHECKED_FROM or all samples were seen."""
        self.bad.update(bad)
        self.seen = max(self.seen, seen)
        enough = self.seen >= CHECKED_FROM or (length is not None and self.seen >= length)
        if enough and self.fraction() > self.limit:
            raise ValueError(
                f"{self.fraction():.1%} of the data is bad, more than --max-bad-fraction {self.limit:g}: "
                f"{self.causes()}; first: {next(iter(self.bad))}. Repair the data or raise the limit"
            )

    def counts(self) -> dict[str, int]:
        """Bad samples by cause, the most frequent first."""
        return dict(
            sorted(Counter(self.bad.values()).items(), key=lambda each: (-each[1], each[0]))
        )

    def causes(self) -> str:
        """`3 empty caption, 1 no image`."""
        return ", ".join(f"{count} {cause}" for cause, count in self.counts().items())

    def fraction(self) -> float:
        """Share of bad samples among those seen, in [0, 1]; estimated from its own part before workers are merged."""
        bad = self.common + (len(self.bad) - self.common) * self.workers
        return min(1.0, bad / self.seen) if self.seen else 0.0

    def summary(self) -> str:
        """One sentence for the log; empty where nothing was skipped."""
        told = f"skipped {len(self.bad):,} of {self.seen:,} samples: {self.causes()}"
        return told if self.bad else ""

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint or for other workers."""
        return {"bad": dict(self.bad), "seen": self.seen}

    def merge(self, states: Iterable[dict[str, Any]]) -> None:
        """Takes in what other workers, or an earlier part of the run, found. Afterwards it speaks for all of them."""
        for state in states:
            self.bad.update(state["bad"])
            self.seen = max(self.seen, state["seen"])
        self.workers = 1

    def resume(self, state: dict[str, Any], workers: int) -> None:
        """Goes on from what all workers of an earlier part of the run had found; `workers` share what comes."""
        self.merge([state])
        self.common, self.workers = len(self.bad), workers
