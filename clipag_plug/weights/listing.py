"""`clipag models`: the registry as a table or as JSON. Imports no torch."""

from __future__ import annotations

import json
import os
from importlib import resources
from pathlib import Path

from ..options.models import Models
from . import cache, registry
from .registry import Checkpoint, training

_HEADER = ("model", "architecture", "activation", "training", "licence", "weights")
_ACTIVATION = {True: "QuickGELU", False: "GELU", None: "in its config"}


def run(options: Models) -> int:
    """Prints the models whose name fits the pattern; ValueError when none does."""
    records = registry.match(options.pattern) if options.pattern else registry.checkpoints()
    if options.json:
        rows = [{**record.to_dict(), "weights": whereabouts(record)} for record in records]
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        print(table(records))
    return 0


def table(records: list[Checkpoint]) -> str:
    """A fixed-width table, one line a model."""
    rows = [
        (
            record.key,
            record.arch or "?",
            _ACTIVATION[record.quick_gelu],
            training(record),
            record.licence or "not stated",
            whereabouts(record),
        )
        for record in records
    ]
    widths = [max(map(len, column)) for column in zip(_HEADER, *rows, strict=True)]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        for row in (_HEADER, *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)


def whereabouts(record: Checkpoint) -> str:
    """Where the weights are now: bundled, cached, or what a first load would download from."""
    if record.bundled:
        there = (
            resources.files("clipag_plug.bundled").joinpath(f"{record.key}.safetensors").is_file()
        )
        return "bundled" if there else "missing"
    if cache.converted(record.key).is_file():
        return "cached"
    hubs = [
        source.removeprefix("hf-hub:") for source in record.sources if source.startswith("hf-hub:")
    ]
    if any(
        (_hub_cache() / f"models--{name.replace('/', '--')}" / "snapshots").is_dir()
        for name in hubs
    ):
        return "cached"
    if not record.sources:
        return "by hand"
    if hubs:
        return "hub"
    return f"{record.size / 1e6:,.0f} MB" if record.size else "url"


def _hub_cache() -> Path:
    home = (
        os.environ.get("HF_HOME")
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    )
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
