"""What an ImageNet network that guided nothing recognises in pictures of names, by both models of a pair.

    python benchmarks/pair_quality.py --section painted                        # list B of pair_lists.toml
    python benchmarks/pair_quality.py --section development --options '{"views": 8}' '{"views": 0}'

Needs the extra `judge`. Each name is painted as "a photo of a NAME" with one seed and the same settings by every model.
The names of `development` choose settings, those of `painted` nothing. Prints a table: the judge's top-1 and top-5 of
1,000 classes over names with photographs in the pair's training and over names without, and with --sheets the pictures.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from clipag_plug import clip, synthesize  # noqa: E402
from clipag_plug.bench.judges import ImageNetJudge  # noqa: E402
from clipag_plug.bench.stats import share_interval  # noqa: E402
from clipag_plug.images import contact_sheet, resize, to_pil  # noqa: E402
from clipag_plug.vocabulary import sentence  # noqa: E402

LISTS = ROOT / "benchmarks" / "pair_lists.toml"
GROUPS = ("photographs", "none")


def painted(names: list[str], model: Any, template: str, options: dict[str, Any]) -> Tensor:
    """Pictures (N, 3, 224, 224) of the names, ten in a batch."""
    texts = [sentence(name, template) for name in names]
    found: list[Tensor] = []
    for start in range(0, len(texts), 10):
        results = synthesize(texts[start : start + 10], model=model, **options)
        found += [resize(result.image[None], 224) for result in results]
    return torch.cat(found)


def main() -> int:
    """Paints, asks the judge, prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--section", default="development", choices=("development", "painted"))
    parser.add_argument("--models", nargs="+", default=["clip-mini", "clipag-mini"])
    parser.add_argument(
        "--options",
        nargs="+",
        default=['{"init": "noise"}'],
        help="JSON of synthesize's options, one a row",
    )
    parser.add_argument("--template", default="a photo of a {}")
    parser.add_argument("--count", type=int, default=0, help="names of a group, 0 for all")
    parser.add_argument("--sheets", type=Path, help="folder for the pictures")
    given = parser.parse_args()
    lists = tomllib.loads(LISTS.read_text(encoding="utf-8"))[given.section]
    judge = ImageNetJudge()
    heads = [f"{group}: top-1 / top-5" for group in GROUPS]
    print(f"| model | options | {' | '.join(heads)} | all: top-1 [95 %] / top-5 | s a picture |")
    print("|---|---|---|---|---|---|")
    for number, text in enumerate(given.options):
        for name in given.models:
            model = clip.load_model(name, "cpu")
            cells, first, five, started, made = [], [], [], time.perf_counter(), []
            for group in GROUPS:
                names = lists[group][: given.count or None]
                pictures = painted(names, model, given.template, {"seed": 0, **json.loads(text)})
                wanted = torch.tensor([judge.classes.index(n) for n in names])
                top = judge.logits(pictures).topk(5).indices
                one, any_of = top[:, 0].eq(wanted), top.eq(wanted[:, None]).any(1)
                cells.append(f"{100 * one.float().mean():.0f} / {100 * any_of.float().mean():.0f}")
                first, five, made = first + one.tolist(), five + any_of.tolist(), [*made, pictures]
            each = (time.perf_counter() - started) / len(first)
            found = share_interval(sum(first) / len(first), len(first))
            whole = f"{100 * found.value:.0f} [{100 * found.low:.0f}, {100 * found.high:.0f}]"
            row = [
                Path(name).name,
                f"`{text}`",
                *cells,
                f"{whole} / {100 * sum(five) / len(five):.0f}",
            ]
            print(f"| {' | '.join(row)} | {each:.1f} |", flush=True)
            if given.sheets:
                small = resize(torch.cat(made), 112)
                given.sheets.mkdir(parents=True, exist_ok=True)
                path = given.sheets / f"models-{Path(name).name}{number or ''}.webp"
                sheet = to_pil(contact_sheet([list(row) for row in small.split(10)]))
                sheet.save(path, "WEBP", quality=90, method=6)
    return 0


if __name__ == "__main__":
    sys.exit(main())
