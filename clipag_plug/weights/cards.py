"""The model card that goes with exported weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .registry import ball

if TYPE_CHECKING:
    from .opening import Opened

_LOADING = {
    "open_clip": 'import open_clip\nmodel, _, preprocess = open_clip.create_model_and_transforms("{where}")',
    "transformers": 'from transformers import CLIPModel\nmodel = CLIPModel.from_pretrained("{plain}")',
    "openai": 'import clipag_plug as clip\nmodel, preprocess = clip.load("{file}#{activation}")',
    "bundled": 'import clipag_plug as clip\nmodel, preprocess = clip.load("{where}")',
}
_TOKENIZER = (
    'The tokenizer is CLIP\'s: `CLIPTokenizer.from_pretrained("openai/clip-vit-large-patch14")`; images go through the '
    "`preprocessor_config.json` of this folder."
)


def card_text(opened: Opened, form: str, repository: str = "", file: str = "") -> str:
    """README.md with the attack, the data and the accuracies as far as they are known.

    form: one of `options.export.FORMATS`. What is not known is said to be unknown, not left out.
    """
    record, card, config = opened.record, opened.card, opened.config
    licence = card.get("licence") or record.licence
    activation = "quickgelu" if config.get("quick_gelu") else "gelu"
    head = [
        "---",
        *([f"license: {licence.lower()}"] if licence in ("MIT", "CC-BY-4.0", "Apache-2.0") else []),
    ]
    library = {"open_clip": "open_clip", "transformers": "transformers"}.get(form)
    head += [f"library_name: {library}"] if library else []
    head += [
        "pipeline_tag: zero-shot-image-classification",
        "tags:",
        "- clip",
        "- adversarial-robustness",
        "---",
    ]
    attack = ball(card.get("norm"), card.get("eps")) or (
        "none" if card.get("method") == "vanilla" else "not known"
    )
    facts = {
        "Architecture": record.arch or _shape_words(config),
        "Activation": {"gelu": "GELU", "quickgelu": "QuickGELU"}[activation],
        "Training method": card.get("method", "not known"),
        "Attack in training (images in [0, 1])": attack,
        "Data": card.get("data", "not known"),
        "Fine-tuned from": card.get("base", "not known"),
        "Input": f"{record.resolution} px, {record.interpolation}, {record.resize_mode} side",
        "Mean, std": f"{_numbers(record.mean)}; {_numbers(record.std)}",
        "Licence": licence or "not stated by the authors",
        "Paper": card.get("paper", "none given"),
    }
    told = {"How it was trained": "history", "Draws": "can_draw", "Fails": "cannot_draw"}
    facts |= {name: card[key] for name, key in told.items() if card.get(key)}
    where = f"hf-hub:{repository}" if repository else "local-dir:FOLDER"
    loading = _LOADING[form].format(
        where=where, plain=repository or "FOLDER", file=file or "FILE", activation=activation
    )
    lines = [*head, f"# {card.get('name', record.key)}", ""]
    if card.get("description") or card.get("note"):
        lines += [str(card.get("description") or card["note"]), ""]
    lines += [
        "## Model",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in facts.items()),
        "",
    ]
    lines += [
        "## Accuracy",
        "",
        *_accuracy(card),
        "",
        "## Use",
        "",
        "```python",
        loading,
        "```",
        "",
    ]
    lines += [_TOKENIZER, ""] if form == "transformers" else []
    lines += [
        "Written by `clipag export`; the weights were checked tensor by tensor against the architecture.",
        "",
    ]
    return "\n".join(lines)


def _accuracy(card: Mapping[str, Any]) -> list[str]:
    results = card.get("results") or {}
    rows = [(name, value) for name, value in results.items() if isinstance(value, (int, float))]
    if not rows:
        return ["No clean or robust accuracy is recorded for these weights."]
    note = card.get("results_note")
    return [
        "| images | top-1 |",
        "|---|---|",
        *(
            f"| {name if name == 'clean' else f'attacked, {name}'} | {value:g} |"
            for name, value in rows
        ),
        *(["", f"{note[0].upper()}{note[1:]}."] if note else []),
    ]


def _shape_words(config: Mapping[str, Any]) -> str:
    vision = config["vision_cfg"]
    if "mini" in vision:
        return "MiniVisual"
    if vision.get("timm_model_name"):
        return str(vision["timm_model_name"])
    return f"ViT of width {vision.get('width')}, {vision.get('layers')} layers, patch {vision.get('patch_size')}"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
