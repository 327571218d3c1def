"""One JSON a task, model and seed: what was measured, on what, and with which settings."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import platform
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..files import write_text
from ..version import __version__
from .statistics import mean

FORMAT = 1
UNITS = ("share", "cosine", "nats", "ratio", "score", "count", "distance")


@dataclass(frozen=True)
class Metric:
    """One score with a value per item.

    by: key of the model that scored; `diagnostic` marks a score that a guide gave to its own work, which is kept
    for orientation and never compared. at: the setting of a sweep that it belongs to, as a radius.
    """

    title: str
    unit: str
    by: str
    values: list[float]
    at: float | None = None
    diagnostic: bool = False

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"unit is {self.unit!r}; it must be one of {', '.join(UNITS)}")
        if not self.values or not all(math.isfinite(value) for value in self.values):
            raise ValueError(f"{self.title!r} must have a finite value for every item")

    def to_dict(self) -> dict[str, Any]:
        """The fields, with the mean over items and its interval."""
        interval = mean(self.values)
        summary = {
            "value": interval.value,
            "low": interval.low,
            "high": interval.high,
            "n": len(self.values),
        }
        values = [round(value, 7) for value in self.values]
        return {**dataclasses.asdict(self), **summary, "values": values}


@dataclass(frozen=True)
class Pictures:
    """A sheet of equal tiles that a task made: its file, and what to say of each tile, in reading order."""

    file: str
    side: int
    columns: int
    titles: list[str]
    notes: list[str]
    marks: list[str]


@dataclass
class Record:
    """What the JSON file holds. `items` names what the metrics' values belong to, in order."""

    suite: str
    entry: str
    task: str
    model: str
    seed: int
    fingerprint: str
    inputs: dict[str, Any]
    options: dict[str, Any]
    items: list[str]
    metrics: dict[str, dict[str, Any]]
    pictures: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    started: str = ""
    seconds: float = 0.0
    processor_seconds: float = 0.0
    format: int = FORMAT

    @property
    def path(self) -> str:
        """Where the record lies below the folder of records."""
        return os.path.join(self.suite, self.entry, f"{file_name(self.model)}.{self.seed}.json")

    def write(self, folder: Path) -> Path:
        """Writes the record, atomically."""
        path = folder / self.path
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_text(
            path, json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"
        )


def read_record(path: Path) -> Record | None:
    """The record in a file; None where there is none, where it is not whole, or where its format is another."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Record(**data) if data["format"] == FORMAT else None
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def read_records(folder: Path, suite: str) -> list[Record]:
    """All records of a suite, in the order of their paths."""
    found = map(read_record, record_paths(folder, suite))
    return [record for record in found if record is not None]


def record_paths(folder: Path, suite: str) -> list[Path]:
    """The files of a suite's records; not the temporary ones, which begin with a dot."""
    paths = sorted((folder / suite).glob("*/*.json"))
    return [path for path in paths if not path.name.startswith(".")]


def fingerprint(**parts: Any) -> str:
    """A hash of everything that decides a measurement; the same measurement need not be repeated."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


@torch.no_grad()
def weights_hash(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of the weights: what was loaded, whatever file it came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def file_name(key: str) -> str:
    """A model's key or path as one file name: `openai/ViT-B/32` -> `openai-ViT-B-32`."""
    return (
        "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in key).strip(
            ".-"
        )
        or "model"
    )


def environment(device: str) -> dict[str, Any]:
    """The software and the machine, as far as they can change a number or a duration."""
    described = {
        "clipag_plug": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
    }
    if device.startswith("cuda"):
        described["device_name"] = torch.cuda.get_device_name(device)
    return described


def now() -> str:
    """The time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
