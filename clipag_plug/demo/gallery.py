"""The runs and uploads on disk: what the page lists, and the only files of the machine that it can ask for."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..files import halved
from ..pipelines.runs import new_run, tags
from .requests import KINDS, MOST_MAPS, read

RECORD = "run.json"
SIDES = ("a", "b", "c", "d")
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
    "sheet.png": "image/png",
    RECORD: JSON_KIND,
    **{f"map-{number}.png": "image/png" for number in range(1, MOST_MAPS + 1)},
}
# Of a command that made several pictures: image-2.png, image-clip-mini-2.png.
SEVERAL = re.compile(r"image(-[\w.@+]{1,60}){1,5}\.png")
STAR, DELETED = ".starred", ".deleted"
# What the page reads of a record and of its sides, by type; everything else in the file is left where it is.
RUN_FIELDS = {
    **dict.fromkeys(("kind", "title", "state", "method"), str),
    **dict.fromkeys(("seed", "created", "seconds"), float),
    "texts": list,
    "starred": bool,
}
SIDE_FIELDS = {
    **dict.fromkeys(("key", "model", "judge", "image", "shown"), str),
    **dict.fromkeys(("loss", "steps", "frames", "columns", "seed"), float),
    **dict.fromkeys(("size", "files", "cosines"), list),
}
LARGEST_RECORD, LARGEST_RECIPE = 2**16, 2**20  # bytes


class Gallery:
    """Runs below one folder: those of the page (run.json) and those of the commands that paint (recipe.json)."""

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
        return list(itertools.islice(filter(None, records), most))

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
        named = name in FILES or SEVERAL.fullmatch(name)
        if not named or len(side) > 1 or not set(side) <= set(SIDES):
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
            found.append((side["key"] or "a", _read(path, LARGEST_RECIPE)))
        return found

    def star(self, run: str, on: bool) -> None:
        """Marks a run as liked, or no longer."""
        mark = self._folder(run) / STAR
        if on:
            mark.touch()
        else:
            mark.unlink(missing_ok=True)

    def delete(self, run: str) -> str:
        """Takes a run out of the gallery; returns where it is kept, so that nothing is lost by a slip."""
        folder = self._folder(run)
        if not self._record(folder):
            raise FileNotFoundError("there is no such run; reload the page")
        kept = self.root / DELETED / run
        kept.parent.mkdir(exist_ok=True)
        if kept.exists():  # one of that name was deleted before
            kept.rename(tempfile.mkdtemp(prefix=f"{run}-", dir=kept.parent) + "/earlier")
        folder.rename(kept)
        return str(kept)

    def restore(self, run: str) -> str:
        """Brings a deleted run back."""
        there = self.root / DELETED
        kept = next((p for p in (there.iterdir() if there.is_dir() else ()) if p.name == run), None)
        if kept is None or kept.is_symlink() or (self.root / run).exists():
            raise FileNotFoundError("this run cannot be brought back")
        kept.rename(self.root / run)
        return run

    def archive(self, runs: Sequence[str] | None = None) -> Path:
        """A new ZIP file with everything of these runs, or of all; whoever asks for it removes it."""
        chosen = [run["id"] for run in self.runs(most=10_000)] if runs is None else list(runs)
        if not chosen or not all(map(self.get, chosen)):
            raise FileNotFoundError("there is nothing to download yet")
        handle, name = tempfile.mkstemp(".zip")
        try:
            with (
                os.fdopen(handle, "wb") as file,
                zipfile.ZipFile(file, "w", strict_timestamps=False) as archive,
            ):
                for run in chosen:
                    for path in sorted(self.root.joinpath(run).glob("**/*.*")):
                        parts = path.relative_to(self.root / run).parts
                        with contextlib.suppress(FileNotFoundError):  # not one of ours
                            archive.write(self.file(run, *parts), Path(run, *parts))
        except BaseException:
            os.unlink(name)
            raise
        return Path(name)

    def _folders(self) -> list[Path]:
        """Folders that may be runs. A link is none, which may lead anywhere, nor a name that no address can hold."""
        there = self.root.iterdir() if self.root.is_dir() else ()
        named = (p for p in there if not p.name.startswith(".") and not halved(p.name))
        return [p for p in named if p.is_dir() and not p.is_symlink()]

    def _folder(self, run: str) -> Path:
        # The id is looked up among the names that are there, never joined to a path.
        for path in self._folders():
            if path.name == run:
                return path
        raise FileNotFoundError("there is no such run; reload the page")

    def _record(self, folder: Path) -> dict[str, Any] | None:
        """What is known of a folder's run; None for a folder that holds none, whatever its files look like."""
        known = {"id": folder.name, "starred": (folder / STAR).exists()}
        try:
            if (folder / RECORD).is_file():
                return _checked(folder, {**_read(folder / RECORD), **known})
            if (folder / "recipe.json").is_file():
                recipes = _read(folder / "recipe.json", LARGEST_RECIPE)
                listed = recipes if isinstance(recipes, list) else [recipes]
                return _checked(folder, {**_painted_elsewhere(folder, listed), **known})
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            pass  # not a run of ours
        return None


