"""Reads the data in a pickle without running it: unknown names are refused, tensors are described and not made."""

from __future__ import annotations

import pickle
import re
from typing import Any, NamedTuple

import torch

DESCRIPTION = 2**20  # bytes of a pickle that are read; a training file of ViT-B/32 has 0.2 MB
LONGEST_NAME = 512
# What training files hold beside tensors. Each becomes an `Attributes`; none is imported.
_HARMLESS = re.compile(
    r"__torch__\..*|argparse\.Namespace|types\.SimpleNamespace|(collections|pathlib|datetime)\.\w+|_codecs\.encode|"
    r"numpy(\.\w+)*\.(scalar|_reconstruct|dtype|ndarray|[a-z]+\d+)|copy_?reg\._reconstructor|torch\.(Size|device)|"
    r"(__builtin__|builtins)\.(set|frozenset|list|dict|tuple|int|float|complex|str|bytes|bytearray|slice|range|object)|"
    r"(omegaconf|yacs|easydict|ml_collections|pytorch_lightning|lightning|lightning_fabric)\..*"
)
# These reserve memory, or hash a value whose hash may never end.
_LEFT_OUT = (pickle.BYTEARRAY8, pickle.FROZENSET, pickle.ADDITEMS, pickle.DICT)


class Refused(ValueError):
    """Why a file is not read, in words for the user."""


class Attributes(dict[Any, Any]):
    """An object in a file: its attributes, without its class."""

    def __setstate__(self, state: Any) -> None:
        self.update(state if isinstance(state, dict) else {})


class Storage(NamedTuple):
    """A stored block of numbers."""

    name: str
    dtype: torch.dtype


class Stored(NamedTuple):
    """A tensor whose numbers were not read yet: the optimiser's half of a training file never is."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class Global(NamedTuple):
    """A name that a pickle refers to. It is never imported; a call of it is answered here, or refused."""

    module: str
    name: str

    def __call__(self, *arguments: Any) -> Any:
        name = ".".join(self)
        if name == "torch._utils._rebuild_tensor_v2":
            return _stored(arguments, arguments[0].dtype)
        if name == "torch._utils._rebuild_tensor_v3":
            return _stored(arguments, _dtype(arguments[6]))
        if name == "torch._tensor._rebuild_from_type_v2":
            return arguments[0](*arguments[2])
        if name.startswith(("torch._utils._rebuild_parameter", "torch.jit._pickle.")):
            return arguments[0]
        if _HARMLESS.fullmatch(name):
            return Attributes()
        raise Refused(
            f"it asks for {name}, which is not data and may run code when called; if you trust the file, "
            "load it where it was made and save its state_dict alone"
        )


# torch.load(weights_only=True) runs no code either, but is not bounded. Of the forged descriptions in
# tests/test_weights_hostile.py, torch 2.14 had not ended after 6 s with a tuple nested 60 deep as a key (0.3 KB) and a
# name without an end, and asked for 17 GB for a `bytearray` of a stated length (32 bytes).
_Python: Any = pickle._Unpickler


class Unpickler(_Python):
    """Python's own unpickler, bounded in length, in which nothing but a `Global` can be called."""

    def __init__(self, file: Any) -> None:
        super().__init__(self)
        self.file, self.left = file, DESCRIPTION
        self.storages: dict[str, Storage] = {}

    def read(self, size: int = 0) -> bytes:
        """At most `DESCRIPTION` bytes in all."""
        self.left -= size
        if self.left < 0:
            raise Refused(f"its description is longer than {DESCRIPTION:,} bytes, or damaged")
        return bytes(self.file.read(size))

    def readline(self) -> bytes:
        """A name."""
        return bytes(self.file.readline(LONGEST_NAME))

    def find_class(self, module: str, name: str) -> Any:
        """The name alone."""
        return Global(module, name)

    def persistent_load(self, identity: Any) -> Storage:
        """A storage: ("storage", type, name, device, length), and in old files None for "no view"."""
        tag, kind, name, _, _, *view = identity
        if tag != "storage" or not isinstance(name, str) or view not in ([], [None]):
            raise Refused(f"it refers to {kind!r}, which is no storage of numbers")
        return self.storages.setdefault(name, Storage(name, _dtype(kind)))

    def _list(self, count: int = 0) -> None:
        """A tuple, made a list: as a key of a table, one could be nested so deeply that its hash never ends."""
        items = [self.stack.pop() for _ in range(count)][::-1] if count else self.pop_mark()
        self.append(items)

    dispatch = {
        **{code: load for code, load in _Python.dispatch.items() if bytes([code]) not in _LEFT_OUT},
        pickle.TUPLE[0]: _list,
        pickle.TUPLE1[0]: lambda self: self._list(1),
        pickle.TUPLE2[0]: lambda self: self._list(2),
        pickle.TUPLE3[0]: lambda self: self._list(3),
        pickle.NEWOBJ[0]: _Python.load_reduce,
    }


def _dtype(kind: Any) -> torch.dtype:
    """torch.float16 of the names HalfStorage, float16 and the like."""
    name = kind.name.removesuffix("Storage") if isinstance(kind, Global) else ""
    name = {"Char": "int8", "Byte": "uint8", "Untyped": "uint8"}.get(name, name).lower()
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise Refused(f"it holds {name or kind!r} numbers, which are no weights")
    return found


def _stored(arguments: Any, dtype: torch.dtype) -> Stored:
    storage, offset, shape, stride, *_ = arguments
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, Storage) or len(shape) != len(stride) or len(shape) > 8:
        raise Refused("a tensor in it is badly described")
    if not all(type(number) is int and 0 <= number < 2**40 for number in numbers):
        raise Refused("a tensor in it has an impossible shape")
    return Stored(storage, offset, tuple(shape), tuple(stride), dtype)
