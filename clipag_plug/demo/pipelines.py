"""Drawing and restyling for the page: CLIPDraw's strokes and CLIPStyler's network, two models in turn."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_text
from ..images import read_image, write_animation, write_image
from ..options.clipdraw import ClipDraw
from ..options.style import Style
from ..pipelines.common import Run
from .gallery import SIDES
from .jobs import Job
from .painting import show, take_turns, write_frames
from .requests import Draw, Restyle

if TYPE_CHECKING:
    from .studio import Studio

FRAMES = 33
SHORT = 128  # px, short side of a restyled picture: what the preset asks for, in the picture's own aspect


def work(studio: Studio, job: Job, request: Draw | Restyle) -> str:
    """Draws or restyles, keeps pictures, strokes and trajectory; returns the id of the run."""
    started = time.monotonic()
    runs: dict[str, Run] = {}
    for side, model in zip(SIDES, request.models):
        make = _drawing if isinstance(request, Draw) else _styling
        runs[side] = make(studio, request, model)
        show(job, side, runs[side].picture(), 0)
    take_turns(job, runs, lambda run: run.picture())

    def write(folder: Path) -> list[dict[str, Any]]:
        return [_write_side(folder / side, side, run) for side, run in runs.items()]

    kind = "draw" if isinstance(request, Draw) else "style"
    record = {"kind": kind, "title": request.prompt.strip(), "seed": request.seed}
    return studio.keep(job, {**record, "request": request.to_dict()}, started, write)


def _drawing(studio: Studio, request: Any, model: str) -> Run:
    from ..pipelines.drawing import Drawing

    options = ClipDraw(
        prompts=[request.prompt.strip()],
        model=model,
        preset="demo",
        seed=request.seed,
        steps=request.steps,
        strokes=request.strokes,
        frames=FRAMES,
        device=studio.device or None,
    )
    return Drawing(options.resolved(), studio.guide(model), options.prompts[0])


def _styling(studio: Studio, request: Any, model: str) -> Run:
    from ..pipelines.content import content_network
    from ..pipelines.styling import Styling

    path = studio.picture(request.picture)
    picture = read_image(path)
    height, width = picture.shape[-2:]
    scale = SHORT / min(height, width)
    longest = 4 * SHORT  # a panorama is cut centrally
    size = f"{min(round(width * scale), longest)}x{min(round(height * scale), longest)}"
    options = Style(
        prompts=[request.prompt.strip()],
        image=str(path),
        model=model,
        preset="demo",
        seed=request.seed,
        steps=request.steps,
        size=size,
        frames=FRAMES,
        device=studio.device or None,
    ).resolved()
    guide = studio.guide(model)
    network = content_network(options.features, guide.device, options.vgg)
    return Styling(options, guide, options.prompts[0], picture, network)


def _write_side(place: Path, side: str, run: Run) -> dict[str, Any]:
    work = run.result()
    place.mkdir()
    write_image(place / "image.png", work.image, work.recipe)
    if work.svg is not None:
        write_text(place / "drawing.svg", work.svg)
    recipe = json.dumps(work.recipe, indent=2, ensure_ascii=False) + "\n"
    write_text(place / "recipe.json", recipe)
    if work.frames:
        write_animation(place / "progress.webp", work.frames)
    described = {
        "key": side,
        "model": work.model,
        "loss": round(work.losses[-1], 4) if work.losses else None,
        "steps": len(work.losses),
        "size": [work.image.shape[2], work.image.shape[1]],
    }
    described |= write_frames(place, work.frames)
    return {**described, "files": sorted(path.name for path in place.iterdir())}
