"""The log of a run: `log.csv` for people and spreadsheets, `log.jsonl` for programs."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .state import replace_file


class Log:
    """Appends one row per step to both files of the folder, and to TensorBoard's where it is asked for.

    after: the step that the run goes on from. Rows of later ones, from a part of the run that was lost or from an
    earlier run in the same folder, are dropped, and so is a row that was not written to its end.
    """

    def __init__(self, folder: Path, tensorboard: bool = False, after: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        _trim(folder / "log.jsonl", "", lambda row: json.loads(row)["index"], after)
        _trim(folder / "log.csv", "index,", lambda row: int(row.split(",")[0]), after)
        self.board = _board(folder, after) if tensorboard else None

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


def _trim(path: Path, header: str, index: Callable[[str], int], after: int) -> None:
    """Keeps the header, where there is one, and the whole rows up to step `after`."""
    if not path.is_file():
        return
    rows = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [row for row in rows if _belongs(row, header, index, after)]
    if len(kept) < len(rows):
        text = "".join(kept)
        replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _belongs(row: str, header: str, index: Callable[[str], int], after: int) -> bool:
    if header and row.startswith(header):
        return True
    try:
        return row.endswith("\n") and index(row) <= after
    except ValueError:
        return False


def _board(folder: Path, after: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("--tensorboard needs tensorboard: pip install tensorboard") from error
    return SummaryWriter(str(folder), purge_step=after + 1)
