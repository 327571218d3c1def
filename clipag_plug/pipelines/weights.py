"""Weights that a pipeline needs besides CLIP's: in the package, in a file, or fetched once and checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..weights import cache, tensorfile
from ..weights.errors import FetchError
from ..weights.fetch import fetch
from ..weights.weights import sniff
from .autoencoder import Shape, VQModel


@dataclass(frozen=True)
class Weight:
    """A published file. digest: the start of its SHA-256 as its publisher states it; empty: nobody states one, and
    the first download is recorded and demanded of every later one."""

    name: str
    file: str
    sources: tuple[str, ...]
    size: int | None = None
    digest: str = ""


VGG19 = Weight(
    "VGG19 of torchvision",
    "vgg19-dcbb9e9d.pth",
    ("https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",),
    574_673_361,
    "dcbb9e9d",
)
IMAGENET = Weight(
    "imagenet-f16-16384",
    "vqgan_imagenet_f16_16384.ckpt",
    (
        "https://heibox.uni-heidelberg.de/d/a7530b09fed84f80a887/files/?p=%2Fckpts%2Flast.ckpt&dl=1",
        "https://github.com/mehdidc/feed_forward_vqgan_clip/releases/download/0.1/vqgan_imagenet_f16_16384.ckpt",
    ),
)
IMAGENET_PARAMS: dict[str, Any] = Shape(n_embed=16384).params()


def obtain(weight: Weight, download_root: str | None = None) -> Path:
    """The file in the cache, downloaded where it is missing. FetchError where it cannot be had or is another."""
    folder = cache.root(download_root)
    path = folder / weight.file
    if path.is_file():
        return path
    trust, failures = cache.Trust(folder), []
    with cache.lock(path):
        for source in weight.sources:
            part = path.with_name(f"{path.name}.download")
            seen = None if weight.digest else trust.get(weight.name)
            try:
                digest = fetch(source, part, name=weight.name, size=weight.size, seen=seen)
            except FetchError as error:
                failures.append(str(error))
                continue
            if not digest.startswith(weight.digest):
                part.unlink()
                failures.append(f"{source} has SHA-256 {digest}, not {weight.digest}...")
                continue
            if not weight.digest:
                trust.put(weight.name, digest, part.stat().st_size)
            part.replace(path)
            return path
    raise FetchError(
        f"{weight.name} could not be had: {'; '.join(failures)}; or put the file at {str(path)!r}"
    )


def load_autoencoder(name: str, config: str | None = None, backend: str = "own") -> Any:
    """An autoencoder in evaluation mode, frozen, from a name, or a file and its config.

    FileNotFoundError and ValueError say what is missing or does not fit; backend "taming" builds the class of
    taming-transformers instead of ours and raises ImportError where that is not installed.
    """
    params, tensors = _described(name, config)
    model = _taming(params) if backend == "taming" else VQModel(Shape.of(params))
    wanted = model.state_dict()
    kept = {key: value.float() for key, value in tensors.items() if key in wanted}
    missing = [key for key in wanted if key not in kept]
    wrong = [key for key in kept if kept[key].shape != wanted[key].shape]
    if missing or wrong:
        raise ValueError(
            f"{name!r} does not fit its config: {len(missing)} tensors are missing and {len(wrong)} have another "
            f"shape, as {(missing + wrong)[0]!r}; give the --config that belongs to the file"
        )
    model.load_state_dict(kept)
    # Channels last in memory: a quarter less time for a step on a processor.
    return model.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _described(name: str, config: str | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`model.params` and state dict."""
    if name == "vqgan-mini":
        folder = resources.files("clipag_plug.bundled")
        with resources.as_file(folder.joinpath("vqgan-mini.safetensors")) as path:
            tensors, _ = tensorfile.read(path)
            tensors = {key: value.clone() for key, value in tensors.items()}
        text = folder.joinpath("vqgan-mini.json").read_text(encoding="utf-8")
        return json.loads(text)["params"], tensors
    if name == IMAGENET.name:
        return IMAGENET_PARAMS, read(obtain(IMAGENET))
    if not Path(name).is_file():
        raise FileNotFoundError(
            f"no autoencoder {name!r}; give vqgan-mini, {IMAGENET.name}, or the path of a file"
        )
    return _params(config or _beside(name)), read(Path(name))


def _beside(name: str) -> str:
    for suffix in (".yaml", ".json"):
        path = Path(name).with_suffix(suffix)
        if path.is_file():
            return str(path)
    raise FileNotFoundError(
        f"{name!r} has no .yaml or .json of its name beside it; add --config FILE"
    )


def _params(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"config {path!r} does not exist")
    import yaml  # type: ignore[import-untyped]

    text = Path(path).read_text(encoding="utf-8")
    try:
        values = yaml.safe_load(text)  # JSON is YAML
        target = values.get("model", {}).get("target", "") if "model" in values else ""
        params: dict[str, Any] = (
            values["model"]["params"] if "model" in values else values["params"]
        )
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path!r} is no config of a VQGAN: model.params is missing ({error})"
        ) from error
    if target and not target.endswith(".VQModel"):
        raise ValueError(f"{path!r} describes a {target}; accepted: taming.models.vqgan.VQModel")
    return params


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a torch.save file, whose code is not run."""
    from ..weights import layouts
    from ..weights.archive import Archive, Stored

    kind = sniff(path)
    if kind == "safetensors":
        return tensorfile.read(path)[0]
    if kind == "zip":
        archive = Archive(path)
        found = layouts.flatten(path, archive.read(), lambda item: isinstance(item, Stored))
        return {name: archive.tensor(item) for name, item in found.items()}
    import pickle

    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{str(path)!r} holds no state dict: {error}") from error
    return dict(values.get("state_dict", values))


def _taming(params: dict[str, Any]) -> Any:
    try:
        from ..adapters import taming_shims

        with taming_shims():
            from taming.models.vqgan import VQModel as Original

            chosen = {key: params[key] for key in ("embed_dim", "n_embed", "ddconfig")}
            loss = {"target": "taming.modules.losses.vqperceptual.DummyLoss"}
            return Original(lossconfig=loss, **chosen)
    except ImportError as error:
        raise ImportError(
            f"--backend taming needs taming-transformers ({error}): pip install 'clipag_plug[vqgan]'; "
            "--backend own needs nothing"
        ) from error
