"""Endless shuffled feeds: sample number `cursor` of a seed is always the same, in memory, on disk or in a stream; and
which samples of one feed, or of several with a share each, make batch number `index`."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .decode import Bad, Decoder, Indexed, Record, Sample, Source
from .memory import Joined, Photos, joined, order

BLOCK = 10_000  # places of a batch stream over which the shares hold exactly, up to rounding


class IndexedFeed:
    """Sources that are read and decoded sample by sample, when a batch needs them; each pass in an order of its own.

    length: samples of one pass, None where it is not known yet. bad: what was unusable on opening. whole: whether every
    sample was decoded then. take: references to samples by their number in the order of a seed, which `load` takes.
    """

    whole = False
    length: int

    def __init__(self, sources: Sequence[Indexed], decoder: Decoder) -> None:
        self.source, self.decoder = Joined(sources), decoder
        self.length, self.bad = len(self.source), self.source.bad
        self._held, self._order = (0, -1), torch.empty(0)

    def take(self, cursor: int, count: int, seed: int) -> list[int]:
        rows: list[int] = []
        while len(rows) < count:
            epoch, place = divmod(cursor + len(rows), self.length)
            if (seed, epoch) != self._held:
                self._order = torch.empty(0)
                self._held, self._order = (seed, epoch), order(self.length, seed, epoch)
            rows += self._order[place : place + count - len(rows)].tolist()
        return rows

    def load(self, reference: int) -> Sample | Bad:
        return self.decoder(self.source.record(reference))


class MemoryFeed(IndexedFeed):
    """Photographs in memory."""

    whole = True

    def __init__(self, photos: Photos) -> None:
        super().__init__([], Decoder(0))
        self.photos, self.bad, self.length = photos, photos.bad, len(photos)

    def load(self, reference: int) -> Sample:
        photos = self.photos
        return Sample(
            photos.images[reference], photos.texts[reference], int(photos.labels[reference])
        )


class StreamFeed:
    """Sources that are read from front to back, in an order that changes with the epoch, through a shuffle buffer.

    References are the raw records. Continuing at a far cursor reads what lies before it again, but at most one pass:
    the first pass tells how long one is.
    """

    whole = False
    length: int | None = None

    def __init__(self, sources: Sequence[Source], decoder: Decoder, buffer: int) -> None:
        self.sources, self.decoder = sources, decoder
        self.buffer, self.bad = max(1, buffer), joined(sources)
        self._seed: int | None = None
        self._cursor = 0
        self._records: Iterator[Record] = iter(())

    def take(self, cursor: int, count: int, seed: int) -> list[Record]:
        if seed != self._seed or cursor < self._cursor:
            self._start(seed, cursor)
        while self.length is None and self._cursor < cursor:
            next(self._records)
            self._cursor += 1
        if self.length and cursor // self.length > self._cursor // self.length:
            self._start(seed, cursor)
        skipped = cursor - self._cursor
        self._cursor = cursor + count
        return list(itertools.islice(self._records, skipped, skipped + count))

    def _start(self, seed: int, cursor: int) -> None:
        """At the start of the cursor's pass; before the length of one is known, of the first."""
        epoch = cursor // self.length if self.length else 0
        self._seed, self._cursor = seed, epoch * (self.length or 0)
        self._records = self._from(epoch)

    def load(self, reference: Record) -> Sample | Bad:
        return self.decoder(reference)

    def _from(self, epoch: int) -> Iterator[Record]:
        for number in itertools.count(epoch):
            length = 0
            for record in self._epoch(number):
                length += 1
                yield record
            if not length:
                raise ValueError("the data streams hold no sample; check their paths and commands")
            self.length = length

    def _epoch(self, epoch: int) -> Iterator[Record]:
        rng = random.Random((self._seed or 0) * 1_000_003 + epoch)
        sources = list(self.sources)
        rng.shuffle(sources)
        held: list[Record] = []
        for record in itertools.chain.from_iterable(source.records() for source in sources):
            if len(held) < self.buffer:
                held.append(record)
                continue
            place = rng.randrange(self.buffer)
            yield held[place]
            held[place] = record
        rng.shuffle(held)
        yield from held


Feed = IndexedFeed | StreamFeed


class Mixture:
    """Batches of `batch` references to samples, a pure function of (seed, index).

    One feed of known length gives whole epochs: each sample at most once in one, what is left over at the end of an
    epoch is dropped. Several feeds each go on without end; every block of places is dealt out to them by their shares
    and shuffled. Raises ValueError where a batch cannot be filled.
    """

    def __init__(
        self, feeds: Sequence[Feed], shares: Sequence[float], batch: int, seed: int
    ) -> None:
        self.feeds = [copy.copy(feed) for feed in feeds]  # each goes through a stream by itself
        self.batch, self.seed = batch, seed
        self.dealt = _whole_parts([share / sum(shares) for share in shares])
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

    def __getitem__(self, index: int) -> list[tuple[Feed, Any]]:
        taken = [
            iter(feed.take(start, end - start, self.seed + 7919 * number))
            for number, (feed, (start, end)) in enumerate(
                zip(self.feeds, self._spans(index), strict=True)
            )
        ]
        owners = [0] * self.batch
        if len(self.feeds) > 1:
            places = range(index * self.batch, (index + 1) * self.batch)
            owners = [int(self._deal(place // BLOCK)[place % BLOCK]) for place in places]
        return [(self.feeds[owner], next(taken[owner])) for owner in owners]

    @property
    def length(self) -> int | None:
        """Samples that one pass over all feeds looks at; None while that of a stream is unknown."""
        if self.per_epoch is not None:
            return self.per_epoch * self.batch
        lengths = [feed.length for feed in self.feeds]
        return sum(n for n in lengths if n is not None) if None not in lengths else None

    def seen(self, index: int | None) -> int:
        """Samples that were looked at once batch `index` is out (None: on opening), the bad ones found on opening
        included. In memory every sample was looked at on opening."""
        seen = 0
        spans = self._spans(index) if index is not None else [(0, 0)] * len(self.feeds)
        for feed, (_, end) in zip(self.feeds, spans, strict=True):
            looked = feed.length if feed.whole else min(end, feed.length or end)
            seen += len(feed.bad) + (looked or 0)
        return seen

    def _spans(self, index: int) -> list[tuple[int, int]]:
        """Numbers of the samples that batch `index` takes of each feed: from, to."""
        if self.per_epoch is not None and self.feeds[0].length is not None:
            epoch, place = divmod(index, self.per_epoch)
            start = epoch * self.feeds[0].length + place * self.batch
            return [(start, start + self.batch)]
        before, after = (self._dealt_by((index + more) * self.batch) for more in (0, 1))
        return list(zip(before, after, strict=True))

    def _dealt_by(self, place: int) -> list[int]:
        """How many of the first `place` places of the endless stream belong to each feed."""
        if len(self.feeds) == 1:
            return [place]
        block, inside = divmod(place, BLOCK)
        before = torch.bincount(self._deal(block)[:inside], minlength=len(self.feeds)).tolist()
        return [block * dealt + count for dealt, count in zip(self.dealt, before, strict=True)]

    def _deal(self, block: int) -> Tensor:
        """The feed of every place of a block."""
        if block != self._block:
            places = torch.arange(len(self.feeds)).repeat_interleave(torch.tensor(self.dealt))
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
