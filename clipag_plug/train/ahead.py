"""Batches that other processes make ahead, and the memory in which they hand their images over."""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import mmap
import signal
import sys
import warnings
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

BYTES = 5e8  # of finished batches that may wait, but two a worker at least and eight at most


@dataclass
class Batch:
    """images (N, 3, R, R) in [0, 1], a caption and a class label each, and the word that each caption is about."""

    images: Tensor
    texts: list[str]
    words: list[str]
    labels: Tensor


@dataclass
class Made:
    """A batch, the bad samples met on the way (name -> cause), how many samples were looked at by then, and how many
    one pass has (None: not known)."""

    batch: Batch
    bad: dict[str, str]
    seen: int
    length: int | None


class Maker(Protocol):
    """What makes batch number `index`; an error comes as a value."""

    def __getitem__(self, index: int) -> Made | Exception: ...


class Loans:
    """Pieces of memory that this process shares with those that it forks. A piece is lent with the images in it, and is
    free again when the last tensor over it is gone.

    torch hands a tensor over by a file descriptor, for which it asks the process that made it: that one is busy with
    the next batch, and the training waits until it answers.
    """

    def __init__(self, count: int, shape: tuple[int, ...]) -> None:
        self.shape, size = shape, 4 * math.prod(shape)
        self.pieces = [mmap.mmap(-1, size) for _ in range(count)]  # takes memory when it is written
        self.free = list(range(count))

    def tasks(self, index: int) -> Iterator[tuple[int, int | None]]:
        """Numbers of batches from `index` on, each with a free piece; None: there is none."""
        for number in itertools.count(index):
            yield number, self.free.pop() if self.free else None

    def array(self, piece: int) -> np.ndarray:
        """A piece as float32."""
        return np.frombuffer(self.pieces[piece], np.float32).reshape(self.shape)

    def tensor(self, piece: int) -> Tensor:
        """The images in a piece."""
        array = self.array(piece)
        weakref.finalize(array, self.free.append, piece)
        return torch.from_numpy(array)  # keeps the array as long as its memory is in use


class _Handing(Dataset[Any]):
    """Makes a batch in a worker process and puts its tensors where this one finds them without asking."""

    def __init__(self, maker: Maker, loans: Loans) -> None:
        self.maker, self.loans = maker, loans

    def __getitem__(self, task: tuple[int, int | None]) -> Any:
        made, piece = self.maker[task[0]], task[1]
        if isinstance(made, Exception):
            return made
        images: Tensor | int = made.batch.images
        if piece is not None:
            self.loans.array(piece)[...] = made.batch.images.numpy()
            images = piece
        batch, told = made.batch, (made.bad, made.seen, made.length)
        return images, batch.texts, batch.words, batch.labels.tolist(), told


class Ahead:
    """Batches one after another, made ahead in `workers` processes of one thread each, whatever torchrun sets.

    shape: of a batch's images. Asked for another number than the next one, it starts its processes anew.
    """

    def __init__(self, maker: Maker, workers: int, shape: tuple[int, ...]) -> None:
        self.maker, self.workers, self.shape = maker, workers, shape
        self.depth = min(8, max(2, int(BYTES / workers / (4 * math.prod(shape)))))
        # Number of the next batch -> its loans, what workers make.
        self._coming: dict[int, tuple[Loans, Iterator[Any]]] = {}
        # In a circle of garbage their queues would end before them.
        weakref.finalize(self, self._coming.clear)

    def __getitem__(self, index: int) -> Made | Exception:
        failed = ""
        for _ in range(2):  # a worker that was killed is replaced, once
            if index not in self._coming:
                self.stop()
                self._coming[index] = self._started(index)
            loans, coming = self._coming.pop(index)
            try:
                found = next(coming)
            except (RuntimeError, OSError, EOFError) as error:  # it is gone; its errors are values
                failed = str(error).partition("\n")[0]
                continue
            if isinstance(found, Exception):
                return found
            self._coming[index + 1] = loans, coming
            images, texts, words, labels, told = found
            images = images if isinstance(images, Tensor) else loans.tensor(images)
            return Made(Batch(images, texts, words, torch.tensor(labels)), *told)
        raise RuntimeError(
            f"a process that prepares batch {index} ended twice ({failed}); it may lack memory: set --decoders 0, or a "
            "smaller number or --batch-size"
        )

    def stop(self) -> None:
        """Ends the processes."""
        self._coming.clear()

    def _started(self, index: int) -> tuple[Loans, Iterator[Any]]:
        forks = sys.platform == "linux"  # shares photographs in memory; macOS and Windows copy them
        loans = Loans(self.workers * self.depth + 2 if forks else 0, self.shape)
        loader = DataLoader(
            _Handing(self.maker, loans),
            batch_size=None,
            sampler=loans.tasks(index),
            num_workers=self.workers,
            prefetch_factor=self.depth,
            collate_fn=_as_it_is,
            worker_init_fn=_ignore_interrupts,
            generator=torch.Generator(),  # the global one is the training's
            multiprocessing_context="fork" if forks else None,
        )
        # A worker that collected what it inherits, workers of an earlier set among it, would end those of its parent.
        gc.collect()
        gc.freeze()
        before = signal.getsignal(getattr(signal, "SIGCHLD", signal.SIGINT))
        try:
            with warnings.catch_warnings():  # of more workers than cores, which were asked for
                warnings.simplefilter("ignore")
                return loans, iter(loader)
        finally:
            gc.unfreeze()
            # torch's handler would raise wherever the training just is; `next` notices a dead worker as well.
            # Windows has no such signal, other threads may not set it.
            with contextlib.suppress(AttributeError, ValueError, TypeError):
                signal.signal(signal.SIGCHLD, before)


def _as_it_is(made: Any) -> Any:
    return made


def _ignore_interrupts(number: int) -> None:
    """Ctrl-C reaches every process of a terminal; the training ends its step and then its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
