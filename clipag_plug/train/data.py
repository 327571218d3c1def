"""Training data: from the items of --data to batch number `index`, a pure function of the seed.

`open_data` reads a set into memory where it fits and reads it piece by piece where it does not; `Batches` shuffles,
crops and captions it, in worker processes where that is asked for. What the items may be is described in `sources`,
what is skipped in `tally`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..augment import training_crops
from ..vocabulary import TEMPLATES, Vocabulary, sentence
from .ahead import Ahead, Batch, Made
from .decode import Bad, Columns, Decoder, Indexed, Sample, Source
from .feeds import Feed, IndexedFeed, MemoryFeed, Mixture, StreamFeed
from .matches import Matches
from .memory import Photos, drawn, in_memory, joined
from .shards import read_tar
from .sources import open_sources, parse
from .tally import Tally

__all__ = ["Batch", "Batches", "Columns", "Data", "Photos", "open_data", "read_shards", "read_tar"]

FURTHEST = 100  # batches to look through for a good sample


@dataclass
class Data:
    """An opened data set: one feed for each share, or a single one."""

    feeds: Sequence[Feed]
    shares: list[float]
    names: list[str] = field(default_factory=list)  # of the classes, where the sources have them

    @property
    def photos(self) -> Photos | None:
        """The samples themselves where all of them are in memory and there is one feed."""
        only = self.feeds[0]
        return only.photos if len(self.feeds) == 1 and isinstance(only, MemoryFeed) else None


def open_data(
    specs: Sequence[str],
    size: int,
    *,
    need_text: bool = True,
    classes: int | Callable[[list[str]], int] = 0,
    columns: Columns | None = None,
    memory: float = 4.0,
    shuffle: int = 2000,
    seed: int = 0,
) -> Data:
    """The data that the items of --data name; see `sources` for their syntax.

    size: side of the stored square, of which crops are taken. need_text: a sample without a caption is bad.
    classes: where it is not 0, a sample without a class below it is bad; may be found from the sources' class names.
    memory: gigabytes of decoded pixels to hold;
    what is larger is decoded when a batch needs it. shuffle: samples that a stream mixes. seed: of synthetic
    images; the order is up to `Batches`.
    Raises ValueError, FileNotFoundError or ImportError where the data cannot be had.
    """
    items = parse(specs, columns)
    opened = [open_sources(item, size, seed) for item in items]
    names = class_names([source for sources in opened for source in sources])
    decoder = Decoder(size, need_text, classes if isinstance(classes, int) else classes(names))
    if items[0].share is None:
        opened = [[source for sources in opened for source in sources]]
    feeds: list[Feed] = []
    for sources in opened:
        feeds.append(_feed(sources, decoder, memory * 1e9, shuffle))
        if isinstance(feeds[-1], MemoryFeed):
            memory -= feeds[-1].photos.images.nbytes / 1e9
    return Data(feeds, [item.share or 1.0 for item in items][: len(feeds)], names)


def class_names(sources: Sequence[Source]) -> list[str]:
    """The names of the classes by number, where sources have them. Raises ValueError where two number otherwise."""
    found = [source.classes for source in sources if source.classes]
    for names in found:
        if names != found[0]:
            raise ValueError(
                f"two items of --data have different classes: {found[0][:3]} and {names[:3]}; give them the same "
                "folders, or captions"
            )
    return found[0] if found else []


def _feed(sources: list[Source], decoder: Decoder, memory: float, shuffle: int) -> Feed:
    photos = in_memory(sources, decoder, memory) if memory > 0 else None
    if photos is not None:
        return MemoryFeed(photos)
    indexed = [source for source in sources if isinstance(source, Indexed)]
    if len(indexed) < len(sources):
        return StreamFeed(sources, decoder, shuffle)
    if not sum(map(len, indexed)):
        raise ValueError(f"no sample in the data; skipped: {joined(sources) or 'nothing'}")
    return IndexedFeed(indexed, decoder)


def read_shards(
    patterns: Sequence[str],
    size: int,
    *,
    count: int = 0,
    seed: int = 0,
    columns: Columns | None = None,
    shown: tuple[str, str] | None = None,
) -> Photos:
    """Every readable sample of the shards in memory, squared and resized to `size` when it has another size.

    patterns: paths or globs of (compressed) tar files in WebDataset layout, or any other item of --data without a
    share. Captions and classes may be missing. A sample that cannot be used is counted by cause in `skipped`.
    count: of so many samples alone, drawn at random by the seed; 0: of all. shown: see `Decoder`.
    Raises FileNotFoundError when a pattern matches nothing, ValueError when no sample is readable.
    """
    items = parse(patterns, columns)
    if items[0].share is not None:
        raise ValueError(f"{patterns[0]!r} ends in a share, which only training data has")
    sources = [source for item in items for source in open_sources(item, size)]
    decoder = Decoder(size, need_text=False, shown=shown)
    photos = drawn(sources, decoder, count, seed) if count else in_memory(sources, decoder)
    assert photos is not None  # there is no limit
    photos.names = class_names(sources)
    return photos


class Maker:
    """Makes batch number `index`: in the process that asks, or in several at once. See `Batches` for the arguments."""

    def __init__(
        self, mixture: Mixture, own: slice, size: int, crop: float, flip: bool,
        vocabulary: Vocabulary | None, group_share: float,
    ) -> None:  # fmt: skip
        self.mixture, self.own, self.size, self.crop, self.flip = mixture, own, size, crop, flip
        self.vocabulary, self.group_share = vocabulary, group_share
        self._kept: dict[int, list[tuple[Feed, Any]]] = {}

    def __getitem__(self, index: int) -> Made | Exception:
        try:
            return self._made(index)
        except (ValueError, OSError, ImportError) as error:
            return (
                error  # raised where the batch is asked for: a worker would wrap it in a traceback
            )

    def _made(self, index: int) -> Made:
        references, bad = self._references(index), dict[str, str]()
        loaded = [feed.load(reference) for feed, reference in references[self.own]]
        samples: list[Sample] = []
        for place, sample in reversed(list(enumerate(loaded, self.own.start))):
            if isinstance(sample, Bad):
                bad[sample.name] = sample.cause
                # The next good one: of this worker's, which is at hand, else of all the others.
                sample = samples[-1] if samples else self._stand_in(place, index)
            samples.append(sample)
        samples.reverse()
        bad = dict(reversed(bad.items()))
        seed = self.mixture.seed * 1_000_003 + index
        draws = torch.rand(4, len(references), generator=torch.Generator().manual_seed(seed))
        stored = torch.from_numpy(np.stack([sample.image for sample in samples])).permute(
            0, 3, 1, 2
        )
        images = training_crops(stored, self.size, self.crop, self.flip, draws[:, self.own])
        texts, words = self._captions(samples, seed)
        batch = Batch(images, texts, words, torch.tensor([sample.label for sample in samples]))
        return Made(batch, bad, self.mixture.seen(index), self.mixture.length)

    def _captions(self, samples: list[Sample], seed: int) -> tuple[list[str], list[str]]:
        """Captions and their words. Each place of a batch has random numbers of its own, whichever worker fills it."""
        if self.vocabulary is None:
            texts = [sample.text for sample in samples]
            return texts, texts
        texts, words = [], []
        for place, sample in enumerate(samples, self.own.start):
            rng = random.Random(seed * 1_048_583 + place)
            words.append(self.vocabulary.sample_word(sample.label, rng, self.group_share))
            texts.append(sentence(words[-1], rng.choice(TEMPLATES)))
        return texts, words

    def _stand_in(self, place: int, index: int) -> Sample:
        """The next good sample: of the batch, from its start again behind its end, then of the batches after it."""
        whole = self._references(index)
        candidates = [*whole[place + 1 :], *whole[:place]]
        for later in range(index + 1, index + FURTHEST):
            for feed, reference in candidates:
                sample = feed.load(reference)
                if isinstance(sample, Sample):
                    return sample
            candidates = self._references(later)
        raise ValueError(
            f"none of the samples of batches {index} to {index + FURTHEST - 2} can be used; look at the data"
        )

    def _references(self, index: int) -> list[tuple[Feed, Any]]:
        """The batch's samples. Batches that were looked at ahead are kept, since a stream would have to go back."""
        self._kept = {number: kept for number, kept in self._kept.items() if number >= index}
        if index not in self._kept:
            self._kept[index] = self.mixture[index]
        return self._kept[index]


