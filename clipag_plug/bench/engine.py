"""Runs the jobs of a suite: one record each, written atomically, and skipped where it is there already."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ..bundled.photos import Photographs
from ..images import contact_sheet, write_image
from ..model import CLIP
from ..version import __version__
from .aesthetics import Predictor, find_predictor
from .datasets import Dataset, read_dataset
from .judge import Classifier, Judge
from .records import (
    Pictures,
    Record,
    environment,
    file_name,
    fingerprint,
    now,
    read_record,
    weights_hash,
)
from .registry import Context, Measured, Sheet, Task
from .shards import Share, sweep
from .suites import Entry, Suite

COLUMNS = 8


@dataclass(frozen=True)
class Job:
    """One task on one model with one seed."""

    entry: Entry
    model: str
    seed: int


@dataclass(frozen=True)
class Done:
    """A finished job; `skipped` where its record was there already."""

    job: Job
    record: Record
    skipped: bool


class Resources:
    """Models, judge and photographs, loaded once and when first asked for."""

    def __init__(
        self,
        suite: Suite,
        device: torch.device,
        photos: str = "",
        classes: str = "",
        aesthetic: str = "",
    ) -> None:
        self.suite, self.device, self._paths = suite, device, (photos, classes)
        self._aesthetic_folder = aesthetic
        self._aesthetic: Predictor | str | None = None
        self._models: dict[str, tuple[CLIP, str]] = {}
        self._dataset: Dataset | None = None
        self._judge: Judge | None = None
        self._classifiers: dict[str, Classifier] = {}

    def model(self, name: str) -> tuple[CLIP, str]:
        """A model in evaluation mode, frozen, and the hash of its weights."""
        if name not in self._models:
            from .. import clip

            model = clip.load_model(name, device=self.device)
            model = model.float().eval().requires_grad_(False)
            self._models[name] = model, weights_hash(model)
        return self._models[name]

    def classifier(self, name: str) -> Classifier:
        """A model as a classifier over the vocabulary's classes."""
        if name not in self._classifiers:
            model, _ = self.model(name)
            self._classifiers[name] = Classifier(model, self.dataset().classes)
        return self._classifiers[name]

    def judge(self) -> tuple[Judge, str]:
        """The judge and the hash of its weights."""
        model, weights = self.model(self.suite.judge)
        if self._judge is None:
            self._judge = Judge(model, self.suite.judge, self.dataset().classes)
        return self._judge, weights

    def other_judge(self, name: str, task: Task, guide: str) -> Judge:
        """A further judge, by key. ValueError where it is the guide."""
        model, weights = self.model(name)
        check_judge(task, guide, self.model(guide)[1], name, weights)
        return Judge(model, name, self.dataset().classes)

    def aesthetic(self) -> Predictor | str:
        """The aesthetic predictor, or the reason why there is none."""
        if self._aesthetic is None:
            self._aesthetic = find_predictor(self._aesthetic_folder, self.device)
        return self._aesthetic

    def photos(self) -> Photographs:
        """The labelled photographs."""
        return self.dataset().photos

    def dataset(self) -> Dataset:
        """The photographs with their classes and captions."""
        if self._dataset is None:
            self._dataset = read_dataset(*self._paths)
        return self._dataset


Progress = Callable[[Job, float], None]


def plan(suite: Suite) -> list[Job]:
    """The jobs in order: entry by entry, so that a pair of models is comparable as early as possible."""
    return [
        Job(entry, model, seed)
        for entry in suite.entries
        for seed in suite.seeds
        for model in suite.models
    ]


def run(
    suite: Suite,
    folder: Path,
    resources: Resources,
    *,
    again: bool = False,
    share: Share | None = None,
    progress: Progress | None = None,
) -> Iterator[Done]:
    """Runs what has no valid record below `folder`, and yields every job's record in order.

    A record is valid while the weights, the judge, the photographs, the options, the seed and the package's
    version are those that it was made with. Interrupted runs continue with the first job that is missing.
    share: the part of the jobs to run; None for all.
    """
    sweep(folder, suite.name)
    for job in share.of(plan(suite)) if share else plan(suite):
        model, inputs = _inputs(job, resources)
        mark = fingerprint(
            version=__version__,
            task=job.entry.task.name,
            options=job.entry.options.to_dict(),
            seed=job.seed,
            **inputs,
        )
        record = Record(
            suite.name,
            job.entry.name,
            job.entry.task.name,
            job.model,
            job.seed,
            mark,
            inputs,
            job.entry.options.to_dict(),
            [],
            {},
            environment=environment(str(resources.device)),
        )
        there = read_record(folder / record.path)
        if there is not None and there.fingerprint == mark and not again:
            yield Done(job, there, True)
            continue
        yield Done(job, _measure(job, model, record, folder, resources, progress), False)


