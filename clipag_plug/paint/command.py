"""`clipag generate`: runs the loop, shows its progress, writes what was asked for."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import sha256, write_text
from ..guide import Guide
from ..images import contact_sheet, read_recipe, write_animation, write_image
from ..options.generate import PRESENTATION, Generate
from ..options.weights import Words
from ..pipelines.run import Stop, progress
from ..runs import ROOT, new_run
from .loop import Synthesis, Synthesizer
from .objective import NotFiniteError

log = logging.getLogger(__name__)
_FRAMES = 48  # of an animation, where --frames does not say
_TRAJECTORY = 3  # the paper's figure 3 shows the start, one picture on the way and the end


def words(options: Words) -> int:
    """Prints the known things nearest to each text, with their cosines."""
    from .. import clip

    guide = Guide(clip.load_model(options.model, "cpu"))
    features = guide.texts(options.texts)
    rows = {
        text: guide.nearest(feature, options.count)
        for text, feature in zip(options.texts, features, strict=True)
    }
    if options.json:
        print(json.dumps(rows, ensure_ascii=False))
        return 0
    width = max(map(len, rows))
    for text, near in rows.items():
        print(f"{text:{width}}  " + ", ".join(f"{name} {value:.2f}" for name, value in near))
    return 0


def run(options: Generate) -> int:
    """Draws, writes and returns the exit code: 0; 130 after Ctrl-C, 143 after SIGTERM, 1 after a failure of the model
    on the way: then the best pictures so far are written. ValueError for what cannot be done, before drawing."""
    recipe: dict[str, Any] = {}
    if options.replay:
        recipe = read_recipe(options.replay)
        options = replay_options(recipe, options)
    check_targets(options)
    frames = options.frames
    if options.sheet == "trajectory":
        frames = max(frames, _TRAJECTORY)
    elif options.animation or is_folder(options.output):
        frames = frames or _FRAMES
    drawing = Synthesizer(dataclasses.replace(options, frames=frames))
    with Stop() as signals:
        code = draw(drawing, recipe.get("stopped_after"), signals)
        results = drawing.results()
        if recipe and len(results) > 1 and options.prompts == recipe["options"]["prompts"]:
            results = results[recipe["index"] : recipe["index"] + 1]
        if not options.output:
            options.output = str(new_run(results[0].prompt, results[0].seed))
        paths = [str(path) for path in write_results(options, results)]
    painted = [
        {name: getattr(each, name) for name in ("prompt", "seed", "loss", "steps")}
        for each in results
    ]
    content = json.dumps({"files": paths, "pictures": painted}, indent=1, ensure_ascii=False)
    sys.stdout.write((content if options.json else "\n".join(paths)) + "\n")
    return code


def draw(drawing: Synthesizer, stop: int | None = None, signals: Stop | None = None) -> int:
    """Runs to the end, to step `stop` or to a signal, with a bar on a terminal; returns the exit code."""
    signals = signals or Stop()
    try:
        for step in progress(drawing, drawing.steps, hidden=drawing.options.quiet):
            signals(step)
            if step.index + 1 == stop:
                break
    except KeyboardInterrupt:
        signals.holding, done = True, len(drawing.losses)
        log.warning("interrupted after %d of %d steps: the best so far is kept", done, len(drawing))
        return 128 + (signals.asked or signal.SIGINT)
    except NotFiniteError as error:
        log.warning("%s", error)
        return 1
    return 0


def replay_options(recipe: dict[str, Any], given: Generate | None = None) -> Generate:
    """The options in a recipe, with what `given` asks for besides: its presentation, and every field of it that is
    not at its default. ValueError where the recipe is not of ours or a picture it needs has changed."""
    try:
        values, files = dict(recipe["options"]), dict(recipe["files"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("the recipe is incomplete; it was not written by clipag_plug") from error
    plain = Generate().to_dict()
    for name, value in (given.to_dict() if given else plain).items():
        if name in PRESENTATION or value != plain[name]:
            values[name] = value
    options = Generate.from_dict({**values, "replay": None})
    for path in options.files():
        if path in files and sha256(path) != files[path]:
            raise ValueError(
                f"{path!r} has changed since the picture was made; the result would be another"
            )
    return options


def check_targets(options: Generate) -> None:
    """Refuses, before any work, a file that could not be written at the end."""
    output = Path(options.output or ROOT)
    if not is_folder(output) and output.suffix.lower() != ".png":
        raise ValueError(
            f"--output is {options.output!r}; it must end in .png, or be a folder (no suffix)"
        )
    if options.animation and Path(options.animation) == output:
        raise ValueError("--animation and --output name the same file; give two")
    for target in ["" if is_folder(output) else output, options.animation, options.log]:
        if target and not Path(target).parent.is_dir():
            raise FileNotFoundError(
                f"the folder of {str(target)!r} does not exist; create it or choose another"
            )
    folder = output if is_folder(output) else output.parent
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise PermissionError(
            f"the folder {str(parent)!r} cannot be written to; choose another --output"
        )


def write_results(options: Generate, results: Sequence[Synthesis]) -> list[Path]:
    """Writes the pictures and what else was asked for; returns the paths, the pictures first.

    One picture gets the name of --output, several get -1, -2, ... before the suffix. A folder gets
    image.png, recipe.json, steps.csv and progress.webp. With --sheet, --output is the sheet.
    """
    output, folder = Path(options.output), is_folder(options.output)
    recipes = [result.recipe for result in results]
    table, animation = options.log, options.animation
    written: list[Path] = []
    if folder:
        output.mkdir(parents=True, exist_ok=True)
        table, animation = (
            table or str(output / "steps.csv"),
            animation or str(output / "progress.webp"),
        )
    if folder or not options.sheet:
        names = _numbered(output / "image.png" if folder else output, len(results))
        written += [write_image(n, r.image, r.recipe) for n, r in zip(names, results)]
    if folder:
        content = recipes[0] if len(recipes) == 1 else recipes
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        written.append(write_text(output / "recipe.json", text))
    if options.sheet:
        name = output / "sheet.png" if folder else output
        recipe = None if folder else {**recipes[0], "sheet_of": len(results)}
        written.append(write_image(name, sheet(options.sheet, results), recipe))
    if table:
        written.append(write_text(table, curves(results)))
    for name, result in zip(_numbered(Path(animation), len(results)) if animation else [], results):
        if result.frames:
            written.append(write_animation(name, result.frames))
    return written


def sheet(kind: str, results: Sequence[Synthesis]) -> Tensor:
    """The pictures of one run on one sheet (3, H, W).

    kind: trajectory, a row per picture and a column per kept frame (supplement, figure 3); stochasticity, a row per
    prompt and a column per seed (figure 9); contact, the same where a prompt has several seeds, else as square as it
    gets. ValueError for a trajectory without frames.
    """
    if kind == "trajectory":
        frames = [result.frames for result in results]
        if min(map(len, frames)) < 2:
            raise ValueError(
                "a trajectory needs the frames of a finished run; set --frames 2 or more"
            )
        last = len(frames[0]) - 1
        captions = [f"{result.prompt} (seed {result.seed})" for result in results]
        headings = [f"{round(100 * i / last)} %" for i in range(last + 1)]
        return contact_sheet(frames, captions=captions, headings=headings)
    rows: list[list[Synthesis]] = []
    for result in results:
        if rows and rows[-1][0].prompt == result.prompt and result.seed > rows[-1][-1].seed:
            rows[-1].append(result)
        else:
            rows.append([result])
    if kind == "contact" and max(map(len, rows)) == 1:
        columns = round(len(results) ** 0.5 + 0.49)
        images = [result.image for result in results]
        return contact_sheet([images[i : i + columns] for i in range(0, len(images), columns)])
    return contact_sheet(
        [[result.image for result in row] for row in rows],
        captions=[row[0].prompt for row in rows],
        headings=[f"seed {result.seed}" for result in rows[0]],
    )


def curves(results: Sequence[Synthesis]) -> str:
    """CSV with a row per step and picture."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", "prompt", "seed", "loss"])
    for index in range(results[0].steps):
        for result in results:
            writer.writerow([index, result.prompt, result.seed, f"{result.losses[index]:.6f}"])
    return text.getvalue()


def is_folder(output: str | Path) -> bool:
    """Whether --output means a folder: it is one, or has no suffix."""
    return Path(output).is_dir() or not Path(output).suffix


def _numbered(path: Path, count: int) -> list[Path]:
    """`path`, or count of them with -1, -2, ... before the suffix."""
    width = len(str(count))
    numbers = range(1, count + 1)
    return [path] if count == 1 else [path.with_stem(f"{path.stem}-{i:0{width}d}") for i in numbers]
