"""Quality of the loop on the bundled pair, judged by `judge-mini`: which settings pay for their time.

    python benchmarks/synthesis_quality.py                    # every 4th class, clipag-mini, about 15 minutes
    python benchmarks/synthesis_quality.py --every 1 --only default "100 steps" --model clip-mini -o table.json

One row per setting: share of pictures that the judge calls by their prompt among all classes (top-1, top-5), its mean
similarity, and processor seconds a picture. A row is on the Pareto front where none is both faster and better.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from clipag_plug import clip, synthesize  # noqa: E402
from clipag_plug.augment import fit  # noqa: E402
from clipag_plug.files import write_text  # noqa: E402
from clipag_plug.paint import Guide, Synthesis  # noqa: E402
from clipag_plug.vocabulary import bundled_vocabulary, sentence  # noqa: E402

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "15 steps, lr 0.08": {"steps": 15, "lr": 0.08},
    "25 steps": {"steps": 25},
    "25 steps, lr 0.05": {"steps": 25, "lr": 0.05},
    "400 steps": {"steps": 400},
    "100 steps": {"steps": 100},
    "2 views": {"views": 2},
    "8 views": {"views": 8},
    "no views": {"views": 0},
    "4 patches": {"patches": 4},
    "noise start": {"init": "noise"},
    "100 steps, noise start": {"steps": 100, "init": "noise"},
    "grey start": {"init": "gray"},
    "full grid": {"grid": 0},
    "soft": {"preset": "soft"},
    "spectral": {"optimizer": "spectral", "lr": 0.02},
    "4 drafts": {"drafts": 4},
    "natural": {"preset": "natural"},
    "the cosine alone": {"contrast": 0},
    "100 steps, noise start, the cosine alone": {"contrast": 0, "steps": 100, "init": "noise"},
    "natural, the cosine alone": {"contrast": 0, "preset": "natural"},
    "contrast 30": {"contrast": 30, "steps": 100, "init": "noise"},
    "contrast 45": {"contrast": 45, "steps": 100, "init": "noise"},
    "lr 0.05": {"lr": 0.05},
    "lr 0.02": {"lr": 0.02},
}


class Judge:
    """Ranks the prompted class among all, by a model that has guided nothing."""

    def __init__(self, name: str, template: str) -> None:
        self.guide = Guide(clip.load(name, device="cpu")[0])
        self.texts = self.guide.texts(
            [sentence(word, template) for word in bundled_vocabulary().class_names]
        )

    @torch.no_grad()
    def __call__(self, results: list[Synthesis], classes: list[int]) -> dict[str, float]:
        images = torch.stack([result.image for result in results])
        scores = self.guide.features(fit(images, self.guide.side)) @ self.texts.T
        own = scores.gather(1, torch.tensor(classes)[:, None])
        rank = (scores > own).sum(1)
        return {
            "top1": float((rank < 1).float().mean()),
            "top5": float((rank < 5).float().mean()),
            "similarity": float(own.mean()),
        }


def front(rows: list[dict[str, Any]]) -> None:
    """Marks the rows that no other beats in both top-5 (then top-1, similarity) and time."""

    def merit(row: dict[str, Any]) -> tuple[float, float, float]:
        return row["top5"], row["top1"], row["similarity"]

    for row in rows:
        row["front"] = not any(
            other["seconds"] < row["seconds"] and merit(other) > merit(row) for other in rows
        )


def main() -> None:
    """Measures, prints a table, and writes JSON with -o."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="clipag-mini")
    parser.add_argument("--judge", default="judge-mini")
    parser.add_argument("--every", type=int, default=4, help="every n-th class of the vocabulary")
    parser.add_argument("--only", nargs="+", choices=tuple(SETTINGS), default=tuple(SETTINGS))
    parser.add_argument("--template", default="a {}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", help="JSON to write")
    given = parser.parse_args()
    names = bundled_vocabulary().class_names
    classes = list(range(0, len(names), given.every))
    prompts = [sentence(names[index], given.template) for index in classes]
    model, judge = clip.load(given.model, device="cpu")[0], Judge(given.judge, given.template)
    rows: list[dict[str, Any]] = []
    for name in given.only:
        settings = SETTINGS[name]
        start = time.process_time()
        results = synthesize(prompts, model=model, seed=given.seed, **settings)
        seconds = (time.process_time() - start) / len(prompts)
        rows.append({"setting": name, "seconds": seconds, **judge(results, classes)})
        sys.stderr.write(f"{rows[-1]}\n")
    front(rows)
    for row in rows:
        mark = "*" if row["front"] else " "
        sys.stdout.write(
            f"{mark} {row['setting']:14} top-1 {row['top1']:.3f}  top-5 {row['top5']:.3f}  "
            f"similarity {row['similarity']:.3f}  {row['seconds']:.2f} s\n"
        )
    if given.output:
        write_text(given.output, json.dumps({"prompts": prompts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
