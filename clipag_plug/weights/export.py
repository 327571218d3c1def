"""Writes a model, with its card, in the layout of open_clip, OpenAI, transformers or this package."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from ..files import slug, write_atomically, write_json, write_text
from ..options.tools import FORMATS, Export
from . import configs, fetch, layouts, read
from .opening import Opened, open_checkpoint, text_tower
from .registry import Checkpoint, ball


def run(options: Export) -> int:
    """`clipag export`: writes the folder, prints what was written, uploads it if asked to."""
    settings: dict[str, Any] = {"any_activation": options.any_activation}
    settings |= {"format": options.format, "repository": options.push}
    for path in save_pretrained(options.model, options.folder, **settings):
        print(path)
    if options.push:
        print(_upload(Path(options.folder), options.push, options.private, None))
    return 0


def save_pretrained(
    model: str | Opened,
    folder: str | os.PathLike[str],
    format: str = "open_clip",
    *,
    any_activation: bool = False,
    repository: str = "",
) -> list[Path]:
    """Writes a model (a name that `open_checkpoint` takes, or its result) into `folder`.

    Args:
        format: open_clip (`open_clip.create_model("local-dir:...")` loads it), openai (a state dict), transformers
            (`CLIPModel.from_pretrained`) or bundled (this package's own).
        any_activation: write OpenAI's layout for a GELU model too.
        repository: `org/name` that the card names.
    Returns: the files, README.md last.
    Raises: ValueError for a model that the layout cannot express.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; it must be one of {', '.join(map(repr, FORMATS))}")
    opened = model if isinstance(model, Opened) else open_checkpoint(model)
    if configs.is_ours(opened.config) and format != "bundled":
        raise ValueError(
            f"{opened.record.key} has an image tower of its own, which {format} cannot build; "
            "--format bundled writes it so that load('local-dir:FOLDER') reads it"
        )
    folder = Path(folder)
    if format == "openai":
        files = _openai(opened, folder, any_activation)
    else:
        writers = {"open_clip": _open_clip, "transformers": _transformers, "bundled": _bundled}
        files = writers[format](opened, folder)
    readme = write_text(folder / "README.md", card_text(opened, format, repository, str(files[-1])))
    return [*files, readme]


def push_to_hub(
    model: str | Opened,
    repository: str,
    format: str = "open_clip",
    *,
    private: bool = False,
    token: str | None = None,
) -> str:
    """Uploads a model to `org/name` on the Hugging Face hub in one commit, and returns its address."""
    with TemporaryDirectory() as folder:
        save_pretrained(model, folder, format, repository=repository)
        return _upload(Path(folder), repository, private, token)


def _upload(folder: Path, repository: str, private: bool, token: str | None) -> str:
    if fetch.offline():
        raise RuntimeError("HF_HUB_OFFLINE forbids the upload; unset it")
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    address = api.create_repo(repository, private=private, exist_ok=True)
    api.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message="Add model")
    return str(address)


def _open_clip(opened: Opened, folder: Path) -> list[Path]:
    weights = read.write(folder / "open_clip_model.safetensors", opened.state_dict)
    config = {"model_cfg": opened.config, "preprocess_cfg": opened.record.pixels}
    return [write_json(folder / "open_clip_config.json", config), weights]


def _transformers(opened: Opened, folder: Path) -> list[Path]:
    config, record = configs.to_transformers(opened.config), opened.record
    if record.resize_mode != "shortest":
        raise ValueError(
            f"{record.key} resizes its images by {record.resize_mode!r}, which CLIPImageProcessor cannot; "
            "export it with --format open_clip"
        )
    side = record.resolution
    steps = ("do_resize", "do_center_crop", "do_convert_rgb", "do_rescale", "do_normalize")
    images = {
        "image_processor_type": "CLIPImageProcessor",
        **dict.fromkeys(steps, True),
        "size": {"shortest_edge": side},
        "resample": {"bilinear": 2, "bicubic": 3}[record.interpolation],
        "crop_size": {"height": side, "width": side},
        "rescale_factor": 1 / 255,
        "image_mean": record.mean,
        "image_std": record.std,
    }
    state = layouts.to_transformers(opened.state_dict)
    weights = read.write(folder / "model.safetensors", state)
    files = {"config.json": config, "preprocessor_config.json": images}
    return [*(write_json(folder / name, value) for name, value in files.items()), weights]


def _openai(opened: Opened, folder: Path, any_activation: bool) -> list[Path]:
    config, record = opened.config, opened.record
    vision, text = config["vision_cfg"], config["text_cfg"]
    plain = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
    heads = text.get("heads", 8) == text.get("width", 512) // 64
    mlp = vision.get("mlp_ratio", 4.0) == text.get("mlp_ratio", 4.0) == 4.0
    wide = vision.get("head_width", 64) == 64 and heads and mlp
    if not wide or not set(vision) <= plain or config.get("custom_text"):
        raise ValueError(
            f"OpenAI's clip reads the architecture off the shapes, and would misread that of {record.key}; "
            "export it with --format open_clip"
        )
    if record.pixels != Checkpoint("").pixels:
        raise ValueError(
            f"{record.key} reads pixels of mean {_numbers(record.mean)}, std {_numbers(record.std)}, "
            f"{record.resize_mode} side, which OpenAI's clip cannot prepare; export it with --format open_clip"
        )
    if not config.get("quick_gelu") and not any_activation:
        raise ValueError(
            f"{record.key} needs GELU and OpenAI's clip always computes QuickGELU, which would give wrong features; "
            "export it with --format open_clip, or pass --any-activation if your code computes GELU"
        )
    path = folder / f"{slug(Path(record.key).stem)}.pt"

    def save(name: str) -> None:
        try:
            with open(name, "wb") as file:
                torch.save(dict(opened.state_dict), file)
        except RuntimeError as error:  # of torch's writer; what stopped it is the context
            cause = error.__context__
            full = cause if isinstance(cause, OSError) else OSError(5, str(error))
            raise OSError(full.errno, full.strerror, str(path)) from error

    about = {"config": config, "card": {**opened.card, **record.pixels}}
    return [write_json(path.with_suffix(".json"), about), write_atomically(path, save)]


