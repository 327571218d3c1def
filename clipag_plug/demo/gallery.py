"""The runs and uploads on disk: what the page lists, and the only files of the machine that it can ask for."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..files import write_atomically
from ..pipelines.runs import new_run

RECORD = "run.json"
SIDES = ("a", "b")
MOST_MAPS = 6
JSON_KIND = "application/json"
# A request can name nothing else. They lie in the folder of a side, or of the run.
FILES = {
    "image.png": "image/png",
    "frames.jpg": "image/jpeg",
    "progress.webp": "image/webp",
    "recipe.json": JSON_KIND,
    "steps.csv": "text/csv",
    "drawing.svg": "image/svg+xml",
    "picture.png": "image/png",
    RECORD: JSON_KIND,
    **{f"map-{number}.png": "image/png" for number in range(1, MOST_MAPS + 1)},
}
# What the page reads of a record and of its sides, by type; everything else in the file is left where it is.
RUN_FIELDS = {
    **dict.fromkeys(("kind", "title", "state", "method"), str),
    **dict.fromkeys(("seed", "created", "seconds"), float),
    "texts": list,
    "request": dict,
}
SIDE_FIELDS = {
    **dict.fromkeys(("key", "model", "judge"), str),
    **dict.fromkeys(("loss", "steps", "frames", "columns"), float),
    **dict.fromkeys(("size", "files", "cosines"), list),
}
LARGEST_RECORD = 2**20  # bytes
FORMATS = ("PNG", "JPEG", "WEBP")
LONGEST = 1024  # px; models see 224, and a larger one only costs time


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
            text = json.dumps(record, indent=2, allow_nan=False) + "\n"
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
        stamped = [(_stamp(path), path) for path in self._folders()]
        ordered = sorted(((t, p) for t, p in stamped if t), key=lambda pair: pair[0], reverse=True)
        records = (self._record(path) for _, path in ordered)
        return [record for record in records if record][:most]

    def get(self, run: str) -> dict[str, Any]:
        """The record of one run. FileNotFoundError for anything that is not the name of one."""
        record = self._record(self._folder(run))
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
        found = []
        for side in self.get(run)["sides"]:
            path = self.file(run, *filter(None, [side["key"]]), "recipe.json")
            found.append((side["key"] or "a", _read(path)))
        return found

    def _folders(self) -> list[Path]:
        """The folders that may be runs. A link is none: it may lead anywhere."""
        there = self.root.iterdir() if self.root.is_dir() else ()
        return [
            p for p in there if not p.name.startswith(".") and p.is_dir() and not p.is_symlink()
        ]

    def _folder(self, run: str) -> Path:
        # The id is looked up among the names that are there, never joined to a path.
        for path in self._folders():
            if path.name == run:
                return path
        raise FileNotFoundError("there is no such run; reload the page")

    def _record(self, folder: Path) -> dict[str, Any] | None:
        """What is known of a folder's run; None for a folder that holds none, whatever its files look like."""
        try:
            if (folder / RECORD).is_file():
                return _checked({**_read(folder / RECORD), "id": folder.name})
            if (folder / "image.png").is_file():
                return _checked(_painted_elsewhere(folder, _read(folder / "recipe.json")))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass  # not a run of ours
        return None


def _read(path: Path) -> dict[str, Any]:
    if path.is_symlink() or path.stat().st_size > LARGEST_RECORD:
        raise ValueError("no record")
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("no record")
    return found


def _checked(record: dict[str, Any]) -> dict[str, Any]:
    """The record with the fields that the page reads, each of its type. ValueError for one without sides."""
    sides = [_typed(side, SIDE_FIELDS) for side in record["sides"] if isinstance(side, dict)]
    sides = [side for side in sides if side.get("key") in ("", *SIDES) and "model" in side]
    if not sides or not isinstance(record["title"], str):
        raise ValueError("no sides")
    return {"created": 0.0, **_typed(record, RUN_FIELDS), "id": record["id"], "sides": sides}


def _typed(values: dict[str, Any], fields: dict[str, type]) -> dict[str, Any]:
    found = {}
    for name, kind in fields.items():
        value = values.get(name)
        if kind is float:
            fits = isinstance(value, int | float) and abs(value) < 2**53  # NaN and infinity are not
        else:
            fits = isinstance(value, kind) and _finite(value)
        if fits:
            found[name] = value
    return found


def _finite(value: Any) -> bool:
    """Whether no number in it is NaN or infinite, which JSON does not know."""
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, list):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


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


class UploadError(ValueError):
    """A file that is no picture of ours; `status` is the HTTP status that says why."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Uploads:
    """A folder of pictures, each under the hash of its content. One picture at a time is decoded."""

    def __init__(self, folder: Path, most_bytes: int, most_pixels: int) -> None:
        self.folder, self.most_bytes, self.most_pixels = folder, most_bytes, most_pixels
        self._one_at_a_time = threading.Lock()

    def add(self, data: bytes) -> dict[str, Any]:
        """Checks, decodes and keeps a picture; its id and its size. UploadError where it is none."""
        if len(data) > self.most_bytes:
            raise UploadError(self.too_large(), 413)
        name = hashlib.sha256(data).hexdigest()[:16]
        path = self.folder / f"{name}.png"
        with self._one_at_a_time:
            picture = self.decode(data)
        if not path.is_file():
            write_atomically(
                path, lambda temporary: picture.save(temporary, format="PNG"), parents=True
            )
        return {"id": name, "width": picture.width, "height": picture.height}

    def decode(self, data: bytes) -> Any:
        """An upright RGB picture of at most LONGEST pixels a side. The header is judged before the pixels are read."""
        from PIL import Image

        from ..images import as_rgb  # loads torch, and the page is to open before that

        kinds = "PNG, JPEG or WebP"
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise UploadError(self.too_many_pixels(), 413) from error
        except Exception as error:  # Pillow's parsers raise many things on hostile bytes
            raise UploadError(f"this file is no picture; choose a {kinds}", 415) from error
        if image.width * image.height > self.most_pixels:
            raise UploadError(self.too_many_pixels(image.size), 413)
        if min(image.size) < 8:
            raise UploadError("the picture is smaller than 8 pixels; choose a larger one", 415)
        try:
            image.draft("RGB", (LONGEST, LONGEST))  # JPEG only: decodes at a fraction of the size
            picture = as_rgb(image)
        except Exception as error:
            said = " ".join(str(error).split())
            raise UploadError(
                f"the picture is damaged ({said}); choose a complete {kinds}", 415
            ) from error
        picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
        return Image.frombytes("RGB", picture.size, picture.tobytes())  # nothing but the pixels

    def path(self, name: str) -> Path:
        """The file of an upload. FileNotFoundError for an id that is none, whatever it looks like."""
        path = self.folder / f"{name}.png"
        if not re.fullmatch(r"[0-9a-f]{16}", name) or not path.is_file():
            raise FileNotFoundError("the uploaded picture is gone; choose it again")
        return path

    def too_large(self) -> str:
        return f"the file is larger than {self.most_bytes / 2**20:g} MiB; choose a smaller one"

    def too_many_pixels(self, size: tuple[int, int] | None = None) -> str:
        given = (
            f"the picture has {size[0]} x {size[1]} pixels" if size else "the picture is too big"
        )
        return f"{given}; at most {self.most_pixels / 1e6:g} megapixels are taken: choose a smaller one"
