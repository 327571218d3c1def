"""The shims by name: modules that stand in for absent ones, and names that libraries have dropped."""

from __future__ import annotations

import collections.abc
import importlib
import inspect
import math
import os
from collections.abc import Callable
from importlib import metadata, resources
from pathlib import Path
from types import ModuleType
from typing import Any

from . import notebooks
from .patching import Patch, Shim


class Nothing:
    """Can be called, read, entered and iterated, and does nothing."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Nothing()

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return Nothing()

    def __exit__(self, *error: Any) -> None:
        return None

    __getitem__ = __enter__ = __call__
    __setitem__ = __exit__
    __len__, __iter__ = (lambda self: 0), (lambda self: iter(()))


def late(name: str) -> Callable[[Patch, Any], Any]:
    """`module.function` of this folder, imported when it is needed: it brings torch."""
    home, _, function = name.partition(".")
    return lambda patch, module: getattr(
        importlib.import_module(f".{home}", __package__), function
    )(patch, module)


def made(name: str, **contents: Any) -> ModuleType:
    """A module of this name with these contents."""
    module = ModuleType(name)
    vars(module).update(contents)
    return module


def hollow(patch: Patch, name: str) -> ModuleType:
    """A module every name of which is something that does nothing."""

    def getter(attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}")
        return Nothing

    return made(name, __path__=[], __getattr__=getter)


def ipython(patch: Patch, name: str) -> ModuleType:
    """As much of IPython as is asked outside of it: nobody is there, and what is displayed is saved."""
    module, show = hollow(patch, name), notebooks.display
    vars(module).update(version_info=(9, 0), get_ipython=lambda: None, display=show)
    return module


def copied(source: str) -> Callable[[Patch, str], ModuleType]:
    """A builder of modules with the contents of another one; `.name` is one of this folder."""

    def build(patch: Patch, name: str) -> ModuleType:
        home = vars(importlib.import_module(source, __package__))
        return made(name, **{k: v for k, v in home.items() if not k.startswith("__")})

    return build


def pydiffvg(patch: Patch, name: str) -> ModuleType:
    """This package's renderer; pictures for Colab's /content go to ./content where there is none."""
    module = copied(".pydiffvg_api")(patch, name)

    def imwrite(original: Any, img: Any, filename: Any, *arguments: Any, **keywords: Any) -> None:
        path = os.fspath(filename)
        if path.startswith("/content/") and not os.path.isdir("/content"):
            patch.say("pydiffvg", f"pictures for /content go to {os.path.abspath('content')}")
            path = path.lstrip("/")
        original(img, path, *arguments, **keywords)

    patch.wrap(module, "imwrite", imwrite)
    return module


def old_cog(patch: Patch, module: Any) -> None:
    """`Predictor` and `input`, which today's cog has under other names."""
    from . import cog

    if not hasattr(module, "Predictor"):
        patch.fallback(module, "cog", {"Predictor": cog.Predictor, "input": cog.input})


def figures(patch: Patch, module: Any) -> None:
    """`plt.show()` where no window can be opened saves the figures."""

    def show(original: Any, *arguments: Any, **keywords: Any) -> Any:
        agg = module.get_backend().lower() == "agg"
        return notebooks.save_figures() if agg else original(*arguments, **keywords)

    patch.wrap(module, "show", show)


def torch_six(patch: Patch, name: str) -> ModuleType:
    """The aliases of builtin types that torch 1 had for Python 2."""
    aliases = {
        "string_classes": (str, bytes),
        "int_classes": int,
        "container_abcs": collections.abc,
    }
    return made(name, inf=math.inf, nan=math.nan, PY3=True, PY37=True, **aliases)


def pkg_resources(patch: Patch, name: str) -> ModuleType:
    """Versions of packages, files of packages, and `packaging`, which setuptools used to re-export."""

    def file(package: str, path: str) -> Any:
        module = importlib.import_module(package)
        beside = Path(module.__file__).parent if module.__file__ else resources.files(package)
        return beside / path

    return made(
        name,
        packaging=importlib.import_module("packaging"),
        parse_version=importlib.import_module("packaging.version").parse,
        get_distribution=metadata.distribution,
        DistributionNotFound=metadata.PackageNotFoundError,
        require=lambda *requirements: [],
        iter_entry_points=lambda group, name=None: iter(metadata.entry_points(group=group)),
        resource_filename=lambda package, path: str(file(package, path)),
        resource_stream=lambda package, path: file(package, path).open("rb"),
        resource_string=lambda package, path: file(package, path).read_bytes(),
        resource_exists=lambda package, path: file(package, path).exists(),
    )


