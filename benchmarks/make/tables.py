"""Tables of results/ and of the README from the records of the bench, which lie in results/records/SUITE/.

    python benchmarks/make/tables.py            # writes them
    python benchmarks/make/tables.py --check    # exit code 1 where one says something else than its records
    python benchmarks/make/tables.py --take runs/bench    # first copies the records of a finished run

A table in a text stands between `<!-- table: SUITE ENTRY/METRIC ... -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from clipag_plug.bench.compare import Result, result_of  # noqa: E402
from clipag_plug.bench.report import FORMATS, cells  # noqa: E402
from clipag_plug.bench.suites import names, read_suite  # noqa: E402
from clipag_plug.files import write_text  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
RECORDS = RESULTS / "records"
TEXTS = (ROOT / "README.md", ROOT / "docs" / "checkpoints.md")
MARKED = re.compile(r"(<!-- table: (\S+) ([^>]*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def tables() -> dict[Path, str]:
    """Every file that is made from records, with the text that it should have."""
    results = {
        folder.name: result_of(read_suite(folder.name), RECORDS)
        for folder in sorted(RECORDS.iterdir())
        if folder.is_dir()
    }
    found = {RESULTS / f"{name}.md": page(result) for name, result in results.items()}
    for path in TEXTS:
        text = path.read_text(encoding="utf-8")
        if MARKED.search(text):
            found[path] = MARKED.sub(lambda match: filled(match, results), text)
    return found


def page(result: Result) -> str:
    """A suite's page: the command, where and when it ran, every row."""
    suite, first = result.suite, result.records[0]
    place = ", ".join(
        f"{first.environment[key]} {key}" if key == "processors" else str(first.environment[key])
        for key in ("system", "processors", "device")
    )
    hours = sum(record.processor_seconds for record in result.records) / 60
    return (
        f"# Suite `{suite.name}` on the bundled models\n\n{suite.about}.\n\n"
        f"`python -m clipag_plug.bench run {suite.name}`: {hours:.0f} minutes of one core on {place}, "
        f"torch {first.environment['torch']}, {first.started[:10]}. Seeds: "
        f"{', '.join(map(str, suite.seeds))}. This page is made from the records in `records/{suite.name}/` by "
        "`python benchmarks/make/tables.py`.\n\n"
        f"{FORMATS['markdown'](result)}\n"
    )


def filled(match: re.Match[str], results: dict[str, Result]) -> str:
    """A marked place with its rows: title, both models, the difference's interval, ratio."""
    opening, suite, wanted, closing = match.groups()
    result = results[suite]
    (model,) = result.rows
    rows = {row.metric: row for row in result.rows[model]}
    titles = {entry.name: entry.title for entry in result.suite.entries}
    heads = ("", result.suite.models[0], model, "difference, 95 % interval", "n")
    lines = [f"| {' | '.join(heads)} |", "|---|---:|---:|---:|---:|"]
    for metric in wanted.split():
        title, theirs, ours, moved, ends, _, _, count, _ = cells(rows[metric])
        entry = titles[metric.partition("/")[0]]
        lines.append(f"| {entry}: {title} | {theirs} | {ours} | {moved} ({ends}) | {count} |")
    return opening + "\n".join(lines) + "\n" + closing


def take(source: Path) -> None:
    """Copies the records (not the pictures) of the package's suites in a folder of the bench."""
    for record in sorted(
        path for name in names() for path in source.joinpath(name).glob("*/*.json")
    ):
        target = RECORDS / record.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(record, target)


def main() -> int:
    """Writes, or checks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--take", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    if given.take:
        take(given.take)
    stale = [
        path
        for path, text in tables().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    for path in stale:
        if not given.check:
            write_text(path, tables()[path])
        sys.stderr.write(f"{'stale' if given.check else 'wrote'}: {path.relative_to(ROOT)}\n")
    return int(given.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
