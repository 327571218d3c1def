"""The jobs of the page: models take turns step by step, so that both pictures grow before one's eyes."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import io
import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..bench.judges import Judge
from ..clip import load_model
from ..explanation.figure import fitted, overlay, shown_maps
from ..explanation.maps import explain, squash, text_features
from ..files import write_text
from ..images import read_image, read_recipe, to_pil, write_animation, write_image
from ..options.clipdraw import ClipDraw
from ..options.generate import Generate
from ..options.style import Style
from ..paint.loop import Synthesizer
from ..paint.results import NotFiniteError
from ..pipelines import output
from ..vocabulary import bundled_vocabulary
from .gallery import SIDES
from .jobs import Job
from .requests import Draw, Look, Paint, Restyle

PAUSE = 0.12  # s between two previews of a side: what an eye follows, at a few percent of the work
FRAMES = 33  # of a trajectory, the start and the end among them
COLUMNS = 6  # of the sheet of frames
SHORT = 128  # px, short side at which a picture is restyled; the result has its own size
CELL = 384  # px, longer side of the maps
MOST = 1024  # px, longer side at which a picture is painted over

Guides = Callable[[str], Any]
Write = Callable[[Path], list[dict[str, Any]]]


def paint_options(request: Paint, picture: Path | None, device: str | None) -> dict[str, Generate]:
    """What `clipag generate` would be asked for, for each side: a model each, or a seed each of one model."""
    asked = [(model, request.seed + n) for model in request.models for n in range(request.count)]
    return {
        side: Generate(
            prompts=[request.prompt.strip()],
            model=model,
            seed=seed,
            preset=request.preset,
            steps=request.steps,
            size=request.size or (start_size(picture) if picture else ""),
            image=str(picture) if picture else None,
            strength=request.strength if picture else 0.0,
            device=device,
        )
        for side, (model, seed) in zip(SIDES, asked)
    }


def start_size(path: Path) -> str:
    """The size to paint over a start picture at: that at which it was painted itself, else its own up to MOST."""
    with contextlib.suppress(ValueError):
        if size := re.search(r"\d+x\d+$", str(read_recipe(path).get("shown"))):
            return size[0]
    height, width = read_image(path).shape[-2:]
    share = min(MOST / max(height, width), 1)
    return f"{round(width * share)}x{round(height * share)}"


def paint(job: Job, sides: dict[str, Generate], guides: Guides, shown: int | None = None) -> Write:
    """Paints until the end, or until the job is stopped; the result writes what there is by then.

    shown: short side to which smaller pictures are enlarged; None for what the options say.
    """
    options = {key: dataclasses.replace(each, frames=FRAMES) for key, each in sides.items()}
    runs = {}
    for side, each in options.items():
        runs[side] = Synthesizer(each, guides(each.model))
        show(job, side, runs[side].leading(), 0)  # finding the other's start takes as long again
    take_turns(job, runs, lambda run: run.leading())
    results = {side: run.results()[0] for side, run in runs.items()}
    for side, result in results.items():
        show(job, side, result.image, result.steps)

    def write_side(place: Path, side: str) -> dict[str, Any]:
        result = results[side]
        chosen = dataclasses.replace(options[side], output=str(place))
        least = chosen.shown() if shown is None else shown
        output.write([result], output.files(chosen, [""], 1), shown=least)
        facts = _facts(result.image, result.loss, result.steps) | {"seed": result.seed}
        facts["shown"] = result.enlarged(least).recipe.get("shown", "")
        return facts | write_frames(place, result.frames)

    return _writer({side: each.model for side, each in options.items()}, write_side)


def _facts(image: Tensor, loss: float, steps: int) -> dict[str, Any]:
    """What the record says of a picture (3, H, W)."""
    return {"loss": _number(loss), "steps": steps, "size": _size(image), "judge": judged(image)}


@functools.cache
def _judge() -> Judge:
    return Judge(load_model("judge-mini", "cpu"), "judge-mini", bundled_vocabulary().class_names)


def judged(image: Tensor) -> str:
    """What judge-mini, which guides nothing, calls a picture (3, H, W) among its 202 names, and how surely."""
    judge = _judge()
    shares = judge.logits(judge.enlarged(image[None].clamp(0, 1).cpu()))[0].softmax(0)
    return f"{judge.classes[int(shares.argmax())]} {float(shares.max()):.0%}"


def draw_or_style(
    job: Job, request: Draw | Restyle, picture: Path | None, guides: Guides, device: str | None
) -> Write:
    """Draws strokes or restyles a picture; the result writes pictures, strokes and trajectories."""
    runs: dict[str, Any] = {}
    for side, model in zip(SIDES, request.models):
        if isinstance(request, Draw):
            runs[side] = _drawing(request, guides(model), model, device)
        elif picture is not None:
            runs[side] = _styling(request, picture, guides(model), model, device)
    take_turns(job, runs, lambda run: run.picture())

    def write_side(place: Path, side: str) -> dict[str, Any]:
        work = runs[side].result()
        write_image(place / "image.png", work.image, work.recipe)
        if work.svg is not None:
            write_text(place / "drawing.svg", work.svg)
        write_text(place / "recipe.json", json.dumps(work.recipe, indent=2) + "\n")
        if work.frames:
            write_animation(place / "progress.webp", work.frames)
        loss = work.losses[-1] if work.losses else math.nan
        facts = _facts(work.image, loss, len(work.losses))
        return facts | write_frames(place, work.frames)

    return _writer(dict(zip(SIDES, request.models)), write_side)


def _drawing(request: Draw, guide: Any, model: str, device: str | None) -> Any:
    from ..pipelines.draw import Drawing

    options = ClipDraw(
        prompts=[request.prompt.strip()],
        model=model,
        preset="demo",
        seed=request.seed,
        steps=request.steps,
        strokes=request.strokes,
        frames=FRAMES,
        device=device,
    )
    return Drawing(options.resolved(), guide, options.prompts[0])


def _styling(request: Restyle, path: Path, guide: Any, model: str, device: str | None) -> Any:
    from ..pipelines.style import maker

    options = Style(
        prompts=[request.prompt.strip()],
        image=str(path),
        model=model,
        preset="demo",
        seed=request.seed,
        steps=request.steps,
        side=SHORT,
        frames=FRAMES,
        device=device,
    ).resolved()
    return maker(options)(options, guide, options.prompts[0])


def look(job: Job, request: Look, path: Path, guides: Guides) -> Write:
    """Makes a map for every text and every model, model after model."""
    picture = read_image(path)
    shown = fitted(picture, CELL)
    texts = [text.strip() for text in request.texts]
    cosines: dict[str, list[float]] = {}
    maps: dict[str, Any] = {}
    for number, (side, model) in enumerate(zip(SIDES, request.models)):
        job.progress(number, len(request.models))
        if job.stopping.is_set():
            raise ValueError("stopped before the maps were made")
        guide = guides(model)
        heat = explain(guide, fitted(picture, 2 * CELL), texts, method=request.method)
        with torch.no_grad():
            features = guide.features(squash(picture[None], guide))
            cosines[side] = (features @ text_features(guide, texts).T)[0].tolist()
        maps[side] = shown_maps(heat, shown)

    def write_side(place: Path, side: str) -> dict[str, Any]:
        for number, heat in enumerate(maps[side], 1):
            write_image(place / f"map-{number}.png", overlay(shown, heat))
        return {"cosines": [_number(cosine) for cosine in cosines[side]]}

    sides = _writer(dict(zip(SIDES, request.models)), write_side)

    def write(folder: Path) -> list[dict[str, Any]]:
        write_image(folder / "picture.png", shown)
        return sides(folder)

    return write


def take_turns(job: Job, runs: dict[str, Any], picture: Callable[[Any], Tensor]) -> None:
    """A step of each side in turn, its picture (3, H, W) now and then, until all are over or the job is stopped."""
    for side, run in runs.items():
        show(job, side, picture(run), 0)
    turns = {side: iter(run) for side, run in runs.items()}
    total = max(run.steps for run in runs.values())
    shown = dict.fromkeys(runs, 0.0)
    while turns and not job.stopping.is_set():
        for side in list(turns):
            try:
                next(turns[side])
            except (StopIteration, NotFiniteError) as end:
                job.message = job.message or str(end)
                del turns[side]
                continue
            if time.monotonic() - shown[side] >= PAUSE:
                show(job, side, picture(runs[side]), len(runs[side].losses))
                shown[side] = time.monotonic()
        job.progress(max(len(run.losses) for run in runs.values()), total)


def show(job: Job, side: str, picture: Tensor, step: int) -> None:
    """Sends a picture (3, H, W) to the page as it is now: JPEG with full colour resolution."""
    file = io.BytesIO()
    to_pil(picture).save(file, format="JPEG", quality=88, subsampling=0)
    data = base64.b64encode(file.getvalue()).decode()
    job.show(side, step=step, picture=f"data:image/jpeg;base64,{data}")


def write_frames(place: Path, frames: list[Tensor]) -> dict[str, Any]:
    """frames.jpg: the trajectory row by row, COLUMNS frames a row. One file, so that the scrubber never waits."""
    if len(frames) < 2:
        return {}
    from PIL import Image

    height, width = frames[0].shape[-2:]
    sheet = Image.new("RGB", (COLUMNS * width, -(-len(frames) // COLUMNS) * height))
    for number, frame in enumerate(frames):
        sheet.paste(to_pil(frame), (number % COLUMNS * width, number // COLUMNS * height))
    sheet.save(place / "frames.jpg", quality=88, subsampling=0)
    return {"frames": len(frames), "columns": COLUMNS}


def _writer(models: dict[str, str], write_side: Callable[[Path, str], dict[str, Any]]) -> Write:
    """Writes each side into a folder of its own and returns what the page shows of them."""

    def write(folder: Path) -> list[dict[str, Any]]:
        described = []
        for side, model in models.items():
            place = folder / side
            place.mkdir()
            facts = write_side(place, side)
            files = sorted(path.name for path in place.iterdir())
            described.append({"key": side, "model": model, **facts, "files": files})
        return described

    return write


def _number(value: float) -> float | None:
    """Four decimals; None where there is no number, as before the first step."""
    return round(value, 4) if math.isfinite(value) else None


def _size(picture: Tensor) -> list[int]:
    return [picture.shape[2], picture.shape[1]]
