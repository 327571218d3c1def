"""Writes docs/models.md, the cards of the models in the package, from their JSON files: `python docs/make_models.py`.

Their picture sheets draw the same 24 prompts with each: preset `natural`, which takes the model's own choice of eight
drafts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clipag_plug.files import write_text
from clipag_plug.vocabulary import bundled_vocabulary

DOCS = Path(__file__).parent
PAGE = DOCS / "models.md"
BUNDLED = DOCS.parent / "clipag_plug" / "bundled"
# Recipes in the order in which they ran; what goes beyond them is said in the card. Those of the guides are of commit
# 45d2067: `clip-mini` and `clipag-mini` are by now the recipes of the pair that comes next.
RECIPES: dict[str, tuple[str, ...]] = {
    "clip-mini": (),
    "clipag-mini": (),
    "judge-mini": ("judge-mini-32", "judge-mini"),
}
HEAD = """# The models in the package

Written by `python docs/make_models.py`. Two guides to compare, and a judge that scores what they guide and shares
neither weights nor seed nor text tower with them; its image tower is a narrower one of the same kind. All three read
224x224 pixels and reduce them inside.

What they make of photographs and of attacks on them:
[benchmarks/results/standard.md](../benchmarks/results/standard.md).
"""


def page() -> str:
    """The Markdown of the page: a section for each model, then the words."""
    return "\n".join([HEAD, *(_section(key) for key in RECIPES), _words()])


def _section(key: str) -> str:
    data = json.loads((BUNDLED / f"{key}.json").read_text(encoding="utf-8"))
    card, vision = data["card"], data["config"]["vision_cfg"]["mini"]
    size = (BUNDLED / f"{key}.safetensors").stat().st_size / 1e6
    shared = data["shares_text_with"]
    facts = {
        "Image tower": f"residual network, stages of {_list(vision['widths'])} channels with {_list(vision['depths'])} "
        f"blocks, {vision['activation']}, {vision['image_size']}x{vision['image_size']} inside",
        "Text tower": f"that of `{shared}`" if shared else _text(data["config"]),
        "File": f"{size:.1f} MB, matrices and kernels in fp16",
        "Recipes": ", then ".join(f"`clipag train --recipe {each}`" for each in RECIPES[key])
        or "those of commit 45d2067; recipes `clip-mini` and `clipag-mini` are of the pair that comes next",
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
        shown = f"24 prompts drawn by {key}, preset natural, nothing picked by hand"
        lines += ["", f"![{shown}](models-{key}.webp)"]
    return "\n".join(lines) + "\n"


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
    vocabulary = bundled_vocabulary()
    classes = ", ".join(" / ".join(names) for names in vocabulary.names)
    groups = ", ".join(vocabulary.groups)
    parts = (
        "## Words",
        f"Classes: {classes}.",
        f"Groups: {groups}.",
        "Other words are ignored.",
    )
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    print(write_text(PAGE, page()))
