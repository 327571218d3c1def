"""What matters in the training of the robust guide: variants of a recipe on equal budgets, trained and measured.

    python benchmarks/study.py --data 'tiny-imagenet/train-*.tar.gz' --validation tiny-imagenet/val-00.tar.gz
    python benchmarks/study.py --data ... --validation ... --samples 5000000 --set precision=bf16 batch_size=512
    python benchmarks/study.py --data ... --validation ... --only recipe "eps 6 (4x)"

The variants are in study.toml (--variants for a file of one's own), the measures in study_suite.toml. A run that was
stopped goes on with the same command: a variant that has its weights is not trained again, one that has a checkpoint
is resumed, and the bench skips what has a record. The data is decoded once for all. Prints a table in Markdown, a row
a variant; the judge guides nothing. --samples scales every variant's budget so that "recipe" sees so many images.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from clipag_plug.bench.__main__ import main as bench  # noqa: E402
from clipag_plug.bench.compare import result_of  # noqa: E402
from clipag_plug.bench.report import cells  # noqa: E402
from clipag_plug.bench.suites import read_suite  # noqa: E402
from clipag_plug.options.base import read_recipe  # noqa: E402
from clipag_plug.options.train import Train  # noqa: E402

SUITE = ROOT / "benchmarks" / "study_suite.toml"
RECIPES = ROOT / "clipag_plug" / "train" / "recipes"
COLUMNS = {
    "clean": "zeroshot/clean_top1",
    "PGD-10, L2 1.5": "zeroshot/robust_top1",
    "pictures, top-1": "views/top1",
    "pictures, top-5": "views/top5",
    "targets, L2 20": "targeted/target_top1@20",
    "margin gain, L2 20": "targeted/margin_gain@20",
}


def variants(path: Path, only: list[str], samples: int, given: dict[str, Any]) -> dict[str, Train]:
    """The options of each variant. ValueError for an unknown one."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    unknown = set(only) - set(data["variants"])
    if unknown:
        raise ValueError(
            f"no variant {', '.join(sorted(unknown))}; there are: {', '.join(data['variants'])}"
        )
    base, common = read_recipe(RECIPES / f"{data['recipe']}.toml"), data["common"]
    factor = samples / common["samples"] if samples else 1.0
    found = {}
    for name, changes in data["variants"].items():
        if only and name not in only:
            continue
        merged = {**base, **common, **changes}
        merged["samples"] = round(merged["samples"] * factor)
        found[name] = Train.from_dict({**merged, **given, "name": name})
    return found


def remember_data() -> None:
    """Decoding the photographs takes longer than a short run: the opened data is shared by all variants."""
    from clipag_plug.train import setup

    opened: dict[str, Any] = {}
    first = setup.open_data

    def once(*arguments: Any, **keywords: Any) -> Any:
        key = repr((arguments, sorted(keywords.items(), key=str)))
        if key not in opened:
            opened[key] = first(*arguments, **keywords)
        return opened[key]

    setup.open_data = once


def train(options: Train) -> float:
    """Trains a variant unless it is there; processor seconds that it took."""
    from clipag_plug.train import command

    folder = Path(options.output)
    if (folder / "model.safetensors").is_file():
        return 0.0
    started = time.process_time()
    command.run(options)
    return time.process_time() - started


def table(names: dict[str, str], records: Path) -> str:
    """A row a variant, the vanilla model first; a star marks an interval of the difference that excludes zero."""
    suite = read_suite(str(SUITE), models=["clip-mini", *names.values()])
    rows = result_of(suite, records).rows
    lines = [f"| | {' | '.join(COLUMNS)} |", f"|---|{'---:|' * len(COLUMNS)}"]
    found = {
        name: {row.metric: cells(row) for row in rows.get(model, ())}
        for name, model in names.items()
    }
    baseline = next(iter(found.values()))
    shown = [baseline[metric][1] for metric in COLUMNS.values()]
    lines.append(f"| clip-mini | {' | '.join(shown)} |")
    for name, metrics in found.items():
        shown = [
            metrics[metric][2] + (" *" if "*" in metrics[metric][3] else "")
            for metric in COLUMNS.values()
        ]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> int:
    """Trains, measures, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", required=True, help="as of clipag train")
    parser.add_argument("--validation", nargs="+", default=[], help="held-out shards")
    parser.add_argument("--variants", type=Path, default=ROOT / "benchmarks" / "study.toml")
    parser.add_argument("--only", nargs="+", default=[], help="these variants alone")
    parser.add_argument("--samples", type=int, default=0, help="images that `recipe` sees")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="for all")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/study"))
    given = parser.parse_args()
    settings = tomllib.loads("\n".join(_assignment(text) for text in given.set))
    settings |= {"data": given.data, "validation": given.validation, "resume": "latest"}
    remember_data()
    names: dict[str, str] = {}
    for name, options in variants(given.variants, given.only, given.samples, settings).items():
        folder = given.output / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        options.output = str(folder)
        seconds = train(options)
        print(f"{name}: {seconds:.0f} s of processor", file=sys.stderr)
        names[name] = f"local-dir:{folder}"
    models, records = ["clip-mini", *names.values()], given.output / "bench"
    with contextlib.redirect_stdout(sys.stderr):
        code = bench(["run", str(SUITE), "--models", *models, "-o", str(records)])
    print(table(names, records))
    return code


def _assignment(text: str) -> str:
    """`precision=bf16` as a line of TOML: what is no number and no truth value is a string."""
    field, _, value = text.partition("=")
    plain = re.fullmatch(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?|true|false", value)
    return f"{field} = {value}" if plain else f'{field} = "{value}"'


if __name__ == "__main__":
    sys.exit(main())
