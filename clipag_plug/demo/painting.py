"""Painting for the page: the models take turns step by step, so that both pictures grow before one's eyes."""

from __future__ import annotations

import base64
import dataclasses
import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from ..images import to_pil
from ..options.generate import Generate
from ..paint import NotFiniteError, Synthesis, Synthesizer
from ..paint.command import write_results
from .jobs import Job

PAUSE = 0.12  # s between two previews of a side: what an eye follows, at a few percent of the work
COLUMNS = 6  # of the sheet of frames


def paint(
    job: Job, sides: dict[str, Generate], guide: Callable[[str], Any]
) -> dict[str, Synthesis]:
    """Runs the sides to their end, or until the job is stopped, and returns what each has by then."""
    runs: dict[str, Synthesizer] = {}
    for side, options in sides.items():
        runs[side] = Synthesizer(options, guide(options.model))
        show(job, side, runs[side].leading(), 0)
    take_turns(job, runs, lambda run: run.leading())
    found = {side: run.results()[0] for side, run in runs.items()}
    for side, result in found.items():
        show(job, side, result.image, result.steps)
    return found


def take_turns(job: Job, runs: dict[str, Any], picture: Callable[[Any], Tensor]) -> None:
    """A step of each side in turn, its picture (3, H, W) now and then, until all are over or the job is stopped."""
    turns = {side: iter(run) for side, run in runs.items()}
    total = max(run.steps for run in runs.values())
    shown = dict.fromkeys(runs, 0.0)
    while turns and not job.stopping.is_set():
        for side in list(turns):
            if not _turn(job, side, turns, runs[side]):
                continue
            if time.monotonic() - shown[side] >= PAUSE:
                show(job, side, picture(runs[side]), len(runs[side].losses))
                shown[side] = time.monotonic()
        job.progress(max(len(run.losses) for run in runs.values()), total)


def _turn(job: Job, side: str, turns: dict[str, Any], run: Any) -> bool:
    """One step of one side; False where that side is over."""
    try:
        next(turns[side])
    except StopIteration:
        del turns[side]
        return False
    except NotFiniteError as error:
        job.message = str(error)
        del turns[side]
        return False
    return True


def show(job: Job, side: str, picture: Tensor, step: int) -> None:
    """Sends a picture (3, H, W) to the page as it is now."""
    data = base64.b64encode(jpeg(picture, 88)).decode()
    job.show(side, step=step, picture=f"data:image/jpeg;base64,{data}")


def jpeg(picture: Tensor, quality: int) -> bytes:
    """A picture (3, H, W) in [0, 1] as JPEG with full colour resolution: the pictures have sharp colours."""
    file = io.BytesIO()
    to_pil(picture).save(file, format="JPEG", quality=quality, subsampling=0)
    return file.getvalue()


def write_side(folder: Path, side: str, options: Generate, result: Synthesis) -> dict[str, Any]:
    """Writes what `clipag generate -o FOLDER` would, and a sheet of the frames; returns what the page shows of it."""
    place = folder / side
    place.mkdir()
    write_results(dataclasses.replace(options, output=str(place)), [result])
    described = {
        "key": side,
        "model": options.model,
        "loss": round(result.loss, 4),
        "steps": result.steps,
        "size": [result.image.shape[2], result.image.shape[1]],
    }
    described |= write_frames(place, result.frames)
    return {**described, "files": sorted(path.name for path in place.iterdir())}


def write_frames(place: Path, frames: list[Tensor]) -> dict[str, Any]:
    """frames.jpg: the trajectory row by row, COLUMNS frames a row. One file, so that the scrubber never waits."""
    if len(frames) < 2:
        return {}
    from PIL import Image

    height, width = frames[0].shape[-2:]
    rows = -(-len(frames) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * width, rows * height))
    for number, frame in enumerate(frames):
        sheet.paste(to_pil(frame), (number % COLUMNS * width, number // COLUMNS * height))
    sheet.save(place / "frames.jpg", quality=88, subsampling=0)
    return {"frames": len(frames), "columns": COLUMNS}
