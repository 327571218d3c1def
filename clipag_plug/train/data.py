"""Training data: from the items of --data to batch number `index`, a pure function of the seed.

`open_data` reads a set into memory where it fits and reads it piece by piece where it does not; `Batches` shuffles,
crops and captions it. What the items may be is described in `sources`, what is skipped in `tally`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..vocabulary import TEMPLATES, Vocabulary, sentence
from .crops import crops, draws, random_crops
from .decode import Decoder, Sample
from .feeds import (
    Feed,
    IndexedFeed,
    MemoryFeed,
    Photos,
    StreamFeed,
    in_memory,
    joined,
    order,
    to_float,
)
from .loader import Loader
from .matches import Matches
from .mixture import Mixture
from .shards import read_tar
from .sources import Indexed, Source, open_sources, parse
from .tables import Columns
from .tally import Tally

__all__ = [
    "Batch",
    "Batches",
    "Columns",
    "Data",
    "Photos",
    "Tally",
    "open_data",
    "order",
    "random_crops",
    "read_shards",
    "read_tar",
]


@dataclass
class Batch:
    """images (N, 3, R, R) in [0, 1], a caption and a class label each, and the word that each caption is about."""

    images: Tensor
    texts: list[str]
    words: list[str]
    labels: Tensor


@dataclass
class Data:
    """An opened data set: one feed for each share, or a single one."""

    feeds: list[Feed]
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
    items, columns = parse(specs), columns or Columns()
    opened = [open_sources(item.spec, size, columns, seed) for item in items]
    names = class_names([source for sources in opened for source in sources])
    decoder = Decoder(size, need_text, classes if isinstance(classes, int) else classes(names))
    if items[0].share is None:
        opened = [[source for sources in opened for source in sources]]
    feeds: list[Feed] = []
    for sources in opened:
        feed = _feed(sources, decoder, memory * 1e9, shuffle)
        if isinstance(feed, MemoryFeed):
            memory -= feed.photos.images.nbytes / 1e9
        feeds.append(feed)
    return Data(feeds, [item.share or 1.0 for item in items][: len(feeds)], names)


def class_names(sources: Sequence[Any]) -> list[str]:
    """The names of the classes by number, where sources have them. Raises ValueError where two number otherwise."""
    found = [list(source.classes) for source in sources if getattr(source, "classes", None)]
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


def read_shards(patterns: Sequence[str], size: int) -> Photos:
    """Every readable sample of the shards in memory, squared and resized to `size` when it has another size.

    patterns: paths or globs of (compressed) tar files in WebDataset layout, or any other item of --data without a
    share. Captions and classes may be missing. A sample that cannot be used is counted by cause in `skipped`.
    Raises FileNotFoundError when a pattern matches nothing, ValueError when no sample is readable.
    """
    decoder = Decoder(size, need_text=False)
    sources = [s for spec in patterns for s in open_sources(spec, size, Columns(), 0)]
    photos = in_memory(sources, decoder, float("inf"))
    if photos is None:  # cannot be: there is no limit
        raise RuntimeError("data without a limit of memory was not read")
    photos.names = class_names(sources)
    return photos


class Batches:
    """Batch number `index` of an endless shuffled stream: a pure function of the seed, so resuming needs no state.

    worker: (rank, world size). With world size W the batch is this worker's N rows, rank * N to rank * N + N, of what
    one process with a batch of N * W gets for the same index: shuffle, crops, captions and all.
    A bad sample's place is taken by the next good one of the whole batch of all workers; it is counted in `tally`.
    decoders: threads for data that is not in memory; with one or more the next batch is prepared ahead.
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
        self.batch_size, self.size, self.worker = batch_size, size, worker
        self.crop, self.flip, self.seed = crop, flip, seed
        self.vocabulary, self.group_share = vocabulary, group_share
        self.duplicates = duplicates
        self.mixture = Mixture(data.feeds, data.shares, batch_size * world, seed)
        self.per_epoch = self.mixture.per_epoch
        self.loader = Loader(self.mixture, (rank * batch_size, batch_size), decoders)
        self.tally = Tally(self.mixture.bad(), workers=world, limit=max_bad_fraction)
        if all(feed.whole for feed in data.feeds):
            self.tally.add({}, self.mixture.seen(None), self.mixture.length)

    def __getitem__(self, index: int) -> Batch:
        samples, bad, seen = self.loader[index]
        self.tally.add(bad, seen, self.mixture.length)
        first, total = self.worker[0] * self.batch_size, self.worker[1] * self.batch_size
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        draw = draws(total, generator)[:, first : first + self.batch_size]
        images = to_float(np.stack([sample.image for sample in samples]))
        images = crops(images, self.size, self.crop, self.flip, draw)
        texts, words = self._captions(samples, index, first)
        labels = torch.tensor([sample.label for sample in samples])
        return Batch(images, texts, words, labels)

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

    def _captions(
        self, samples: list[Sample], index: int, first: int
    ) -> tuple[list[str], list[str]]:
        """Captions and their words. Each place of a batch has random numbers of its own, whichever worker fills it."""
        if self.vocabulary is None:
            texts = [sample.text for sample in samples]
            return texts, texts
        texts, words = [], []
        for place, sample in enumerate(samples, start=first):
            rng = random.Random((self.seed * 1_000_003 + index) * 1_048_583 + place)
            words.append(self.vocabulary.sample_word(sample.label, rng, self.group_share))
            texts.append(sentence(words[-1], rng.choice(TEMPLATES)))
        return texts, words


def _check_classes(data: Data, vocabulary: Vocabulary | None) -> None:
    labels: list[Any] = [f.photos.labels for f in data.feeds if isinstance(f, MemoryFeed)]
    if vocabulary is not None and any(int(part.min()) < 0 for part in labels):
        raise ValueError(
            "--captions vocabulary needs a class (KEY.cls) for every sample; use --captions text"
        )