def _read(path: Path, most: int = LARGEST_RECORD) -> Any:
    if path.is_symlink() or not path.is_file() or path.stat().st_size > most:
        raise ValueError("no record")
    return json.loads(path.read_text(encoding="utf-8"))


def kind_of(name: str) -> str:
    """The media type of a file of a run."""
    return FILES.get(name, "image/png")


def _checked(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The record with what the page relies on, each field of its shape. ValueError for one without title or picture."""
    about = {"created": 0.0, "kind": "paint", **_typed(record, RUN_FIELDS)}
    if about["kind"] not in KINDS:
        about["kind"] = "paint"
    with contextlib.suppress(ValueError):
        about["request"] = read(about["kind"], record.get("request")).to_dict()
    texts = [_whole(text) for text in about.pop("texts", []) if isinstance(text, str)][:MOST_MAPS]
    explained = about["kind"] == "explain"
    if explained:
        about["texts"] = texts
    sides = [_side(folder, side, len(texts) if explained else 0) for side in record["sides"]]
    sides = [side for side in sides if side]
    whole = not explained or (texts and (folder / "picture.png").is_file())
    if not (sides and whole and "title" in about):
        raise ValueError("no pictures")
    return {**about, "id": record["id"], "sides": sides[: len(SIDES)]}


def _side(folder: Path, values: Any, maps: int) -> dict[str, Any] | None:
    """What the page relies on of one side; None where a picture is missing, or one of its `maps`."""
    side = _typed(values, SIDE_FIELDS) if isinstance(values, dict) else {}
    if side.get("key") not in ("", *SIDES) or "model" not in side:
        return None
    place, image = folder / side["key"], side.get("image", "image.png")
    pictures = [f"map-{number}.png" for number in range(1, maps + 1)] or [image]
    if not (image in FILES or SEVERAL.fullmatch(image)):
        return None
    if not all((place / name).is_file() for name in pictures):
        return None
    side["files"] = [
        name for name in FILES if name in side.get("files", ()) and (place / name).is_file()
    ]
    cosines = [
        each if _typed({"loss": each}, SIDE_FIELDS) else None for each in side.pop("cosines", [])
    ]
    if maps:
        side["cosines"] = [*cosines, *[None] * maps][:maps]
    size, frames = side.pop("size", None), side.pop("frames", 0)
    if size and len(size) == 2 and all(type(each) is int and 0 < each < 2**15 for each in size):
        side["size"] = size
        if frames > 1 and side.get("columns", 0) >= 1 and "frames.jpg" in side["files"]:
            side["frames"] = frames
    return side


def _typed(values: dict[str, Any], fields: dict[str, type]) -> dict[str, Any]:
    found = {}
    for name, kind in fields.items():
        value: Any = values.get(name)
        if kind is float:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            fits = number and abs(value) < 2**53  # NaN and infinity are not
        else:
            fits = isinstance(value, kind) and _finite(value)
        if fits:
            found[name] = _whole(value) if kind is str else value
    return found


def _whole(text: str) -> str:
    """The text with a question mark for half a character, which no address can hold."""
    return text.encode(errors="replace").decode()


def _finite(value: Any) -> bool:
    """Whether no number in it is NaN or infinite, which JSON does not know."""
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, list):
        return all(map(_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _painted_elsewhere(folder: Path, recipes: list[dict[str, Any]]) -> dict[str, Any]:
    """The record of what a command made; the names of its pictures are those that `pipelines.output.files` gives."""
    first, models = recipes[0], [recipe["options"]["model"] for recipe in recipes]
    names = [f"image{tag}.png" for tag in tags([Path(model).name for model in models])]
    sides = [
        {"key": "", "image": name, "model": model, "seed": recipe.get("seed")}
        | {"shown": recipe.get("shown")}
        for name, model, recipe in zip(names, models, recipes)
        if (folder / name).is_file()
    ]
    if len(recipes) == 1:
        sides[0]["files"] = [name for name in FILES if (folder / name).is_file()]
    kind = {"ClipDraw": "draw", "Style": "style"}.get(first.get("job", ""), "paint")
    return {
        "kind": kind,
        "title": first["prompt"],
        "seed": first["seed"],
        "state": "done" if first["stopped_after"] is None else "stopped",
        "created": (folder / "recipe.json").stat().st_mtime,
        "sides": sides,
    }


def _stamp(folder: Path) -> float:
    for name in (RECORD, "recipe.json"):
        try:
            return (folder / name).stat().st_mtime
        except OSError:
            continue
    return 0.0
