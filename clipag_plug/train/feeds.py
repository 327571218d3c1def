"""Endless shuffled feeds: sample number `cursor` of a seed is always the same, in memory, on disk or in a stream."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .decode import Decoder, Record, Sample
from .sources import Indexed, Source
from .tally import BadSample


@dataclass
class Photos:
    """Decoded samples: images uint8 (N, H, W, 3), texts, class labels (-1 unknown); what was skipped by cause, and
    the names of those samples with their causes."""

    images: np.ndarray
    texts: list[str]
    labels: Tensor
    skipped: dict[str, int] = field(default_factory=dict)
    bad: dict[str, str] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)  # of the classes, where the source has them

    def __len__(self) -> int:
        return len(self.images)

    def select(self, index: Sequence[int] | Tensor) -> Tensor:
        """Images (N, 3, H, W) float in [0, 1]."""
        return to_float(self.images[np.asarray(index)])


def to_float(images: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) -> float (N, 3, H, W) in [0, 1]."""
    rows = torch.from_numpy(np.ascontiguousarray(images))
    return rows.permute(0, 3, 1, 2).float() / 255


def order(count: int, seed: int, epoch: int) -> Tensor:
    """The shuffled order of one pass over `count` samples; the same for the same seed and epoch."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


class Feed(Protocol):
    """length: samples of one pass, None where it is not known yet. bad: what was unusable on opening.
    whole: whether every sample was decoded on opening."""

    bad: dict[str, str]
    whole: bool

    @property
    def length(self) -> int | None: ...

    def take(self, cursor: int, count: int, seed: int) -> list[Any]:
        """References to the samples number cursor to cursor + count in the order of the seed."""
        ...

    def load(self, reference: Any) -> Sample:
        """The sample behind a reference; raises BadSample. Called by several threads at once."""
        ...

    def name(self, reference: Any) -> str:
        """The sample's name, the same in every epoch."""
        ...


class _Shuffled:
    """Passes over a known number of samples, each in an order of its own."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._lock = (
            threading.Lock()
        )  # two `Batches` may share a feed, each with a thread that reads ahead
        self._held, self._order = (0, -1), torch.empty(0, dtype=torch.long)

    @property
    def length(self) -> int | None:
        return self._length

    def take(self, cursor: int, count: int, seed: int) -> list[Any]:
        rows: list[int] = []
        while count > 0:
            epoch, place = divmod(cursor, self._length)
            part = self._order_of(seed, epoch)[place : place + count].tolist()
            rows += part
            cursor, count = cursor + len(part), count - len(part)
        return rows

    def _order_of(self, seed: int, epoch: int) -> Tensor:
        with self._lock:
            if (seed, epoch) != self._held:
                self._held, self._order = (seed, epoch), order(self._length, seed, epoch)
            return self._order


class MemoryFeed(_Shuffled):
    """Photographs in memory."""

    whole = True

    def __init__(self, photos: Photos) -> None:
        super().__init__(len(photos))
        self.photos, self.bad = photos, photos.bad

    def load(self, reference: int) -> Sample:
        photos = self.photos
        return Sample(
            photos.images[reference], photos.texts[reference], int(photos.labels[reference])
        )

    def name(self, reference: int) -> str:
        return str(reference)


class IndexedFeed(_Shuffled):
    """Sources that are read and decoded sample by sample, when a batch needs them."""

    whole = False

    def __init__(self, sources: Sequence[Indexed], decoder: Decoder) -> None:
        self.starts = np.cumsum([0, *map(len, sources)])
        super().__init__(int(self.starts[-1]))
        self.sources, self.decoder = sources, decoder
        self.bad = joined(sources)

    def load(self, reference: int) -> Sample:
        return self.decoder(self._record(reference))

    def name(self, reference: int) -> str:
        return self._record(reference).name

    def _record(self, reference: int) -> Record:
        source = int(np.searchsorted(self.starts, reference, side="right")) - 1
        return self.sources[source].record(reference - int(self.starts[source]))


class StreamFeed:
    """Sources that are read from front to back, in an order that changes with the epoch, through a shuffle buffer.

    References are the raw records. Continuing at a far cursor reads what lies before it again, but at most one pass:
    the first pass tells how long one is.
    """

    whole = False

    def __init__(self, sources: Sequence[Source], decoder: Decoder, buffer: int) -> None:
        self.sources, self.decoder = sources, decoder
        self.buffer, self._seed = max(1, buffer), 0
        self.bad = joined(sources)
        self.length: int | None = None
        self._lock = threading.Lock()
        self._cursor, self._records = 0, self._from(0)

    def take(self, cursor: int, count: int, seed: int) -> list[Any]:
        with self._lock:
            if seed != self._seed:
                self._seed, self._cursor, self._records = seed, 0, self._from(0)
            if cursor != self._cursor:
                self._seek(cursor)
            self._cursor += count
            return list(itertools.islice(self._records, count))

    def load(self, reference: Record) -> Sample:
        return self.decoder(reference)

    def name(self, reference: Record) -> str:
        return reference.name

    def _seek(self, cursor: int) -> None:
        """Moves to a cursor: on from where it is if that is in the same pass, else from the start of the pass."""
        if self.length is None and cursor < self._cursor:
            self._cursor, self._records = 0, self._from(0)
        while self.length is None and self._cursor < cursor:
            next(self._records)
            self._cursor += 1
        if self.length is not None and cursor != self._cursor:
            epoch, place = divmod(cursor, self.length)
            self._records = itertools.islice(self._from(epoch), place, None)
            self._cursor = cursor

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
        rng = random.Random(self._seed * 1_000_003 + epoch)
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


def in_memory(sources: Sequence[Source], decoder: Decoder, most: float) -> Photos | None:
    """All good samples of the sources, decoded; None where they take more than `most` bytes. Raises ValueError where
    there is none."""
    bad = joined(sources)
    images: list[np.ndarray] = []
    texts: list[str] = []
    labels: list[int] = []
    room = most / (3 * decoder.size**2)
    if sum(len(source) for source in sources if isinstance(source, Indexed)) > room:
        return None
    for record in itertools.chain.from_iterable(source.records() for source in sources):
        try:
            sample = decoder(record)
        except BadSample as error:
            bad[record.name] = str(error)
            continue
        images.append(sample.image)
        texts.append(sample.text)
        labels.append(sample.label)
        if len(images) > room:
            return None
    skipped: dict[str, int] = {}
    for cause in bad.values():
        skipped[cause] = skipped.get(cause, 0) + 1
    if not images:
        raise ValueError(f"no usable sample in the data; skipped: {skipped or 'nothing'}")
    return Photos(np.stack(images), texts, torch.tensor(labels), skipped, bad)


def joined(sources: Sequence[Source]) -> dict[str, str]:
    """What is wrong with the sources, as known on opening them."""
    return {name: cause for source in sources for name, cause in source.bad.items()}
