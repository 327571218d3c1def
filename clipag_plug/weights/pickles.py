"""Reads the data in a pickle without running it: a small machine that builds values and calls nothing.

`pickle` and `torch.jit.load` execute what a file tells them to. Here every opcode that only builds
a value is followed, a tensor is rebuilt by our own code, objects of a TorchScript archive become
plain dictionaries of their attributes, and anything else is refused by name.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

MAXIMUM = 64 * 2**20


class Refused(ValueError):
    """The pickle needs more than data; the message says what."""


class Global(NamedTuple):
    """A name the pickle refers to. It is never imported."""

    module: str
    name: str


class Attributes(dict[str, Any]):
    """An object of a TorchScript archive: its attributes, without its class."""


class _Mark:
    pass


_MARK = _Mark()
_LITERALS = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
    "EMPTY_TUPLE": (),
}
_VALUES = {
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINSTRING",
    "SHORT_BINSTRING",
}
_CALLS = {"INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}


def read(data: bytes, persistent: Callable[[Any], Any], call: Callable[[Global, Any], Any]) -> Any:
    """The value that the pickle describes.

    persistent: turns a persistent id into a value (torch: a storage). call: the result of applying
    a named function to arguments; it raises Refused for names it does not know. Raises Refused.
    """
    if len(data) > MAXIMUM:
        raise Refused(f"its description is {len(data):,} bytes long; at most {MAXIMUM:,} are read")
    machine = _Machine(persistent, call)
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return machine.pop()
            machine.step(opcode.name, argument)
    except Refused:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise Refused(f"its description is damaged ({type(error).__name__}: {error})") from error
    raise Refused("its description ends too early")


class _Machine:
    def __init__(
        self, persistent: Callable[[Any], Any], call: Callable[[Global, Any], Any]
    ) -> None:
        self.persistent, self.call = persistent, call
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise IndexError("a mark where a value belongs")
        return value

    def to_mark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                values = self.stack[index + 1 :]
                del self.stack[index:]
                return values
        raise IndexError("no mark")

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _LITERALS:
            stack.append(_LITERALS[name])
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            values = [self.pop() for _ in range(count)]
            stack.append(tuple(reversed(values)))
        elif name == "TUPLE":
            stack.append(tuple(self.to_mark()))
        elif name in ("APPEND", "APPENDS"):
            values = [self.pop()] if name == "APPEND" else self.to_mark()
            self.container(list).extend(values)
        elif name in ("SETITEM", "SETITEMS"):
            values = [self.pop(), self.pop()][::-1] if name == "SETITEM" else self.to_mark()
            self.fill(self.container(dict), values)
        elif name == "BINPERSID":
            stack.append(self.persistent(self.pop()))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            stack.append(self.name(name, argument))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = self.pop(), self.pop()
            stack.append(self.make(function, arguments, name))
        elif name == "BUILD":
            self.build(self.pop())
        elif name == "POP":
            stack.pop()
        elif name not in ("PROTO", "FRAME"):
            why = (
                "makes an object, which may run code"
                if name in _CALLS
                else "is not used by weight files"
            )
            raise Refused(f"it needs the pickle instruction {name}, which {why}")

    def container(self, kind: type) -> Any:
        value = self.stack[-1]
        if not isinstance(value, kind):
            raise TypeError(f"{kind.__name__} expected, {type(value).__name__} found")
        return value

    def fill(self, table: dict[Any, Any], values: list[Any]) -> None:
        for key, value in zip(values[::2], values[1::2], strict=True):
            # A tuple as a key could be nested so deeply that its hash never ends.
            if not isinstance(key, (str, int, float, bytes, type(None))):
                raise Refused(f"a table in it has a {type(key).__name__} as a key")
            table[key] = value

    def name(self, opcode: str, argument: Any) -> Global:
        if opcode == "GLOBAL":
            module, _, name = argument.partition(" ")
            return Global(module, name)
        name, module = self.pop(), self.pop()
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError("a name is not text")
        return Global(module, name)

    def make(self, function: Any, arguments: Any, opcode: str) -> Any:
        if not isinstance(function, Global):
            raise TypeError(f"a {type(function).__name__} cannot be called")
        if function.module.startswith("__torch__") and opcode == "NEWOBJ":
            return Attributes()
        return self.call(function, arguments)

    def build(self, state: Any) -> None:
        value = self.stack[-1]
        if isinstance(value, dict) and isinstance(state, dict):
            # An OrderedDict of a module's state carries `_metadata` this way: it is of no use here.
            if isinstance(value, Attributes):
                self.fill(value, [item for pair in state.items() for item in pair])
            return
        raise Refused(f"it sets the inner state of a {type(value).__name__}, which may run code")
