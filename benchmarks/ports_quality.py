"""The three pipelines at their demo preset, vanilla against CLIPAG: judged by a third model, and named blind.

    python benchmarks/ports_quality.py                      # 10 prompts a pipeline, both models; then the table
    python benchmarks/ports_quality.py --only clipdraw      # one pipeline, the others as they were measured
    python benchmarks/ports_quality.py --only clipdraw --first 2 --output runs/quick --sheet runs/quick/ports.png
    python benchmarks/ports_quality.py --only               # the table and the sheet alone, as after naming

Finished pictures are kept in runs/ports, and a stopped run goes on, until settings, seed or torch change; a model's
pictures go when its own weights do.
Writes OUTPUT/ports.md and a sheet of everything, a row a model. The judge guides nothing. Differences are paired over
prompts, with a percentile bootstrap of 10,000 resamples; shares have Wilson's interval.

Naming: every run leaves runs/ports/blind-PIPELINE.png, both models' pictures shuffled and numbered without a word.
Someone who has not seen the other sheets writes down what each shows, in OUTPUT/ports-named.json as {"clipdraw":
["lemon", "", ...], "how": "in a sentence"}, from number 1 on, "" for what cannot be named ("bear" counts for a brown
bear); then `--only` adds the count to the table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from clipag_plug import clip  # noqa: E402
from clipag_plug.bench.judges import Judge  # noqa: E402
from clipag_plug.bench.metrics import ranks, similarity  # noqa: E402
from clipag_plug.bench.stats import Interval, mean, paired_difference  # noqa: E402
from clipag_plug.bundled.photos import bundled_photos  # noqa: E402
from clipag_plug.files import write_atomically, write_text  # noqa: E402
from clipag_plug.images import contact_sheet, to_pil, write_image  # noqa: E402
from clipag_plug.options.clipdraw import ClipDraw  # noqa: E402
from clipag_plug.options.style import Style  # noqa: E402
from clipag_plug.options.vqgan import Vqgan  # noqa: E402
from clipag_plug.paint import Synthesis  # noqa: E402
from clipag_plug.pipelines import clipdraw, clipstyler, vqgan_clip  # noqa: E402
from clipag_plug.vocabulary import bundled_vocabulary, sentence  # noqa: E402

MODELS = {"clip-mini": "vanilla", "clipag-mini": "CLIPAG"}
JUDGE = "judge-mini"
PORTS = {"clipdraw": "CLIPDraw", "vqgan": "VQGAN+CLIP", "style": "CLIPStyler"}
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
PARTS = ROOT / "runs" / "ports"  # what was measured, until the next time
CELL = 88  # pixels of a picture on the sheet of everything
CLOSE = 160  # and where it is to be named


def main() -> None:
    """Draws, judges, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", choices=PORTS, nargs="*", help="measure these anew; none: nothing"
    )
    parser.add_argument("--first", type=int, default=10, help="prompts of each list")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--sheet", type=Path, default=ROOT / "docs" / "ports.png")
    given = parser.parse_args()
    PARTS.mkdir(parents=True, exist_ok=True)
    given.output.mkdir(parents=True, exist_ok=True)
    lists = {port: (STYLES if port == "style" else THINGS)[: given.first] for port in PORTS}
    for port in PORTS if given.only is None else given.only:
        write_image(
            PARTS / f"blind-{port}.png", blind(port, measure(port, lists[port], given.seed))
        )
    files = {port: PARTS / f"{port}.pt" for port in PORTS if (PARTS / f"{port}.pt").is_file()}
    found = {port: measured(torch.load(path), lists[port]) for port, path in files.items()}
    path = write_text(given.output / "ports.md", document(found, given.output))
    sheet = to_pil(everything(found)).quantize(256, dither=1)  # a third of the bytes, for a README
    write_atomically(given.sheet, lambda name: sheet.save(name, "PNG", optimize=True))
    sys.stdout.write(f"{path}\n{given.sheet}\n")


