"""The work behind the page: models that stay loaded, and the jobs that use them."""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..options.generate import Generate
from ..weights import registry
from ..weights.listing import whereabouts
from ..weights.registry import training
from .gallery import SIDES, Gallery
from .jobs import Job, Task
from .requests import Draw, Look, Paint, Restyle
from .uploads import Uploads

FRAMES = 33  # of a trajectory, the start and the end among them
_LOADED = 4  # guides kept in memory


class Studio:
    """Turns checked requests into jobs. `offered`: what load() accepts and the page may name."""

    def __init__(self, gallery: Gallery, uploads: Uploads, offered: list[str], device: str) -> None:
        self.gallery, self.uploads, self.device = gallery, uploads, device
        self.models = _offered(offered)
        self._guides: dict[str, Any] = {}

    def task(self, request: Any) -> Task:
        """The job for a request. ValueError for a model that is not offered, FileNotFoundError for a lost picture."""
        for model in request.models:
            self.check_model(model)
        if isinstance(request, Paint | Restyle | Look) and request.picture:
            self.picture(request.picture)
        if isinstance(request, Paint):
            return _task(
                "paint", request.prompt, lambda job: self._paint(job, request), request.models
            )
        if isinstance(request, Draw | Restyle):
            from .pipelines import work

            kind = "draw" if isinstance(request, Draw) else "style"
            return _task(kind, request.prompt, lambda job: work(self, job, request), request.models)
        if isinstance(request, Look):
            from .looking import look

            texts = " · ".join(text.strip() for text in request.texts)
            return _task("explain", texts, lambda job: look(self, job, request), request.models)
        raise TypeError(type(request).__name__)

    def again(self, run: str) -> Task:
        """The job that repeats a run: from the page's own request, or from the recipe of the picture."""
        record = self.gallery.get(run)
        if "request" in record:
            from .requests import read

            return self.task(read(record["kind"], record["request"]))
        from ..paint.command import replay_options

        sides = {key: replay_options(recipe) for key, recipe in self.gallery.recipes(run)}
        for options in sides.values():
            self.check_model(options.model)
        kept = {"kind": "paint", "title": record["title"], "seed": record["seed"]}
        models = [options.model for options in sides.values()]
        return _task("paint", record["title"], lambda job: self.run_paint(job, sides, kept), models)

    def check_model(self, name: str) -> None:
        if name not in [model["key"] for model in self.models]:
            raise ValueError(
                f"the model {name!r} is not offered here; start the page with: clipag demo --models {name}"
            )

    def picture(self, name: str) -> Path:
        """The file behind a picture's id: an upload's, or RUN/SIDE for a picture of the gallery."""
        run, _, side = name.rpartition("/")
        if not run:
            return self.uploads.path(name)
        record = self.gallery.get(run)
        shown = "picture.png" if record["kind"] == "explain" else "image.png"
        return self.gallery.file(run, *([side] if side else []), shown)

    def guide(self, name: str) -> Any:
        """A loaded model, frozen: two jobs never meet, but two sides may share it."""
        from ..guide import guide_for

        if name not in self._guides:
            while len(self._guides) >= _LOADED:
                self._guides.pop(next(iter(self._guides)))
            guide = guide_for(name, device=self.device or None)
            guide.model.eval().requires_grad_(False)
            self._guides[name] = guide
        self._guides[name] = self._guides.pop(name)  # the one used last goes last
        return self._guides[name]

    def warm_up(self, job: Job) -> str:
        """Loads the models that the page opens with, and paints one step with each; a job that comes goes first."""
        from ..paint import Synthesizer

        for number, name in enumerate([model["key"] for model in self.models][:2]):
            if job.stopping.is_set():
                break
            job.progress(number, 2)
            next(iter(Synthesizer(Generate(prompts=["a picture"], steps=1), self.guide(name))))
        return ""

    def _paint(self, job: Job, request: Paint) -> str:
        path = str(self.picture(request.picture)) if request.picture else None
        sides = {
            side: Generate(
                prompts=[request.prompt.strip()],
                model=model,
                seed=request.seed,
                preset=request.preset,
                steps=request.steps,
                size=request.size,
                image=path,
                strength=request.strength if path else 0.0,
                device=self.device or None,
            )
            for side, model in zip(SIDES, request.models)
        }
        record = {"kind": "paint", "title": request.prompt.strip(), "seed": request.seed}
        record["request"] = request.to_dict()
        return self.run_paint(job, sides, record)

    def run_paint(self, job: Job, sides: dict[str, Generate], record: dict[str, Any]) -> str:
        from .painting import paint, write_side

        options = {key: dataclasses.replace(each, frames=FRAMES) for key, each in sides.items()}
        started = time.monotonic()
        results = paint(job, options, self.guide)
        return self.keep(
            job,
            record,
            started,
            lambda folder: [write_side(folder, key, options[key], results[key]) for key in results],
        )

    def keep(
        self,
        job: Job,
        record: dict[str, Any],
        started: float,
        write: Callable[[Path], list[dict[str, Any]]],
    ) -> str:
        """Puts a finished run into the gallery."""
        state = "stopped" if job.stopping.is_set() else "done"
        now = datetime.datetime.now().timestamp()
        seconds = round(time.monotonic() - started, 1)
        return self.gallery.add(
            {**record, "state": state, "created": now, "seconds": seconds}, write
        )


def _task(kind: str, title: str, work: Callable[[Job], str], models: list[str]) -> Task:
    return Task(kind, title.strip(), work, models)


def _offered(names: list[str]) -> list[dict[str, str]]:
    """Models that load without a download, and those that were asked for by name, ready for the page."""
    here = [r for r in registry.checkpoints() if whereabouts(r) in ("bundled", "cached")]
    offered = {
        record.key: training(record) for record in here if not record.key.startswith("judge")
    }
    for name in names:
        record = registry.get(name)
        offered[name] = training(record) if record else ""
    return [{"key": key, "note": note} for key, note in offered.items()]
