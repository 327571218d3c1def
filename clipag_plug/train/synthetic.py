"""Made-up photographs with captions, for benchmarks and tests: any number, nothing on disk, the same for a seed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..vocabulary import bundled_vocabulary, sentence
from .decode import Record

GRID = 6  # coarse cells a side of a class's pattern


class Synthetic:
    """`count` images uint8 (size, size, 3): each class of the bundled vocabulary has a pattern of colours that can be
    learned, each image its own noise. Sample i has class i modulo the number of classes."""

    def __init__(self, count: int, size: int, seed: int) -> None:
        if count < 1:
            raise ValueError(
                f"synthetic:{count} has no samples; give synthetic:COUNT with a COUNT of at least 1"
            )
        self.count, self.size, self.seed = count, size, seed
        self.bad: dict[str, str] = {}
        self.names = bundled_vocabulary().class_names

    def __len__(self) -> int:
        return self.count

    def record(self, index: int) -> Record:
        """One sample."""
        label = index % len(self.names)
        pattern = np.random.default_rng((self.seed, 0, label)).uniform(0, 255, (GRID, GRID, 3))
        rng = np.random.default_rng((self.seed, 1, index))
        rows = (np.arange(self.size) * GRID) // self.size
        noise = rng.normal(0, 25, (self.size, self.size, 3)).astype(np.float32)
        image = (pattern[rows][:, rows] + noise).clip(0, 255).astype(np.uint8)
        text = sentence(self.names[label], "a photo of a {}")
        return Record(f"synthetic:{index}", image, text, label)

    def records(self) -> Iterator[Record]:
        """All of them, in order."""
        return map(self.record, range(self.count))
