"""Modules that stand in for absent ones, and names that libraries have dropped."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .patching import Patch


class Hollow(ModuleType):
    """A module every name of which is something that does nothing."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return Nothing


class Nothing:
    """Can be called, read, entered and iterated, and does nothing."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing()

    def __call__(self, *arguments: Any, **keywords: Any) -> Nothing:
        return Nothing()

    def __enter__(self) -> Nothing:
        return self

    def __exit__(self, *error: Any) -> None:
        return None

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


def hollow(patch: Patch, name: str) -> ModuleType:
    """An empty module; its parents must be absent too, or real."""
    return Hollow(name)


def pydiffvg(patch: Patch, name: str) -> ModuleType:
    """This package's renderer; pictures for Colab's /content go to ./content where there is none."""
    from . import pydiffvg_api

    module = _copy(pydiffvg_api, name)

    @functools.wraps(pydiffvg_api.imwrite)
    def imwrite(img: Any, filename: Any, *arguments: Any, **keywords: Any) -> None:
        path = os.fspath(filename)
        try:
            pydiffvg_api.imwrite(img, path, *arguments, **keywords)
        except OSError:
            if not path.startswith("/content/"):
                raise
            patch.say(
                "pydiffvg",
                f"/content cannot be written; pictures go to {os.path.abspath('content')}",
            )
            pydiffvg_api.imwrite(img, path.lstrip("/"), *arguments, **keywords)

    vars(module)["imwrite"] = imwrite
    return module


def cog(patch: Patch, name: str) -> ModuleType:
    """The names of cog that predictors use."""
    from . import cog_api

    return _copy(cog_api, name)


def old_cog(patch: Patch, module: ModuleType) -> None:
    """`Predictor` and `input`, which today's cog has under other names."""
    from . import cog_api

    if not hasattr(module, "Predictor"):
        patch.fallback(module, "cog", {"Predictor": cog_api.Predictor, "input": cog_api.input})


def lightning_distributed(patch: Patch, name: str) -> ModuleType:
    """`rank_zero_only` and its relatives, from where they live today."""
    return _copy(importlib.import_module("pytorch_lightning.utilities.rank_zero"), name)


def torch_six(patch: Patch, name: str) -> ModuleType:
    """The aliases of builtin types that torch 1 had for Python 2."""
    import collections.abc
    import math

    return _module(
        name,
        string_classes=(str, bytes),
        int_classes=int,
        container_abcs=collections.abc,
        inf=math.inf,
        nan=math.nan,
        PY3=True,
        PY37=True,
    )


def functional_tensor(patch: Patch, name: str) -> ModuleType:
    """torchvision.transforms.functional_tensor, which is private now."""
    return _copy(importlib.import_module("torchvision.transforms._functional_tensor"), name)


def torchvision_models_utils(patch: Patch, name: str) -> ModuleType:
    """Its one name."""
    from torch.hub import load_state_dict_from_url

    return _module(name, load_state_dict_from_url=load_state_dict_from_url)


def pkg_resources(patch: Patch, name: str) -> ModuleType:
    """Versions of packages, and `packaging`, which setuptools used to re-export."""
    from importlib.metadata import distribution

    packaging = importlib.import_module("packaging")
    version = importlib.import_module("packaging.version")
    module = _module(name, packaging=packaging, parse_version=version.parse)
    vars(module)["get_distribution"] = distribution
    return module


def save_image_range(patch: Patch, module: ModuleType) -> None:
    """`range=`, which save_image and make_grid call `value_range` since torchvision 0.12."""
    for name in ("make_grid", "save_image"):
        original = getattr(module, name)
        if "range" not in inspect.signature(original).parameters:
            patch.replace(module, name, _with_range(patch, original))


def _with_range(patch: Patch, original: Any) -> Any:
    @functools.wraps(original)
    def call(*arguments: Any, **keywords: Any) -> Any:
        if patch.active and "range" in keywords:
            keywords["value_range"] = keywords.pop("range")
            patch.say("torchvision", f"{original.__name__}(range=...) is now value_range")
        return original(*arguments, **keywords)

    return call


def numpy_aliases(patch: Patch, module: ModuleType) -> None:
    """Names of builtin types that numpy 1.24 dropped, and those of 2.0."""
    values = {"int": int, "float": float, "object": object, "str": str, "complex": complex}
    patch.fallback(
        module, "numpy", values | {"float_": module.float64, "infty": module.inf, "Inf": module.inf}
    )


def pillow_aliases(patch: Patch, module: ModuleType) -> None:
    """Resampling filters under the names that Pillow 10 dropped."""
    names = {"ANTIALIAS": "LANCZOS", "LINEAR": "BILINEAR", "CUBIC": "BICUBIC"}
    values = {old: getattr(module.Resampling, new) for old, new in names.items()}
    patch.fallback(module, "pillow", values)


def torch_aliases(patch: Patch, module: ModuleType) -> None:
    """Functions that torch 1.x had under other names."""
    patch.fallback(module, "torch", {"set_deterministic": module.use_deterministic_algorithms})


def datasets(patch: Patch, name: str) -> ModuleType:
    """`load_dataset` for tiny-imagenet alone: pictures drawn from the mixture in this package.

    CLIPAG's notebook fits a Gaussian to each class of that set; the mixture is such a fit, so what the notebook
    fits to draws from it has the same means and covariances, up to the noise of 50 pictures a class.
    """

    def load_dataset(path: str, *arguments: Any, **keywords: Any) -> Any:
        if not path.lower().endswith("tiny-imagenet"):
            raise ImportError(
                f"the data set {path!r} needs the package datasets: pip install datasets"
            )
        patch.say("tiny_imagenet", "50 pictures a class are drawn from the mixture in the package")
        return _Drawn()

    return _module(name, load_dataset=load_dataset)


def datasets_offline(patch: Patch, module: ModuleType) -> None:
    """The same, where `datasets` is there and tiny-imagenet cannot be had."""
    original, drawn = module.load_dataset, datasets(patch, module.__name__).load_dataset

    @functools.wraps(original)
    def load_dataset(path: str, *arguments: Any, **keywords: Any) -> Any:
        try:
            return original(path, *arguments, **keywords)
        except Exception as error:  # of several libraries, depending on what is missing
            if not patch.active or not path.lower().endswith("tiny-imagenet"):
                raise
            patch.say("tiny_imagenet", f"{path} cannot be had ({type(error).__name__})")
            return drawn(path)

    patch.replace(module, "load_dataset", load_dataset)


class _Drawn:
    """As much of a data set as `dataset.with_format("torch")["image"]` needs."""

    def __init__(self, per_class: int = 50, side: int = 64) -> None:
        import torch

        from ..priors import Mixture

        mixture = Mixture.load()
        count = min(200, len(mixture.classes))  # the set has 200, and the notebook counts on it
        index = torch.arange(count).repeat_interleave(per_class)
        pixels = mixture.sample(index, torch.Generator().manual_seed(0))
        scale = side // mixture.side
        images = pixels.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
        self._columns = {"image": images.mul(255).round().to(torch.uint8), "label": index}

    def with_format(self, kind: str) -> _Drawn:
        return self

    def __getitem__(self, name: str) -> Any:
        return list(self._columns[name])

    def __len__(self) -> int:
        return len(self._columns["label"])


def _module(name: str, **contents: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(contents)
    return module


def _copy(source: ModuleType, name: str) -> ModuleType:
    """A module of another name with the same contents."""
    return _module(name, **{k: v for k, v in vars(source).items() if not k.startswith("__")})