def _bundled(opened: Opened, folder: Path) -> list[Path]:
    path = folder / f"{slug(Path(opened.record.key).stem)}.safetensors"
    write_bundled(path, opened.state_dict, opened.config, {**opened.card, **opened.record.pixels})
    return [path.with_suffix(".json"), path]


def write_bundled(
    path: str | Path,
    state_dict: Mapping[str, Tensor],
    config: dict[str, Any],
    card: dict[str, Any],
    shares_text_with: str | None = None,
) -> Path:
    """Writes `<path>.safetensors` and `<path>.json` in the layout of the bundled models, and returns the former.

    Matrices and kernels become fp16, vectors and scalars stay fp32 (batch-norm variances may be tiny). A matrix with
    mostly empty rows keeps the others alone.

    Args:
        shares_text_with: a bundled model in the same folder; tensors that equal its stored ones are left out.
    Raises: ValueError for weights that fp16 cannot hold.
    """
    path = Path(path)
    path = path if path.suffix == ".safetensors" else path.with_name(path.name + ".safetensors")
    shared: dict[str, Tensor] = {}
    if shares_text_with:
        shared = text_tower(path.with_name(f"{shares_text_with}.safetensors"))
        lost = sorted(set(shared) - set(state_dict))
        if lost:
            raise ValueError(
                f"{shares_text_with} has {lost[0]}, which this model lacks: they cannot share a text tower"
            )
    tensors: dict[str, Tensor] = {}
    packed: dict[str, list[int]] = {}
    for name, value in state_dict.items():
        stored = _stored(name, value.detach().cpu())
        if name in shared and torch.equal(layouts.unify({name: stored})[name], shared[name]):
            continue
        rows = stored.abs().amax(1).nonzero()[:, 0].int() if stored.ndim == 2 else None
        if rows is not None and len(rows) < 0.9 * len(stored):
            tensors[f"{name}.rows"], tensors[f"{name}.index"] = stored[rows.long()], rows
            packed[name] = list(stored.shape)
        else:
            tensors[name] = stored
    read.write(path, tensors)
    about = {"config": config, "card": card, "shares_text_with": shares_text_with, "packed": packed}
    write_json(path.with_suffix(".json"), about)
    return path


def _stored(name: str, value: Tensor) -> Tensor:
    if not value.is_floating_point():
        return value
    if not value.isfinite().all():
        raise ValueError(f"{name} holds values that are not finite")
    if value.ndim < 2:
        return value.float()
    if value.numel() and value.abs().max() > 65504:
        raise ValueError(
            f"{name} exceeds what fp16 can hold; scale it down or keep this model in a plain file"
        )
    return value.half()


def card_text(opened: Opened, form: str, repository: str = "", file: str = "") -> str:
    """README.md with the attack, the data and the accuracies as far as they are known.

    What is not known is said to be unknown, not left out.
    """
    from huggingface_hub import ModelCardData
    from jinja2 import Template

    record, card, vision = opened.record, opened.card, opened.config["vision_cfg"]
    licence, results = card.get("licence") or record.licence, card.get("results") or {}
    head = ModelCardData(
        license=licence.lower() if licence in ("MIT", "CC-BY-4.0", "Apache-2.0") else None,
        library_name=form if form in ("open_clip", "transformers") else None,
        pipeline_tag="zero-shot-image-classification",
        tags=["clip", "adversarial-robustness"],
    )
    tower = vision.get("timm_model_name") or (
        f"ViT of width {vision.get('width')}, {vision.get('layers')} layers, patch {vision.get('patch_size')}"
    )
    told = {"How it was trained": "history", "Draws": "can_draw", "Fails": "cannot_draw"}
    text = resources.files(__package__).joinpath("card.md").read_text(encoding="utf-8")
    given = {"card": card, "record": record, "form": form, "repository": repository, "file": file}
    return Template(text, trim_blocks=True, keep_trailing_newline=True).render(
        given,
        head=head.to_yaml(),
        licence=licence,
        where=f"hf-hub:{repository}" if repository else "local-dir:FOLDER",
        tower="a small tower of this package" if configs.is_ours(opened.config) else tower,
        activation="QuickGELU" if opened.config.get("quick_gelu") else "GELU",
        attack=ball(card.get("norm"), card.get("eps")),
        mean=_numbers(record.mean),
        std=_numbers(record.std),
        told=[(name, card.get(key)) for name, key in told.items()],
        results={name: v for name, v in results.items() if isinstance(v, int | float)},
    )


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
