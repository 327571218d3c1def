"""The compatibility shims by name, and the means to put the ones of an adapter in reach."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

from . import attention, children, loading, standins

if TYPE_CHECKING:
    from .patching import Patch

HERE = os.path.dirname(os.path.abspath(__file__))
LIBRARY = sysconfig.get_path("stdlib")
Build = Callable[["Patch", str], ModuleType]
After = Callable[["Patch", ModuleType], None]


@dataclass(frozen=True)
class Shim:
    """absent: modules that are made up when nothing else provides them. after: work behind an import.
    now: work at the start of the patch. script_only: libraries that try an import find the truth."""

    what: str
    absent: dict[str, Build] = field(default_factory=dict)
    after: dict[str, After] = field(default_factory=dict)
    now: Callable[[Patch], None] | None = None
    script_only: bool = False


@dataclass
class Armed:
    """What the import machinery and the patch need of the chosen shims."""

    absent: Callable[[str], ModuleType | None]
    after: dict[str, list[Callable[[ModuleType], None]]]
    now: list[Callable[[Patch], None]]


def _optional(*names: str) -> dict[str, Build]:
    return dict.fromkeys(names, standins.hollow)


SHIMS: dict[str, Shim] = {
    "pydiffvg": Shim(
        "pydiffvg, where it is not installed, is this package's stroke renderer",
        absent={"pydiffvg": standins.pydiffvg},
    ),
    "cog": Shim(
        "cog's old interface of predictors",
        absent={"cog": standins.cog},
        after={"cog": standins.old_cog},
    ),
    "lightning": Shim(
        "pytorch_lightning.utilities.distributed, moved in version 2",
        absent={"pytorch_lightning.utilities.distributed": standins.lightning_distributed},
    ),
    "torch_six": Shim("torch._six, removed in torch 2", absent={"torch._six": standins.torch_six}),
    "lpips": Shim(
        "weights of taming's LPIPS and its VGG16, which most scripts throw away, loaded at their first use",
        after={"taming.modules.losses.lpips": loading.defer_lpips},
    ),
    "torch_load": Shim("old checkpoints through torch.load", now=loading.load_old_files),
    "downloads": Shim(
        "one sentence for weights that cannot be fetched", now=loading.explain_downloads
    ),
    "unused": Shim(
        "modules that are imported and not needed for the picture",
        absent=_optional(
            *("ttools", "ttools.modules", "moviepy", "moviepy.editor", "moviepy.video"),
            *("moviepy.video.io", "moviepy.video.io.ffmpeg_writer", "wandb", "visdom", "IPython"),
            *("IPython.display", "google.colab", "google.colab.files", "google.colab.drive"),
            *("google", "tensorboardX", "ipywidgets"),
        ),
        script_only=True,
    ),
    "torchvision": Shim(
        "modules and arguments that torchvision has dropped",
        absent={
            "torchvision.transforms.functional_tensor": standins.functional_tensor,
            "torchvision.models.utils": standins.torchvision_models_utils,
        },
        after={"torchvision.utils": standins.save_image_range},
    ),
    "numpy": Shim("np.int and the like", after={"numpy": standins.numpy_aliases}),
    "pillow": Shim("Image.ANTIALIAS", after={"PIL.Image": standins.pillow_aliases}),
    "torch": Shim("torch.set_deterministic", after={"torch": standins.torch_aliases}),
    "pkg_resources": Shim(
        "pkg_resources, gone from setuptools", absent={"pkg_resources": standins.pkg_resources}
    ),
    "attention": Shim("attention of the image tower's blocks", now=attention.keep),
    "children": Shim("Python scripts that the script starts", now=children.follow),
    "tiny_imagenet": Shim(
        "the tiny-imagenet that CLIPAG's notebook fits its start pictures to, where it cannot be had",
        absent={"datasets": standins.datasets},
        after={"datasets": standins.datasets_offline},
        script_only=True,
    ),
}


def arm(patch: Patch) -> Armed:
    """The adapter's shims, bound to a patch. Raises ValueError for a name that is no shim."""
    for name in patch.adapter.shims:
        if name not in SHIMS:
            raise ValueError(
                f"adapter {patch.adapter.name!r} names no shim with {name!r}; there are: {', '.join(SHIMS)}"
            )
    chosen = {name: SHIMS[name] for name in patch.adapter.shims}
    after: dict[str, list[Callable[[ModuleType], None]]] = {}
    for shim in chosen.values():
        for module, function in shim.after.items():
            after.setdefault(module, []).append(_bind(function, patch))

    def absent(name: str) -> ModuleType | None:
        for key, shim in chosen.items():
            if name in shim.absent and patch.active and not (shim.script_only and by_a_library()):
                module = shim.absent[name](patch, name)
                patch.say(key, f"`{name}` is absent; {_said(module, shim)}")
                return module
        return None

    now: list[Any] = [shim.now for shim in chosen.values() if shim.now]
    if patch.device == "cpu":
        from .cuda import to_cpu

        now.append(to_cpu)
    return Armed(absent, after, now)


def _bind(function: After, patch: Patch) -> Callable[[ModuleType], None]:
    return lambda module: function(patch, module)


def by_a_library() -> bool:
    """Whether the import under way was written in a library, installed or of Python itself."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_machinery(frame.f_code.co_filename):
        frame = frame.f_back
    file = frame.f_code.co_filename
    parts = file.replace(os.sep, "/").split("/")
    return bool({"site-packages", "dist-packages"} & set(parts)) or file.startswith(LIBRARY)


def _is_machinery(file: str) -> bool:
    return os.path.dirname(file) == HERE or "importlib" in file


def _said(module: ModuleType, shim: Shim) -> str:
    return "an empty module stands in" if isinstance(module, standins.Hollow) else shim.what
