"""Photographs from WebDataset shards, decoded once into memory, and the random crops taken of them."""

from __future__ import annotations

import glob
import io
import random
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..vocabulary import TEMPLATES, Vocabulary, sentence

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")


@dataclass
class Batch:
    """images (N, 3, R, R) in [0, 1], a caption and a class label each, and the word that each caption is about."""

    images: Tensor
    texts: list[str]
    words: list[str]
    labels: Tensor


@dataclass
class Photos:
    """Decoded samples: images uint8 (N, H, W, 3), texts, class labels (-1 unknown), what was skipped."""

    images: np.ndarray
    texts: list[str]
    labels: Tensor
    skipped: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return len(self.images)

    def select(self, index: Sequence[int] | Tensor) -> Tensor:
        """Images (N, 3, H, W) float in [0, 1]."""
        rows = torch.from_numpy(np.ascontiguousarray(self.images[np.asarray(index)]))
        return rows.permute(0, 3, 1, 2).float() / 255


def read_shards(patterns: Sequence[str], size: int) -> Photos:
    """Every readable sample of the shards, squared and resized to `size` when it has another size.

    patterns: paths or globs of (compressed) tar files in WebDataset layout: KEY.jpg, KEY.txt, KEY.cls.
    A sample that cannot be used is counted by cause in `skipped`, never dropped silently.
    Raises FileNotFoundError when a pattern matches nothing, ValueError when no sample is readable.
    """
    images: list[np.ndarray] = []
    texts: list[str] = []
    labels: list[int] = []
    skipped: Counter[str] = Counter()
    for path in expand(patterns):
        for sample in read_tar(path, skipped):
            image = decode(sample, size, skipped)
            if image is None:
                continue
            images.append(image)
            texts.append(sample.get("txt", b"").decode("utf-8", "replace").strip())
            labels.append(int(sample.get("cls", b"-1")))
    if not images:
        raise ValueError(f"no readable sample in {', '.join(patterns)}; skipped: {dict(skipped)}")
    return Photos(np.stack(images), texts, torch.tensor(labels), skipped)


def expand(patterns: Sequence[str]) -> list[Path]:
    """The files behind paths and globs, sorted. Raises FileNotFoundError for a pattern without a match."""
    paths: list[Path] = []
    for pattern in patterns:
        found = sorted(glob.glob(pattern))
        if not found:
            raise FileNotFoundError(
                f"no shard matches {pattern!r}; give paths or globs of .tar or .tar.gz files"
            )
        paths += map(Path, found)
    return paths


def read_tar(path: Path, skipped: Counter[str]) -> Iterator[dict[str, bytes]]:
    """Samples of one shard: members that share a key, by suffix. A truncated file ends early and is counted."""
    sample: dict[str, bytes] = {}
    key = ""
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if not member.isfile():
                    continue
                stem, _, suffix = Path(member.name).name.partition(".")
                if stem != key and sample:
                    yield sample
                    sample = {}
                key = stem
                stream = archive.extractfile(member)
                if stream is not None:
                    sample[suffix.lower()] = stream.read()
    except (tarfile.TarError, EOFError, OSError):
        # The sample in hand may lack members, so it goes too.
        skipped["truncated shard"] += 1
        return
    if not _is_whole(path):
        skipped["truncated shard"] += 1
    elif sample:
        yield sample


def _is_whole(path: Path) -> bool:
    """Whether a tar file ends with its end mark of zeros. `tarfile` takes a file cut inside a header for a whole one;
    a compressed file needs no check, since decompressing a cut one fails."""
    with path.open("rb") as stream:
        plain = stream.read(262)[257:] == b"ustar"
        stream.seek(-min(1024, path.stat().st_size), 2)
        return not plain or not any(stream.read())


def decode(sample: dict[str, bytes], size: int, skipped: Counter[str]) -> np.ndarray | None:
    """The sample's image as uint8 (size, size, 3), or None, counted, when it cannot be read."""
    from PIL import Image

    data = next((sample[suffix] for suffix in IMAGE_SUFFIXES if suffix in sample), None)
    if data is None:
        skipped["no image"] += 1
        return None
    try:
        image = Image.open(io.BytesIO(data)).convert("RGB")
    except Exception:  # Pillow raises many types for broken data; each is the same to us
        skipped["broken image"] += 1
        return None
    if image.size != (size, size):
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side)).resize(
            (size, size), Image.Resampling.BICUBIC
        )
    return np.asarray(image)