def save_image_range(patch: Patch, module: Any) -> None:
    """`range=`, which save_image and make_grid call `value_range` since torchvision 0.12."""

    def call(original: Any, *arguments: Any, **keywords: Any) -> Any:
        if "range" in keywords:
            keywords["value_range"] = keywords.pop("range")
            patch.say("torchvision", f"{original.__name__}(range=...) is now value_range")
        return original(*arguments, **keywords)

    patch.wrap(module, "make_grid", call)
    patch.wrap(module, "save_image", call)


def affine_arguments(patch: Patch, module: Any) -> None:
    """`fillcolor=` and `resample=` of RandomAffine, which torchvision calls `fill` and `interpolation` since 0.10."""

    def call(original: Any, self: Any, *arguments: Any, **keywords: Any) -> None:
        for old, new in (("fillcolor", "fill"), ("resample", "interpolation")):
            if old in keywords:
                value = keywords.pop(old)
                patch.say("torchvision", f"RandomAffine({old}=...) is now {new}")
                keywords |= {new: value} if value is not None else {}
        original(self, *arguments, **keywords)

    patch.wrap(module.RandomAffine, "__init__", call)


def kornia_transforms(patch: Patch, module: Any) -> None:
    """`return_transform=`, gone since kornia 0.7: where it is true, the picture comes with the matrix of the change,
    and a pair that goes in comes out as one. And subclasses of before 0.6.6, whose `apply_transform` takes no flags:
    they find them as attributes."""

    def initialise(original: Any, self: Any, *arguments: Any, **keywords: Any) -> None:
        wanted = keywords.pop("return_transform", None)
        original(self, *arguments, **keywords)
        if wanted is not None:
            patch.say("kornia", "return_transform is gone from kornia; given back")
            self.gives_matrix = bool(wanted)
        own = type(self).apply_transform
        if "flags" not in inspect.signature(own).parameters:
            patch.say("kornia", "apply_transform is given no flags, as before kornia 0.6.6")
            vars(self).update(getattr(self, "flags", None) or {})
            self.apply_transform = lambda x, params, flags=None, transform=None: own(
                self, x, params, transform
            )

    def call(original: Any, self: Any, given: Any, *arguments: Any, **keywords: Any) -> Any:
        picture, before = given if isinstance(given, tuple) else (given, None)
        out = original(self, picture, *arguments, **keywords)
        if before is None and not getattr(self, "gives_matrix", False):
            return out
        matrix = getattr(self, "transform_matrix", None)
        if before is not None:
            matrix = before if matrix is None else matrix @ before
        return out, matrix

    classes = {value for value in vars(module).values() if inspect.isclass(value)}
    kinds = {kind for kind in classes if hasattr(kind, "transform_matrix")}
    for kind in kinds:
        patch.wrap(kind, "__init__", initialise)
        if not kinds.intersection(kind.__mro__[1:]):  # those below call this one
            patch.wrap(kind, "__call__", call)


def timm_registry(patch: Patch, module: Any) -> None:
    """`timm.models.registry`, which has an underscore since timm 0.9."""
    patch.fallback(module, "timm", {"registry": importlib.import_module("timm.models._registry")})


def numpy_aliases(patch: Patch, module: Any) -> None:
    """Names of builtin types that numpy 1.24 dropped, and those of 2.0."""
    kinds: dict[str, Any] = {kind.__name__: kind for kind in (int, float, object, str, complex)}
    old = {"float_": module.float64, "infty": module.inf, "Inf": module.inf, "NaN": module.nan}
    patch.fallback(module, "numpy", kinds | old)


def pillow_aliases(patch: Patch, module: Any) -> None:
    """Resampling filters under the names that Pillow 10 dropped."""
    kinds = module.Resampling
    old = {"ANTIALIAS": kinds.LANCZOS, "LINEAR": kinds.BILINEAR, "CUBIC": kinds.BICUBIC}
    patch.fallback(module, "pillow", old)


