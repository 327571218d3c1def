"""Samples in memory: all of them where there is room, or some drawn at random."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .decode import Bad, Decoder, Indexed, Record, Sample, Source


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
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float().div_(255)


def order(count: int, seed: int, epoch: int) -> Tensor:
    """The shuffled order of one pass over `count` samples; the same for the same seed and epoch."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(
        count, generator=generator, dtype=torch.int32 if count < 2**31 else torch.int64
    )


class Joined(Indexed):
    """Several sources as one: their records by number, one source behind another."""

    def __init__(self, sources: Sequence[Indexed]) -> None:
        self.sources, self.bad = sources, joined(sources)
        self.starts = np.cumsum([0, *map(len, sources)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def record(self, number: int) -> Record:
        """One record."""
        source = int(np.searchsorted(self.starts, number, side="right")) - 1
        return self.sources[source].record(number - int(self.starts[source]))


def in_memory(sources: Sequence[Source], decoder: Decoder, most: float = math.inf) -> Photos | None:
    """All good samples of the sources, decoded; None where they take more than `most` bytes. Raises ValueError where
    there is none."""
    if sum(len(source) for source in sources if isinstance(source, Indexed)) > _room(decoder, most):
        return None
    records = itertools.chain.from_iterable(source.records() for source in sources)
    found = _decoded(records, decoder, _room(decoder, most), bad := joined(sources))
    return _photos(found, bad) if len(found) <= _room(decoder, most) else None


def drawn(sources: Sequence[Source], decoder: Decoder, count: int, seed: int) -> Photos:
    """`count` good samples of the sources, drawn at random by the seed; all where there are no more. Raises ValueError
    where there is none. Streams are read to their end, what was drawn is kept as it came."""
    rng, bad = random.Random(seed), joined(sources)
    indexed = [source for source in sources if isinstance(source, Indexed)]
    records: Iterator[Record]
    if len(indexed) == len(sources):
        whole = Joined(indexed)
        records = map(whole.record, order(len(whole), seed, 0).tolist())
    else:
        kept: list[Record] = []  # some more than count: of bad ones there are few
        for number, record in enumerate(
            itertools.chain.from_iterable(s.records() for s in sources)
        ):
            place = number if number < 2 * count else rng.randrange(number + 1)
            if place < len(kept):
                kept[place] = record
            elif place < 2 * count:
                kept.append(record)
        rng.shuffle(kept)
        records = iter(kept)
    return _photos(_decoded(records, decoder, count - 1, bad), bad)


def _room(decoder: Decoder, most: float) -> float:
    return most / (3 * decoder.size**2)


def _decoded(
    records: Iterator[Record], decoder: Decoder, most: float, bad: dict[str, str]
) -> list[Sample]:
    """The good samples up to the first one too many; the causes of the others go to `bad`."""
    found: list[Sample] = []
    for sample in map(decoder, records):
        if isinstance(sample, Bad):
            bad[sample.name] = sample.cause
            continue
        found.append(sample)
        if len(found) > most:
            break
    return found


def _photos(found: list[Sample], bad: dict[str, str]) -> Photos:
    skipped = dict(Counter(bad.values()))
    if not found:
        raise ValueError(f"no usable sample in the data; skipped: {skipped or 'nothing'}")
    images, texts, labels = zip(*found, strict=True)
    return Photos(np.stack(images), list(texts), torch.tensor(labels), skipped, bad)


def joined(sources: Sequence[Source]) -> dict[str, str]:
    """What is wrong with the sources, as known on opening them."""
    return {name: cause for source in sources for name, cause in source.bad.items()}
