"""One JSON a task, model and seed: what was measured, on what, and with which settings."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..files import sha256, slug, write_text
from ..version import __version__

FORMAT = 1
UNITS = ("share", "cosine", "nats", "ratio", "score", "count", "distance")
LOWER_IS_BETTER = ("count", "distance")


@dataclass
class Metric:
    """One score with a value per item.

    Args:
        by: key of the model that scored.
        values: (N,), a tensor or numbers.
        at: the setting of a sweep that it belongs to, as a radius.
        diagnostic: a score that a guide gave to its own work, kept for orientation and never compared.
        better: "higher", "lower" or "neither"; the unit decides where it is empty.
        blocks: for a number of the whole set, the jackknife's blocks of neighbouring items; they are its units.
    Raises: ValueError for an unknown unit, or where an item has no finite value.
    """

    title: str
    unit: str
    by: str
    values: Any
    at: float | None = None
    diagnostic: bool = False
    better: str = ""
    blocks: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.values, torch.Tensor):
            self.values = self.values.tolist()
        if self.unit not in UNITS:
            raise ValueError(f"unit is {self.unit!r}; it must be one of {', '.join(UNITS)}")
        if not self.values or not all(math.isfinite(value) for value in self.values):
            raise ValueError(f"{self.title!r} must have a finite value for every item")

    def to_dict(self) -> dict[str, Any]:
        """The fields with the mean over items."""
        better = self.better or ("lower" if self.unit in LOWER_IS_BETTER else "higher")
        values = [round(value, 7) for value in self.values]
        summary = {"value": sum(self.values) / len(values), "n": len(values)}
        return {**dataclasses.asdict(self), **summary, "better": better, "values": values}


@dataclass
class Record:
    """What the JSON file holds.

    Args:
        items: what the metrics' values belong to, in order.
        drawn: for each factor that was drawn, the unit of each item; empty where every item is a unit.
        inputs: names and SHA-256 of all that was read: weights, photographs, texts, files.
        pictures: a file of equal tiles for each sheet, with a title, a note and a mark for each tile.
    """

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
    drawn: dict[str, list[str]] = field(default_factory=dict)
    pictures: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    started: str = ""  # UTC
    seconds: float = 0.0
    processor_seconds: float = 0.0
    format: int = FORMAT

    @property
    def path(self) -> str:
        """Where the record lies below the folder of records; two models never share a file."""
        name = slug(self.model)
        name += "" if name == self.model else f"-{sha256(self.model.encode())[:8]}"
        return os.path.join(self.suite, self.entry, f"{name}.{self.seed}.json")

    def write(self, folder: Path) -> Path:
        """Writes the record, atomically."""
        text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False, allow_nan=False)
        return write_text(folder / self.path, text + "\n", parents=True)


def read_record(path: Path) -> Record:
    """The record in a file; fields of later versions are left out.
    Raises: FileNotFoundError, or ValueError where the record is truncated, of another format, or holds a value that is
    no finite number."""
    known = {each.name for each in dataclasses.fields(Record)}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        record = Record(**{key: value for key, value in data.items() if key in known})
        columns = [metric["values"] for metric in record.metrics.values()]
        whole = all(len(column) == len(record.items) for column in columns)
        values = [value for column in columns for value in column]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{str(path)!r} is no whole record: {error}; measure it again") from error
    wrong = ""
    if record.format != FORMAT:
        wrong = f"has format {record.format}, not {FORMAT}; update, or run again"
    elif not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        wrong = "holds a value that is no finite number; measure it again"
    elif not whole:
        wrong = "lacks values of some of its items; measure it again"
    if wrong:
        raise ValueError(f"{str(path)!r} {wrong}")
    return record


def read_records(folder: Path, suite: str) -> tuple[list[Record], list[str]]:
    """All records of a suite in the order of their paths, and what is wrong with the files that are none."""
    found, problems = [], []
    for path in sorted((folder / suite).glob("*/[!.]*.json")):
        try:
            found.append(read_record(path))
        except ValueError as error:
            problems.append(str(error))
    return found, problems


def tiles(record: Record, key: str, folder: Path) -> list[Any]:
    """The pictures of a sheet, cut out of its file as PIL pictures."""
    from PIL import Image

    sheet = record.pictures[key]
    side, columns = sheet["side"], sheet["columns"]
    with Image.open((folder / record.path).parent / sheet["file"]) as atlas:
        corners = [(n % columns * side, n // columns * side) for n in range(len(sheet["titles"]))]
        return [atlas.crop((left, top, left + side, top + side)) for left, top in corners]


def fingerprint(**parts: Any) -> str:
    """A hash of everything that decides a measurement; the same measurement need not be repeated."""
    return sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode())


@torch.no_grad()
def weights_hash(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of the weights: what was loaded, whatever file it came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
