"""Weights: files of another time, downloads nobody needs, and one sentence for what is not there."""

from __future__ import annotations

import fnmatch
import functools
import os
import pickle
import types
import urllib.error
from types import ModuleType
from typing import TYPE_CHECKING, Any

from . import catalog
from .errors import MissingWeightsError

if TYPE_CHECKING:
    from .patching import Patch


def missing(path: str | os.PathLike[str], adapter: catalog.Adapter | None = None) -> str | None:
    """One sentence about a known weight file that is absent; None if no adapter knows it."""
    plain = os.path.abspath(os.fspath(path))
    others = [catalog.read(name) for name in catalog.names()]
    for known in ([adapter] if adapter else []) + others:
        for weights in known.weights:
            if fnmatch.fnmatch(plain.replace(os.sep, "/"), f"*/{weights.file}"):
                return _sentence(weights.name, plain, weights.size, weights.sha256, weights.source)
    return None


def unreachable(error: BaseException, adapter: catalog.Adapter) -> str | None:
    """One sentence for a known weight file whose download by `requests` failed, or None."""
    seen: BaseException | None = error
    while seen is not None:
        url = getattr(getattr(seen, "request", None), "url", None)
        for weights in adapter.weights if isinstance(seen, OSError) and url else ():
            if fnmatch.fnmatch(str(url).partition("?")[0], f"*/{weights.file}"):
                place = weights.place or "its library's cache"
                return _sentence(weights.name, place, weights.size, weights.sha256, str(url))
        seen = seen.__cause__ or seen.__context__
    return None


def _sentence(name: str, path: str, size: str, sha256: str, source: str) -> str:
    return (
        f"{name} is missing: expected at {path!r}, "
        f"size {size or 'unknown'}, hash {sha256 or 'unknown'}; get it from {source}"
    )


def explain_downloads(patch: Patch) -> None:
    """torch.hub's download, whose failure names the file, where it belongs and its address."""
    import torch.hub

    original = torch.hub.download_url_to_file

    @functools.wraps(original)
    def download_url_to_file(url: str, dst: str, *arguments: Any, **keywords: Any) -> Any:
        try:
            return original(url, dst, *arguments, **keywords)
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            if not patch.active:
                raise
            sentence = missing(dst, patch.adapter)
            sentence = sentence or _sentence(
                os.path.basename(dst), os.path.abspath(dst), "", "", url
            )
            raise MissingWeightsError(f"{sentence} (the download failed: {error})") from error

    patch.replace(torch.hub, "download_url_to_file", download_url_to_file)


def defer_lpips(patch: Patch, module: ModuleType) -> None:
    """LPIPS without its weights until it is called: VQGAN checkpoints build it, and most scripts delete it."""
    LPIPS, network = module.LPIPS, module.vgg16
    load, initialise = LPIPS.load_from_pretrained, network.__init__

    def bare(self: Any, requires_grad: bool = False, pretrained: bool = True) -> None:
        initialise(self, requires_grad=requires_grad, pretrained=pretrained and not patch.active)

    def later(self: Any, name: str = "vgg_lpips") -> None:
        if not patch.active:
            load(self, name)
            return
        patch.say(
            "lpips",
            "LPIPS and its VGG16 are built without weights; their first use would load them",
        )

        def fill(lpips: Any, inputs: Any) -> None:
            handle.remove()
            lpips.net = _with_weights(network, initialise).to(next(lpips.parameters()).device)
            load(lpips, name)

        handle = self.register_forward_pre_hook(fill)

    patch.replace(network, "__init__", bare)
    patch.replace(LPIPS, "load_from_pretrained", later)


def _with_weights(kind: Any, initialise: Any) -> Any:
    made = kind.__new__(kind)
    initialise(made, requires_grad=False, pretrained=True)
    return made.requires_grad_(False)


def load_old_files(patch: Patch) -> None:
    """torch.load for files that hold more than tensors, as checkpoints of 2020 do: the rest becomes inert objects.

    Nothing that such a file names is run. A script, or the environment, that decides about `weights_only` itself is
    left alone.
    """
    import torch

    original = torch.load

    @functools.wraps(original)
    def load(f: Any, map_location: Any = None, pickle_module: Any = None, **keywords: Any) -> Any:
        decided = pickle_module is not None or keywords.get("weights_only") is not None
        start = f.tell() if hasattr(f, "tell") else None
        try:
            return original(f, map_location, pickle_module, **keywords)
        except pickle.UnpicklingError as error:
            if decided or not patch.active or os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD"):
                raise
            if start is not None:
                f.seek(start)
            reader, names = _reader()
            keywords["weights_only"] = False
            value = original(f, map_location, reader, **keywords)
            if isinstance(value, Inert):  # a whole pickled object is of no use without its class
                raise error
            kinds = ", ".join(sorted(names)[:3])
            patch.say(
                "torch_load",
                f"{_name(f)} holds more than tensors ({kinds}); read with inert objects for it",
            )
            return value

    patch.replace(torch, "load", load)


class Inert:
    """What an object of an old checkpoint becomes: it takes its state and does nothing."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Lists of other classes are filled this way."""

    def extend(self, values: Any) -> None:
        """As `append`."""

    def add(self, value: Any) -> None:
        """Sets of other classes."""


def _reader() -> tuple[Any, set[str]]:
    """A module for `torch.load(pickle_module=...)` that makes tensors, arrays and containers only."""
    names: set[str] = set()

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if _harmless(module, name):
                return super().find_class(module, name)
            names.add(f"{module}.{name}")
            return type(name.rpartition(".")[2], (Inert,), {"__module__": module})

    def load(file: Any, **keywords: Any) -> Any:
        return Unpickler(file, **keywords).load()

    made = types.SimpleNamespace(
        Unpickler=Unpickler, load=load, UnpicklingError=pickle.UnpicklingError, __name__="pickle"
    )
    return made, names


def _harmless(module: str, name: str) -> bool:
    """Names that build tensors, arrays and containers, and can do nothing else."""
    import torch

    if module == "torch":
        value = getattr(torch, name, None)
        return (
            isinstance(value, torch.dtype) or name in ("Size", "device") or name.endswith("Storage")
        )
    return (module, name) in {
        *(("collections", "OrderedDict"), ("collections", "defaultdict"), ("_codecs", "encode")),
        *(
            ("builtins", kind)
            for kind in ("set", "frozenset", "dict", "list", "int", "float", "complex")
        ),
        *(("torch.nn.parameter", "Parameter"), ("torch._tensor", "_rebuild_from_type_v2")),
        *(
            ("torch._utils", f"_rebuild_{kind}")
            for kind in ("tensor", "tensor_v2", "parameter", "parameter_with_state")
        ),
        *(
            (f"numpy.{core}.multiarray", kind)
            for core in ("core", "_core")
            for kind in ("_reconstruct", "scalar")
        ),
        *(("numpy", kind) for kind in ("ndarray", "dtype")),
        ("argparse", "Namespace"),
    }


def _name(f: Any) -> str:
    return os.path.basename(os.fspath(f)) if isinstance(f, str | os.PathLike) else "the file"
