"""Runs the jobs of a suite: one record each, written atomically, and skipped where it is there already."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..files import sha256, slug
from ..images import contact_sheet, write_image
from ..version import __version__
from .data import LISTS, read_prompts
from .records import Record, environment, fingerprint, read_record
from .suites import Entry, Suite
from .tasks import Context, Measured, Resources, Sheet

COLUMNS = 8
BUNDLED = Path(__file__).parent.parent / "bundled"
Progress = Callable[["Job", float], None]


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


def plan(suite: Suite) -> list[Job]:
    """The jobs in order: entry by entry, so that a pair of models is comparable as early as possible."""
    jobs = itertools.product(suite.entries, suite.seeds, suite.models)
    return [Job(entry, model, seed) for entry, seed, model in jobs]


def run(
    suite: Suite,
    folder: Path,
    resources: Resources,
    *,
    again: bool = False,
    progress: Progress = lambda job, share: None,
) -> Iterator[Done]:
    """Runs what has no valid record below `folder`, and yields every job's record in order.
    A record is valid while all that decides its numbers is what it was: weights, judges, photographs, texts, files,
    options, the seed and the package's version. Interrupted runs continue with the first job that is missing."""
    for job in plan(suite):
        entry, options = job.entry, job.entry.options.to_dict()
        report = functools.partial(progress, job)
        context = Context(job.model, job.seed, entry.options, resources, report)
        inputs, name = _inputs(job, context), entry.task.name
        mark = fingerprint(version=__version__, task=name, options=options, seed=job.seed, **inputs)
        head = (suite.name, entry.name, name, job.model, job.seed, mark)
        record = Record(*head, inputs, options, [], {})
        try:
            there = read_record(folder / record.path)
        except (FileNotFoundError, ValueError):
            there = None
        if there is not None and there.fingerprint == mark and not again:
            yield Done(job, there, True)
            continue
        report(0.0)
        record.started = datetime.now(UTC).isoformat(timespec="seconds")
        clock, processor = time.monotonic(), time.process_time()
        measured = entry.task.run(context)
        record.seconds = round(time.monotonic() - clock, 2)
        record.processor_seconds = round(time.process_time() - processor, 2)
        _check(job, measured)
        record.items, record.notes, record.drawn = measured.items, measured.notes, measured.drawn
        record.environment = environment(resources.device)
        record.metrics = {key: metric.to_dict() for key, metric in measured.metrics.items()}
        record.pictures = {
            key: _save(sheet, (folder / record.path).with_suffix(f".{slug(key)}.png"))
            for key, sheet in measured.sheets.items()
        }
        record.write(folder)  # last: a record is there only when its pictures are
        yield Done(job, record, False)


def _inputs(job: Job, context: Context) -> dict[str, dict[str, str]]:
    """Names and hashes of all that the job reads; refuses a judge that guides."""
    data, resources = context.data, context.resources
    task, options = job.entry.task, job.entry.options
    texts = fingerprint(classes=data.classes, captions=data.captions)
    inputs = {
        "model": {"name": job.model, "weights": resources.model(job.model)[1]},
        "classes": {"sha256": texts},
        "photos": {"split": data.split, "sha256": data.photos.sha256},
    }
    if task.judged:
        judge = context.judge.name
        inputs["judge"] = {"name": judge, "weights": resources.model(judge)[1]}
        imagenet, predictor = resources.imagenet, resources.aesthetic
        inputs["imagenet"] = {"name": "" if isinstance(imagenet, str) else imagenet.name}
        if not isinstance(predictor, str):
            inputs["aesthetic"] = {"name": predictor.name, "sha256": predictor.sha256}
    for option in task.reads:
        name = getattr(options, option)
        if isinstance(name, list):
            if name:
                inputs[option] = {each: resources.model(each)[1] for each in name}
        elif name:
            inputs[option] = {"name": name}
            file = BUNDLED / f"{'generator' if name == 'bundled' else name}.safetensors"
            paths = [path for path in (Path(name), file) if path.is_file()]
            if option == "second":
                inputs[option]["weights"] = resources.model(context.second_judge(name).name)[1]
            elif name in LISTS:
                prompts = read_prompts(name, split=getattr(options, "split", data.split))
                inputs[option]["sha256"] = fingerprint(prompts=prompts)
            elif paths:
                inputs[option]["sha256"] = sha256(paths[0])
    return inputs


def _check(job: Job, measured: Measured) -> None:
    """Refuses scores of a judged task that the guide itself gave, unless they are marked as a diagnostic, and columns
    without a value for every item. Raises ValueError."""
    task, count = job.entry.task, len(measured.items)
    for key, metric in measured.metrics.items():
        if task.judged and metric.by == job.model and not metric.diagnostic:
            raise ValueError(
                f"{task.name!r} scores {key!r} with {job.model}, the model that guided; score it with the judge"
            )
    columns = measured.drawn | {key: metric.values for key, metric in measured.metrics.items()}
    for key, values in columns.items():
        if len(values) != count:
            raise ValueError(f"{task.name!r} has {len(values)} values of {key!r} for {count} items")


def _save(sheet: Sheet, path: Path) -> dict[str, Any]:
    """Writes the pictures of a sheet as one PNG of tiles without gaps, and says what it holds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, contact_sheet([list(row) for row in sheet.images.split(COLUMNS)], margin=0))
    said = {"titles": sheet.titles, "notes": sheet.notes, "marks": sheet.marks}
    return {"file": path.name, "side": sheet.images.shape[-1], "columns": COLUMNS, **said}
