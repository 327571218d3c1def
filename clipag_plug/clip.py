"""`load`, `tokenize` and `available_models` with the signatures of OpenAI's `clip`."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from . import files
from .model import CLIP as CLIP
from .model import OPENAI_MEAN, OPENAI_STD, PRECISIONS, RECIPE, as_open_clip, build
from .model import build_model as build_model
from .simple_tokenizer import shared, token_rows
from .version import __version__

__all__ = ["available_models", "load", "tokenize"]

# Whoever asks this package for one of OpenAI's names wants the robust model nearest to it: same
# architecture, patch size, input and tokenizer. None: nobody has published one.
ROBUST_COUNTERPART: dict[str, str | None] = {
    "RN50": None,
    "RN101": None,
    "RN50x4": None,
    "RN50x16": None,
    "RN50x64": None,
    "ViT-B/32": "clipag",
    "ViT-B/16": "fare4-b16-laion",
    "ViT-L/14": "fare4-l14",
    "ViT-L/14@336px": None,
}
TRANSFORMS = ("Compose", "Resize", "CenterCrop", "ToTensor", "Normalize", "InterpolationMode")
IMPORTED = {  # by `clip.clip` itself, and imported from there now and then
    **{name: f"torchvision.transforms:{name}" for name in TRANSFORMS},
    "_Tokenizer": "clipag_plug.simple_tokenizer:SimpleTokenizer",
    "tqdm": "tqdm:tqdm",
    "Image": "PIL:Image",
}
REDIRECT = "CLIPAG_PLUG_MODEL"  # environment variable: one key for every name of that table

_log = logging.getLogger(__name__)
_said: set[str] = set()


def available_models() -> list[str]:
    """Names for `load`: OpenAI's that have a robust counterpart, then the registry's keys."""
    redirected = bool(os.environ.get(REDIRECT))
    generic = [name for name, key in ROBUST_COUNTERPART.items() if key or redirected]
    return generic + _keys()


def load(
    name: str,
    device: str | torch.device | None = None,
    jit: bool = False,
    download_root: str | None = None,
    *,
    precision: str = "fp32",
) -> tuple[CLIP, Any]:
    """A new model in evaluation mode, and the torchvision transform of its images.

    name: a key or a name of `available_models()`, `hf-hub:org/name`, `local-dir:folder`, or a path
    to a file. One of OpenAI's names gives the robust counterpart (said once through `logging`), or
    what the environment variable CLIPAG_PLUG_MODEL names; `openai/ViT-B/32` and the like give
    the vanilla weights. device: CUDA where there is any, else the CPU. jit: the model stays a plain
    module, and has the numbers that are read from a scripted one as `model.input_resolution.item()`.
    precision: "fp32", "fp16" or "bf16". An unknown name is a RuntimeError listing the known ones.
    """
    model = load_model(name, device, download_root, precision=precision)
    if jit:
        _log.warning("jit=True is ignored: the model is a plain module, which computes the same")
        model.input_resolution = Scalar(model.visual.input_resolution)
        for name in ("context_length", "vocab_size"):
            setattr(model, name, Scalar(getattr(model, name)))
    return model, _transform(model)


class Scalar(int):
    """A number that programs for a scripted model read by `.item()`."""

    def item(self) -> int:
        """The number."""
        return int(self)


def load_model(
    name: str,
    device: str | torch.device | None = None,
    download_root: str | None = None,
    *,
    precision: str = "fp32",
) -> CLIP:
    """The model of `load` without the transform, for which torchvision would have to be imported.

    A bundled model then needs neither torchvision nor open_clip, which take longer than the model.
    """
    from .weights import opening

    key = _resolve(os.fspath(name))
    # Parameters made while the caller is in inference mode could never be trained or hooked.
    with torch.inference_mode(False):
        opened = opening.open_checkpoint(key, download_root)
        record = opened.record
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        about: dict[str, Any] = {"name": record.key, "mean": record.mean, "std": record.std}
        about |= {"card": opened.card, "vocabulary": _vocabulary(record, opened.card)}
        return build(opened.config, opened.state_dict, precision=precision, device=device, **about)


def tokenize(
    texts: str | Sequence[str], context_length: int = 77, truncate: bool = False
) -> Tensor:
    """Texts -> int32 tokens (N, context_length): start, text, end, zeros.

    A text that does not fit is a RuntimeError, or is cut where `truncate`. A few models have a
    tokenizer of their own: `model.tokenize(texts)` is right for every model.
    """
    rows = token_rows([texts] if isinstance(texts, str) else list(texts), context_length, truncate)
    return torch.tensor(rows, dtype=torch.int32).reshape(-1, context_length)


def _resolve(name: str) -> str:
    """The key, source or path that a name stands for."""
    from .weights import registry

    if name in ROBUST_COUNTERPART:
        return _robust(name)
    try:
        registry.parse(name)
    except ValueError as error:
        raise RuntimeError(
            f"Model {name} not found: {error}; available models = {available_models()}"
        ) from error
    return name


def _robust(name: str) -> str:
    redirect = os.environ.get(REDIRECT)
    key = redirect or ROBUST_COUNTERPART[name]
    if redirect in ROBUST_COUNTERPART:
        key = ROBUST_COUNTERPART[redirect]
    if key is None:
        vanilla = f"openai/{name}"
        other = f" load({vanilla!r}) gives OpenAI's vanilla weights;" if vanilla in _keys() else ""
        raise RuntimeError(
            f"Model {redirect or name} not found: no robust counterpart of it is public;{other} "
            f"{REDIRECT}=KEY in the environment names one model for all of OpenAI's names; "
            f"available models = {available_models()}"
        )
    if name not in _said:
        _said.add(name)
        why = f"its robust counterpart; vanilla: 'openai/{name}'"
        why = f"{REDIRECT} says so" if redirect else why
        _log.warning("load(%r) gives %r: %s", name, key, why)
    return key


def _keys() -> list[str]:
    from .weights import registry

    return [checkpoint.key for checkpoint in registry.checkpoints()]


def _vocabulary(record: Any, card: dict[str, Any]) -> list[str] | None:
    """The words a small model was taught; None for a model of open vocabulary."""
    words = card.get("vocabulary")
    if isinstance(words, list):
        return list(words)
    if not record.bundled:
        return None
    from .vocabulary import bundled_vocabulary

    return bundled_vocabulary().words


def _transform(n_px: CLIP | int) -> Any:
    """OpenAI's five steps, which pictures of PIL and tensors (..., C, H, W) both pass.

    n_px: the side of the images, or a model. Only a model trained on squashed pictures has two numbers as the size of
    its first step.
    """
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize

    side = n_px if isinstance(n_px, int) else n_px.visual.input_resolution
    mean, std = (OPENAI_MEAN, OPENAI_STD) if isinstance(n_px, int) else (n_px.mean, n_px.std)
    card = {} if isinstance(n_px, int) else n_px.card
    size = (side, side) if card.get("resize_mode") == "squash" else side
    how = InterpolationMode(card.get("interpolation", "bicubic"))
    resize = Resize(size, interpolation=how, antialias=True)
    steps = [CenterCrop(side), _convert_image_to_rgb, _to_tensor, Normalize(mean, std)]
    return Compose([resize, *steps])


def register_open_clip() -> None:
    """Tells open_clip the models of this package: each is a tag of its architecture from then on.

    `open_clip.create_model_and_transforms("ViT-B-32", pretrained="clipag")` and the other factories, `list_pretrained`
    and the tokenizers know them. Files are fetched, checked and read as by `load`, and the activation is the model's
    own. The bundled models are tags of "mini". A second call changes nothing.
    """
    from open_clip import factory, pretrained

    from .weights import registry

    create, download = factory.create_model, factory.download_pretrained
    if hasattr(create, "clipag_plug"):
        return
    factory._MODEL_CONFIGS["mini"] = {"embed_dim": 0, "vision_cfg": {}, "text_cfg": {}}
    for record in registry.checkpoints():
        entry = {"url": "", "hf_hub": "", **record.pixels, "clipag_plug": record}
        entry["quick_gelu"] = bool(record.quick_gelu)
        tags = pretrained._PRETRAINED.setdefault(record.arch, {})
        tags.setdefault(pretrained._clean_tag(record.key), entry)

    @functools.wraps(download)
    def fetched(cfg: dict[str, Any], *arguments: Any, **keywords: Any) -> str:
        if "clipag_plug" not in (cfg or {}):
            return cast(str, download(cfg, *arguments, **keywords))
        return _state_file(cfg["clipag_plug"].key, keywords.get("cache_dir"), "safetensors")

    @functools.wraps(create)
    def created(model_name: str, tag: Any = None, *arguments: Any, **keywords: Any) -> Any:
        given = inspect.signature(create).bind(
            model_name, keywords.pop("pretrained", tag), *arguments, **keywords
        )
        options = given.arguments
        name, tag = str(model_name).replace("/", "-"), options["pretrained"]
        record = pretrained.get_pretrained_cfg(name, str(tag)).get("clipag_plug")
        if record is None:
            if name == "mini":
                tags = ", ".join(pretrained.list_pretrained_tags_by_model(name))
                raise ValueError(
                    f"'mini' is only known with weights: pretrained must be one of {tags}"
                )
            return create(*given.args, **given.kwargs)
        if record.bundled:
            device, precision = options.get("device", "cpu"), options.get("precision", "fp32")
            low = precision.removeprefix("pure_")
            model = load_model(record.key, device, precision=low if low in PRECISIONS else "fp32")
            return as_open_clip(model, output_dict=bool(options.get("output_dict")))
        options["force_quick_gelu"] = bool(record.quick_gelu)
        return create(*given.args, **given.kwargs)

    created.clipag_plug = True  # type: ignore[attr-defined]
    for module in (factory, pretrained, sys.modules["open_clip"]):
        for function, ours in (("create_model", created), ("download_pretrained", fetched)):
            if hasattr(module, function):
                setattr(module, function, ours)


def _download(url: str, root: str | None = None) -> str:
    """Path of a `torch.save`d state dict of a model in `_MODELS`, for `build_model`, as `clip._download` gives one.

    Raises RuntimeError for an address that `_MODELS` does not have.
    """
    scheme, _, name = url.partition(":")
    if scheme != "clipag_plug":
        raise RuntimeError(
            f"{url!r} is none of clip._MODELS, and other addresses are not fetched: download the file and give "
            "its path to clip.load"
        )
    return _state_file(_resolve(name), root, "pt")


def _state_file(key: str, root: str | None, kind: str) -> str:
    """A file in the cache with all tensors of a model: "safetensors", or "pt" with the recipe of `build_model`."""
    from safetensors.torch import save_file

    from .weights import opening

    opened = opening.open_checkpoint(key, root)
    stats = [(name, os.stat(name).st_size, os.stat(name).st_mtime_ns) for name in opened.files]
    mark = files.sha256(repr((stats, opened.config, __version__)).encode())[:12]
    path = files.root(root) / f"{files.slug(key)}-{mark}.{kind}"
    if not path.is_file():
        state = {name: tensor.contiguous() for name, tensor in opened.state_dict.items()}
        record = opened.record
        write: Callable[..., Any] = save_file
        if kind == "pt":
            facts: dict[str, Any] = {"config": opened.config, "card": opened.card}
            facts |= {"name": record.key, "mean": record.mean, "std": record.std}
            text = bytearray(json.dumps(facts).encode())
            state[RECIPE], write = torch.frombuffer(text, dtype=torch.uint8), torch.save
        files.write_atomically(path, lambda name: write(state, name), parents=True)
    return str(path)


def __getattr__(name: str) -> Any:
    """Names of `clip.clip` that programs import from there: `_MODELS`, `_tokenizer`, and what it imports itself."""
    if name == "_MODELS":
        return {model: f"clipag_plug:{model}" for model in available_models()}
    if name == "_tokenizer":
        return shared()
    if name == "BICUBIC":
        return __getattr__("InterpolationMode").BICUBIC
    if name in IMPORTED:
        module, _, attribute = IMPORTED[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(
        f"module {__name__!r} has no attribute {name!r}: it stands for OpenAI's clip, and a program that needs "
        "more brings its own changed copy, which `clipag run` leaves in reach"
    )


def _convert_image_to_rgb(image: Any) -> Any:
    """Three channels: pictures are converted, tensors of one channel repeated."""
    if not isinstance(image, Tensor):
        return image.convert("RGB")
    if image.shape[-3] == 1:
        return image.expand(*image.shape[:-3], 3, *image.shape[-2:])
    return image


def _to_tensor(image: Any) -> Tensor:
    """Floats in [0, 1]; a float tensor passes as it is, bytes are divided by 255."""
    if isinstance(image, Tensor):
        return image if image.is_floating_point() else image.float() / 255
    from torchvision.transforms.functional import to_tensor

    tensor: Tensor = to_tensor(image)
    return tensor
