"""Reads weight files of every kind without running what is in them, and writes safetensors."""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..files import write_atomically
from .pickles import DESCRIPTION, LONGEST_NAME, Refused, Storage, Stored, Unpickler
from .registry import BadFileError

Weights = tuple[dict[str, Tensor], dict[str, str]]
MOST_TENSORS = 2**15
CHECKSUM = "clipag_plug.checksum"
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number of torch.save before 1.6
_KINDS = (  # of the first bytes: which reader takes the file, or why none does
    (rb"PK(\x03\x04|\x05\x06)", "zip"),
    (re.escape(_LEGACY), "legacy"),
    (rb"(?s).{6}\0\0\{.", "safetensors"),
    (rb"version https://git-lfs", "a Git LFS pointer and not weights; run `git lfs pull` where it came from"),
    (rb"\s*<", "a web page and not weights: the download went wrong"),
    (rb"(?s).{257}ustar", "a tar archive; unpack it and give the weight file inside"),
    (rb"\x80", "a bare pickle, which runs code when loaded; where it was made, torch.save its state_dict"),
    (rb"", "neither safetensors nor a file of torch.save or TorchScript"),
)  # fmt: skip


def tensors(
    path: str | Path,
    choose: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    *,
    mapped: bool = False,
    check: bool = True,
) -> Weights:
    """The tensors of a weight file by name, nested tables joined by dots, and its metadata.

    Args:
        choose: picks and renames entries before their numbers are read.
        mapped: map a safetensors file instead of reading it; only for files that nobody but this package writes,
            since a mapped file that is changed changes the model, and one that is cut short ends the process.
        check: compare the checksum of a file that `write` made, for which all of it is read.
    Raises: FileNotFoundError, or BadFileError for a file that is damaged, hostile or of an unknown kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"the weight file {str(path)!r} does not exist")
    with open(path, "rb") as file:
        head = file.read(512)
    kind = next(kind for pattern, kind in _KINDS if re.match(pattern, head))
    reader = {"zip": _zip, "legacy": _legacy, "safetensors": _safetensors}.get(kind)
    if reader is None:
        raise BadFileError(path, f"it is {kind}")
    try:
        with reader(path, mapped) as (found, make, metadata):
            if len(found) > MOST_TENSORS:
                raise Refused(f"it holds {len(found):,} tensors, more than any model")
            result = {name: make(item) for name, item in choose(found).items()}
    except (BadFileError, OSError):
        raise
    except Exception as error:  # whatever damage leads to
        reason = str(error) if isinstance(error, Refused) else f"it is damaged ({error})"
        raise BadFileError(path, reason) from error
    recorded = metadata.pop(CHECKSUM, None)
    if check and recorded is not None and recorded != checksum(result):
        raise BadFileError(path, "its contents changed after it was written (the checksum differs)")
    return result, metadata


def write(
    path: str | Path, values: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Writes a safetensors file atomically, with a checksum of its contents, which the format lacks.

    Raises: OSError (disk full, for one); then neither the file nor a remainder of it is there.
    """
    whole = {name: value.detach().cpu().contiguous() for name, value in values.items()}
    about = {"format": "pt", **(metadata or {}), CHECKSUM: checksum(whole)}

    def save(name: str) -> None:
        try:
            save_file(_unshared(whole), name, about)
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            code = int(number[1]) if number else 5
            raise OSError(code, os.strerror(code), str(path)) from error

    return write_atomically(path, save, parents=True)


def checksum(values: Mapping[str, Tensor]) -> str:
    """A sum over the contents: finds damage, does not stop a forger. Ten times as fast as SHA-256."""
    total = 0
    for name, tensor in sorted(values.items()):
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        rest = data.numel() % 8
        part = int(data[: data.numel() - rest].view(torch.int64).sum())
        part += int(data[-rest:].sum()) if rest else 0
        total = (total * 1000003 + part + sum(name.encode())) % 2**64
    return f"{total:016x}"


