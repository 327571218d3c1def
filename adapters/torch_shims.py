"""torch as programs of another time, or of a machine with CUDA, expect it."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import functools
import importlib
import linecache
import os
import pickle
import re
import sys
import threading
import time
import types
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .patching import Patch

KINDS = ("Byte", "Char", "Short", "Int", "Long", "Half", "BFloat16", "Float", "Double", "Bool")
NOTHING = (
    *("set_device", "synchronize", "empty_cache", "reset_peak_memory_stats", "ipc_collect", "init"),
    *("reset_max_memory_allocated", "reset_accumulated_memory_stats", "set_rng_state"),
    *("set_per_process_memory_fraction", "manual_seed", "manual_seed_all", "set_stream"),
)


class ToCpu(TorchFunctionMode):
    """Rewrites CUDA devices in the arguments of every function of torch."""

    def __init__(self, patch: Patch) -> None:
        super().__init__()
        self.patch = patch

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.Tensor.cuda, torch.Tensor.pin_memory):
            self.patch.say("cuda", "CUDA is asked for; everything stays on the CPU")
            return args[0]
        if func is torch.device:
            named = self.cpu(args[0] if args else None)
            return named if isinstance(named, torch.device) else func(*args, **kwargs)
        if func is torch.Tensor.to and len(args) > 1 and type(args[1]) is int:
            args = (args[0], "cpu", *args[2:])
        if type(kwargs.get("device")) is int:
            kwargs = {**kwargs, "device": "cpu"}
        if kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}
        return func(*map(self.cpu, args), **{key: self.cpu(kwargs[key]) for key in kwargs})

    def cpu(self, value: Any) -> Any:
        """The CPU in place of a CUDA device, given in any way; other values as they are."""
        if isinstance(value, str) and value.startswith("torch.cuda."):
            return value.replace("torch.cuda.", "torch.")
        named = value.type if isinstance(value, torch.device) else value
        if not isinstance(named, str) or named.partition(":")[0] != "cuda":
            return value
        self.patch.say("cuda", "CUDA is asked for; everything stays on the CPU")
        return torch.device("cpu")


def to_cpu(patch: Patch, module: Any) -> None:
    """Sends tensors, modules, files and questions about the device to the CPU until the patch is over."""
    # It brings torch._dynamo, which makes a table of torch's functions and must see the real ones.
    importlib.import_module("torchvision")
    mode = ToCpu(patch)
    patch.enter(mode)
    run, kind = threading.Thread.run, torch.Generator

    @functools.wraps(run)
    def redirected(self: threading.Thread) -> None:
        """A mode belongs to one thread: every thread that is started gets its own."""
        with ToCpu(patch) if patch.active else contextlib.nullcontext():
            run(self)

    class Meta(type(kind)):  # type: ignore[misc]
        def __instancecheck__(cls, value: Any) -> bool:
            return isinstance(value, kind)

        def __call__(cls, device: Any = "cpu") -> Any:
            return kind(device=mode.cpu(device) if patch.active else device)

    patch.replace(threading.Thread, "run", redirected)
    patch.replace(torch, "Generator", Meta("Generator", (), {}))
    patch.replace(torch, "load", _on_cpu(patch, mode, torch.load))
    patch.replace(torch.jit, "load", _on_cpu(patch, mode, torch.jit.load))
    for name in KINDS:
        if hasattr(torch.cuda, f"{name}Tensor"):
            patch.replace(torch.cuda, f"{name}Tensor", getattr(torch, f"{name}Tensor"))
    for name, value in _cuda(patch).items():
        patch.replace(torch.cuda, name, value)
    original = torch.set_default_tensor_type

    @functools.wraps(original)
    def set_default_tensor_type(kind: Any) -> None:
        name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__name__}"
        original(name.replace("torch.cuda.", "torch.") if patch.active else kind)

    patch.replace(torch, "set_default_tensor_type", set_default_tensor_type)


def _on_cpu(patch: Patch, mode: ToCpu, original: Any) -> Any:
    @functools.wraps(original)
    def load(f: Any, map_location: Any = None, *arguments: Any, **keywords: Any) -> Any:
        if patch.active and isinstance(map_location, dict):
            map_location = {key: mode.cpu(value) for key, value in map_location.items()}
        elif patch.active:
            map_location = "cpu" if map_location is None else mode.cpu(map_location)
        return original(f, map_location, *arguments, **keywords)

    return load


class Clock:
    """torch.cuda.Event and Stream on the CPU, where everything is done when it returns."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self.time = 0.0

    def record(self, stream: Any = None) -> None:
        """Takes the time."""
        self.time = time.perf_counter()

    def elapsed_time(self, end: Clock) -> float:
        """Milliseconds from this event to another."""
        return 1000 * (end.time - self.time)

    def query(self, *arguments: Any) -> bool:
        """Whether the work is done."""
        return True

    synchronize = wait = wait_event = wait_stream = record_event = query


