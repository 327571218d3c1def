"""The layout of the bundled models: `NAME.safetensors` in fp16, and `NAME.json` with config and card beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import write_json
from . import configs, layouts, read
from .registry import BadFileError

UNPACKED = 2**26  # numbers in matrices that are stored without their empty rows


def read_bundled(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """State dict in fp32, config and card of a `.safetensors` file and the `.json` beside it."""
    about = configs.read_json(path.with_suffix(".json"))
    config = configs.from_open_clip(path.with_suffix(".json"), {"config": about.get("config")})
    values, _ = read.tensors(path)
    state: dict[str, Tensor] = {}
    if key := about.get("shares_text_with"):
        if key == path.stem or Path(key).name != key:
            why = f"it shares the text tower of {key!r}, which is no other model here"
            raise BadFileError(path, why)
        state = _text_tower(path.with_name(f"{key}.safetensors"))
    total = 0
    for name, shape in dict(about.get("packed") or {}).items():
        rows, index = values.pop(f"{name}.rows", None), values.pop(f"{name}.index", None)
        if rows is None or index is None or len(shape) != 2 or rows.shape != (len(index), shape[1]):
            why = f"its .json packs {name!r}, and the rows in the file do not fit"
            raise BadFileError(path, why)
        total += shape[0] * shape[1]
        if total > UNPACKED or not all(0 <= row < shape[0] for row in index.tolist()):
            why = f"its .json packs {name!r}, and the shape {shape} does not fit"
            raise BadFileError(path, why)
        state[name] = torch.zeros(shape, dtype=torch.float32)
        state[name][index.long()] = rows.float()
    return {**state, **layouts.unify(values)}, config, dict(about.get("card") or {})


def write_bundled(
    path: str | Path,
    state_dict: dict[str, Tensor],
    config: dict[str, Any],
    card: dict[str, Any],
    shares_text_with: str | None = None,
) -> Path:
    """Writes `<path>.safetensors` and `<path>.json`, and returns the former.

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
        shared = _text_tower(path.with_name(f"{shares_text_with}.safetensors"))
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


def _text_tower(path: Path) -> dict[str, Tensor]:
    state = read_bundled(path)[0]
    return {name: value for name, value in state.items() if not name.startswith("visual.")}


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