def _unshared(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, each with memory of its own."""
    seen: set[int] = set()
    result = {}
    for name, value in values.items():
        start = value.untyped_storage().data_ptr()
        alone = start not in seen and value.untyped_storage().nbytes() == value.nbytes
        result[name] = value if alone or not value.numel() else value.clone()
        seen.add(start)
    return result


_Source = tuple[dict[str, Any], Callable[[Any], Tensor], dict[str, str]]


@contextlib.contextmanager
def _safetensors(path: Path, mapped: bool) -> Iterator[_Source]:
    with open(path, "rb") as head:
        if int.from_bytes(head.read(8), "little") > 16 * DESCRIPTION:
            raise Refused("its header is larger than that of any model")
    with safe_open(str(path), framework="pt", backend="mmap" if mapped else "pread") as file:
        yield {name: name for name in file.keys()}, file.get_tensor, dict(file.metadata() or {})  # noqa: SIM118


@contextlib.contextmanager
def _zip(path: Path, mapped: bool) -> Iterator[_Source]:
    """Files of torch.save since 1.6 and of TorchScript. zipfile compares the checksum of each entry that is read."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        roots = [name[:-9] for name in entries if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(roots) != 1:
            raise Refused("it is a zip archive, and not one that torch.save or TorchScript writes")

        def block(name: str) -> bytes:
            entry = entries.get(f"{roots[0]}/{name}")
            if entry is None:
                raise Refused(f"it lacks the entry {name!r}")
            if entry.file_size > (DESCRIPTION if name == "data.pkl" else path.stat().st_size):
                why = "is larger than it can be: it is incomplete or a bomb"
                raise Refused(f"the entry {name!r} {why}")
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise Refused(f"the entry {name!r} is compressed; torch stores: this may be a bomb")
            return archive.read(entry)

        if f"{roots[0]}/byteorder" in entries and block("byteorder") != b"little":
            raise Refused("it was written on a big-endian machine")
        value = Unpickler(io.BytesIO(block("data.pkl"))).load()
        makers = _Maker(lambda storage: block(f"data/{storage.name}"), path.stat().st_size)
        yield _flat(value), makers, {}


@contextlib.contextmanager
def _legacy(path: Path, mapped: bool) -> Iterator[_Source]:
    """Files of torch.save before 1.6: five pickles, then the storages; no checksum, so lengths are compared."""
    with open(path, "rb") as file:
        _, _, system = (Unpickler(file).load() for _ in range(3))
        if not system.get("little_endian"):
            raise Refused("it was written on a big-endian machine")
        reader = Unpickler(file)
        value = reader.load()
        places: dict[Any, tuple[int, int]] = {}
        for key in Unpickler(file).load():
            length = int.from_bytes(file.read(8), "little") * reader.storages[key].dtype.itemsize
            places[key] = file.tell(), length
            if file.tell() + length > path.stat().st_size:
                raise Refused("it ends before its last tensor: it is incomplete")
            file.seek(length, os.SEEK_CUR)

        def block(storage: Storage) -> bytes:
            start, length = places[storage.name]
            file.seek(start)
            return file.read(length)

        yield _flat(value), _Maker(block, path.stat().st_size), {}


def _flat(value: Any) -> dict[str, Any]:
    """Tensors under dotted names. A table is visited once, however often and wherever it occurs."""
    found: dict[str, Any] = {}
    waiting, seen = [("", value)], set()
    while waiting:
        prefix, table = waiting.pop()
        if not isinstance(table, dict) or id(table) in seen or len(prefix) > LONGEST_NAME:
            continue
        seen.add(id(table))
        for key, item in table.items():
            if isinstance(key, str) and isinstance(item, Stored):
                found[prefix + key] = item
            elif isinstance(key, str):
                waiting.append((f"{prefix}{key}.", item))
    return found


class _Maker:
    """Turns `Stored` into tensors; two that share a block get memory of their own."""

    def __init__(self, block: Callable[[Storage], bytes], size: int) -> None:
        self.block, self.left = block, 2 * size + 2**20
        self.blocks: dict[Any, Tensor] = {}

    def __call__(self, stored: Stored) -> Tensor:
        storage, offset, shape, stride, dtype = stored
        count, width = math.prod(shape), dtype.itemsize
        # A stride of zero, or one block for a thousand tensors, turns a small file into a large load.
        self.left -= count * width
        if self.left < 0:
            raise Refused("its tensors are larger than the file: this may be a bomb")
        if count == 0:
            return torch.empty(shape, dtype=dtype)
        first = storage.name not in self.blocks
        if first:
            data = bytearray(self.block(storage))
            self.blocks[storage.name] = torch.frombuffer(data or bytearray(1), dtype=torch.uint8)
        flat = self.blocks[storage.name]
        flat = flat[: len(flat) // width * width].view(dtype)
        last = offset + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
        if last >= len(flat):
            raise Refused(f"a tensor reaches beyond its block {storage.name!r}")
        value = flat.as_strided(shape, stride, offset)
        return value if first and count == len(flat) else value.clone()
