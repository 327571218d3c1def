"""Checkpoints of a run: written whole or not at all, and enough to continue as if never stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

CHECKPOINT = "checkpoint.safetensors"
OLDER = "checkpoint.pt"  # of versions before; still read


def save_state(folder: Path, weights: dict[str, Tensor], rest: dict[str, Any]) -> None:
    """Writes `checkpoint.safetensors` in one atomic replacement: no pickle, and any tool can read what is in it.

    rest: "optimizer", a state dict; tensors and dicts of tensors; and plain values, which are kept as JSON. A tensor
    of a dict is stored as DICT/NAME, one of the optimiser as optimizer/NUMBER/NAME.
    """
    tensors = {f"weights/{name}": value for name, value in weights.items()}
    plain: dict[str, Any] = {}
    for name, value in rest.items():
        if name == "optimizer":
            plain["groups"] = value["param_groups"]
            for number, fields in value["state"].items():
                tensors |= {f"optimizer/{number}/{field}": t for field, t in fields.items()}
        elif isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, dict) and any(isinstance(v, Tensor) for v in value.values()):
            tensors |= {f"{name}/{key}": v for key, v in value.items()}
        else:
            plain[name] = value
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {"format": "pt", "state": json.dumps(plain)}
    replace_file(folder / CHECKPOINT, lambda path: save_file(tensors, str(path), metadata))
    (folder / OLDER).unlink(missing_ok=True)


def find_state(where: Path) -> Path | None:
    """The checkpoint that a path means: itself, or the one in a run's folder; None where there is none."""
    paths = [where] if where.is_file() else [where / CHECKPOINT, where / OLDER]
    return next((path for path in paths if path.is_file()), None)


def load_state(where: Path) -> dict[str, Any]:
    """The state saved at a path or in a folder. Raises FileNotFoundError where there is none, ValueError where the
    file is none."""
    path = find_state(where)
    if path is None:
        raise FileNotFoundError(
            f"nothing to resume: {str(where)!r} is no checkpoint and no folder with one; "
            "leave --resume out to start"
        )
    if path.suffix == ".pt":
        return torch.load(path, map_location="cpu", weights_only=True)
    with _opened(path) as file:
        metadata = file.metadata() or {}
        if "state" not in metadata:
            raise ValueError(
                f"{str(path)!r} holds weights and no state of a run; start from it with --init, or give --resume a "
                f"{CHECKPOINT}"
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state = json.loads(metadata["state"])
    optimizer: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "optimizer":
            number, field = rest.split("/")
            optimizer.setdefault(int(number), {})[field] = value
        elif rest:
            state.setdefault(kind, {})[rest] = value
        else:
            state[kind] = value
    groups = state.pop("groups")
    return {**state, "optimizer": {"state": optimizer, "param_groups": groups}}


def _opened(path: Path) -> Any:
    try:
        return safe_open(str(path), "pt")
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is no checkpoint that can be read: {error}") from error


def save_model(
    folder: Path, weights: dict[str, Tensor], config: dict[str, Any], card: dict[str, Any]
) -> None:
    """Writes the trained model: `model.safetensors` and `model.json` with its config and card."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    replace_file(folder / "model.safetensors", lambda path: save_file(tensors, str(path)))
    text = json.dumps({"config": config, "card": card}, indent=1)
    replace_file(folder / "model.json", lambda path: path.write_text(text, encoding="utf-8"))


def read_model(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """Config, card and weights that `save_model` wrote."""
    data = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    return data["config"], data["card"], load_file(str(folder / "model.safetensors"))


def sweep(folder: Path) -> None:
    """Removes what a killed process was writing in the folder of the run, here or in safetensors (`.tmpAbC123`)."""
    for path in (*folder.glob(".*.tmp"), *folder.glob(".tmp??????")):
        path.unlink(missing_ok=True)


def replace_file(path: Path, write: Any) -> None:
    """Calls `write(temporary)` and moves the result to `path`, so that no half-written file has the final name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