def _cuda(patch: Patch) -> dict[str, Any]:
    """torch.cuda's questions and orders that fail where there is no driver."""
    asked = torch.cuda.is_available

    def is_available() -> bool:
        """True for an assertion, which would end a program that is to run here all the same."""
        frame = sys._getframe(1)
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip()
        if patch.active and line.startswith("assert "):
            patch.say("cuda", "an assertion that there is CUDA is met")
            return True
        return asked()

    class Context(contextlib.nullcontext[None]):
        def __init__(self, *arguments: Any) -> None:
            super().__init__()

    properties = types.SimpleNamespace(
        name="cpu", total_memory=8 * 2**30, major=0, minor=0, multi_processor_count=1
    )
    zero = ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved")
    return {
        **dict.fromkeys(NOTHING, lambda *arguments, **keywords: None),
        **dict.fromkeys((*zero, "current_device"), lambda device=None: 0),
        **dict.fromkeys(("device", "stream"), Context),
        **dict.fromkeys(("Event", "Stream"), Clock),
        "is_available": is_available,
        "current_stream": lambda device=None: Clock(),
        "default_stream": lambda device=None: Clock(),
        "get_device_name": lambda device=None: "cpu",
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: (0, 0),
        "mem_get_info": lambda device=None: (properties.total_memory, properties.total_memory),
        "memory_summary": lambda device=None, abbreviated=False: "everything is on the CPU",
        "memory_stats": lambda device=None: {},
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "get_rng_state_all": lambda: [torch.get_rng_state()],
    }


def load_old_files(patch: Patch, module: Any) -> None:
    """torch.load for files that hold more than tensors, as checkpoints of 2020 do: the rest becomes inert objects.

    Nothing that such a file names is run. A program, or the environment, that decides about `weights_only` itself
    is left alone.
    """
    original = torch.load

    @functools.wraps(original)
    def load(f: Any, map_location: Any = None, pickle_module: Any = None, **keywords: Any) -> Any:
        decided = pickle_module is not None or keywords.get("weights_only") is not None
        start, inert = f.tell() if hasattr(f, "tell") else None, dict[str, Any]()
        while True:
            try:
                safe = [(kind, name) for name, kind in inert.items()]
                with torch.serialization.safe_globals(safe) if safe else contextlib.nullcontext():
                    value = original(f, map_location, pickle_module, **keywords)
                break
            except pickle.UnpicklingError as error:
                found = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
                forced = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
                if decided or forced or not patch.active or not found or found[1] in inert:
                    raise
                inert[found[1]] = REAL.get(found[1]) or type(
                    found[1].rpartition(".")[2], (Inert,), {}
                )
                if start is not None:
                    f.seek(start)
        if isinstance(value, Inert):  # a whole pickled object is of no use without its class
            raise pickle.UnpicklingError(f"the file holds a pickled {type(value).__name__}")
        if inert:
            name = os.path.basename(f) if isinstance(f, str | os.PathLike) else "the file"
            kinds = ", ".join(sorted(inert)[:3])
            text = f"{name} holds more than tensors ({kinds}); read with inert objects for it"
            patch.say("torch_load", text)
        return value

    patch.replace(torch, "load", load)


class Inert:
    """What an object of an old checkpoint becomes: it takes its state and does nothing."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


_numpy = importlib.import_module("numpy._core.multiarray")
REAL: dict[str, Any] = {  # names that build arrays and containers, and can do nothing else
    "_codecs.encode": codecs.encode,
    "argparse.Namespace": argparse.Namespace,
    "numpy.dtype": _numpy.dtype,
    "numpy.ndarray": _numpy.ndarray,
    **{f"numpy.{core}.multiarray.scalar": _numpy.scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": _numpy._reconstruct for core in ("core", "_core")},
}


def defer_lpips(patch: Patch, module: Any) -> None:
    """LPIPS without its weights until it is called: VQGAN checkpoints build it, and most scripts delete it."""
    LPIPS, network = module.LPIPS, module.vgg16
    load, initialise = LPIPS.load_from_pretrained, network.__init__

    def bare(self: Any, requires_grad: bool = False, pretrained: bool = True) -> None:
        initialise(self, requires_grad=requires_grad, pretrained=pretrained and not patch.active)

    def later(self: Any, name: str = "vgg_lpips") -> None:
        if not patch.active:
            load(self, name)
            return
        text = "LPIPS and its VGG16 are built without weights; their first use would load them"
        patch.say("lpips", text)

        def fill(lpips: Any, inputs: Any) -> None:
            handle.remove()
            made = network.__new__(network)
            initialise(made, requires_grad=False, pretrained=True)
            lpips.net = made.requires_grad_(False).to(next(lpips.parameters()).device)
            load(lpips, name)

        handle = self.register_forward_pre_hook(fill)

    patch.replace(network, "__init__", bare)
    patch.replace(LPIPS, "load_from_pretrained", later)
