"""Writes docs/models.md, the cards of the models in the package, from their JSON files: `python docs/make_models.py`.

Their picture sheets come from `python benchmarks/pair_quality.py --section development --sheets docs`.
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
# Recipes in the order in which they ran; what goes beyond them is said in the card.
RECIPES = {
    "clip-mini": ("clip-mini",),
    "clipag-mini": ("clipag-mini",),
    "judge-mini": ("judge-mini-32", "judge-mini"),
}
HEAD = """# The models in the package

Written by `python docs/make_models.py`. Two guides to compare, and a judge that scores what they guide and shares
neither weights nor words with them. All three read 224x224 pixels and reduce them inside.

What an ImageNet network recognises in their pictures: [benchmarks/results/pair.md](../benchmarks/results/pair.md);
what they make of photographs and of attacks on them: [benchmarks/results/quick.md](../benchmarks/results/quick.md).
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
        "Image tower": _image(data["config"]["vision_cfg"]),
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
        shown = f"The 40 development names as photographs, painted by {key} from noise, nothing picked by hand"
        lines += ["", f"![{shown}](models-{key}.webp)"]
    return "\n".join(lines) + "\n"


def _image(vision: dict[str, Any]) -> str:
    (kind,) = (name for name in ("mini", "lite") if name in vision)
    tower = vision[kind]
    inside = f"{tower['activation']}, {tower['image_size']}x{tower['image_size']} inside"
    if kind == "lite":
        return f"EfficientNet-Lite{tower['variant']}, {inside}"
    widths, depths = _list(tower["widths"]), _list(tower["depths"])
    return f"residual network, stages of {widths} channels with {depths} blocks, {inside}"


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
        "The guides were taught the names of ImageNet's 1,000 classes, 1,721 concepts of emoji (`model.vocabulary`), "
        "and some 30,000 nouns by what they mean. `clipag words horse gryphon` shows what a word is taken for; a "
        "prompt none of whose words was taught is said so, with what it is taken for, and painted all the same.",
        "The judge knows these words alone; of the classes there are photographs in the training of all three:",
        f"Classes: {classes}.",
        f"Groups: {groups}.",
    )
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    print(write_text(PAGE, page()))