def measure(port: str, words: tuple[str, ...], seed: int) -> dict[str, Any]:
    """Every prompt under both models, with the same seed and settings; kept after each, and gone on with."""
    path, facts = PARTS / f"{port}.pt", circumstances(port, seed)
    found = kept(torch.load(path) if path.is_file() else {}, facts)
    models = {model: clip.load(model, device="cpu")[0] for model in MODELS}
    for word in words:
        done = found["done"].setdefault(word, {})
        for model, loaded in models.items():
            if model in done:
                continue
            processor, wall = time.process_time(), time.perf_counter()
            work = perform(port, sentence(word, "a {}"), loaded, seed)
            spent = (time.process_time() - processor, time.perf_counter() - wall)
            done[model] = (work.image, *spent)
            sys.stderr.write(f"{port}, {word}, {model}: {spent[0]:.1f} s of processor\n")
        write_atomically(path, lambda name: torch.save(found, name))
    return measured(found, words)


def kept(found: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """What still holds of earlier measurements: nothing once settings differ, else the models with the same weights."""
    done: dict[str, dict[str, Any]] = {}
    if all(found.get(name) == value for name, value in facts.items() if name != "weights"):
        same = {
            name
            for name in MODELS
            if all(
                found["weights"][each] == facts["weights"][each] for each in (name, "vqgan-mini")
            )
        }
        for word, made in found["done"].items():
            done[word] = {model: one for model, one in made.items() if model in same}
    return {**facts, "done": done}


def circumstances(port: str, seed: int) -> dict[str, Any]:
    """What a measured picture depends on; `kept` tells what a change of it undoes."""
    presets: dict[str, Any] = {"clipdraw": ClipDraw, "vqgan": Vqgan, "style": Style}
    image = {"image": CONTENT} if port == "style" else {}
    return {
        "seed": seed,
        "settings": presets[port](preset="demo", **image).resolved().to_dict(),
        "weights": {name: digest(name) for name in (*MODELS, JUDGE, "vqgan-mini")},
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
    }


def measured(found: dict[str, Any], words: tuple[str, ...]) -> dict[str, Any]:
    """Those of the prompts that are done: pictures (N, 3, H, W) and mean seconds by model."""
    words = tuple(word for word in words if len(found["done"].get(word, {})) == len(MODELS))
    each = {model: [found["done"][word][model] for word in words] for model in MODELS}
    return {
        **{name: value for name, value in found.items() if name != "done"},
        "words": list(words),
        "pictures": {model: torch.stack([one[0] for one in made]) for model, made in each.items()},
        "seconds": {
            model: [sum(one[i] for one in made) / len(made) for i in (1, 2)]
            for model, made in each.items()
        },
    }


def perform(port: str, prompt: str, model: Any, seed: int) -> Synthesis:
    """The picture of one pipeline under one model."""
    settings: dict[str, Any] = {"model": model, "preset": "demo", "seed": seed}
    if port == "clipdraw":
        return clipdraw(prompt, size=0, **settings)[0]
    if port == "vqgan":
        return vqgan_clip(prompt, **settings)[0]
    return clipstyler(prompt, photograph(), **settings)[0]


def photograph() -> Tensor:
    """The photograph that is styled, (3, 64, 64)."""
    sample = bundled_photos()
    label = bundled_vocabulary().class_names.index(CONTENT)
    return sample.pixels([int((sample.labels == label).nonzero()[-1])])[0]


def digest(name: str) -> str:
    """The start of the SHA-256 of a bundled model's weights."""
    data = (ROOT / "clipag_plug" / "bundled" / f"{name}.safetensors").read_bytes()
    return hashlib.sha256(data).hexdigest()[:12]


def document(found: dict[str, dict[str, Any]], folder: Path) -> str:
    """The whole page."""
    names = bundled_vocabulary().class_names
    judge = Judge(clip.load(JUDGE, device="cpu")[0], JUDGE, names)
    path = folder / "ports-named.json"
    named = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    lines = [
        "# The pipelines on the bundled pair",
        "",
        "`python benchmarks/ports_quality.py`. Preset `demo`, the same settings and seed for both models.",
        f"Judge: `{JUDGE}`, among {len(names)} classes; it guides nothing. Intervals: 95 %, Wilson's for shares,",
        "a percentile bootstrap over prompts else; differences are paired over prompts, * marks those that exclude 0.",
        "The presets were chosen on other prompts and, for CLIPStyler, another photograph.",
    ]
    lines += [f"Naming: {named['how']}."] if "how" in named else []
    for port, one in found.items():
        lines += table(port, one, judge, names, named.get(port))
    return "\n".join(lines) + "\n"


def table(
    port: str, made: dict[str, Any], judge: Judge, names: list[str], named: list[str] | None
) -> list[str]:
    """The section of one pipeline."""
    words = made["words"]
    truth = torch.tensor([names.index(word) for word in words])
    texts = judge.texts([sentence(word, "a {}") for word in words]).cpu()
    scores: dict[str, dict[str, list[float]]] = {}
    for model, pictures in made["pictures"].items():
        rank = ranks(judge.logits(pictures), truth)
        scores[model] = {
            "judge: first of 202": (rank < 1).float().tolist(),
            "judge: among five": (rank < 5).float().tolist(),
            "judge: cosine to the prompt": similarity(judge.features(pictures), texts).tolist(),
        }
    for model, hits in recognised(port, made, named).items():
        scores[model]["named blind"] = hits
    vanilla, robust = MODELS
    lines = ["", f"## {PORTS[port]}", "", f"| | {vanilla} | {robust} | difference |"]
    lines.append("|---|---|---|---|")
    for name in scores[vanilla]:
        ours, theirs = scores[robust][name], scores[vanilla][name]
        change = paired_difference(ours, theirs)
        mark = " *" if change.excludes(0) else ""
        lines.append(
            f"| {name} | {shown(mean(theirs))} | {shown(mean(ours))} | {shown(change)}{mark} |"
        )
    spent = [f"{cpu:.1f} s ({wall:.1f} s)" for cpu, wall in made["seconds"].values()]
    lines.append(f"| processor (wall) time a picture | {spent[0]} | {spent[1]} | |")
    facts = f"seed {made['seed']}, torch {made['torch']}, {made['threads']} threads"
    weights = ", ".join(f"{name} {value}" for name, value in made["weights"].items())
    return [*lines, "", f"Prompts: {', '.join(words)}; {facts}. Weights (SHA-256): {weights}."]


def blind(port: str, made: dict[str, Any]) -> Tensor:
    """All pictures of a pipeline in random order, numbered."""
    pictures = torch.cat(list(made["pictures"].values()))[order(port, made)]
    pictures = F.interpolate(pictures, CLOSE, mode="bicubic", antialias=True).clamp(0, 1)
    rows = [list(pictures[start : start + 5]) for start in range(0, len(pictures), 5)]
    captions = [f"{1 + 5 * row} to {5 * row + len(each)}" for row, each in enumerate(rows)]
    return contact_sheet(rows, captions=captions)


def order(port: str, made: dict[str, Any]) -> Tensor:
    """The order on that sheet, of the vanilla pictures and then CLIPAG's."""
    generator = torch.Generator().manual_seed(1000 + list(PORTS).index(port))
    return torch.randperm(2 * len(made["words"]), generator=generator)


def recognised(port: str, made: dict[str, Any], named: list[str] | None) -> dict[str, list[float]]:
    """Whether each picture's subject was named, by model in the order of the words; nothing where nobody looked."""
    words = made["words"]
    if named is None:
        return {}
    if len(named) != 2 * len(words):
        raise ValueError(
            f"{len(named)} names of {port} for {2 * len(words)} pictures; give one each"
        )
    hits = [0.0] * len(named)
    for place, answer in zip(order(port, made).tolist(), named):
        word = words[place % len(words)]
        hits[place] = float(answer in (word, word.split()[-1]))
    return {model: hits[i * len(words) :][: len(words)] for i, model in enumerate(MODELS)}


def everything(found: dict[str, dict[str, Any]]) -> Tensor:
    """All pictures small: two rows a pipeline, a column a prompt. Nothing is picked."""
    parts = []
    for port, made in found.items():
        rows: list[list[Tensor | None]] = []
        for pictures in made["pictures"].values():
            rows.append(
                list(F.interpolate(pictures, CELL, mode="bicubic", antialias=True).clamp(0, 1))
            )
        captions = [f"{PORTS[port]}, {title}" for title in MODELS.values()]
        parts.append(
            contact_sheet(rows, headings=made["words"], captions=captions, margin=8, text=15)
        )
    width = max(part.shape[-1] for part in parts)
    return torch.cat(
        [F.pad(part, (0, width - part.shape[-1], 0, 0), value=1.0) for part in parts], 1
    )


def shown(interval: Interval) -> str:
    """'0.50 (0.24 to 0.76)'."""
    return f"{interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f})"


if __name__ == "__main__":
    main()
