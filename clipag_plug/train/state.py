"""The folder of a run: its lock, its checkpoints, what a resumed run may change, and the trained model."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..files import write_atomically, write_text
from ..options.base import flag
from ..options.train import Train

CHECKPOINTS = "checkpoint-*.pt"
# Options that a resumed run may change, and that then take effect; any other has to be what it was.
FREE = {
    *("samples", "epochs", "batch_size", "accumulation", "lr", "muon_lr", "weight_decay", "beta1"),
    *("beta2", "adam_eps", "warmup", "schedule", "cooldown", "clip_norm", "ema", "precision"),
    *("checkpointing", "compile", "keep", "memory", "decoders", "max_bad_fraction", "validation"),
    *("evaluate_every", "evaluate_images", "save_every", "keep_last", "remote", "tensorboard"),
    *("wandb", "threads", "device", "quiet", "output", "name", "resume"),
}


def claim(folder: Path, resume: str) -> FileLock:
    """The folder for one run at a time; the lock goes with the process. ValueError where another is or was in it, and
    is not what `resume` continues."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--output {str(folder)!r} cannot be a folder: {error.strerror}; choose another"
        ) from error
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"another run trains in {str(folder)!r}; choose another --output"
        ) from None
    for path in (*folder.glob(".*.tmp*"), *folder.glob(".tmp??????")):
        path.unlink(missing_ok=True)  # what a killed process was writing
    used = [name for name in ("log.csv", "model.safetensors") if (folder / name).exists()]
    start = find(Path(resume)) if resume not in ("", "latest") else None
    own = bool(resume) if start is None else start.parent.resolve() == folder.resolve()
    if not own and (used or find(folder) is not None):
        lock.release()
        raise ValueError(
            f"{str(folder)!r} holds an earlier run; continue it with --resume latest, or choose another --output"
        )
    return lock


def find(where: Path) -> Path | None:
    """The checkpoint that a path means: itself, or the newest in a run's folder; None where there is none."""
    return where if where.is_file() else max(where.glob(CHECKPOINTS), default=None)


def load(where: Path) -> dict[str, Any]:
    """The state saved at a path or in a folder. FileNotFoundError where there is none, ValueError for another file."""
    path = find(where)
    if path is None:
        raise FileNotFoundError(
            f"nothing to resume: {str(where)!r} is no checkpoint and no folder with one; "
            "leave --resume out to start"
        )
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        state["options"], state["optimizer"]
    except Exception as error:  # torch raises many types for what is no checkpoint
        raise ValueError(
            f"{str(path)!r} is no checkpoint of a run, or not whole ({type(error).__name__}); give --resume another, "
            "or start from weights with --init"
        ) from error
    return state


def continued(before: dict[str, Any], options: Train) -> tuple[Train, list[str]]:
    """The options of a resumed run, --precision auto being what it was, and what it does otherwise, as `lr 1 -> 2`.
    ValueError names what may not change."""
    if options.precision == "auto":
        options = options.replace(precision=before["precision"])
    now = options.to_dict()
    names = [name for name in now if name in before and now[name] != before[name]]
    for name in names:
        if name not in FREE:
            raise ValueError(
                f"{flag(name)} is {now[name]!r} and was {before[name]!r} in the checkpoint; a resumed run keeps it: "
                "give the same, or start a new run with --init"
            )
    silent = {"resume", "output", "quiet"}
    told = [f"{name} {before[name]} -> {now[name]}" for name in names if name not in silent]
    return options, told


def save(folder: Path, state: dict[str, Any], keep: int, remote: str = "") -> None:
    """Writes a checkpoint whole or not at all, then removes all but the newest `keep`."""
    path = folder / CHECKPOINTS.replace("*", f"{state['index']:08d}")
    _write(path, lambda name: torch.save(state, name))
    for old in sorted(folder.glob(CHECKPOINTS))[:-keep]:
        old.unlink()
    upload(remote, path)


def _write(path: Path, write: Any) -> None:
    try:
        write_atomically(path, write, parents=True)
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"{path.name} could not be written to {str(path.parent)!r} ({error}); free some space and go on with "
            "--resume latest"
        ) from error


def upload(remote: str, *paths: Path) -> None:
    """Copies files to an fsspec address, where one is given. OSError where it cannot be written to."""
    if not remote:
        return
    import fsspec  # type: ignore[import-untyped]

    try:
        system, root = fsspec.core.url_to_fs(remote)
        system.makedirs(root, exist_ok=True)
        for path in paths:
            system.put(str(path), f"{root.rstrip('/')}/{path.name}")
    except Exception as error:  # each protocol has types of its own
        raise OSError(f"--remote {remote!r} cannot be written to: {error}") from error


def save_model(
    folder: Path,
    weights: dict[str, Tensor],
    config: dict[str, Any],
    card: dict[str, Any],
    remote: str = "",
) -> None:
    """Writes `model.safetensors` and `model.json` with config and card; where open_clip can build the towers, its
    `open_clip_model.safetensors` (the same file) and `open_clip_config.json` besides."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    paths = [folder / "model.safetensors", folder / "model.json"]
    folder.mkdir(parents=True, exist_ok=True)
    _write(paths[0], lambda name: save_file(tensors, name))
    write_text(paths[1], json.dumps({"config": config, "card": card}, indent=1))
    if not {"mini", "lite"} & config["vision_cfg"].keys():
        paths += [folder / "open_clip_model.safetensors", folder / "open_clip_config.json"]
        paths[2].unlink(missing_ok=True)
        try:
            os.link(paths[0], paths[2])
        except OSError:  # a file system without links
            shutil.copyfile(paths[0], paths[2])
        preprocess = {"interpolation": "bicubic", "resize_mode": "shortest"}
        preprocess |= {n: card[n] for n in ("mean", "std", *preprocess) if n in card}
        whole = {"model_cfg": config, "preprocess_cfg": preprocess}
        write_text(paths[3], json.dumps(whole, indent=1))
    upload(remote, *paths)


def read_model(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """Config, card and weights that `save_model` wrote."""
    data = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    return data["config"], data["card"], load_file(str(folder / "model.safetensors"))


def save_captions(folder: Path, texts: list[str], vectors: Tensor) -> Path:
    """`captions.npz`: texts (N,) and their unit vectors (N, D), as --text-features and --text-teacher read them."""
    names, rows = np.array(texts), vectors.cpu().numpy()
    return write_atomically(
        folder / "captions.npz", lambda to: np.savez(to, texts=names, vectors=rows)
    )
