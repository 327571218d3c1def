"""`python benchmarks/make/bundle.py RUN [RUN ...] --validation SHARD`: packs a run, or the mean of several."""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import clipag_plug.bundled
from clipag_plug.clip import tokenize
from clipag_plug.model import CLIP, build
from clipag_plug.train.data import read_shards
from clipag_plug.train.evaluate import Validation
from clipag_plug.train.state import read_model
from clipag_plug.vocabulary import bundled_vocabulary, in_template
from clipag_plug.weights.export import write_bundled

FOLDER = Path(clipag_plug.bundled.__path__[0])
ROLES = {
    "clip-mini": "Vanilla guide: a small CLIP on a pretrained image tower, adapted without an attack.",
    "clipag-mini": "Robust guide: clip-mini's image tower fine-tuned adversarially, its text tower frozen.",
    "judge-mini": "Independent judge: vanilla, a narrower tower, another text tower and seed. It scores, never guides.",
}
PHOTOGRAPHS = (
    "Tiny ImageNet (202 classes, 101,000 photographs of 64x64 pixels, a subset of ImageNet made for Stanford's "
    "CS231N): for research use"
)
DRAWINGS = (
    "8,588 drawings of 1,721 concepts: Noto Emoji (Google, Apache-2.0), Twitter Emoji (CC-BY-4.0), Fluent Emoji "
    "(Microsoft, MIT), Firefox OS Emoji (Mozilla, Apache-2.0), Streamline Emojis (CC-BY-4.0)"
)
BASE = "EfficientNet-Lite0 with ImageNet-1k's weights (Apache-2.0)"
WORDS = "its text tower learned from all-MiniLM-L6-v2 (Apache-2.0) and WordNet 3.0"
CAN = (
    'Single things, as "a photo of a ..." or "a cartoon of a ...": ImageNet\'s 1,000 classes and the concepts of emoji '
    "(model.vocabulary), and what is near them in meaning."
)
CANNOT = (
    "It cannot count, place two things beside each other or write text, and works at {size}x{size} pixels inside, so "
    "pictures are soft. Persons and look-alike classes are its weak spots."
)


def main(arguments: list[str] | None = None) -> int:
    """Packs a run; prints the card."""
    options = make_parser().parse_args(arguments)
    try:
        config, card, weights = read_mean(options.runs)
        if options.text:
            taught = read_model(options.text)[2]
            weights |= {n: v for n, v in taught.items() if not n.startswith(("visual.", "logit_"))}
        key = options.key or card["name"]
        pixels = {name: card[name] for name in ("mean", "std") if name in card}
        known = forget_unused(weights, options.words) if options.words else []
        # Measured as it is shipped: matrices and kernels rounded to fp16.
        rounded = {n: w.half().float() if w.ndim > 1 else w.clone() for n, w in weights.items()}
        model = build(config, rounded, name=key, **pixels)
        results = measure(model, options.validation, options.images, options.skip)
        full = describe(key, config, card["recipe"], results, options)
        full |= pixels | ({"vocabulary": known} if known else {})
        write_bundled(options.output / key, weights, config, full, options.shares_text_with)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"bundle: error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(full, indent=1))
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python benchmarks/make/bundle.py", description=__doc__)
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="folder of a finished run; of several the weights are averaged, and the card is the last one's",
    )
    parser.add_argument("--key", help="name of the bundled model [the run's name]")
    parser.add_argument("--text", type=Path, help="run whose text tower it gets")
    parser.add_argument("--words", type=Path, help="file of words.py that the text tower learned")
    parser.add_argument("--shares-text-with", help="bundled model whose text tower is the same")
    parser.add_argument("--validation", nargs="+", required=True, help="held-out shards")
    parser.add_argument(
        "--images", type=int, default=2000, help="held-out images to measure on [2000]"
    )
    parser.add_argument(
        "--skip", type=int, default=0, help="first images of the shards, which chose something [0]"
    )
    parser.add_argument("--history", default="", help="how it was trained, on what, for how long")
    parser.add_argument("-o", "--output", type=Path, default=FOLDER, help="folder to write")
    return parser


