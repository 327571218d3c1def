"""Writes a model in the layout of open_clip, OpenAI, transformers or this package."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..options.export import FORMATS, Export
from . import cache, configs, layouts, pack, tensorfile
from .cards import card_text
from .opening import Opened, open_checkpoint


def run(options: Export) -> int:
    """`clipag export`: writes the folder, prints what was written, uploads it if asked to."""
    opened = open_checkpoint(options.model)
    for path in save_pretrained(
        opened,
        options.folder,
        options.format,
        any_activation=options.any_activation,
        repository=options.push,
    ):
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

    format: open_clip (`open_clip.create_model("local-dir:...")` loads it), openai (a state dict),
    transformers (`CLIPModel.from_pretrained`) or bundled (this package's own). Returns the files,
    README.md last. Raises ValueError for a model that the layout cannot express.
    """
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}; it must be one of {', '.join(map(repr, FORMATS))}")
    opened = model if isinstance(model, Opened) else open_checkpoint(model)
    if "mini" in opened.config["vision_cfg"] and format != "bundled":
        raise ValueError(
            f"{opened.record.key} has an image tower of its own, which {format} cannot build; "
            "--format bundled writes it so that load('local-dir:FOLDER') reads it"
        )
    folder = Path(folder)
    writer = {"open_clip": _open_clip, "transformers": _transformers, "bundled": _bundled}.get(
        format
    )
    files = writer(opened, folder) if writer else _openai(opened, folder, any_activation)
    readme = folder / "README.md"
    _write_text(readme, card_text(opened, format, repository, str(files[-1])))
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
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        save_pretrained(model, folder, format, repository=repository)
        return _upload(Path(folder), repository, private, token)


def _upload(folder: Path, repository: str, private: bool, token: str | None) -> str:
    if cache.offline():
        raise RuntimeError("HF_HUB_OFFLINE forbids the upload; unset it")
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    address = api.create_repo(repository, private=private, exist_ok=True)
    api.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message="Add model")
    return str(address)


def _open_clip(opened: Opened, folder: Path) -> list[Path]:
    record = opened.record
    preprocess = {
        "mean": record.mean,
        "std": record.std,
        "interpolation": record.interpolation,
        "resize_mode": record.resize_mode,
    }
    weights = tensorfile.write(folder / "open_clip_model.safetensors", opened.state_dict)
    config = {"model_cfg": opened.config, "preprocess_cfg": preprocess}
    return [_write_json(folder / "open_clip_config.json", config), weights]


def _transformers(opened: Opened, folder: Path) -> list[Path]:
    config, record = configs.to_transformers(opened.config), opened.record
    if record.resize_mode != "shortest":
        raise ValueError(
            f"{record.key} resizes its images by {record.resize_mode!r}, which CLIPImageProcessor cannot; "
            "export it with --format open_clip"
        )
    side = record.resolution
    images = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": {"bilinear": 2, "bicubic": 3}[record.interpolation],
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_convert_rgb": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": record.mean,
        "image_std": record.std,
    }
    weights = tensorfile.write(
        folder / "model.safetensors", layouts.to_transformers(opened.state_dict)
    )
    files = [("config.json", config), ("preprocessor_config.json", images)]
    return [*(_write_json(folder / name, value) for name, value in files), weights]


def _openai(opened: Opened, folder: Path, any_activation: bool) -> list[Path]:
    import torch

    config, record = opened.config, opened.record
    vision, text = config["vision_cfg"], config["text_cfg"]
    width, heads = text.get("width", 512), text.get("heads", 8)
    odd = [name for name in opened.state_dict if ".trunk." in name or name.startswith("text.")]
    if (
        odd
        or vision.get("head_width", 64) != 64
        or heads != width // 64
        or vision.get("mlp_ratio", 4.0) != 4.0
    ):
        raise ValueError(
            f"OpenAI's clip reads the architecture off the shapes, and would misread that of {record.key}; "
            "export it with --format open_clip"
        )
    if not config.get("quick_gelu") and not any_activation:
        raise ValueError(
            f"{record.key} needs GELU and OpenAI's clip always computes QuickGELU, which would give wrong features; "
            "export it with --format open_clip, or pass --any-activation if your code computes GELU"
        )
    path = folder / f"{cache.slug(Path(record.key).stem)}.pt"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        torch.save(dict(opened.state_dict), temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return [path]


def _bundled(opened: Opened, folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{cache.slug(Path(opened.record.key).stem)}.safetensors"
    card = {**opened.card, "mean": list(opened.record.mean), "std": list(opened.record.std)}
    pack.write_bundled(path, opened.state_dict, opened.config, card)
    return [path.with_suffix(".json"), path]


def _write_json(path: Path, value: dict[str, Any]) -> Path:
    return _write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
