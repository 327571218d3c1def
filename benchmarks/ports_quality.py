"""The three pipelines at their demo preset, vanilla against robust, as an independent judge sees the pictures.

    python benchmarks/ports_quality.py                          # 10 prompts a pipeline
    python benchmarks/ports_quality.py --only clipdraw --first 2

Writes a table to benchmarks/results/ports.md and a sheet a pipeline beside it. The judge guides nothing. Differences
are paired over prompts, with a percentile bootstrap of 10,000 resamples; shares have Wilson's interval.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from clipag_plug import clip  # noqa: E402
from clipag_plug.bench.judge import Judge  # noqa: E402
from clipag_plug.bench.metrics import ranks, similarity  # noqa: E402
from clipag_plug.bench.statistics import Interval, mean, paired_difference  # noqa: E402
from clipag_plug.images import contact_sheet, write_image, write_text  # noqa: E402
from clipag_plug.photos import bundled_photos  # noqa: E402
from clipag_plug.ports import clipdraw, clipstyler, vqgan_clip  # noqa: E402
from clipag_plug.ports.common import Artwork  # noqa: E402
from clipag_plug.vocabulary import bundled_vocabulary, sentence  # noqa: E402

MODELS = ("clip-mini", "clipag-mini")
JUDGE = "judge-mini"
# Ten classes for the two painters, ten with a texture for the styler; fixed before anything was measured.
THINGS = (
    *("goldfish", "lemon", "school bus", "jellyfish", "king penguin"),
    *("brown bear", "monarch butterfly", "pizza", "ladybug", "lighthouse"),
)
STYLES = (
    *("coral reef", "spider web", "brain coral", "pizza", "lemon"),
    *("thatch", "jellyfish", "monarch butterfly", "guacamole", "orange"),
)
CONTENT = "teapot"  # class of the photograph that is styled: its last one in the package


@dataclass
class Measured:
    """What one pipeline gave: pictures (N, 3, H, W) of each model, and processor and wall seconds a picture."""

    words: tuple[str, ...]
    pictures: dict[str, Tensor] = field(default_factory=dict)
    seconds: dict[str, tuple[float, float]] = field(default_factory=dict)


def main() -> None:
    """Draws, judges, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("clipdraw", "vqgan", "style"), nargs="+")
    parser.add_argument("--first", type=int, default=10, help="prompts of each list")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    given = parser.parse_args()
    names = bundled_vocabulary().class_names
    judge = Judge(clip.load(JUDGE, device="cpu")[0], JUDGE, names)
    lines = header(given)
    for port in given.only or ("clipdraw", "vqgan", "style"):
        words = (STYLES if port == "style" else THINGS)[: given.first]
        measured = measure(port, words, given.seed)
        lines += table(port, measured, judge, names)
        sheet = contact_sheet(
            [list(measured.pictures[model]) for model in MODELS],
            captions=list(MODELS),
            headings=[sentence(word, "a {}") for word in words],
        )
        write_image(given.output / f"ports-{port}.png", sheet)
        sys.stderr.write("\n".join(lines[-9:]) + "\n")
    path = write_text(given.output / "ports.md", "\n".join(lines) + "\n")
    sys.stdout.write(f"{path}\n")


def measure(port: str, words: tuple[str, ...], seed: int) -> Measured:
    """Every prompt under both models, with the same seed."""
    found = Measured(words)
    prompts = [sentence(word, "a {}") for word in words]
    for model in MODELS:
        loaded = clip.load(model, device="cpu")[0]
        wall, processor = time.perf_counter(), time.process_time()
        works = perform(port, prompts, loaded, seed)
        spent = (time.process_time() - processor, time.perf_counter() - wall)
        found.seconds[model] = (spent[0] / len(words), spent[1] / len(words))
        found.pictures[model] = torch.stack([work.image for work in works])
    return found


def perform(port: str, prompts: list[str], model: Any, seed: int) -> list[Artwork]:
    """The pictures of one pipeline under one model."""
    settings: dict[str, Any] = {"model": model, "preset": "demo", "seed": seed}
    if port == "clipdraw":
        return clipdraw(prompts, **settings)
    if port == "vqgan":
        return vqgan_clip(prompts, **settings)
    return clipstyler(prompts, photograph(), **settings)


def photograph() -> Tensor:
    """The photograph that is styled, (3, 64, 64)."""
    sample = bundled_photos()
    label = bundled_vocabulary().class_names.index(CONTENT)
    return sample.pixels([int((sample.labels == label).nonzero()[-1])])[0]


def header(given: argparse.Namespace) -> list[str]:
    """What was measured and how."""
    return [
        "# The pipelines on the bundled pair",
        "",
        f"`python benchmarks/ports_quality.py`, torch {torch.__version__}, {torch.get_num_threads()} threads, "
        f"seed {given.seed}, preset `demo`. Judge: `{JUDGE}` among 202 classes; it guides nothing.",
        "Intervals: 95 %, Wilson for shares, percentile bootstrap over prompts else; differences are paired.",
    ]


def table(port: str, measured: Measured, judge: Judge, names: list[str]) -> list[str]:
    """The section of one pipeline."""
    truth = torch.tensor([names.index(word) for word in measured.words])
    texts = judge.texts([sentence(word, "a {}") for word in measured.words]).cpu()
    scores: dict[str, dict[str, list[float]]] = {}
    for model, pictures in measured.pictures.items():
        rank = ranks(judge.logits(pictures), truth)
        scores[model] = {
            "recognised, first of 202": (rank < 1).float().tolist(),
            "recognised, among five": (rank < 5).float().tolist(),
            "similarity to the prompt": similarity(judge.features(pictures), texts).tolist(),
        }
    vanilla, robust = MODELS
    lines = ["", f"## {port}", "", f"| | {vanilla} | {robust} | difference |", "|---|---|---|---|"]
    for name in scores[vanilla]:
        ours, theirs = scores[robust][name], scores[vanilla][name]
        change = paired_difference(ours, theirs)
        mark = " *" if change.excludes(0) else ""
        lines.append(
            f"| {name} | {shown(mean(theirs))} | {shown(mean(ours))} | {shown(change)}{mark} |"
        )
    spent = [
        f"{measured.seconds[model][0]:.1f} s ({measured.seconds[model][1]:.1f} s)"
        for model in MODELS
    ]
    lines.append(f"| processor (wall) time a picture | {spent[0]} | {spent[1]} | |")
    lines += ["", f"Prompts: {', '.join(measured.words)}. Pictures: `ports-{port}.png`."]
    return lines


def shown(interval: Interval) -> str:
    """'0.50 (0.24 to 0.76)'."""
    return f"{interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f})"


if __name__ == "__main__":
    main()
