"""Which samples make batch number `index`, out of one feed or out of several with a share each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .feeds import Feed, order

BLOCK = 10_000  # places of a batch stream over which the shares hold exactly, up to rounding

Reference = tuple[Feed, Any]


class Mixture:
    """Batches of `batch` references to samples, a pure function of (seed, index).

    One feed of known length gives whole epochs: each sample at most once in one, what is left over at the end of an
    epoch is dropped. Several feeds each go on without end; every block of places is dealt out to them by their shares
    and shuffled. Raises ValueError where a batch cannot be filled.
    """

    def __init__(
        self, feeds: Sequence[Feed], shares: Sequence[float], batch: int, seed: int
    ) -> None:
        self.feeds, self.batch, self.seed = feeds, batch, seed
        total = sum(shares)
        self.dealt = _whole_parts([share / total for share in shares])
        self.per_epoch: int | None = None
        length = feeds[0].length if len(feeds) == 1 else None
        if length is not None:
            self.per_epoch = length // batch
            if not self.per_epoch:
                raise ValueError(
                    f"the data holds {length} samples, fewer than the {batch} of a batch of all workers; "
                    "lower --batch-size"
                )
        self._block, self._owners = -1, torch.empty(0, dtype=torch.long)

    def __getitem__(self, index: int) -> list[Reference]:
        taken = [
            iter(feed.take(start, end - start, self.seed + 7919 * number))
            for number, (feed, (start, end)) in enumerate(
                zip(self.feeds, self._spans(index), strict=True)
            )
        ]
        if len(self.feeds) == 1:
            return [(self.feeds[0], reference) for reference in taken[0]]
        owners = self._owners_of(index * self.batch, (index + 1) * self.batch)
        return [(self.feeds[owner], next(taken[owner])) for owner in owners]

    @property
    def length(self) -> int | None:
        """Samples that one pass over all feeds looks at; None while that of a stream is unknown."""
        if self.per_epoch is not None:
            return self.per_epoch * self.batch
        lengths = [feed.length for feed in self.feeds]
        return sum(n for n in lengths if n is not None) if None not in lengths else None

    def bad(self) -> dict[str, str]:
        """What was unusable on opening."""
        return {name: cause for feed in self.feeds for name, cause in feed.bad.items()}

    def seen(self, index: int | None) -> int:
        """Samples that were looked at once batch `index` is out (None: on opening), the bad ones found on opening
        included. In memory every sample was looked at on opening."""
        seen = 0
        spans = self._spans(index) if index is not None else [(0, 0)] * len(self.feeds)
        for feed, (_, end) in zip(self.feeds, spans, strict=True):
            length = feed.length
            looked = end if length is None else length if feed.whole else min(end, length)
            seen += len(feed.bad) + looked
        return seen

    def _spans(self, index: int) -> list[tuple[int, int]]:
        """Numbers of the samples that batch `index` takes of each feed: from, to."""
        if self.per_epoch is not None and self.feeds[0].length is not None:
            epoch, place = divmod(index, self.per_epoch)
            start = epoch * self.feeds[0].length + place * self.batch
            return [(start, start + self.batch)]
        before, after = self._dealt_by(index * self.batch), self._dealt_by((index + 1) * self.batch)
        return list(zip(before, after, strict=True))

    def _dealt_by(self, place: int) -> list[int]:
        """How many of the first `place` places of the endless stream belong to each feed."""
        if len(self.feeds) == 1:
            return [place]
        block, inside = divmod(place, BLOCK)
        before = torch.bincount(self._deal(block)[:inside], minlength=len(self.feeds)).tolist()
        return [block * dealt + count for dealt, count in zip(self.dealt, before, strict=True)]

    def _owners_of(self, start: int, end: int) -> list[int]:
        owners: list[int] = []
        while start < end:
            block, inside = divmod(start, BLOCK)
            part = self._deal(block)[inside : inside + end - start].tolist()
            owners += part
            start += len(part)
        return owners

    def _deal(self, block: int) -> torch.Tensor:
        """The feed of every place of a block."""
        if block != self._block:
            counts = torch.tensor(self.dealt)
            places = torch.arange(len(self.feeds)).repeat_interleave(counts)
            self._block, self._owners = block, places[order(BLOCK, self.seed, block)]
        return self._owners


def _whole_parts(shares: Sequence[float]) -> list[int]:
    """BLOCK places divided by the shares, by largest remainders. Raises ValueError for a share too small for one."""
    exact = [share * BLOCK for share in shares]
    parts = [int(value) for value in exact]
    by_rest = sorted(range(len(parts)), key=lambda n: parts[n] - exact[n])
    for number in by_rest[: BLOCK - sum(parts)]:
        parts[number] += 1
    if not all(parts):
        raise ValueError(
            f"a share of --data is below 1 in {BLOCK:,}; leave that item out or raise it"
        )
    return parts
