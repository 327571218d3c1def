"""Where a step keeps its adversarial images between the pass that made them and the pass that trains on them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

IN_MEMORY = (
    256 * 2**20
)  # bytes a step may keep in memory under "auto": below any model that trains on more


class Kept:
    """The images of a step's micro-batches, bit for bit, in memory or in a file.

    where: "memory", on the device that made them; "disk", in a file without a name in `folder`, gone with the process
    however that ends; "auto", there if `count` micro-batches like the first exceed IN_MEMORY. A single micro-batch
    stays in memory. The file is written and read by plain calls, one micro-batch at a time: mapped into memory, its
    pages would count as the process's own.
    Use as a context manager. Raises OSError where the file cannot be written.
    """

    def __init__(self, where: str, count: int, folder: Path) -> None:
        self.where, self.count, self.folder = where, count, folder
        self._held: list[Tensor] = []
        self._shapes: list[tuple[torch.Size, int]] = []  # of a micro-batch, and where it starts
        self._file: Any = None
        self._device = torch.device("cpu")

    def append(self, images: Tensor) -> None:
        """Keeps the images (N, 3, H, W) of the next micro-batch; contiguous when they come back."""
        images = images.detach().contiguous()
        if self._file is None and not self._held and self._to_disk(images):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(buffering=0, dir=self.folder)  # noqa: SIM115
            self._device = images.device
        if self._file is None:
            self._held.append(images)
            return
        try:
            self._shapes.append((images.shape, self._file.tell()))
            _write(self._file, _bytes(images.cpu()))
        except OSError as error:
            raise OSError(
                f"the adversarial images of a step do not fit on the disk of {str(self.folder)!r} ({error.strerror}); "
                "free some space, choose another --output, or use --keep memory"
            ) from error

    def __getitem__(self, place: int) -> Tensor:
        if self._file is None:
            return self._held[place]
        shape, start = self._shapes[place]
        images = torch.empty(shape)
        position = self._file.tell()
        self._file.seek(start)
        _read(self._file, _bytes(images))
        self._file.seek(position)
        return images.to(self._device)

    def __len__(self) -> int:
        return len(self._shapes) or len(self._held)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[place] for place in range(len(self)))

    def __enter__(self) -> Kept:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._held.clear()
        if self._file is not None:
            self._file.close()

    def _to_disk(self, first: Tensor) -> bool:
        large = self.where == "disk" or first.nbytes * self.count > IN_MEMORY
        return self.count > 1 and self.where != "memory" and large


def _bytes(images: Tensor) -> memoryview:
    array: Any = images.numpy()
    return memoryview(array).cast("B")


def _write(file: Any, data: memoryview) -> None:
    while data:  # one call moves at most 2 GiB
        data = data[file.write(data) :]


def _read(file: Any, data: memoryview) -> None:
    while data:
        count = file.readinto(data)
        if not count:
            raise OSError(
                "the file of the kept adversarial images is shorter than what was written"
            )
        data = data[count:]
