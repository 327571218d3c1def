"""Where the pictures of a command go: one file, one for each, a sheet, or a run folder; nothing is lost unasked."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..files import readable, write_text
from ..images import contact_sheet, mp4_writer, refuse_taken, write_animation, write_image
from .runs import ROOT, new_run, tags

if TYPE_CHECKING:
    from ..paint.results import Synthesis

SUFFIXES = {
    "output": (".png",),
    "animation": (".gif", ".webp", ".png", ".mp4"),
    "svg": (".svg",),
    "log": (".csv",),
}


def is_folder(path: str | Path) -> bool:
    """Whether --output means a folder: it has no suffix, or is one."""
    return not Path(path).suffix or Path(path).is_dir()


def check(options: Any, targets: dict[str, list[Path]]) -> None:
    """Refuses, before any work, what could not be written at the end, or would replace what is not ours.
    Raises: ValueError for a name that does not say a format and for a file that is no picture of ours,
    FileNotFoundError for a folder that is not there, PermissionError for one that may not be written to."""
    given = {name: getattr(options, name, None) for name in SUFFIXES}
    for name, path in given.items():
        if not path or (name == "output" and is_folder(path)):
            continue
        if Path(path).suffix.lower() not in SUFFIXES[name]:
            also = ", or be a folder (no suffix)" if name == "output" else ""
            raise ValueError(
                f"--{name} is {path!r}; it must end in {' or '.join(SUFFIXES[name])}{also}"
            )
        if not Path(path).parent.is_dir():
            raise FileNotFoundError(
                f"the folder of {path!r} does not exist; create it or choose another"
            )
    if str(given["animation"]).lower().endswith(".mp4"):
        mp4_writer()
    if given["animation"] and given["animation"] == given["output"]:
        raise ValueError("--animation and --output name the same file; give two")
    taken = [path for paths in targets.values() for path in paths]
    refuse_taken(taken, overwrite=options.overwrite, folder="recipe" in targets)


def files(options: Any, models: Sequence[str], each: int) -> dict[str, list[Path]]:
    """The files to write, by what they hold, for `each` pictures a model, model after model.
    Names get -1, -2, ... where there are several pictures, and the model's where there are two. Without --output they
    lie in a folder that is yet to be named."""
    output = Path(options.output or f"{ROOT}/new")
    folder, several = is_folder(output), tags([model for model in models for _ in range(each)])

    def all_of(path: Path) -> list[Path]:
        return [path.with_stem(path.stem + tag) for tag in several]

    found: dict[str, list[Path]] = {}
    sheet = bool(models[1:] or getattr(options, "sheet", None))
    if sheet:
        found["sheet"] = [output / "sheet.png" if folder else output]
    if folder or not sheet:
        found["picture"] = all_of(output / "image.png" if folder else output)
    for name, usual in (("animation", "progress.webp"), ("svg", "drawing.svg")):
        path = getattr(options, name, None)
        if path or (folder and hasattr(options, name)):
            found[name] = all_of(Path(path or output / usual))
    table = getattr(options, "log", None)
    if folder:
        found["recipe"], table = [output / "recipe.json"], table or output / "steps.csv"
    if table:
        found["steps"] = [Path(table)]
    return found


def comparison(works: Sequence[Synthesis]) -> Tensor:
    """A sheet (3, H, W) with a column for each model."""
    models = list(dict.fromkeys(work.model for work in works))
    columns = [[work for work in works if work.model == model] for model in models]
    rows = itertools.zip_longest(*([work.image for work in column] for column in columns))
    captions = [work.prompt for work in columns[0]]
    return contact_sheet([*map(list, rows)], captions=captions, headings=models)


def write(
    works: Sequence[Synthesis],
    targets: dict[str, list[Path]],
    sheet: Callable[[Sequence[Synthesis]], Tensor] = comparison,
    shown: int = 0,
) -> list[Path]:
    """Writes the works and returns the paths, the picture or the sheet first.
    shown: short side to which smaller pictures are enlarged; a sheet has them as they were made."""
    made, works = works, [work.enlarged(shown) for work in works]
    recipes = [work.recipe for work in works]
    if "recipe" in targets:
        targets["recipe"][0].parent.mkdir(parents=True, exist_ok=True)
    for kind, (first, *_) in targets.items():
        if kind == "sheet":
            write_image(first, sheet(made), {**recipes[-1], "sheet_of": len(works)})
        elif kind == "recipe":
            text = readable(recipes if works[1:] else recipes[0], indent=2)
            write_text(first, text + "\n")
        elif kind == "steps":
            write_text(first, curves(works))
        for path, work in zip(targets[kind], works):
            if kind == "animation":
                write_animation(path, work.frames or [work.image])
            elif kind in ("picture", "svg"):
                work.save(path)
    return [path for paths in targets.values() for path in paths[: len(works)]]


def rescue(works: Sequence[Synthesis]) -> str:
    """Writes the pictures where there is room, and says where, when they could not be written as they should."""
    for root in (ROOT, f"{tempfile.gettempdir()}/clipag-{ROOT}"):
        with contextlib.suppress(OSError):
            folder = new_run(works[0].prompt, works[0].seed, root)
            for path, work in zip(
                files(SimpleNamespace(output=folder), [""], len(works))["picture"], works
            ):
                work.save(path)
            return f"what was made is kept in {str(folder)!r}"
    return "what was made could not be kept anywhere"


def curves(works: Sequence[Synthesis]) -> str:
    """CSV with a row per step and picture."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["step", "prompt", "model", "seed", "loss"])
    for work in works:
        for index, loss in enumerate(work.losses):
            table.writerow([index, work.prompt, work.model, work.seed, f"{loss:.6f}"])
    return text.getvalue()


def report(works: Sequence[Synthesis], paths: Sequence[Path], as_json: bool) -> None:
    """Prints the paths, the pictures first, or as JSON what was made too."""
    lines = [str(path) for path in paths]
    if as_json:
        names = ("prompt", "model", "seed", "loss", "steps")
        made = [{name: getattr(work, name) for name in names} for work in works]
        for each in made:
            each["loss"] = each["loss"] if math.isfinite(each["loss"]) else None
        lines = [json.dumps({"files": lines, "pictures": made}, indent=1, ensure_ascii=False)]
    sys.stdout.write("\n".join(lines) + "\n")