class Batches:
    """Batch number `index` of an endless shuffled stream: a pure function of the seed, so resuming needs no state.

    worker: (rank, world size). With world size W the batch is this worker's N rows, rank * N to rank * N + N, of what
    one process with a batch of N * W gets for the same index: shuffle, crops, captions and all.
    A bad sample's place is taken by the next good one of the whole batch of all workers; it is counted in `tally`.
    decoders: processes that read, decode and crop whole batches ahead, into shared memory; 0: in the foreground.
    duplicates: equal captions describe each other's images.
    max_bad_fraction: more bad samples than that are a ValueError, once CHECKED_FROM samples (or all) were seen.
    """

    def __init__(
        self,
        data: Photos | Data,
        batch_size: int,
        size: int,
        *,
        crop: float,
        flip: bool,
        seed: int,
        vocabulary: Vocabulary | None,
        group_share: float,
        worker: tuple[int, int] = (0, 1),
        max_bad_fraction: float = 1.0,
        decoders: int = 0,
        duplicates: bool = True,
    ) -> None:
        rank, world = worker
        if not 0 <= rank < world:
            raise ValueError(f"worker is {worker}; give (rank, world size) with rank below it")
        if isinstance(data, Photos):
            data = Data([MemoryFeed(data)], [1.0])
        _check_classes(data, vocabulary)
        self.seed, self.vocabulary, self.duplicates = seed, vocabulary, duplicates
        self.mixture = Mixture(data.feeds, data.shares, batch_size * world, seed)
        self.per_epoch = self.mixture.per_epoch
        own = slice(rank * batch_size, (rank + 1) * batch_size)
        self.maker = Maker(self.mixture, own, size, crop, flip, vocabulary, group_share)
        shape = (batch_size, 3, size, size)
        self.made: Any = Ahead(self.maker, decoders, shape) if decoders else self.maker
        known = {name: cause for feed in data.feeds for name, cause in feed.bad.items()}
        self.tally = Tally(known, workers=world, limit=max_bad_fraction)
        if all(feed.whole for feed in data.feeds):
            self.tally.add({}, self.mixture.seen(None), self.mixture.length)

    def __getitem__(self, index: int) -> Batch:
        made: Made | Exception = self.made[index]
        if isinstance(made, Exception):
            raise made
        self.tally.add(made.bad, made.seen, made.length)
        return made.batch

    def positives(self, words: list[str], labels: Tensor) -> Tensor:
        """Which caption describes which image, bool (images, captions); see `matches`."""
        return self.matches(words, labels)[:]

    def matches(self, words: list[str], labels: Tensor) -> Matches:
        """Which caption describes which image: the same text, or a word that covers the class.

        Several images of one class share a batch; without this they would be each other's negatives.
        """
        if self.vocabulary is None:
            first = {word: place for place, word in reversed(list(enumerate(words)))}
            codes = torch.arange(len(words))
            if self.duplicates:
                codes = torch.tensor([first[word] for word in words])
            return Matches(codes, codes)
        covers = torch.zeros(len(words), len(self.vocabulary.names), dtype=torch.bool)
        for row, word in enumerate(words):
            covers[row, list(self.vocabulary.cover[word])] = True
        return Matches(labels.cpu(), covers)

    def bank(self, index: int) -> tuple[list[str], list[str]]:
        """For optimiser step `index`: the first name of every class in one random template, and the names."""
        if self.vocabulary is None:
            raise ValueError("a bank of captions needs --captions vocabulary")
        template = random.Random(self.seed * 1_000_003 + index).choice(TEMPLATES)
        names = self.vocabulary.class_names
        return [sentence(name, template) for name in names], names


def _check_classes(data: Data, vocabulary: Vocabulary | None) -> None:
    labels: list[Any] = [f.photos.labels for f in data.feeds if isinstance(f, MemoryFeed)]
    if vocabulary is not None and any(int(part.min()) < 0 for part in labels):
        raise ValueError(
            "--captions vocabulary needs a class (KEY.cls) for every sample; use --captions text"
        )
