"""`clipag generate`: runs the loop, shows its progress, writes what was asked for."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..files import write_text
from ..images import read_recipe, write_animation, write_image
from ..options.generate import Generate
from ..runs import ROOT, new_run
from .loop import Step, Synthesis, Synthesizer
from .objective import NotFiniteError
from .recipes import replay_options
from .sheets import TRAJECTORY, sheet

log = logging.getLogger(__name__)
_FRAMES = 48  # of an animation, where --frames does not say
_PREVIEW = "progress.webp"


def run(options: Generate) -> int:
    """Draws, writes and returns the exit code: 0, or 130 after Ctrl-C, 1 after a failure of the model on the
    way; in both cases the best pictures so far are written. ValueError for what cannot be done, before drawing."""
    recipe: dict[str, Any] = {}
    if options.replay:
        recipe = read_recipe(options.replay)
        options = replay_options(recipe, options)
    options = with_frames(options)
    if options.output:
        check_targets(options)
    else:
        check_targets(dataclasses.replace(options, output=ROOT))
    drawing = Synthesizer(options)
    code = draw(drawing, recipe.get("stopped_after"))
    results = drawing.results()
    if recipe and len(results) > 1 and options.prompts == recipe["options"]["prompts"]:
        results = results[recipe["index"] : recipe["index"] + 1]
    if not options.output:
        folder = new_run(results[0].prompt, results[0].seed)
        options = dataclasses.replace(options, output=str(folder))
    report(options, results, write_results(options, results))
    return code


def report(options: Generate, results: Sequence[Synthesis], paths: Sequence[Path]) -> None:
    """Prints the paths, the pictures first, or with --json what was painted too."""
    if not options.json:
        sys.stdout.writelines(f"{path}\n" for path in paths)
        return
    painted = [
        {"prompt": each.prompt, "seed": each.seed, "loss": each.loss, "steps": each.steps}
        for each in results
    ]
    content = {"files": [str(path) for path in paths], "pictures": painted}
    sys.stdout.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def draw(drawing: Synthesizer, stop: int | None = None) -> int:
    """Runs to the end, or to step `stop`, with a bar on a terminal; returns the exit code."""
    try:
        for step in _progress(drawing, drawing.steps, drawing.options.quiet):
            if stop is not None and step.index + 1 >= stop:
                break
    except KeyboardInterrupt:
        log.warning(
            "interrupted after %d of %d steps: the best so far is kept",
            len(drawing.losses),
            drawing.steps,
        )
        return 130
    except NotFiniteError as error:
        log.warning("%s", error)
        return 1
    return 0


def _progress(steps: Iterable[Step], total: int, quiet: bool = False) -> Iterable[Step]:
    from tqdm.auto import tqdm

    hidden = quiet or not sys.stderr.isatty()
    with tqdm(total=total, file=sys.stderr, disable=hidden, unit="step") as bar:
        for step in steps:
            bar.set_postfix_str(f"loss {step.losses.mean():.4f}", refresh=False)
            bar.update()
            yield step


def with_frames(options: Generate) -> Generate:
    """The options with enough frames for the animation or the trajectory they ask for."""
    wanted = options.frames
    if not wanted and (options.animation or not options.output or is_folder(options.output)):
        wanted = _FRAMES
    if options.sheet == "trajectory":
        wanted = max(options.frames, TRAJECTORY)
    return dataclasses.replace(options, frames=wanted)


def check_targets(options: Generate) -> None:
    """Refuses, before any work, a file that could not be written at the end."""
    output = Path(options.output)
    if not is_folder(options.output) and output.suffix.lower() != ".png":
        raise ValueError(
            f"--output is {options.output!r}; it must end in .png, or be a folder (no suffix)"
        )
    if options.animation and Path(options.animation) == output:
        raise ValueError("--animation and --output name the same file; give two")
    targets = [options.output] if not is_folder(options.output) else []
    for target in [*targets, options.animation, options.log]:
        if target and not Path(target).parent.is_dir():
            raise FileNotFoundError(
                f"the folder of {target!r} does not exist; create it or choose another"
            )
    parent = output.parent if not is_folder(options.output) else _existing(output)
    if not _writable(parent):
        raise PermissionError(
            f"the folder {str(parent)!r} cannot be written to; choose another --output"
        )


def write_results(options: Generate, results: Sequence[Synthesis]) -> list[Path]:
    """Writes the pictures and what else was asked for; returns the paths, the pictures first.

    One picture gets the name of --output, several get -1, -2, ... before the suffix. A folder gets
    image.png, recipe.json, steps.csv and progress.webp. With --sheet, --output is the sheet.
    """
    output = Path(options.output)
    folder = is_folder(options.output)
    if folder:
        output.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    if options.sheet and not folder:
        written.append(write_image(output, sheet(options.sheet, results), sheet_recipe(results)))
    else:
        for name, result in zip(
            _names(output / "image.png" if folder else output, len(results)), results
        ):
            written.append(write_image(name, result.image, result.recipe))
    if folder:
        recipes = [result.recipe for result in results]
        text = json.dumps(
            recipes[0] if len(recipes) == 1 else recipes, indent=2, ensure_ascii=False
        )
        written.append(write_text(output / "recipe.json", text + "\n"))
        if options.sheet:
            written.append(write_image(output / "sheet.png", sheet(options.sheet, results)))
    table = options.log or (output / "steps.csv" if folder else None)
    if table:
        written.append(write_text(table, curves(results)))
    animation = options.animation or (str(output / _PREVIEW) if folder else None)
    if animation:
        for name, result in zip(_names(Path(animation), len(results)), results):
            if result.frames:
                written.append(write_animation(name, result.frames))
    return written


def sheet_recipe(results: Sequence[Synthesis]) -> dict[str, Any]:
    """The recipe of the first picture, which names the options of all."""
    return {**results[0].recipe, "sheet_of": len(results)}


def curves(results: Sequence[Synthesis]) -> str:
    """CSV with a row per step and picture."""
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", "prompt", "seed", "loss"])
    for index in range(max(len(result.losses) for result in results)):
        for result in results:
            writer.writerow([index, result.prompt, result.seed, f"{result.losses[index]:.6f}"])
    return text.getvalue()


def is_folder(output: str) -> bool:
    """Whether --output means a folder: it is one, or has no suffix."""
    return Path(output).is_dir() or not Path(output).suffix


def _names(path: Path, count: int) -> list[Path]:
    if count == 1:
        return [path]
    width = len(str(count))
    return [path.with_stem(f"{path.stem}-{number:0{width}d}") for number in range(1, count + 1)]


def _existing(folder: Path) -> Path:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _writable(folder: Path) -> bool:
    import os

    return folder.is_dir() and os.access(folder, os.W_OK)