def check_judge(task: Task, model: str, model_weights: str, judge: str, judge_weights: str) -> None:
    """Refuses a task whose pictures would be scored by the model that made them. Raises ValueError."""
    if task.judged and (model == judge or model_weights == judge_weights):
        raise ValueError(
            f"{model} would judge its own pictures in {task.name!r}: a picture made with a model's gradients "
            f"pleases that model whatever it shows; choose another --judge than {judge}"
        )


def check_scores(task: Task, model: str, measured: Measured) -> None:
    """Refuses scores of a judged task that the guide itself gave, unless they are marked as a diagnostic, and
    metrics without a value for every item. Raises ValueError."""
    for key, metric in measured.metrics.items():
        if task.judged and metric.by == model and not metric.diagnostic:
            raise ValueError(
                f"{task.name!r} scores {key!r} with {model}, the model that guided; score it with the judge"
            )
        if len(metric.values) != len(measured.items):
            raise ValueError(
                f"{task.name!r} has {len(metric.values)} values of {key!r} for {len(measured.items)} items"
            )


def _inputs(job: Job, resources: Resources) -> tuple[CLIP, dict[str, dict[str, str]]]:
    """The model, and the hashes of all that the job reads; refuses a judge that guides."""
    needs = job.entry.task.needs
    model, weights = resources.model(job.model)
    named = fingerprint(classes=resources.dataset().classes)
    inputs = {"model": {"name": job.model, "weights": weights}, "classes": {"sha256": named}}
    if "judge" in needs:
        judge, judge_weights = resources.judge()
        check_judge(job.entry.task, job.model, weights, judge.name, judge_weights)
        inputs["judge"] = {"name": judge.name, "weights": judge_weights}
        predictor = resources.aesthetic()
        if not isinstance(predictor, str):
            inputs["aesthetic"] = {"name": predictor.name, "sha256": predictor.sha256}
    if "photos" in needs:
        inputs["photos"] = {"sha256": resources.photos().sha256}
    return model, inputs


def _measure(
    job: Job,
    model: CLIP,
    record: Record,
    folder: Path,
    resources: Resources,
    progress: Progress | None,
) -> Record:
    task, report = job.entry.task, progress or (lambda job, share: None)
    report(job, 0.0)
    context = Context(
        model,
        job.model,
        job.seed,
        job.entry.options,
        resources.device,
        lambda share: report(job, share),
        lambda: resources.classifier(job.model),
        dataset=resources.dataset(),
        aesthetic=resources.aesthetic(),
        other_judge=lambda name: resources.other_judge(name, task, job.model),
        photos=resources.photos() if "photos" in task.needs else None,
        judge=resources.judge()[0] if "judge" in task.needs else None,
    )
    started, clock, processor = now(), time.monotonic(), time.process_time()
    measured = task.run(context)
    seconds, busy = time.monotonic() - clock, time.process_time() - processor
    check_scores(task, job.model, measured)
    record = dataclasses.replace(
        record,
        items=measured.items,
        notes=measured.notes,
        started=started,
        seconds=round(seconds, 2),
        processor_seconds=round(busy, 2),
        metrics={key: metric.to_dict() for key, metric in measured.metrics.items()},
        pictures={key: _save(sheet, key, record, folder) for key, sheet in measured.sheets.items()},
    )
    record.write(folder)  # last: a record is there only when its pictures are
    return record


def _save(sheet: Sheet, key: str, record: Record, folder: Path) -> dict[str, object]:
    """Writes the pictures of a sheet as one PNG of tiles without gaps, beside the record."""
    path = (folder / record.path).with_suffix(f".{file_name(key)}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        list(sheet.images[start : start + COLUMNS])
        for start in range(0, len(sheet.images), COLUMNS)
    ]
    write_image(path, contact_sheet(rows, margin=0))
    side = int(sheet.images.shape[-1])
    return dataclasses.asdict(
        Pictures(path.name, side, COLUMNS, sheet.titles, sheet.notes, sheet.marks)
    )
