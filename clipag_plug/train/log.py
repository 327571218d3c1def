"""The log of a run: `log.csv` for people and spreadsheets, `log.jsonl` for programs."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any


class Log:
    """Appends one row per step to both files of the folder, and to TensorBoard's where it is asked for."""

    def __init__(self, folder: Path, tensorboard: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.board = _board(folder) if tensorboard else None

    def write(self, step: Any) -> None:
        """step: a dataclass; nested ones are flattened into the CSV with a dotted name."""
        record = dataclasses.asdict(step)
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        flat = {
            **{k: v for k, v in record.items() if k != "evaluation"},
            "clean": (record["evaluation"] or {}).get("clean"),
            "robust": (record["evaluation"] or {}).get("robust"),
        }
        path = self.folder / "log.csv"
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(flat))
            if new:
                writer.writeheader()
            writer.writerow(flat)
        if self.board is not None:
            for name, value in flat.items():
                if value is not None and name != "index":
                    self.board.add_scalar(name, value, record["index"])
            self.board.flush()


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("--tensorboard needs tensorboard: pip install tensorboard") from error
    return SummaryWriter(str(folder))
