"""`clipag generate`: runs the loop, shows its progress, writes what was asked for."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..files import sha256
from ..guide import Guide
from ..images import contact_sheet, read_recipe
from ..options.generate import PRESENTATION, Generate
from ..options.tools import Words
from ..pipelines import output
from ..pipelines.run import Stop, produce, progress
from .loop import Synthesizer
from .results import NotFiniteError, Synthesis

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
    """`clipag generate`; the exit code is that of `pipelines.run.produce`."""
    recipe: dict[str, Any] = {}
    if options.replay:
        recipe = read_recipe(options.replay)
        options = replay_options(recipe, options)
    if options.sheet == "trajectory":
        options = dataclasses.replace(options, frames=max(options.frames, _TRAJECTORY))
    laid = functools.partial(sheet, options.sheet) if options.sheet else output.comparison
    work = functools.partial(draw, stop_at=recipe.get("stopped_after"))
    # Rows of a batch are computed together, so a picture is drawn again with those it was drawn with.
    if recipe and options.prompts == recipe["options"]["prompts"]:
        index = min(recipe.get("index", 0), options.count() - 1)
        return produce(options, functools.partial(work, only=slice(index, index + 1)), laid, 1)
    return produce(options, work, laid)


def draw(
    options: Generate,
    models: Sequence[Guide],
    stop: Stop,
    *,
    stop_at: int | None = None,
    only: slice = slice(None),
) -> list[Synthesis]:
    """The pictures of each model in turn, of each the rows `only`, up to the end, to step `stop_at` or to a signal.

    Raises: KeyboardInterrupt and NotFiniteError, with the pictures so far as `results`.
    """
    found: list[Synthesis] = []
    for guide in models:
        drawing = Synthesizer(options, guide)
        try:
            for step in progress(drawing, drawing.steps, guide.name, hidden=options.quiet):
                stop(step)
                if step.index + 1 == stop_at:
                    break
        except (KeyboardInterrupt, NotFiniteError) as error:
            error.results = found + (drawing.results()[only] if drawing.losses else [])  # type: ignore[union-attr]
            raise
        found += drawing.results()[only]
    return found


def replay_options(recipe: dict[str, Any], given: Generate | None = None) -> Generate:
    """`options_in`, once it is sure that the files which the recipe names have not changed; else ValueError."""
    options, files = options_in(recipe, given), dict(recipe["files"])
    for path in options.files():
        if path in files and sha256(path) != files[path]:
            raise ValueError(
                f"{path!r} has changed since the picture was made; the result would be another"
            )
    return options


def options_in(recipe: dict[str, Any], given: Generate | None = None) -> Generate:
    """The options in a recipe, with what `given` asks for besides: its presentation, and every field of it that is
    not at its default. Opens no file. ValueError where the recipe is not of ours."""
    try:
        values = dict(recipe["options"])
        dict(recipe["files"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError("the recipe is incomplete; it was not written by clipag_plug") from error
    plain = Generate().to_dict()
    for name, value in (given.to_dict() if given else plain).items():
        if name in PRESENTATION or value != plain[name]:
            values[name] = value
    return Generate.from_dict({**values, "replay": None})


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
