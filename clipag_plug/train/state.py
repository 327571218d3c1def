"""Checkpoints of a run: written whole or not at all, and enough to continue as if never stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def save_state(folder: Path, weights: dict[str, Tensor], rest: dict[str, Any]) -> None:
    """Writes `checkpoint.pt` with weights, optimiser and counters, in one atomic replacement."""
    replace_file(
        folder / "checkpoint.pt", lambda path: torch.save({"weights": weights, **rest}, path)
    )


def load_state(folder: Path) -> dict[str, Any]:
    """The last saved state. Raises FileNotFoundError when the run has none yet."""
    path = folder / "checkpoint.pt"
    if not path.is_file():
        raise FileNotFoundError(
            f"nothing to resume: {str(path)!r} does not exist; leave --resume out to start"
        )
    return torch.load(path, map_location="cpu", weights_only=True)


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


def replace_file(path: Path, write: Any) -> None:
    """Calls `write(temporary)` and moves the result to `path`, so that no half-written file has the final name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
