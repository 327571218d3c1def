"""Explaining for the page: a map for every text and every model, over the picture."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..explanation import explain, squash, text_features
from ..explanation.figure import fitted, overlay, shown_maps
from ..images import read_image, write_image
from .gallery import SIDES
from .jobs import Job
from .requests import Look

if TYPE_CHECKING:
    from .studio import Studio

CELL = 384  # px, longer side of the maps


def look(studio: Studio, job: Job, request: Look) -> str:
    """Makes the maps, model after model; returns the id of the run."""
    started = time.monotonic()
    picture = read_image(studio.picture(request.picture))
    shown = fitted(picture, CELL)
    texts = [text.strip() for text in request.texts]
    found: dict[str, tuple[list[float], Any]] = {}
    for number, (side, model) in enumerate(zip(SIDES, request.models)):
        job.progress(number, len(request.models))
        if job.stopping.is_set():
            raise ValueError("stopped before the maps were made")
        guide = studio.guide(model)
        maps = explain(guide, fitted(picture, 2 * CELL), texts, method=request.method)
        with torch.no_grad():
            features = guide.features(squash(picture[None], guide))
            cosines = (features @ text_features(guide, texts).T)[0].tolist()
        found[side] = cosines, shown_maps(maps, shown)

    def write(folder: Path) -> list[dict[str, Any]]:
        write_image(folder / "picture.png", shown)
        sides = []
        for (side, (cosines, maps)), model in zip(found.items(), request.models):
            (folder / side).mkdir()
            for number, heat in enumerate(maps, 1):
                write_image(folder / side / f"map-{number}.png", overlay(shown, heat))
            sides.append({"key": side, "model": model, "cosines": [round(c, 4) for c in cosines]})
        return sides

    record: dict[str, Any] = {
        "kind": "explain",
        "title": " · ".join(texts),
        "texts": texts,
        "method": request.method,
    }
    record["request"] = request.to_dict()
    return studio.keep(job, record, started, write)
