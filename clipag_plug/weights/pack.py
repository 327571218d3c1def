"""The format of the bundled models: fp16 safetensors without rows of zeros, and a JSON file beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import tensorfile
from .errors import BadFileError


def write_bundled(
    path: str | Path,
    state_dict: Mapping[str, Tensor],
    config: dict[str, Any],
    card: dict[str, Any],
    shares_text_with: str | None = None,
) -> Path:
    """Writes `<path>.safetensors` and `<path>.json` and returns the former.

    Matrices and kernels become fp16, vectors and scalars stay fp32 (they are few, and batch-norm
    variances may be tiny). A matrix with mostly empty rows keeps the others alone. With
    `shares_text_with`, the name of a bundled model in the same folder, tensors that equal the
    stored ones of that model are left out. Raises ValueError for weights that fp16 cannot hold.
    """
    path = _weights(path)
    shared: dict[str, Tensor] = {}
    if shares_text_with:
        shared = _text_of(path, shares_text_with)
        lost = sorted(set(shared) - set(state_dict))
        if lost:
            raise ValueError(
                f"{shares_text_with} has {lost[0]}, which this model lacks: they cannot share a text tower"
            )
    tensors: dict[str, Tensor] = {}
    packed: dict[str, list[int]] = {}
    for name, value in state_dict.items():
        stored = _stored(name, value.detach().cpu())
        if name in shared and torch.equal(_expanded(stored), shared[name]):
            continue
        rows = stored.abs().amax(1).nonzero()[:, 0].int() if stored.ndim == 2 else None
        if rows is not None and 2 * len(rows) < len(stored):
            tensors[f"{name}.rows"], tensors[f"{name}.index"] = stored[rows.long()], rows
            packed[name] = list(stored.shape)
        else:
            tensors[name] = stored
    tensorfile.write(path, tensors)
    about = {"config": config, "card": card, "shares_text_with": shares_text_with, "packed": packed}
    _write_json(path.with_suffix(".json"), about)
    return path


def read_bundled(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """State dict in fp32, config and card, from `<path>.safetensors` and `<path>.json`.

    Raises FileNotFoundError where one of the two is missing, BadFileError where they do not fit.
    """
    path = _weights(path)
    about = _read_json(path.with_suffix(".json"))
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(path)!r} does not exist, though its .json does; install the package again"
        )
    tensors, _ = tensorfile.read(path)
    state = {}
    if about.get("shares_text_with"):
        state = _text_of(path, about["shares_text_with"])
    for name, shape in about.get("packed", {}).items():
        state[name] = _unpack(path, name, shape, tensors)
    state.update({name: _expanded(value) for name, value in tensors.items()})
    return state, about["config"], about.get("card", {})


def _text_of(path: Path, key: str) -> dict[str, Tensor]:
    if key in (path.stem, "..") or Path(key).name != key:
        raise BadFileError(
            path, f"it shares the text tower of {key!r}, which is no other model of its folder"
        )
    base = read_bundled(path.with_name(f"{key}.safetensors"))[0]
    return {name: value for name, value in base.items() if not name.startswith("visual.")}


def _unpack(path: Path, name: str, shape: list[int], tensors: dict[str, Tensor]) -> Tensor:
    rows, index = tensors.pop(f"{name}.rows", None), tensors.pop(f"{name}.index", None)
    if rows is None or index is None or len(shape) != 2:
        raise BadFileError(path, f"its .json packs {name!r}, and the rows are not in the file")
    fits = rows.shape == (len(index), shape[1]) and (len(index) == 0 or int(index.min()) >= 0)
    if not fits or (len(index) and int(index.max()) >= shape[0]) or shape[0] * shape[1] > 2**31:
        raise BadFileError(path, f"the rows of {name!r} do not fit the shape {shape}")
    whole = torch.zeros(shape)
    whole[index.long()] = rows.float()
    return whole


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


def _expanded(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def _weights(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".safetensors" else path.with_name(path.name + ".safetensors")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(path)!r} does not exist: it holds the config of the weights beside it"
        )
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadFileError(path, f"it is not JSON ({error})") from error
    if not isinstance(about, dict) or not isinstance(about.get("config"), dict):
        raise BadFileError(path, "it holds no 'config' table")
    return about


def _write_json(path: Path, value: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
