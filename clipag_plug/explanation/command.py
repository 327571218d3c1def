"""`clipag explain`: one sheet for a picture and its texts."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..guide import Guide, frozen, guide_for
from ..images import read_image, refuse_taken, resize, write_image
from ..options.explain import Explain
from .figure import attack_sheet, text_sheet
from .maps import agreement, heatmaps, negation_attack, squash, text_features

logger = logging.getLogger(__name__)


def run(options: Explain) -> None:
    """Writes the sheet and prints, for each text, the cosine and what the attack left of the map."""
    refuse_taken([Path(options.output)], overwrite=options.overwrite)
    picture = read_image(options.image)
    guide = guide_for(options.model, device=options.device or None, precision=options.precision)
    options = dataclasses.replace(options, precision=guide.precision)
    sheet, rows = (_attacked if options.attack else _plain)(options, guide, picture)
    # Where the sheet goes and how the numbers are printed does not change the sheet.
    recipe = {k: v for k, v in options.to_dict().items() if k not in ("overwrite", "json", "quiet")}
    path = write_image(options.output, sheet, recipe)
    if options.json:
        print(json.dumps({"files": [str(path)], "texts": rows}, indent=1, ensure_ascii=False))
        return
    for row in rows:
        line = f"{row['cosine']:+.3f}  {row['text']}"
        if options.attack:
            line = (
                f"{row['model']}  {row['text']}: cosine {row['cosine']:+.3f} -> {row['attacked']:+.3f}, clean against "
                f"attacked map: Spearman {row['spearman']:.2f}, SSIM {row['ssim']:.2f}, IoU {row['iou']:.2f}"
            )
        print(line)
    print(path)


def _plain(options: Explain, guide: Guide, picture: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
    features = text_features(guide, options.texts)
    image = squash(picture[None], guide)
    maps = _maps(options, guide, image, features)[0]
    rows = [
        {"model": options.model, "text": text, "cosine": cosine}
        for text, cosine in zip(options.texts, _cosines(guide, image, features).tolist())
    ]
    for text, heat in zip(options.texts, maps):
        if not heat.any():
            logger.info("nothing in the picture raises the score of %r: its map is empty", text)
    title = f"{options.model}, {options.method}"
    return text_sheet(picture, maps, options.texts, cell=options.cell, title=title), rows


def _attacked(
    options: Explain, guide: Guide, picture: Tensor
) -> tuple[Tensor, list[dict[str, Any]]]:
    names = [options.against or counterpart(options.model), options.model]
    other = guide_for(names[0], device=options.device or None, precision=options.precision)
    maps, notes = [], [[""] for _ in options.texts]
    rows: list[dict[str, Any]] = []
    for name, each in zip(names, (other, guide), strict=True):
        clean, attacked, cosines = attacked_maps(options, each, squash(picture[None], each))
        maps.append(torch.stack([clean, attacked]))
        columns = {"cosine": cosines[0], "attacked": cosines[1]} | agreement(clean, attacked)
        for number, text in enumerate(options.texts):
            row = {key: float(values[number]) for key, values in columns.items()}
            rows.append({"model": name, "text": text, **row})
            moved = f"cosine {row['attacked']:.2f}, rank corr. {row['spearman']:.2f}"
            notes[number] += [f"cosine {row['cosine']:.2f}", moved]
    side = max(stack.shape[-1] for stack in maps)
    stacked = torch.stack([resize(stack, side, "bilinear") for stack in maps])
    return attack_sheet(picture, names, stacked, options.texts, notes, cell=options.cell), rows


def attacked_maps(
    options: Explain, guide: Guide, image: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Clean and attacked maps (M, side, side) of one squashed image, and its cosines (M,) before and after.
    Each text has an attack of its own, which its own map is drawn under."""
    features = text_features(guide, options.texts)
    negated = [options.negation.replace("{}", text) for text in options.texts]
    settings = {"eps": options.eps, "steps": options.steps, "step_size": options.step_size}
    with frozen([guide.model]):
        images, negations = image.expand(len(features), -1, -1, -1), text_features(guide, negated)
        attacked = negation_attack(guide, images, features, negations, **settings)  # type: ignore[arg-type]
    clean = _maps(options, guide, image, features)[0]
    after = _maps(options, guide, attacked, features[:, None])[:, 0]
    cosines = _cosines(guide, image, features), _cosines(guide, attacked, features, pairs=True)
    return clean, after, cosines


def counterpart(model: str) -> str:
    """The registered model that this one was fine-tuned from. Raises ValueError where none is known."""
    from ..weights import registry

    record = registry.get(model)
    if record is not None and record.bundled and record.key != "clip-mini":
        return "clip-mini"
    if record is None or not record.base:
        raise ValueError(
            f"what {model!r} was fine-tuned from is not known; name the other model with --against"
        )
    return record.base


def _maps(options: Explain, guide: Guide, image: Tensor, features: Tensor) -> Tensor:
    settings = {"channels": options.channels, "samples": options.samples}
    layer = options.layer or None
    return heatmaps(guide, image, features, method=options.method, layer=layer, **settings).cpu()


@torch.no_grad()
def _cosines(guide: Guide, images: Tensor, features: Tensor, pairs: bool = False) -> Tensor:
    """Of one image with all texts, (M,), or of `pairs` of them."""
    seen = guide.features(images)
    return ((seen * features).sum(1) if pairs else (seen @ features.T)[0]).cpu()
