"""Small images and shards for the tests of the training data."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def encoded(
    mode: str = "RGB", size: tuple[int, int] = (24, 24), kind: str = "JPEG", seed: int = 0
) -> bytes:
    """An encoded image of random levels in the given mode."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    image = image if mode == "RGB" else image.convert(mode)
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def flat(level: int, side: int = 16) -> bytes:
    """A PNG of one grey level, which tells a sample from the others after decoding."""
    stream = io.BytesIO()
    Image.new("RGB", (side, side), (level, level, level)).save(stream, "PNG")
    return stream.getvalue()


def write_tar(path: Path, samples: dict[str, dict[str, bytes]], mode: str = "w") -> Path:
    """A shard of KEY.SUFFIX members; mode "w:gz" compresses it."""
    with tarfile.open(path, mode) as archive:
        for key, members in samples.items():
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def numbered(first: int, count: int) -> dict[str, dict[str, bytes]]:
    """Samples whose grey level, caption and class all say their number."""
    return {
        f"{n:06d}": {"png": flat(n), "txt": f"number {n}".encode(), "cls": str(n % 100).encode()}
        for n in range(first, first + count)
    }
