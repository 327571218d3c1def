"""Reads torch's zip files (`torch.save` and TorchScript) as memory-mapped tensors, running nothing."""

from __future__ import annotations

import math
import mmap
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import pickles
from .errors import BadFileError

STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_LISTS = {"build_intlist", "build_doublelist", "build_boollist", "build_tensorlist"}
_LOCAL = struct.Struct("<4s5H3I2H")


class Storage(NamedTuple):
    """A stored block of numbers."""

    name: str
    dtype: torch.dtype


class Stored(NamedTuple):
    """A tensor that was not looked at yet: the optimiser's half of a training file never is."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Archive:
    """One file. `read()` gives the value it describes, with `Stored` in place of tensors; `tensor`
    turns one into a tensor that maps the file and does not copy it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.size = self.path.stat().st_size
        self.handed_out = 0
        self.checked: dict[str, memoryview] = {}
        with open(self.path, "rb") as file:
            # Copy-on-write, so that the tensors are writable and the file is not.
            self.map = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
            try:
                entries = zipfile.ZipFile(file).infolist()
            except (
                zipfile.BadZipFile,
                ValueError,
                OverflowError,
                NotImplementedError,
                struct.error,
            ) as error:
                raise BadFileError(path, f"it is a damaged zip archive ({error})") from error
        self.entries = {self._safe(entry): entry for entry in entries}
        roots = {
            name.split("/")[0]
            for name in self.entries
            if name.count("/") == 1 and name.endswith("/data.pkl")
        }
        if len(roots) != 1:
            raise BadFileError(
                path, "it is a zip archive, and not one that torch.save or TorchScript writes"
            )
        self.root = roots.pop()
        if f"{self.root}/byteorder" in self.entries and bytes(self.block("byteorder")) != b"little":
            raise BadFileError(path, "it was written on a big-endian machine")

    def _safe(self, entry: zipfile.ZipInfo) -> str:
        """The entry's name, once it is sure that it leads nowhere."""
        name = entry.filename
        parts = PurePosixPath(name.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in name:
            raise BadFileError(
                self.path, f"an entry is called {name!r}, which leads out of the archive"
            )
        return name

    def block(self, name: str) -> memoryview:
        """The bytes of an entry, found to have the checksum that the archive records."""
        if name in self.checked:
            return self.checked[name]
        entry = self.entries.get(f"{self.root}/{name}")
        if entry is None:
            raise BadFileError(self.path, f"it lacks the entry {name!r}")
        if (
            entry.compress_type != zipfile.ZIP_STORED
            or entry.file_size != entry.compress_size
            or entry.flag_bits & 1
        ):
            raise BadFileError(
                self.path,
                f"the entry {name!r} is compressed; torch stores, so this may be a zip bomb",
            )
        header = self.map[entry.header_offset : entry.header_offset + _LOCAL.size]
        if len(header) != _LOCAL.size or header[:4] != b"PK\x03\x04":
            raise BadFileError(self.path, f"the entry {name!r} is not where the archive says")
        fields = _LOCAL.unpack(header)
        start = entry.header_offset + _LOCAL.size + fields[-2] + fields[-1]
        data = self.map[start : start + entry.file_size]
        if len(data) != entry.file_size:
            raise BadFileError(
                self.path, f"the entry {name!r} ends behind the file: it is incomplete"
            )
        if zlib.crc32(data) != entry.CRC:
            raise BadFileError(self.path, f"the entry {name!r} is damaged (its checksum differs)")
        self.checked[name] = data
        return data

    def read(self) -> Any:
        """The pickled value. Raises BadFileError for damage, and for anything that is not data."""
        try:
            return pickles.read(bytes(self.block("data.pkl")), self._storage, self._call)
        except pickles.Refused as error:
            raise BadFileError(self.path, str(error)) from error

    def _storage(self, identity: Any) -> Storage:
        tag, kind, name, *_ = identity
        if tag != "storage" or not isinstance(kind, pickles.Global) or kind.name not in STORAGES:
            raise pickles.Refused(f"it refers to {kind!r}, which is no storage of numbers")
        if not isinstance(name, str):
            raise TypeError("a storage is badly described")
        return Storage(name, STORAGES[kind.name])

    def _call(self, function: pickles.Global, arguments: Any) -> Any:
        module, name = function
        if (module, name) == ("collections", "OrderedDict") and len(arguments) <= 1:
            return dict(arguments[0]) if arguments and isinstance(arguments[0], dict) else {}
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _stored(*arguments[:4])
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return arguments[0]
        if module == "torch.jit._pickle" and name in _LISTS:
            return list(arguments[0])
        if (module, name) == ("torch.jit._pickle", "restore_type_tag"):
            return arguments[0]
        if (module, name) in (("torch", "Size"), ("torch", "device")):
            return tuple(arguments)
        raise pickles.Refused(
            f"it asks for {module}.{name}, which is not data and may run code when called; if you trust the file, "
            "load it where it was made and save its state_dict alone"
        )

    def tensor(self, stored: Stored) -> Tensor:
        """The tensor itself. Raises BadFileError where it does not lie inside the file."""
        storage, offset, shape, stride = stored
        data = self.block(f"data/{storage.name}")
        item = storage.dtype.itemsize
        count = math.prod(shape)
        self.handed_out += count * item
        # A stride of zero, or one block for a thousand tensors, turns a small file into a large load.
        if count * item > len(data) or self.handed_out > 2 * self.size + 2**20:
            raise BadFileError(
                self.path, "its tensors are larger than the file: this may be a bomb"
            )
        if count == 0:
            return torch.empty(shape, dtype=storage.dtype)
        last = offset + sum((side - 1) * step for side, step in zip(shape, stride, strict=True))
        if last >= len(data) // item:
            raise BadFileError(
                self.path, f"a tensor reaches beyond the entry 'data/{storage.name}'"
            )
        return torch.frombuffer(data, dtype=storage.dtype, count=len(data) // item).as_strided(
            shape, stride, offset
        )


def _stored(storage: Any, offset: Any, shape: Any, stride: Any) -> Stored:
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, Storage) or len(shape) != len(stride) or len(shape) > 8:
        raise TypeError("a tensor is badly described")
    if not all(type(number) is int and 0 <= number < 2**40 for number in numbers):
        raise ValueError("a tensor has an impossible shape")
    return Stored(storage, offset, tuple(shape), tuple(stride))
