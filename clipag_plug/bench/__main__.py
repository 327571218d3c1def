"""Measures models against each other.

python -m clipag_plug.bench                          # suite quick: table, records, report
python -m clipag_plug.bench list
python -m clipag_plug.bench run SUITE --models MY-VANILLA MY-ROBUST
python -m clipag_plug.bench table                    # what the records say, without measuring
python -m clipag_plug.bench compare clip-mini clipag-mini
python -m clipag_plug.bench blind                    # pictures to be named by viewers; --answers FILE ... scores them
python -m clipag_plug.bench canvas                   # every canvas by both models at equal budgets: hours
python -m clipag_plug.bench paper list               # figures and tables of the papers; all, or clipag:figure4
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..options.base import add_arguments, from_arguments
from ..options.bench import Bench

if TYPE_CHECKING:
    from .compare import Result
    from .suites import Suite


def run(options: Bench) -> int:
    """Does what the options request and returns the exit code."""
    import torch

    from . import suites

    if options.threads:
        torch.set_num_threads(options.threads)
    if job := {"list": _list, "canvas": _canvas, "paper": _papers}.get(options.request):
        job(options)
        return 0
    suite = suites.read_suite(
        options.suite,
        models=options.names if options.request == "compare" else options.models,
        **{name: getattr(options, name) for name in ("judge", "seeds", "split", "only")},
    )
    if options.request == "table":
        from .compare import result_of

        _print(result_of(suite, Path(options.records)), options)
    elif options.request == "blind":
        _blind(options, suite)
    else:
        _print(_measure(options, suite), options)
    return 0


def _papers(options: Bench) -> None:
    """Lists the figures and tables of the papers, or makes them."""
    from . import suites

    known = suites.papers()
    wanted = options.names or ["list"]
    if wanted == ["list"]:
        print("\n".join(f"{name}\t{table['about']}" for name, table in known.items()))
        return
    for name in known if wanted == ["all"] else wanted:
        suite = suites.read_paper(name, options.size, options.models, options.judge, options.seeds)
        result = _measure(options, suite)
        if table := suites.published(result, name):
            print(f"## {name}: {known[name]['about']}\n\n{table}", end="\n\n")
        else:
            _print(result, options)


def _canvas(options: Bench) -> None:
    """Runs what is missing of the fight of canvases, and writes its table, figure and contact sheet."""
    from .fight import Arena, Fight, write

    fight = Fight.from_file(options.suite) if options.suite else Fight()
    models = options.models or ["clip-mini", "clipag-mini"]
    if len(models) != 2:
        raise ValueError(f"canvas compares a vanilla and a robust model, not {len(models)} models")
    folder, judge = _writable(options), options.judge or "judge-mini"
    arena = Arena(fight, models, judge, folder, _device(options), Progress(0, options.quiet).done)
    arena.run()
    print(write(arena, folder / "canvas"), end="")


def _blind(options: Bench, suite: Suite) -> None:
    """Makes the page of a suite's pictures, or scores what viewers answered."""
    from . import blind
    from .report import write_report
    from .wordnet import WordNet, find_wordnet

    folder, net = Path(options.records), None
    # The page needs it for its choices, the scores where there were none.
    if options.choices != bool(options.answers):
        net = WordNet(find_wordnet(options.wordnet))
    if not options.answers:
        _measure(options, suite)
        print(blind.make(suite, folder, net=net))
        return
    result = blind.score(suite, folder, options.answers, net)
    _print(result, options)
    if options.report:
        write_report(result, folder / f"{result.suite.name}.html", folder)


def _print(result: Result, options: Bench) -> None:
    from .report import FORMATS

    print(FORMATS["json" if options.json else options.format](result))


def _measure(options: Bench, suite: Suite) -> Result:
    """Runs a suite, and writes its report."""
    from . import engine
    from .compare import result_of
    from .report import write_report
    from .tasks import Resources

    folder = _writable(options)
    data = (options.photos, options.classes, suite.split, options.aesthetic)
    resources = Resources(suite.judge, _device(options), *data)
    say = Progress(len(engine.plan(suite)), options.quiet)
    for done in engine.run(suite, folder, resources, again=options.again, progress=say.moving):
        say.done(done)
    result = result_of(suite, folder)
    if options.report:
        say.line(f"report: {write_report(result, folder / f'{suite.name}.html', folder)}")
    return result


def _writable(options: Bench) -> Path:
    """The folder of the records; an hour of work should not end with a refusal."""
    folder = Path(options.records)
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(
            f"the folder {str(folder)!r} cannot be written to; choose another --records"
        )
    return folder


def _device(options: Bench) -> str:
    import torch

    return options.device or ("cuda" if torch.cuda.is_available() else "cpu")


def _list(options: Bench) -> None:
    from . import suites

    for suite in map(suites.read_suite, suites.names()):
        print(f"{suite.name}: {suite.about}")
        models, seeds = ", ".join(suite.models), ", ".join(map(str, suite.seeds))
        print(f"  models {models}; judge {suite.judge}; seeds {seeds}; {suite.split}")
        for entry in suite.entries:
            settings = ", ".join(f"{key} {value}" for key, value in entry.options.to_dict().items())
            print(f"  {entry.name:<10} {entry.title} ({settings})")


class Progress:
    """One line a job on stderr; on a terminal the line moves while the job runs."""

    def __init__(self, jobs: int, quiet: bool) -> None:
        self.jobs, self.quiet, self.number = jobs, quiet, 0
        self.terminal = sys.stderr.isatty() and not quiet
        self._started = self._shown = 0.0

    def moving(self, job: Any, share: float) -> None:
        """Called by the engine while a job runs."""
        now = time.monotonic()
        self._started = now if share == 0 else self._started
        if self.terminal and now - self._shown > 0.2:
            self._shown = now
            left = (now - self._started) * (1 - share) / share if share else 0.0
            self._job(job, f"{share:4.0%}  {left:.0f} s left", end="")

    def done(self, done: Any) -> None:
        """A job is finished."""
        self._job(done.job, "there already" if done.skipped else f"{done.record.seconds:.0f} s")
        self.number += 1

    def _job(self, job: Any, text: str, end: str = "\n") -> None:
        number = f"{self.number + 1}/{self.jobs}" if self.jobs else f"{self.number + 1}"
        self.line(f"[{number}] {job.entry.name:<10} {job.model} seed {job.seed}  {text}", end)

    def line(self, text: str, end: str = "\n") -> None:
        """Writes a line over the moving one."""
        if not self.quiet:
            start = "\r\x1b[2K" if self.terminal else ""
            print(start + text, end=end, file=sys.stderr, flush=True)


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