def order(count: int, seed: int, epoch: int) -> Tensor:
    """The shuffled order of one pass over `count` samples; the same for the same seed and epoch."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))


def random_crops(
    images: Tensor, size: int, smallest: float, flip: bool, generator: torch.Generator
) -> Tensor:
    """A random square crop of each image, of between `smallest` and all of its area, resized to `size`.

    images (N, 3, H, W) -> (N, 3, size, size); half of them mirrored when `flip` is on. Bilinear at no less than the
    photographs' own resolution, then averaged: free of aliasing, as the reduction of a picture at use is.
    """
    count = len(images)
    finer = -(-images.shape[-1] // size)
    draw = torch.rand(4, count, generator=generator)
    side = (smallest + (1 - smallest) * draw[0]).sqrt()
    mirror = torch.where(draw[3] < 0.5, -1.0, 1.0) if flip else torch.ones(count)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = side * mirror, side
    theta[:, 0, 2], theta[:, 1, 2] = (2 * draw[1] - 1) * (1 - side), (2 * draw[2] - 1) * (1 - side)
    grid = F.affine_grid(theta, [count, 3, size * finer, size * finer], align_corners=False)
    crops = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False).clamp_(0, 1)
    return F.avg_pool2d(crops, finer) if finer > 1 else crops


class Batches:
    """Batch number `index` of an endless shuffled stream: a pure function of the seed, so resuming needs no state."""

    def __init__(
        self,
        photos: Photos,
        batch_size: int,
        size: int,
        *,
        crop: float,
        flip: bool,
        seed: int,
        vocabulary: Vocabulary | None,
        group_share: float,
    ) -> None:
        if len(photos) < batch_size:
            raise ValueError(
                f"the data holds {len(photos)} samples, fewer than --batch-size {batch_size}"
            )
        if vocabulary is not None and int(photos.labels.min()) < 0:
            raise ValueError(
                "--captions vocabulary needs a class (KEY.cls) for every sample; use --captions text"
            )
        self.photos, self.batch_size, self.size = photos, batch_size, size
        self.crop, self.flip, self.seed = crop, flip, seed
        self.vocabulary, self.group_share = vocabulary, group_share
        self.per_epoch = len(photos) // batch_size
        self._epoch, self._order = -1, torch.empty(0)

    def __getitem__(self, index: int) -> Batch:
        epoch, place = divmod(index, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, order(len(self.photos), self.seed, epoch)
        rows = self._order[place * self.batch_size : (place + 1) * self.batch_size].sort().values
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        images = random_crops(self.photos.select(rows), self.size, self.crop, self.flip, generator)
        labels = self.photos.labels[rows]
        texts, words = self._caption(rows, labels, random.Random(self.seed * 1_000_003 + index))
        return Batch(images, texts, words, labels)

    def positives(self, words: list[str], labels: Tensor) -> Tensor:
        """Which caption describes which image, bool (images, captions): the same text, or a word that covers the class.

        Several images of one class share a batch; without this they would be each other's negatives.
        """
        if self.vocabulary is None:
            numbers = {word: number for number, word in enumerate(dict.fromkeys(words))}
            codes = torch.tensor([numbers[word] for word in words])
            return codes[:, None] == codes[None, :]
        covers = torch.zeros(len(words), len(self.vocabulary.names), dtype=torch.bool)
        for row, word in enumerate(words):
            covers[row, list(self.vocabulary.cover[word])] = True
        return covers[:, labels].T

    def bank(self, index: int) -> tuple[list[str], list[str]]:
        """For optimiser step `index`: the first name of every class in one random template, and the names."""
        if self.vocabulary is None:
            raise ValueError("a bank of captions needs --captions vocabulary")
        template = random.Random(self.seed * 1_000_003 + index).choice(TEMPLATES)
        names = self.vocabulary.class_names
        return [sentence(name, template) for name in names], names

    def _caption(
        self, rows: Tensor, labels: Tensor, rng: random.Random
    ) -> tuple[list[str], list[str]]:
        if self.vocabulary is None:
            texts = [self.photos.texts[int(row)] for row in rows]
            return texts, texts
        words = [self.vocabulary.sample_word(int(label), rng, self.group_share) for label in labels]
        return [sentence(word, rng.choice(TEMPLATES)) for word in words], words
