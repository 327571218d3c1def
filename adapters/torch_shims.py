"""torch as programs of another time, or of a machine with CUDA, expect it."""

from __future__ import annotations

import argparse
import codecs
import contextlib
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

import numpy
import torch
from torch.overrides import TorchFunctionMode

from .patching import Patch, current

KINDS = ("Byte", "Char", "Short", "Int", "Long", "Half", "BFloat16", "Float", "Double", "Bool")
ORDERS = (
    *("set_device", "synchronize", "empty_cache", "reset_peak_memory_stats", "ipc_collect", "init"),
    *("set_rng_state", "manual_seed", "manual_seed_all", "set_per_process_memory_fraction"),
)
ZERO = ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved")


class ToCpu(TorchFunctionMode):
    """Rewrites CUDA devices in the arguments of every function of torch."""

    def __init__(self, patch: Patch) -> None:
        super().__init__()
        self.patch = patch

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.Tensor.cuda, torch.Tensor.pin_memory):
            return args[0] if self.cpu("cuda") else None
        if func is torch.device:
            named = self.cpu(args[0] if args else None)
            return named if isinstance(named, torch.device) else func(*args, **kwargs)
        if func is torch.Tensor.to and len(args) > 1 and type(args[1]) is int:
            args = (args[0], "cpu", *args[2:])
        if type(kwargs.get("device")) is int:
            kwargs["device"] = "cpu"
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
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


class Clock:
    """torch.cuda's Event, Stream and contexts on the CPU, where everything is done when it returns."""

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

    def __enter__(self) -> Clock:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    synchronize = wait = wait_event = wait_stream = record_event = query


def to_cpu(patch: Patch, module: Any) -> None:
    """Sends tensors, modules, files and questions about the device to the CPU until the patch is over."""
    # It brings torch._dynamo, which makes a table of torch's functions and must see the real ones.
    importlib.import_module("torchvision")
    mode, kind = ToCpu(patch), torch.Generator
    patch.enter(mode)

    def in_a_thread(original: Any, self: Any) -> None:
        with ToCpu(patch):  # a mode belongs to one thread
            original(self)

    def load(original: Any, f: Any, map_location: Any = None, *given: Any, **keywords: Any) -> Any:
        if isinstance(map_location, dict):
            where: Any = {key: mode.cpu(value) for key, value in map_location.items()}
        else:
            where = "cpu" if map_location is None else mode.cpu(map_location)
        return original(f, where, *given, **keywords)

    def set_default(original: Any, kind: Any) -> None:
        name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__name__}"
        original(mode.cpu(name))

    def is_available(original: Any) -> bool:
        """True for an assertion, which would end a program that is to run here all the same."""
        frame = sys._getframe(2)
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip()
        return original() or (line.startswith("assert ") and bool(mode.cpu("cuda")))

    class Meta(type(kind)):  # type: ignore[misc]
        def __instancecheck__(cls, value: Any) -> bool:
            return isinstance(value, kind)

        def __call__(cls, device: Any = "cpu") -> Any:
            return kind(device=mode.cpu(device) if patch.active else device)

    patch.wrap(threading.Thread, "run", in_a_thread)
    patch.wrap(torch, "load", load)
    patch.wrap(torch.jit, "load", load)
    patch.wrap(torch, "set_default_tensor_type", set_default)
    patch.wrap(torch.cuda, "is_available", is_available)
    patch.replace(torch, "Generator", Meta("Generator", (), {}))
    size = 8 * 2**30
    properties = types.SimpleNamespace(
        name="cpu", total_memory=size, major=0, minor=0, multi_processor_count=1
    )
    values = {
        **{f"{name}Tensor": getattr(torch, f"{name}Tensor") for name in KINDS},
        **dict.fromkeys(ORDERS, lambda *arguments, **keywords: None),
        **dict.fromkeys((*ZERO, "current_device"), lambda device=None: 0),
        **dict.fromkeys(("Event", "Stream", "current_stream", "default_stream"), Clock),
        **dict.fromkeys(("device", "stream"), Clock),
        "get_device_name": lambda device=None: "cpu",
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: (0, 0),
        "mem_get_info": lambda device=None: (size, size),
        "memory_summary": lambda *arguments, **keywords: "everything is on the CPU",
        "get_rng_state": lambda device=None: torch.get_rng_state(),
    }
    for name, value in values.items():
        patch.replace(torch.cuda, name, value)


