"""Where the pictures of a command go: one file, one for each, a sheet, or a run folder; nothing is lost unasked."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import write_text
from ..images import contact_sheet, read_recipe, write_animation, write_image

log = logging.getLogger(__name__)
SUFFIXES = {"output": (".png",), "animation": (".gif", ".webp", ".png", ".mp4"), "svg": (".svg",)}


def is_folder(path: str) -> bool:
    """Whether --output means a folder: it has no suffix, or is one."""
    return not Path(path).suffix or Path(path).is_dir()


def check_suffixes(options: Any) -> None:
    """Raises: ValueError for a name that does not say a format, FileNotFoundError for a folder that is not there."""
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
    if given["animation"] and given["animation"] == given["output"]:
        raise ValueError("--animation and --output name the same file; give two")


def files(options: Any, models: Sequence[str]) -> dict[str, list[Path]]:
    """The files to write, by what they hold, for pictures in the order of `perform`.

    Names get -1, -2, ... where there are several prompts or seeds, and the model's where there are two.
    """
    output, folder = Path(options.output), is_folder(options.output)
    each = len(options.prompts) * options.variations
    counts = [f"-{n:0{len(str(each))}d}" for n in range(1, each + 1)] if each > 1 else [""]
    tags = [f"-{model}{n}" if models[1:] else n for model in models for n in counts]

    def all_of(path: Path) -> list[Path]:
        return [path.with_stem(path.stem + tag) for tag in tags]

    found: dict[str, list[Path]] = {}
    if models[1:]:
        found["sheet"] = [output / "sheet.png" if folder else output]
    if folder or not models[1:]:
        found["picture"] = all_of(output / "image.png" if folder else output)
    for name, usual in (("animation", "progress.webp"), ("svg", "drawing.svg")):
        path = getattr(options, name, None)
        if path or (folder and hasattr(options, name)):
            found[name] = all_of(Path(path or output / usual))
    if folder:
        found |= {"recipe": [output / "recipe.json"], "steps": [output / "steps.csv"]}
    return found


def check_files(targets: dict[str, list[Path]], overwrite: bool) -> None:
    """Raises: ValueError for a file that is no picture of ours, and does not lie in a run folder beside one."""
    taken, ours = [], []
    for path in (path for paths in targets.values() for path in paths):
        if path.parent.is_file():
            raise ValueError(f"--output {str(path.parent)!r} is a file; give a .png or a folder")
        if path.exists():
            taken.append(path)
            with contextlib.suppress(ValueError, OSError):
                ours += [path] if read_recipe(path) else []
    others = [path for path in taken if path not in ours]
    if others and not overwrite and not (ours and "recipe" in targets):
        raise ValueError(
            f"{str(others[0])!r} exists and is no picture of clipag_plug; choose another name, or add --overwrite"
        )
    for path in taken:
        log.info("%s is replaced", path)


def write(works: Sequence[Any], targets: dict[str, list[Path]]) -> list[Path]:
    """Writes artworks and returns the paths, the picture or the sheet first."""
    recipes = [work.recipe for work in works]
    if "recipe" in targets:
        targets["recipe"][0].parent.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for kind, paths in targets.items():
        if kind == "sheet":
            models = list(dict.fromkeys(work.model for work in works))
            columns = [[work for work in works if work.model == model] for model in models]
            rows = [
                [col[i].image for col in columns if i < len(col)] for i in range(len(columns[0]))
            ]
            captions = [work.prompt for work in columns[0]]
            sheet = contact_sheet(rows, captions=captions, headings=models)
            write_image(paths[0], sheet, {**recipes[-1], "sheet_of": len(works)})
        elif kind == "recipe":
            text = json.dumps(recipes if works[1:] else recipes[0], indent=2, ensure_ascii=False)
            write_text(paths[0], text + "\n")
        elif kind == "steps":
            write_text(paths[0], curves(works))
        for path, work in zip(paths, works):
            if kind == "animation":
                write_animation(path, work.frames or [work.image])
            elif kind in ("picture", "svg"):
                work.save(path)
        written += paths[: len(works)]
    return written


def curves(works: Sequence[Any]) -> str:
    """CSV with a row per step and picture."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["step", "prompt", "model", "seed", "loss"])
    for work in works:
        for index, loss in enumerate(work.losses):
            table.writerow([index, work.prompt, work.model, work.seed, f"{loss:.6f}"])
    return text.getvalue()


def report(works: Sequence[Any], paths: Sequence[Path], as_json: bool) -> None:
    """Prints the paths, the pictures first, or as JSON what was made too."""
    lines = [str(path) for path in paths]
    if as_json:
        made = [
            {"prompt": work.prompt, "model": work.model, "seed": work.seed}
            | {"loss": work.losses[-1] if work.losses else None, "steps": len(work.losses)}
            for work in works
        ]
        lines = [json.dumps({"files": lines, "pictures": made}, indent=1, ensure_ascii=False)]
    encoding = sys.stdout.encoding or "utf-8"  # a code page lacks letters that file names have
    for line in lines:
        sys.stdout.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
