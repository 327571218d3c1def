"""The runs on disk: what the page lists, and the only files of the machine that it can ask for."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..runs import new_run

RECORD = "run.json"
SIDES = ("a", "b")
MOST_MAPS = 6
# A request can name nothing else. They lie in the folder of a side, or of the run.
FILES = {
    "image.png": "image/png",
    "frames.jpg": "image/jpeg",
    "progress.webp": "image/webp",
    "recipe.json": "application/json; charset=utf-8",
    "steps.csv": "text/csv; charset=utf-8",
    "drawing.svg": "image/svg+xml",
    "picture.png": "image/png",
    RECORD: "application/json; charset=utf-8",
    **{f"map-{number}.png": "image/png" for number in range(1, MOST_MAPS + 1)},
}


class Gallery:
    """Runs below one folder: those of the page (run.json) and those of `clipag generate` (recipe.json)."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def add(self, record: dict[str, Any], write: Callable[[Path], list[dict[str, Any]]]) -> str:
        """Lets `write` fill a folder and describe its sides, then shows the whole run at once; returns its id."""
        self.root.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".making-", dir=self.root))
        try:
            record["sides"] = write(made)
            folder = new_run(record["title"], int(record.get("seed") or 0), self.root)
            record["id"] = folder.name
            text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
            (made / RECORD).write_text(text, encoding="utf-8")
            made.chmod(0o755)
            folder.rmdir()  # it was empty and held the name; not every system renames over it
            made.rename(folder)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        return folder.name

    def runs(self, most: int = 200) -> list[dict[str, Any]]:
        """Records, the newest first."""
        if not self.root.is_dir():
            return []
        found = [path for path in self.root.iterdir() if not path.name.startswith(".")]
        stamped = [(_stamp(path), path) for path in found]
        ordered = sorted(((t, p) for t, p in stamped if t), key=lambda pair: pair[0], reverse=True)
        records = (self._record(path) for _, path in ordered)
        return [record for record in records if record][:most]

    def get(self, run: str) -> dict[str, Any]:
        """The record of one run. FileNotFoundError for anything that is not the name of one."""
        folder = self._folder(run)
        record = self._record(folder)
        if not record:
            raise FileNotFoundError("there is no such run; reload the page")
        return record

    def file(self, run: str, *parts: str) -> Path:
        """`file(run, "a", "image.png")`. FileNotFoundError for everything outside the list in FILES."""
        folder = self._folder(run)
        *side, name = parts or ("",)
        if name not in FILES or len(side) > 1 or not set(side) <= set(SIDES):
            raise FileNotFoundError("there is no such file")
        path = folder.joinpath(*side, name)
        # A link in a run folder may point anywhere; only what lies in the folder is served.
        if not path.is_file() or not path.resolve().is_relative_to(self.root.resolve()):
            raise FileNotFoundError("there is no such file")
        return path

    def recipes(self, run: str) -> list[tuple[str, dict[str, Any]]]:
        """(side, recipe) of each picture of a run, as `clipag generate --from` reads them."""
        sides = [side["key"] for side in self.get(run)["sides"]]
        found = []
        for key in sides:
            path = self.file(run, *filter(None, [key]), "recipe.json")
            found.append((key or "a", json.loads(path.read_text(encoding="utf-8"))))
        return found

    def _folder(self, run: str) -> Path:
        # The id is looked up among the names that are there, never joined to a path.
        for path in self.root.iterdir() if self.root.is_dir() else ():
            if path.name == run and not run.startswith("."):
                return path
        raise FileNotFoundError("there is no such run; reload the page")

    def _record(self, folder: Path) -> dict[str, Any] | None:
        try:
            if (folder / RECORD).is_file():
                record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
                return (
                    {**record, "id": folder.name} if isinstance(record.get("sides"), list) else None
                )
            if not (folder / "image.png").is_file():
                return None
            recipe = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
            return _painted_elsewhere(folder, recipe)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # not a run of ours


def _painted_elsewhere(folder: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    width, _, height = recipe["size"].partition("x")
    side = {"key": "", "model": recipe["options"]["model"], "size": [int(width), int(height)]}
    side["files"] = [name for name in FILES if (folder / name).is_file()]
    return {
        "id": folder.name,
        "kind": "paint",
        "title": recipe["prompt"],
        "seed": recipe["seed"],
        "state": "done" if recipe["stopped_after"] is None else "stopped",
        "created": (folder / "recipe.json").stat().st_mtime,
        "sides": [side],
    }


def _stamp(folder: Path) -> float:
    for name in (RECORD, "recipe.json"):
        try:
            return (folder / name).stat().st_mtime
        except OSError:
            continue
    return 0.0
