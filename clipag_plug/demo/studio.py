"""Models that stay loaded, and the jobs that requests ask for."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..options.generate import Generate, parse_size
from ..options.picture import SHOWN
from ..weights import registry
from ..weights.fetch import whereabouts
from .gallery import Gallery
from .jobs import Job, Task
from .requests import Draw, Look, Paint, Restyle, read
from .uploads import Uploads

LOADED = 4  # guides kept in memory
BY_HAND = "the page does not repeat this picture; try: clipag generate --from PICTURE"


class Studio:
    """Turns checked requests into jobs. `offered`: what load() accepts and the page may name."""

    def __init__(self, gallery: Gallery, uploads: Uploads, offered: list[str], device: str) -> None:
        self.gallery, self.uploads, self.device = gallery, uploads, device or None
        self.models = _offered(offered)
        self._guides: dict[str, Any] = {}

    def task(self, request: Any) -> Task:
        """The job for a request. ValueError for a model that is not offered, FileNotFoundError for a lost picture."""
        for model in request.models:
            self.check_model(model)
        name = getattr(request, "picture", "")
        picture = self.picture(name) if name else None
        texts = request.texts if isinstance(request, Look) else [request.prompt]
        kinds = {Paint: "paint", Draw: "draw", Restyle: "style", Look: "explain"}
        record: dict[str, Any] = {
            "kind": kinds[type(request)],
            "title": " · ".join(text.strip() for text in texts),
            "request": request.to_dict(),
        }
        if isinstance(request, Look):
            record |= {"texts": [text.strip() for text in texts], "method": request.method}
        else:
            record["seed"] = request.seed

        def work(job: Job) -> Any:
            from . import work as jobs  # loads torch, and the page is to open before that

            if isinstance(request, Paint):
                options = jobs.paint_options(request, picture, self.device)
                return jobs.paint(job, options, self.guide, 0 if request.size else SHOWN)
            if isinstance(request, Look):
                return jobs.look(job, request, self.picture(name), self.guide)
            return jobs.draw_or_style(job, request, picture, self.guide, self.device)

        shown = [model for model in request.models for _ in range(getattr(request, "count", 1))]
        return self._task(record, work, shown)

    def again(self, run: str) -> Task:
        """The job that repeats a run: from the page's own request, or from the recipe of the picture."""
        record = self.gallery.get(run)
        if "request" in record:
            return self.task(read(record["kind"], record["request"]))
        from ..paint.command import options_in

        recipes = self.gallery.recipes(run)
        if not all(isinstance(recipe, dict) and "job" not in recipe for _, recipe in recipes):
            raise ValueError(BY_HAND)
        sides = {key: options_in(recipe) for key, recipe in recipes}
        for options in sides.values():
            for model in [options.model, *options.ensemble]:
                self.check_model(model)
            # A recipe on disk may be anybody's: no file that it names is opened, and no size that it names believed.
            if options.files() or not _modest(options):
                raise ValueError(BY_HAND)
        kept = {"kind": "paint", "title": record["title"], "seed": record.get("seed", 0)}
        models = [options.model for options in sides.values()]

        def work(job: Job) -> Any:
            from . import work as jobs

            return jobs.paint(job, sides, self.guide)

        return self._task(kept, work, models)

    def check_model(self, name: str) -> None:
        if name not in [model["key"] for model in self.models]:
            raise ValueError(
                f"the model {name!r} is not offered here; start the page with: clipag demo --models {name}"
            )

    def picture(self, name: str) -> Path:
        """The file behind a picture's id: an upload's, or RUN/SIDE or RUN/FILE for a picture of the gallery."""
        run, _, side = name.rpartition("/")
        if not run:
            return self.uploads.path(name)
        shown = "picture.png" if self.gallery.get(run).get("kind") == "explain" else "image.png"
        return self.gallery.file(run, *filter(None, [side]), *([] if "." in side else [shown]))

    def guide(self, name: str) -> Any:
        """A loaded model, frozen: two jobs never meet, but two sides may share it."""
        from ..guide import guide_for

        if name not in self._guides:
            while len(self._guides) >= LOADED:
                self._guides.pop(next(iter(self._guides)))
            guide = guide_for(name, device=self.device, precision="auto")
            guide.model.eval().requires_grad_(False)
            self._guides[name] = guide
        self._guides[name] = self._guides.pop(name)  # the one used last goes last
        return self._guides[name]

    def warm_up(self, job: Job) -> str:
        """Loads the models that the page opens with, and paints one step with each; a job that comes goes first."""
        from ..paint.loop import Synthesizer

        for number, model in enumerate(self.models[:2]):
            if job.stopping.is_set():
                break
            job.progress(number, 2)
            guide = self.guide(model["key"])
            next(iter(Synthesizer(Generate(prompts=["a picture"], steps=1), guide)))
        return ""

    def _task(self, record: dict[str, Any], work: Callable[[Job], Any], models: list[str]) -> Task:
        """The job that works and puts what it made into the gallery."""

        def keep(job: Job) -> str:
            started = time.monotonic()
            write = work(job)
            facts = {
                "state": "stopped" if job.stopping.is_set() else "done",
                "created": datetime.datetime.now().timestamp(),
                "seconds": round(time.monotonic() - started, 1),
            }
            return self.gallery.add({**record, **facts}, write)

        return Task(record["kind"], record["title"], keep, models)


def _modest(options: Generate) -> bool:
    """Whether a picture takes what the page's own requests may take, or not much more."""
    full = options.resolved()
    height, width = parse_size(full.size) or (0, 0)
    rows = options.count() * int(full.drafts or 1)
    views = int(full.views or 0) + int(full.patches or 0)
    return (
        max(height, width) <= 1024
        and rows <= 16
        and views <= 256
        and int(full.steps or 0) <= 10_000
    )


def _offered(names: list[str]) -> list[dict[str, str]]:
    """Models that load without a download, and those that were asked for by name, ready for the page.

    Raises: ValueError and FileNotFoundError for a name that means none.
    """
    here = [r for r in registry.checkpoints() if whereabouts(r) in ("bundled", "cached")]
    notes = {r.key: registry.training(r) for r in here if not r.key.startswith("judge")}
    for name in names:
        record = registry.get(name)
        if record is None and not name.startswith(("ViT-", "RN")):  # as OpenAI names its models
            registry.parse(name)
        notes[name] = registry.training(record) if record else ""
    return [{"key": key, "note": note} for key, note in notes.items()]
