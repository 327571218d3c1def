"""Labelled photographs with object boxes, read from a zip file: the sample that ships with the package, or another."""

from __future__ import annotations

import functools
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from ..files import sha256
from ..images import levels_of, resize

COLUMNS = ["key", "class", "x0", "y0", "x1", "y1"]


@dataclass(frozen=True)
class Photographs:
    """images uint8 (N, 3, H, W); labels (N,), class numbers; boxes (N, 4), the first and last column and row
    (x0, y0, x1, y1) that the object covers, in pixels of the images; sha256 of the file they came from."""

    keys: tuple[str, ...]
    images: Tensor
    labels: Tensor
    boxes: Tensor
    sha256: str

    def __len__(self) -> int:
        return len(self.keys)

    def pixels(self, rows: Sequence[int] | Tensor, side: int | None = None) -> Tensor:
        """The images of these rows, float (n, 3, H, W) in [0, 1], enlarged to `side` where it is given (bilinear)."""
        images = self.images[torch.as_tensor(rows, dtype=torch.long)].float() / 255
        return images if side is None else resize(images, side, "bilinear")

    def masks(self, rows: Sequence[int] | Tensor, side: int | None = None) -> Tensor:
        """What the boxes cover, (n, 1, side, side) in [0, 1]; pixels that a box cuts count by the part inside."""
        height, width = self.images.shape[-2:]
        boxes = self.boxes[torch.as_tensor(rows, dtype=torch.long)].double()
        across = _covered(boxes[:, 0] / width, (boxes[:, 2] + 1) / width, side or width)
        down = _covered(boxes[:, 1] / height, (boxes[:, 3] + 1) / height, side or height)
        return (down[:, None, :, None] * across[:, None, None, :]).float()


def _covered(low: Tensor, high: Tensor, cells: int) -> Tensor:
    """The part of each of `cells` equal cells of [0, 1] that lies between low (n,) and high (n,): (n, cells)."""
    edges = torch.arange(cells + 1, dtype=torch.float64) / cells
    ends = torch.minimum(high[:, None], edges[None, 1:])
    return ((ends - torch.maximum(low[:, None], edges[None, :-1])).clamp(min=0) * cells).clamp(
        max=1
    )


def read_photos(path: str | Path) -> Photographs:
    """Photographs from a zip file of KEY.jpg members and a tab-separated labels.tsv (key, class, x0, y0, x1, y1).

    Raises: FileNotFoundError, or ValueError where the file is no such zip, a photograph is missing or broken, or
        the sizes differ.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"photographs {str(path)!r} do not exist; give a zip of KEY.jpg and labels.tsv"
        )
    return _parse(Path(path).read_bytes(), str(path))


@functools.cache
def bundled_photos() -> Photographs:
    """The sample in the package: 505 held-out photographs of 64x64, two or three of each of the 202 classes."""
    data = resources.files("clipag_plug.bundled").joinpath("photos.zip").read_bytes()
    return _parse(data, "photos.zip")


def _parse(data: bytes, name: str) -> Photographs:
    from PIL import Image

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            table = archive.read("labels.tsv").decode("utf-8")
            head, *rows = [line.split("\t") for line in table.splitlines()] or [[]]
            if head != COLUMNS or not rows:
                raise ValueError(f"labels.tsv must have the columns {', '.join(COLUMNS)} and a row")
            files = [io.BytesIO(archive.read(f"{row[0]}.jpg")) for row in rows]
            images = []
            for row, file in zip(rows, files):
                try:
                    images.append(levels_of(Image.open(file).convert("RGB")))
                except (OSError, SyntaxError) as error:
                    raise ValueError(f"{row[0]}.jpg cannot be read: {error}") from error
            numbers = torch.tensor([[int(value) for value in row[1:]] for row in rows])
        if len({tuple(image.shape) for image in images}) != 1:
            raise ValueError("the photographs have different sizes")
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise ValueError(
            f"{name!r} is no complete zip of photographs: {error}; give KEY.jpg and labels.tsv"
        ) from error
    keys, labels, boxes = tuple(row[0] for row in rows), numbers[:, 0], numbers[:, 1:]
    return Photographs(keys, torch.stack(images), labels, boxes, sha256(data))