class Drawn:
    """`load_dataset` for tiny-imagenet alone: pictures drawn from the mixture in this package.

    CLIPAG's notebook fits a Gaussian to each class of that set; the mixture is such a fit, so what the notebook
    fits to draws from it has the same means and covariances, up to the noise of 50 pictures a class.
    """

    def __init__(self, path: str, *arguments: Any, **keywords: Any) -> None:
        import torch

        from ..priors import Mixture

        if not path.lower().endswith("tiny-imagenet"):
            raise ImportError(f"the data set {path!r} needs `pip install datasets`")
        mixture = Mixture.load()
        count = min(200, len(mixture.classes))  # the set has 200, and the notebook counts on it
        index = torch.arange(count).repeat_interleave(50)
        pixels = mixture.sample(index, torch.Generator().manual_seed(0))
        images = pixels.repeat_interleave(4, 2).repeat_interleave(4, 3)  # 64 x 64
        self._columns = {"image": images.mul(255).round().to(torch.uint8), "label": index}

    def with_format(self, kind: str) -> Drawn:
        """The columns are tensors whatever is asked for."""
        return self

    def __getitem__(self, name: str) -> Any:
        return list(self._columns[name])


def datasets_offline(patch: Patch, module: Any) -> None:
    """The same, where the library is there and tiny-imagenet cannot be had."""

    def load_dataset(original: Any, path: str, *arguments: Any, **keywords: Any) -> Any:
        try:
            return original(path, *arguments, **keywords)
        except Exception as error:  # of several libraries, depending on what is missing
            if not path.lower().endswith("tiny-imagenet"):
                raise
            patch.say("tiny_imagenet", f"{path} cannot be had ({type(error).__name__})")
            return Drawn(path)

    if "site-packages" in (module.__file__ or ""):  # not a folder of the program's own
        patch.wrap(module, "load_dataset", load_dataset)


HOLLOW = (
    *("ttools", "ttools.modules", "moviepy", "moviepy.editor", "moviepy.video", "moviepy.video.io"),
    *("moviepy.video.io.ffmpeg_writer", "wandb", "visdom", "tensorboardX", "ipywidgets"),
)
VISION = {
    "torchvision.transforms.functional_tensor": copied("torchvision.transforms._functional_tensor"),
    "torchvision.models.utils": copied("torch.hub"),
}
LIGHTNING = "pytorch_lightning.utilities"
CLIP_MODEL = "transformers.models.clip.modeling_clip"
SHIMS: dict[str, Shim] = {
    "open_clip": Shim(after={"open_clip": late("models.open_clip_factories")}),
    "transformers": Shim(after={CLIP_MODEL: late("models.transformers_model")}),
    "torch_load": Shim(after={"torch": late("torch_shims.load_old_files")}),
    "single": Shim(after={"torch": late("torch_shims.single_numbers")}),
    "cuda": Shim(after={"torch": late("torch_shims.to_cpu")}),
    "lpips": Shim(after={"taming.modules.losses.lpips": late("torch_shims.defer_lpips")}),
    "pydiffvg": Shim("this package's renderer stands in", {"pydiffvg": pydiffvg}, useful=True),
    "cog": Shim("this package's stands in", {"cog": copied(".cog")}, {"cog": old_cog}, useful=True),
    "lightning": Shim(
        "it has moved", {f"{LIGHTNING}.distributed": copied(f"{LIGHTNING}.rank_zero")}
    ),
    "torch_six": Shim("its aliases of builtin types are given back", {"torch._six": torch_six}),
    "unused": Shim("an empty module stands in", dict.fromkeys(HOLLOW, hollow), asked=("plain",)),
    "display": Shim(
        "what is displayed is saved",
        dict.fromkeys(("IPython", "IPython.display"), ipython),
        {
            "IPython.display": lambda patch, m: patch.replace(m, "display", notebooks.display),
            "matplotlib.pyplot": figures,
        },
        asked=("plain",),
    ),
    "torchvision": Shim(
        "it is given back",
        VISION,
        {
            "torchvision.utils": save_image_range,
            "torchvision.transforms.transforms": affine_arguments,
        },
    ),
    "kornia": Shim(after={"kornia.augmentation": kornia_transforms}),
    "timm": Shim(after={"timm.models": timm_registry}),
    "numpy": Shim(after={"numpy": numpy_aliases}),
    "pillow": Shim(after={"PIL.Image": pillow_aliases}),
    "pkg_resources": Shim("its common names are given back", {"pkg_resources": pkg_resources}),
    "tiny_imagenet": Shim(
        "pictures drawn from the mixture in this package answer for tiny-imagenet",
        {"datasets": lambda patch, name: made(name, load_dataset=Drawn)},
        {"datasets": datasets_offline},
        asked=("plain",),
    ),
}


def taming_shims() -> Patch:
    """A patch without any `clip`: taming-transformers imports on today's torch and lightning, its LPIPS loads nothing
    before its first use, and checkpoints of 2020 are read. Ends with `undo()` or the `with` block."""
    return Patch({name: SHIMS[name] for name in ("lightning", "torch_six", "lpips", "torch_load")})
