"""Hard-coded CUDA on a machine without any: every request for it is answered on the CPU."""

from __future__ import annotations

import contextlib
import functools
import linecache
import sys
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from .patching import Patch

TYPES = ("Byte", "Char", "Short", "Int", "Long", "Half", "BFloat16", "Float", "Double", "Bool")


class ToCpu(TorchFunctionMode):
    """Rewrites CUDA devices in the arguments of every function of torch."""

    def __init__(self, patch: Patch) -> None:
        super().__init__()
        self.patch = patch

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda:
            self.patch.say("cuda", "CUDA is asked for; everything stays on the CPU")
            return args[0]
        if func is torch.device:
            named = self.cpu(args[0] if args else None)
            return named if isinstance(named, torch.device) else func(*args, **kwargs)
        if func is torch.Tensor.to and len(args) > 1 and type(args[1]) is int:
            args = (args[0], "cpu", *args[2:])
        if type(kwargs.get("device")) is int:
            kwargs = {**kwargs, "device": "cpu"}
        return func(
            *map(self.cpu, args), **{name: self.cpu(value) for name, value in kwargs.items()}
        )

    def cpu(self, value: Any) -> Any:
        """The CPU in place of a CUDA device, given in any way; other values as they are."""
        if isinstance(value, torch.device):
            found = value.type == "cuda"
        else:
            found = isinstance(value, str) and value.partition(":")[0] == "cuda"
        if found:
            self.patch.say("cuda", "CUDA is asked for; everything stays on the CPU")
            return torch.device("cpu")
        if isinstance(value, str) and value.startswith("torch.cuda."):
            return value.replace("torch.cuda.", "torch.")
        return value


def to_cpu(patch: Patch) -> None:
    """Sends tensors, modules, files and questions about the device to the CPU until the patch is over."""
    mode = ToCpu(patch)
    patch.enter(mode)
    _threads(patch)
    _loading(patch, mode)
    _generator(patch, mode)
    for kind in TYPES:
        if hasattr(torch.cuda, f"{kind}Tensor"):
            patch.replace(torch.cuda, f"{kind}Tensor", getattr(torch, f"{kind}Tensor"))
    _functions(patch)


def _threads(patch: Patch) -> None:
    """A mode belongs to one thread: every thread that is started gets its own."""
    run = threading.Thread.run

    @functools.wraps(run)
    def redirected(self: threading.Thread) -> None:
        with ToCpu(patch) if patch.active else contextlib.nullcontext():
            run(self)

    patch.replace(threading.Thread, "run", redirected)


def _loading(patch: Patch, mode: ToCpu) -> None:
    original, scripted = torch.load, torch.jit.load

    @functools.wraps(original)
    def load(f: Any, map_location: Any = None, *arguments: Any, **keywords: Any) -> Any:
        return original(f, where(map_location), *arguments, **keywords)

    @functools.wraps(scripted)
    def load_script(f: Any, map_location: Any = None, *arguments: Any, **keywords: Any) -> Any:
        return scripted(f, where(map_location), *arguments, **keywords)

    def where(map_location: Any) -> Any:
        if not patch.active:
            return map_location
        if isinstance(map_location, dict):
            return {key: mode.cpu(value) for key, value in map_location.items()}
        return "cpu" if map_location is None else mode.cpu(map_location)

    patch.replace(torch, "load", load)
    patch.replace(torch.jit, "load", load_script)


def _generator(patch: Patch, mode: ToCpu) -> None:
    original: Any = torch.Generator

    class Meta(type(original)):  # type: ignore[misc]
        def __instancecheck__(cls, value: Any) -> bool:
            return isinstance(value, original)

        def __call__(cls, device: Any = "cpu") -> Any:
            return original(device=mode.cpu(device) if patch.active else device)

    patch.replace(torch, "Generator", Meta("Generator", (), {}))


def _functions(patch: Patch) -> None:
    """torch.cuda's questions and orders that fail where there is no driver."""
    asked = torch.cuda.is_available

    def is_available() -> bool:
        """True for an assertion, which would end a script that is to run here all the same."""
        frame = sys._getframe(1)
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip()
        if patch.active and line.startswith("assert "):
            patch.say("cuda", "an assertion that there is CUDA is met")
            return True
        return asked()

    class Device(contextlib.nullcontext[None]):
        def __init__(self, device: Any = None) -> None:
            super().__init__()

    answers: dict[str, Any] = {
        "is_available": is_available,
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
        "device": Device,
        "get_device_name": lambda device=None: "cpu",
        "current_device": lambda: 0,
        "get_device_properties": lambda device=None: SimpleNamespace(
            name="cpu", total_memory=8 * 2**30, major=0, minor=0, multi_processor_count=1
        ),
        "get_device_capability": lambda device=None: (0, 0),
    }
    for name, value in answers.items():
        patch.replace(torch.cuda, name, value)
    patch.replace(
        torch, "set_default_tensor_type", _default_type(patch, torch.set_default_tensor_type)
    )


def _default_type(patch: Patch, original: Any) -> Any:
    @functools.wraps(original)
    def set_default_tensor_type(kind: Any) -> None:
        name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__name__}"
        original(name.replace("torch.cuda.", "torch.") if patch.active else kind)

    return set_default_tensor_type