class Inert:
    """What an object of an old checkpoint becomes: it takes its state and does nothing."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


_arrays: Any = importlib.import_module("numpy._core.multiarray")
REAL: dict[str, Any] = {  # names that build arrays and containers, and can do nothing else
    "_codecs.encode": codecs.encode,
    "argparse.Namespace": argparse.Namespace,
    "numpy.dtype": numpy.dtype,
    "numpy.ndarray": numpy.ndarray,
    **{f"numpy.{core}.multiarray.scalar": _arrays.scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": _arrays._reconstruct for core in ("core", "_core")},
}


def load_old_files(patch: Patch, module: Any) -> None:
    """torch.load for files that hold more than tensors, as checkpoints of 2020 do: the rest becomes inert objects.

    Nothing that such a file names is run. A program, or the environment, that decides about `weights_only` itself
    is left alone.
    """

    def load(original: Any, f: Any, *arguments: Any, **keywords: Any) -> Any:
        decided = len(arguments) > 1 or keywords.get("pickle_module") or "weights_only" in keywords
        start, inert = f.tell() if hasattr(f, "tell") else None, dict[str, Any]()
        while True:
            try:
                safe: Any = [(kind, name) for name, kind in inert.items()]
                with torch.serialization.safe_globals(safe) if safe else contextlib.nullcontext():
                    value = original(f, *arguments, **keywords)
                break
            except pickle.UnpicklingError as error:
                found = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
                forced = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
                if decided or forced or not found or found[1] in inert:
                    raise
                made = type(found[1].rpartition(".")[2], (Inert,), {})
                inert[found[1]] = REAL.get(found[1], made)
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

    patch.wrap(torch, "load", load)
    # Its name in torch 1.7.
    patch.fallback(module, "torch", {"set_deterministic": torch.use_deterministic_algorithms})


class Single(numpy.ndarray):
    """An array of one number along its axes that counts as that number, as all such arrays did before numpy 2.4."""

    def __float__(self) -> float:
        patch = current()
        if patch is not None:
            patch.say("numpy", "an array of one number is taken for it, as before numpy 2.4")
        return float(self.item())

    def __int__(self) -> int:
        return int(float(self))

    def __reduce__(self) -> Any:
        return self.view(numpy.ndarray).__reduce__()


def single_numbers(patch: Patch, module: Any) -> None:
    """`float(correct.sum(0, keepdim=True).numpy())`, by which much code counts its hits."""

    def as_array(original: Any, self: Any, *arguments: Any, **keywords: Any) -> Any:
        array = original(self, *arguments, **keywords)
        return array.view(Single) if array.ndim and array.size == 1 else array

    if tuple(map(int, numpy.__version__.split(".")[:2])) >= (2, 4):
        patch.wrap(torch.Tensor, "numpy", as_array)


def defer_lpips(patch: Patch, module: Any) -> None:
    """LPIPS without its weights until it is called: VQGAN checkpoints build it, and most scripts delete it."""
    network, pretrained = module.vgg16, module.vgg16.__init__

    def bare(original: Any, self: Any, *arguments: Any, **keywords: Any) -> None:
        original(self, requires_grad=False, pretrained=False)

    def later(original: Any, self: Any, name: str = "vgg_lpips") -> None:
        text = "LPIPS and its VGG16 are built without weights; their first use would load them"
        patch.say("lpips", text)

        def fill(lpips: Any, inputs: Any) -> None:
            handle.remove()
            made = network.__new__(network)
            pretrained(made, requires_grad=False, pretrained=True)
            lpips.net = made.requires_grad_(False).to(next(lpips.parameters()).device)
            original(lpips, name)

        handle = self.register_forward_pre_hook(fill)

    patch.wrap(network, "__init__", bare)
    patch.wrap(module.LPIPS, "load_from_pretrained", later)
