"""Decodes the samples of a batch, in threads and one batch ahead where that is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from .decode import Sample
from .mixture import Mixture, Reference
from .tally import BadSample

FURTHEST = 100  # batches to look through for a good sample
Loaded = tuple[list[Sample], dict[str, str], int]


class Loader:
    """Batch number `index`: one worker's samples, the bad ones met on the way (name -> cause), and how many samples
    of the set were looked at by then.

    own: (first, count), the worker's places in the whole batch. With `threads` above 0 batch `index + 1` is loaded
    while the caller works on `index`; what that finds is handed over with its own batch, so that nothing depends on
    the timing.
    """

    def __init__(self, mixture: Mixture, own: tuple[int, int], threads: int) -> None:
        self.mixture, self.own = mixture, own
        lazy = not all(feed.whole for feed in mixture.feeds)
        self._pool = ThreadPoolExecutor(threads, "decode") if threads and lazy else None
        self._ahead = ThreadPoolExecutor(1, "ahead") if threads and lazy else None
        self._kept: dict[int, Sequence[Reference]] = {}
        self._next: tuple[int, Future[Loaded]] | None = None

    def __getitem__(self, index: int) -> Loaded:
        if self._ahead is None:
            return self._load(index)
        if self._next is None or self._next[0] != index:
            self._next = index, self._ahead.submit(self._load, index)
        loaded = self._next[1].result()
        self._next = index + 1, self._ahead.submit(self._load, index + 1)
        return loaded

    def _load(self, index: int) -> Loaded:
        references = self._references(index)
        first, count = self.own
        mine = references[first : first + count]
        found: list[Sample | str] = list((self._pool.map if self._pool else map)(_load_one, mine))
        bad: dict[str, str] = {}
        samples = []
        for place, sample in enumerate(found):
            if isinstance(sample, str):
                feed, reference = mine[place]
                bad[feed.name(reference)] = sample
                sample = self._stand_in(first + place, index)
            samples.append(sample)
        return samples, bad, self.mixture.seen(index)

    def _stand_in(self, place: int, index: int) -> Sample:
        """The next good sample: of the batch, from its start again behind its end, then of the batches after it."""
        own = self._references(index)
        candidates: Sequence[Reference] = [*own[place + 1 :], *own[:place]]
        for later in range(index + 1, index + FURTHEST):
            for reference in candidates:
                sample = _load_one(reference)
                if isinstance(sample, Sample):
                    return sample
            candidates = self._references(later)
        raise ValueError(
            f"none of the samples of batches {index} to {index + FURTHEST - 2} can be used; look at the data"
        )

    def _references(self, index: int) -> Sequence[Reference]:
        """The batch's samples. Batches that were looked at ahead are kept, since a stream would have to go back."""
        self._kept = {number: kept for number, kept in self._kept.items() if number >= index}
        if index not in self._kept:
            self._kept[index] = self.mixture[index]
        return self._kept[index]


def _load_one(reference: Reference) -> Sample | str:
    """The sample, or the cause why there is none."""
    feed, number = reference
    try:
        return feed.load(number)
    except BadSample as cause:
        return str(cause)