def read_mean(runs: list[Path]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """Config and card of the last run, and the mean of the weights of all (model soups, Wortsman et al. 2022), as of
    runs that come from one start and differ in rate, order or length. ValueError where the networks differ."""
    config, card, weights = read_model(runs[-1])
    mean = {name: value.clone() for name, value in weights.items()}
    for count, run in enumerate(runs[:-1], 2):
        other, _, values = read_model(run)
        if other != config:
            raise ValueError(f"{run} and {runs[-1]} are different networks; they have no mean")
        for name, value in mean.items():
            if value.is_floating_point():
                value.lerp_(values[name].to(value.dtype), 1 / count)
    return config, card, mean


def forget_unused(weights: dict[str, Tensor], words: Path) -> list[str]:
    """Zeroes the embeddings of tokens that no text of the file has, which were never learned and would be noise; the
    names of the things that it knows."""
    with np.load(words) as file:
        texts, known = file["texts"].tolist(), int(file["known"][-1])
        templates = file["templates"].tolist()
    said = [in_template(template, word) for template in templates for word in ("orange", "lemon")]
    said += [in_template(template, word) for template in ("{}", "{s}") for word in texts]
    used = torch.unique(tokenize(said, truncate=True).long())
    unused = torch.ones(len(weights["token_embedding.weight"]), dtype=torch.bool)
    unused[used[used > 0]] = False
    weights["token_embedding.weight"] = weights["token_embedding.weight"].clone()
    weights["token_embedding.weight"][unused] = 0
    heard = sorted({w for text in texts for w in re.findall(r"[^\W\d_]+", text.lower())})
    packed = gzip.compress(("\n".join(heard) + "\n").encode(), 9, mtime=0)
    (FOLDER / "words.txt.gz").write_bytes(packed)  # what `vocabulary.taught_words` reads
    return list(dict.fromkeys(texts[:known]))


def measure(model: CLIP, validation: list[str], images: int, skip: int = 0) -> dict[str, float]:
    """Zero-shot top-1 (percent) of 202 classes on held-out photographs at 224x224, clean and under PGD-20, L2 1.5."""
    photos = read_shards(validation, 64)
    names = bundled_vocabulary().class_names
    photos.texts = [""] * len(photos)
    check = Validation(photos, names, 224, 1.5, "l2", len(photos), steps=20, batch_size=50)
    check.rows = check.rows[check.rows >= skip][:images]
    found = check(model)
    return {"clean": round(100 * found["clean"], 1), "l2 1.5": round(100 * found["robust"], 1)}


def describe(
    key: str,
    config: dict[str, Any],
    recipe: dict[str, Any],
    results: dict[str, float],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """The model card as data, in the fields that `clipag export` prints."""
    side = next(c for n, c in config["vision_cfg"].items() if isinstance(c, dict))["image_size"]
    attacked = recipe["attack_steps"] > 0
    attack = {"norm": recipe["norm"], "eps": recipe["eps"], "base": "clip-mini"} if attacked else {}
    return {
        "name": key,
        "description": ROLES.get(key, "A small CLIP."),
        "method": "clipag" if attacked else "vanilla",
        **attack,
        "data": f"{PHOTOGRAPHS}; {DRAWINGS}. {BASE}; {WORDS}."
        if options.words
        else PHOTOGRAPHS + ".",
        "licence": "research use (trained on Tiny ImageNet)",
        "paper": "Ganz and Elad 2024, arXiv:2306.16805",
        "results": results,
        "results_note": f"top-1 of 202 classes on {options.images} held-out photographs; attack: PGD-20, L2 1.5 at "
        "224x224 in [0, 1]",
        "history": options.history,
        "torch": torch.__version__,
        "can_draw": CAN,
        "cannot_draw": CANNOT.format(size=side),
    }


if __name__ == "__main__":
    sys.exit(main())
