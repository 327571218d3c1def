"""What the bundled pair makes of words: sixty fixed prompts in four groups, and a sheet of 24, both models.

    python benchmarks/pair_prompts.py                          # about 4 minutes of one core; with --sheets 13
    python benchmarks/pair_prompts.py --models local-dir:runs/mine -o runs/mine.md

The prompts are in pair_prompts.toml. `class` and `word`: the judge's first, or one of its first five, is the class or
covered by the word. `colour`: the asked colour's share of the subject or the background is larger than in the
picture of the same words without the colour, from the same seed. `two`: one of the two, or both, among the judge's
first five.
All of these at the default settings. Writes the table, and with --sheets a sheet a model: docs/models-NAME.webp, preset
`natural`, which keeps of eight drafts the one that its own guide finds closest; nobody else picks. The judge guides
nothing but, for its own sheet, itself.
"""

from __future__ import annotations

import argparse
import sys
import tomllib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from clipag_plug import clip, synthesize  # noqa: E402
from clipag_plug.bench.judges import Judge  # noqa: E402
from clipag_plug.bench.stats import share_interval  # noqa: E402
from clipag_plug.files import write_atomically, write_text  # noqa: E402
from clipag_plug.images import contact_sheet, to_pil  # noqa: E402
from clipag_plug.losses import attributes  # noqa: E402
from clipag_plug.vocabulary import bundled_vocabulary, sentence  # noqa: E402

PROMPTS = ROOT / "benchmarks" / "pair_prompts.toml"
JUDGE = "judge-mini"
CELL = 144


def draw(texts: list[str], model: Any, seed: int, preset: str = "fast") -> Tensor:
    """Pictures (N, 3, side, side) at a preset's settings."""
    results = synthesize(texts, model=model, seed=seed, preset=preset)
    return torch.stack([result.image for result in results])


def recognised(images: Tensor, wanted: list[set[int]], judge: Judge) -> dict[str, list[bool]]:
    """Is one of the wanted classes the judge's first; one among its first five; are all of them?"""
    first = judge.logits(images).topk(5).indices.tolist()
    pairs = list(zip(first, wanted, strict=True))
    return {
        "first": [five[0] in classes for five, classes in pairs],
        "one of five": [bool(classes & set(five)) for five, classes in pairs],
        "all of five": [classes <= set(five) for five, classes in pairs],
    }


def coloured(prompts: list[dict[str, str]], model: Any, seed: int, judge: Judge) -> list[Any]:
    """For each prompt: does the colour gain, and is the class still among the judge's first five?"""
    names = bundled_vocabulary().class_names
    plain = [sentence(prompt["class"], "a {}") for prompt in prompts]
    # One by one, so that the pair of a prompt has the same start whatever else is drawn.
    pairs = [
        [draw([text], model, seed)[0] for text in (p["text"], q)] for p, q in zip(prompts, plain)
    ]
    gains = []
    for prompt, pictures in zip(prompts, pairs, strict=True):
        where = attributes.background if prompt.get("place") == "background" else attributes.subject
        share = attributes.shares(torch.stack(pictures), where(pictures[0].shape[-1]))
        asked, without = share[:, attributes.NAMES.index(prompt["colour"])].tolist()
        gains.append(asked > without)
    wanted = [{names.index(prompt["class"])} for prompt in prompts]
    images = torch.stack([pictures[0] for pictures in pairs])
    return [gains, recognised(images, wanted, judge)["one of five"]]


def measure(data: dict[str, Any], model: Any, seed: int, judge: Judge) -> dict[str, list[bool]]:
    """Hits of every row of the table."""
    vocabulary = bundled_vocabulary()
    names = vocabulary.class_names
    rows: dict[str, list[bool]] = {}
    for group in ("class", "word"):
        texts = [sentence(word, "a {}") for word in data[group]]
        wanted = [set(vocabulary.cover[word]) for word in data[group]]
        found = recognised(draw(texts, model, seed), wanted, judge)
        rows[f"{group}: the judge's first"] = found["first"]
        rows[f"{group}: among its first five"] = found["one of five"]
    gains, kept = coloured(data["colour"], model, seed, judge)
    rows["colour: more of it than without the word"] = gains
    rows["colour: class among the first five"] = kept
    wanted = [{names.index(name) for name in prompt["classes"]} for prompt in data["two"]]
    pictures = draw([prompt["text"] for prompt in data["two"]], model, seed)
    found = recognised(pictures, wanted, judge)
    rows["two: one among the first five"] = found["one of five"]
    rows["two: both among the first five"] = found["all of five"]
    return rows


def main() -> int:
    """Draws, scores, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["clip-mini", "clipag-mini"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheets", action="store_true", help="draw the sheets too")
    parser.add_argument(
        "-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "prompts.md"
    )
    given = parser.parse_args()
    data = tomllib.loads(PROMPTS.read_text(encoding="utf-8"))
    judge = Judge(clip.load_model(JUDGE, "cpu"), JUDGE, bundled_vocabulary().class_names)
    found: dict[str, dict[str, list[bool]]] = {}
    for name in given.models:
        found[name] = measure(data, clip.load_model(name, "cpu"), given.seed, judge)
    for name in (*given.models, JUDGE) if given.sheets else ():
        sys.stderr.write(f"{sheet(name, data['sheet'], given.seed)}\n")
    write_text(given.output, page(found))
    sys.stdout.write(page(found))
    return 0


def sheet(name: str, prompts: list[str], seed: int) -> Path:
    """One seed's pictures of the sheet's prompts, eight a row."""
    drawn = draw(prompts, clip.load_model(name, "cpu"), seed, "natural")
    pictures = F.interpolate(drawn, CELL, mode="bicubic", antialias=True).clamp(0, 1)
    captions = [" | ".join(prompts[at : at + 8]) for at in range(0, len(pictures), 8)]
    rows = [list(part) for part in pictures.split(8)]
    image = contact_sheet(rows, title=name, captions=captions, margin=8, text=15)
    path = ROOT / "docs" / f"models-{name.rpartition('/')[2]}.webp"
    return write_atomically(path, lambda to: to_pil(image).save(to, "WEBP", quality=92, method=6))


def page(found: dict[str, dict[str, list[bool]]]) -> str:
    """The table: counts with Wilson's interval."""
    lines = [f"| group | {' | '.join(found)} |", f"|---|{'---|' * len(found)}"]
    for row in next(iter(found.values())):
        cells = []
        for hits in (rows[row] for rows in found.values()):
            interval = share_interval(sum(hits) / len(hits), len(hits))
            ends = f"{100 * interval.low:.0f} to {100 * interval.high:.0f} %"
            cells.append(f"{sum(hits)} of {len(hits)} ({ends})")
        lines.append(f"| {row} | {' | '.join(cells)} |")
    how = "`python benchmarks/pair_prompts.py`: default settings, one seed, 95 % intervals."
    return "\n".join(["# Sixty prompts, measured", "", how, "", *lines]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
