"""Writes docs/models.md, the cards of the models in the package, from their JSON files: `python docs/make_models.py`.

The guides' picture sheets have the same 40 names, by the defaults and one seed:
`benchmarks/pair_quality.py --section painted --count 20 --options '{}' --sheets docs`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clipag_plug.files import write_text
from clipag_plug.vocabulary import bundled_vocabulary, known_things

DOCS = Path(__file__).parent
PAGE = DOCS / "models.md"
BUNDLED = DOCS.parent / "clipag_plug" / "bundled"
# Recipes in the order in which they ran; what goes beyond them is said in the card.
RECIPES: dict[str, tuple[str, ...]] = {
    "clip-mini": ("clip-mini-96", "clip-mini", "clip-mini-captions", "mini-words"),
    "clipag-mini": ("clipag-mini-96", "clipag-mini"),
    "judge-mini": ("judge-mini-32", "judge-mini"),
}
HEAD = """# The models in the package

Written by `python docs/make_models.py`. Two guides to compare, on a network that knew ImageNet before, and a judge
that scores what they guide: trained from nothing, it shares neither weights nor kind of network nor text tower with
them. All three read 224x224 pixels and reduce them inside.

What they make of photographs and of attacks on them: [quick.md](../benchmarks/results/quick.md); how the pair was made
and what lite2 and blind viewers see in its pictures: [pair.md](../benchmarks/results/pair.md).
"""


def page() -> str:
    """The Markdown of the page: a section for each model, then the words."""
    return "\n".join([HEAD, *(_section(key) for key in RECIPES), _words()])


def _section(key: str) -> str:
    data = json.loads((BUNDLED / f"{key}.json").read_text(encoding="utf-8"))
    card = data["card"]
    size = (BUNDLED / f"{key}.safetensors").stat().st_size / 1e6
    shared = data["shares_text_with"]
    facts = {
        "Image tower": _tower(data["config"]["vision_cfg"]),
        "Text tower": f"that of `{shared}`" if shared else _text(data["config"]),
        "File": f"{size:.1f} MB, matrices and kernels in fp16",
        "Recipes": ", then ".join(f"`clipag train --recipe {each}`" for each in RECIPES[key]),
        "How it was trained": card["history"],
        "Attack in training": f"L2 {card['eps']:g}, images in [0, 1] at 224x224"
        if card.get("eps")
        else "none",
        "Data": card["data"],
        "Licence": card["licence"],
        "Accuracy": _accuracy(card),
        "Draws": card["can_draw"],
        "Fails": card["cannot_draw"],
    }
    lines = [f"## {key}", "", card["description"], "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in facts.items()]
    if (DOCS / f"models-{key}.webp").is_file():
        shown = f"40 names painted by {key}, defaults and one seed, nothing picked by hand"
        lines += ["", f"![{shown}](models-{key}.webp)"]
    return "\n".join(lines) + "\n"


def _tower(vision: dict[str, Any]) -> str:
    lite, mini = vision.get("lite"), vision.get("mini")
    side = (lite or mini)["image_size"]
    kind = (
        f"EfficientNet-Lite{lite['variant']}, {lite['activation']}"
        if lite
        else (
            f"residual network, stages of {_list(mini['widths'])} channels with {_list(mini['depths'])} blocks, "
            f"{mini['activation']}"
        )
    )
    return f"{kind}, {side}x{side} inside"


def _text(config: dict[str, Any]) -> str:
    text = config["text_cfg"]
    return f"transformer, {text['layers']} layers of width {text['width']}, features of {config['embed_dim']} numbers"


def _accuracy(card: dict[str, Any]) -> str:
    found = card["results"]
    note = card["results_note"]
    return f"clean {found['clean']:g} %, attacked {found['l2 1.5']:g} % ({note})"


def _list(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _words() -> str:
    vocabulary, things = bundled_vocabulary(), known_things()
    parts = (
        "## Words",
        f"The guides were taught to see {len(things):,} things, ImageNet's 1,000 classes and the concepts of emoji, "
        "and their text tower some 33,000 words around them. `clipag words horse` shows what one is taken for; words "
        f"that they never heard are named when you paint. Every hundredth of the things: {', '.join(things[::100])}.",
        "The judge and the bundled photographs have 202 classes: "
        + ", ".join(" / ".join(names) for names in vocabulary.names)
        + ".",
        "The judge knows groups of them: "
        + ", ".join(vocabulary.groups)
        + ". It ignores other words.",
    )
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    print(write_text(PAGE, page()))
