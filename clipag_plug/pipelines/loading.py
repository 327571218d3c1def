"""Weights that a pipeline needs besides CLIP's: in the package, in a file, or downloaded once and checked."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import root
from ..weights.fetch import Trust, fetch, lock
from ..weights.read import tensors as read_file
from ..weights.registry import FetchError
from .autoencoder import NO_LOSS, Shape, VQModel

IMAGENET = "imagenet-f16-16384"
FILE = "vqgan_imagenet_f16_16384.ckpt"
SOURCES = (  # nobody states its SHA-256: the first download is recorded and demanded of every later one
    "https://heibox.uni-heidelberg.de/d/a7530b09fed84f80a887/files/?p=%2Fckpts%2Flast.ckpt&dl=1",
    f"https://github.com/mehdidc/feed_forward_vqgan_clip/releases/download/0.1/{FILE}",
)


def obtain(download_root: str | None = None) -> Path:
    """The published VQGAN of ImageNet, downloaded where it is missing. Raises: FetchError where it cannot be had."""
    folder = root(download_root)
    path, trust, failures = folder / FILE, Trust(folder), []
    if path.is_file():
        return path
    with lock(path):
        for source in SOURCES:
            part = path.with_name(f"{path.name}.download")
            try:
                digest = fetch(source, part, name=IMAGENET, size=None, seen=trust.get(IMAGENET))
            except FetchError as error:
                failures.append(str(error))
            else:
                trust.put(IMAGENET, digest, part.stat().st_size)
                return part.replace(path)
    raise FetchError(
        f"{IMAGENET} could not be had: {'; '.join(failures)}; or put the file at {str(path)!r}"
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a torch.save file, whose code is not run. Raises: ValueError."""

    def unwrapped(found: dict[str, Any]) -> dict[str, Any]:
        inner = "state_dict."
        return {n.removeprefix(inner): v for n, v in found.items() if n.startswith(inner)} or found

    return read_file(path, unwrapped)[0]


def load_autoencoder(name: str, config: str | None = None, backend: str = "own") -> Any:
    """An autoencoder in evaluation mode, frozen.

    Args:
        name: vqgan-mini, imagenet-f16-16384 (a download), or a file.
        config: the .yaml or .json of such a file; default: the one of its name beside it.
        backend: "taming" builds the class of taming-transformers instead of ours.
    Raises: FileNotFoundError, ValueError where file and config do not fit, ImportError without taming-transformers.
    """
    params, tensors = _described(name, config)
    model = _taming(params) if backend == "taming" else VQModel(Shape.of(params))
    wanted = {key: value.shape for key, value in model.state_dict().items()}
    wrong = [key for key in wanted if key not in tensors or tensors[key].shape != wanted[key]]
    if wrong:
        raise ValueError(
            f"{name!r} does not fit its config: {len(wrong)} tensors are missing or have another shape, "
            f"as {wrong[0]!r}; give the --config that belongs to the file"
        )
    model.load_state_dict({key: tensors[key].float() for key in wanted})
    # Channels last in memory: a quarter less time for a step on a processor.
    return model.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _described(name: str, config: str | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`model.params` and state dict."""
    if name == IMAGENET:
        return Shape(n_embed=16384).params(), read_tensors(obtain())
    if name == "vqgan-mini":
        with resources.as_file(resources.files("clipag_plug.bundled")) as folder:
            path = folder / f"{name}.safetensors"
            return _params(path.with_suffix(".json")), read_tensors(path)
    if not Path(name).is_file():
        raise FileNotFoundError(
            f"no autoencoder {name!r}; give vqgan-mini, {IMAGENET}, or the path of a file"
        )
    beside = [Path(name).with_suffix(suffix) for suffix in (".yaml", ".json")]
    found = [path for path in ([Path(config)] if config else beside) if path.is_file()]
    if not found:
        raise FileNotFoundError(
            f"{name!r} needs its .yaml or .json; give an existing --config FILE"
        )
    return _params(found[0]), read_tensors(Path(name))


def _params(path: Path) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
        values = values.get("model", values)
        params, target = values["params"], values.get("target", "VQModel")
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{str(path)!r} is no config of a VQGAN: model.params is missing ({error})"
        ) from error
    if target.rpartition(".")[2] != "VQModel":
        raise ValueError(f"{str(path)!r} describes a {target}; accepted: VQModel of taming")
    return params


def _taming(params: dict[str, Any]) -> Any:
    try:
        from ..adapters.shims import taming_shims

        with taming_shims():
            from taming.models.vqgan import VQModel as Original

            chosen = {key: params[key] for key in ("embed_dim", "n_embed", "ddconfig")}
            return Original(lossconfig=NO_LOSS, **chosen)
    except ImportError as error:
        raise ImportError(
            f"--backend taming needs taming-transformers ({error}): pip install 'clipag_plug[vqgan]'; "
            "--backend own needs nothing"
        ) from error
