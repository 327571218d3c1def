"""Measures models against each other.

python -m clipag_plug.bench                          # suite quick: table, records, report
python -m clipag_plug.bench list
python -m clipag_plug.bench run SUITE --models MY-VANILLA MY-ROBUST
python -m clipag_plug.bench run SUITE --shard 2/4    # or: torchrun --nproc-per-node 4 -m clipag_plug.bench run SUITE
python -m clipag_plug.bench table                    # what the records say, without measuring
python -m clipag_plug.bench compare clip-mini clipag-mini
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..options.base import add_arguments, from_arguments
from ..options.bench import Bench

if TYPE_CHECKING:
    from .engine import Job
    from .suites import Suite
    from .table import Result


def run(options: Bench) -> int:
    """Does what the options request and returns the exit code."""
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)
    if options.request == "list":
        return _list(options)
    result = _compare(options) if options.request in ("table", "compare") else _run(options)
    if result is not None:
        print(_printed(result, "json" if options.json else options.format))
    return 0


def _printed(result: Result, form: str) -> str:
    from . import formats, table

    if form == "json":
        return json.dumps(table.as_data(result), indent=1, ensure_ascii=False)
    forms = {
        "text": table.text_table,
        "markdown": formats.markdown,
        "csv": formats.as_csv,
        "latex": formats.latex,
    }
    return forms[form](result)


def _run(options: Bench) -> Result | None:
    """Runs the suite, or this process's part of it; the table comes from the process that has all records."""
    import torch

    from . import engine, shards

    suite, folder = _suite(options), Path(options.records)
    _writable(folder)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    resources = engine.Resources(suite, device, options.photos, options.classes, options.aesthetic)
    jobs, ranks = engine.plan(suite), shards.launched()
    share = shards.read_share(options.shard) or ranks
    chatter = Chatter(len(share.of(jobs) if share else jobs), options.quiet)
    for done in engine.run(
        suite, folder, resources, again=options.again, share=share, progress=chatter.progress
    ):
        chatter.finished(done.job, done.record.seconds, done.skipped)
    if ranks:
        shards.wait_for_all()
        if ranks.number:
            return None
    missing = _missing(suite, folder) if options.shard else []
    if missing:
        chatter.say(
            f"{len(missing)} of {len(jobs)} records are other parts' to make; with all parts done: "
            f"python -m clipag_plug.bench table {suite.name} --merge FOLDER FOLDER"
        )
        return None
    result = result_of(suite, folder)
    if options.report:
        from .report import write_report

        path = write_report(result, folder / f"{suite.name}.html", folder)
        chatter.say(f"report: {path}")
    return result


def _compare(options: Bench) -> Result:
    if options.request == "compare":
        options = options.replace(request="run", names=[], models=options.names)
    suite, folder = _suite(options), Path(options.records)
    if options.merge:
        from .shards import merge

        _writable(folder)
        merge(options.merge, folder, suite.name)
        missing = _missing(suite, folder)
        if missing:
            raise ValueError(
                f"{len(missing)} records are in none of the folders, as {missing[0]}; run their part first"
            )
    return result_of(suite, folder)


def _missing(suite: Suite, folder: Path) -> list[str]:
    """The jobs of a suite that have no record."""
    from . import engine
    from .records import read_records

    there = {(r.entry, r.model, r.seed) for r in read_records(folder, suite.name)}
    jobs = ((job.entry.name, job.model, job.seed) for job in engine.plan(suite))
    return [
        f"{entry} on {model}, seed {seed}"
        for entry, model, seed in jobs
        if (entry, model, seed) not in there
    ]


def result_of(suite: Suite, folder: Path) -> Result:
    """What the records in a folder say; FileNotFoundError where there is none of the suite."""
    from .compare import compare, judge_claims
    from .records import read_records
    from .table import Result

    entries = {entry.name for entry in suite.entries}
    records = [
        record
        for record in read_records(folder, suite.name)
        if record.model in suite.models and record.entry in entries and record.seed in suite.seeds
    ]
    if not records:
        raise FileNotFoundError(
            f"no record of {', '.join(suite.models)} in {str(folder / suite.name)!r}; "
            f"python -m clipag_plug.bench run {suite.name} makes them"
        )
    order = [entry.name for entry in suite.entries]
    records.sort(
        key=lambda record: (
            order.index(record.entry),
            suite.models.index(record.model),
            record.seed,
        )
    )
    rows = {model: compare(records, suite.models[0], model) for model in suite.models[1:]}
    verdicts = judge_claims(suite.claims, rows[suite.models[-1]]) if rows else []
    return Result(suite, records, rows, verdicts)


def _suite(options: Bench) -> Suite:
    from .suites import read_suite

    return read_suite(
        options.suite,
        models=options.models,
        judge=options.judge,
        seeds=options.seeds,
        only=options.only,
    )


def _list(options: Bench) -> int:
    from .suites import names, read_suite

    for name in names():
        suite = read_suite(name)
        print(f"{name}: {suite.about}")
        print(
            f"  models {', '.join(suite.models)}; judge {suite.judge}; seeds {', '.join(map(str, suite.seeds))}"
        )
        for entry in suite.entries:
            settings = ", ".join(f"{key} {value}" for key, value in entry.options.to_dict().items())
            print(f"  {entry.name:<10} {entry.title} ({settings})")
    return 0


def _writable(folder: Path) -> None:
    """Makes the folder of the records now: an hour of work should not end with a refusal."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(
            f"the folder {str(folder)!r} cannot be written to; choose another --records"
        )


class Chatter:
    """One line a job on stderr; on a terminal the line moves while the job runs."""

    def __init__(self, jobs: int, quiet: bool) -> None:
        self.jobs, self.quiet, self.number = jobs, quiet, 0
        self.moving = sys.stderr.isatty() and not quiet
        self._started = self._shown = 0.0

    def progress(self, job: Job, share: float) -> None:
        """Called by the engine while a job runs."""
        now = time.monotonic()
        if share == 0:
            self._started = now
        if not self.moving or now - self._shown < 0.2:
            return
        self._shown = now
        left = (now - self._started) * (1 - share) / share if share else 0.0
        self._line(f"{self._name(job)}  {share:4.0%}  {left:.0f} s left", end="")

    def finished(self, job: Job, seconds: float, skipped: bool) -> None:
        """Called after each job."""
        if not self.quiet:
            self._line(
                f"{self._name(job)}  {'there already' if skipped else f'{seconds:.0f} s'}", end="\n"
            )
        self.number += 1

    def say(self, text: str) -> None:
        """A line of its own."""
        if not self.quiet:
            self._line(text, end="\n")

    def _name(self, job: Job) -> str:
        return f"[{self.number + 1}/{self.jobs}] {job.entry.name:<10} {job.model} seed {job.seed}"

    def _line(self, text: str, end: str) -> None:
        print(("\r\x1b[2K" if self.moving else "") + text, end=end, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """The command line of the bench; bad input is one sentence and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m clipag_plug.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser, Bench)
    parsed: Any = parser.parse_args(arguments)
    try:
        return run(from_arguments(Bench, parsed))
    except KeyboardInterrupt:
        print("clipag bench: stopped; the same command continues", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, RuntimeError, FloatingPointError) as error:
        print(f"clipag bench: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
