"""Heatmaps over pictures, on sheets with headings and a colour bar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..images import contact_sheet, draw_text, from_pil, resize, to_pil

# From black over purple and orange to pale yellow: lightness grows all the way, so that the scale
# survives grey print and colour blindness. Nine points of the "inferno" scale (CC0).
PALETTE = (
    *((0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85)),
    *((227, 89, 51), (249, 140, 10), (249, 201, 50), (252, 255, 164)),
)
LEGEND = ("0: nothing here speaks for the text", "1: the strongest place of each map")
STYLE: dict[str, Any] = {"margin": 8, "text": 15}


def colours(values: Tensor) -> Tensor:
    """Values (h, w) in [0, 1] as colours (3, h, w)."""
    palette = torch.tensor(PALETTE, dtype=torch.float32) / 255
    at = values.detach().float().cpu().clamp(0, 1) * (len(PALETTE) - 1)
    low = at.floor().long().clamp(max=len(PALETTE) - 2)
    part = (at - low)[..., None]
    return (palette[low] * (1 - part) + palette[low + 1] * part).permute(2, 0, 1)


def overlay(picture: Tensor, heat: Tensor) -> Tensor:
    """A map (h, w) in [0, 1] in colour over a picture (3, h, w), itself in grey so that every colour is the map's.
    The colour covers more where the map is high, which leaves the picture legible where it is low."""
    grey = (picture * picture.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0, keepdim=True)
    cover = 0.35 + 0.35 * heat.detach().float().cpu().clamp(0, 1)
    return (1 - cover) * grey.cpu() + cover * colours(heat)


def fitted(picture: Tensor, cell: int) -> Tensor:
    """A picture (3, H, W) scaled so that its longer side is `cell`; the aspect is kept."""
    height, width = picture.shape[-2:]
    scale = cell / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    # A picture of a few pixels is shown as its pixels, not as a blur.
    return resize(picture[None], size, "nearest" if scale >= 4 else "bicubic")[0]


def shown_maps(maps: Tensor, picture: Tensor) -> Tensor:
    """Maps (K, h, w) at the size of a picture."""
    size = picture.shape[-2], picture.shape[-1]
    return resize(maps[None].cpu(), size, "bilinear")[0].clamp(0, 1)


def text_sheet(
    picture: Tensor, maps: Tensor, texts: Sequence[str], *, cell: int, title: str = ""
) -> Tensor:
    """A picture (3, H, W) and its maps (M, h, w) for M texts on one sheet, at most four pictures a row."""
    shown = fitted(picture.cpu(), cell)
    cells = [shown, *(overlay(shown, heat) for heat in shown_maps(maps, shown))]
    names = ["picture", *texts]
    across = min(4, len(cells))
    starts = range(0, len(cells), across)
    rows, notes = [cells[i : i + across] for i in starts], [names[i : i + across] for i in starts]
    return _with_scale(contact_sheet(rows, title=title, notes=notes, **STYLE))


def attack_sheet(
    picture: Tensor,
    models: Sequence[str],
    maps: Tensor,
    texts: Sequence[str],
    notes: Sequence[Sequence[str]],
    *,
    cell: int,
) -> Tensor:
    """Clean and attacked maps of models side by side, a row per text, like figure 5 of CLIPAG's supplement.
    maps: (models, 2, M, h, w), clean first.
    notes: for each text what stands under its 1 + 2 * models pictures."""
    shown = fitted(picture.cpu(), cell)
    heats = [shown_maps(each, shown) for each in maps.flatten(0, 1).transpose(0, 1)]
    sheet = contact_sheet(
        [[shown, *(overlay(shown, heat) for heat in row)] for row in heats],
        groups=[("", 1), *((name, 2) for name in models)],
        headings=["picture", *("clean", "under attack") * len(models)],
        captions=texts,
        notes=notes,
        **STYLE,
    )
    return _with_scale(sheet)


def _with_scale(sheet: Tensor) -> Tensor:
    """The sheet over a bar of the colours, from 0 to 1, and what the ends mean."""
    from PIL import Image, ImageDraw

    margin, small, width = STYLE["margin"], 12, sheet.shape[2]
    length = min(256, width - 2 * margin)
    foot = Image.new("RGB", (width, 40), "white")
    foot.paste(to_pil(colours(torch.linspace(0, 1, length).expand(small, length))), (margin, 0))
    draw = ImageDraw.Draw(foot)
    for words, x in (("0", 0), ("0.5", length // 2 - 8), ("1", length - 7)):
        draw_text(draw, words, (margin + x, small + 1), 40, small)
    if width > length + 120:
        for line, words in enumerate(LEGEND):
            at = (length + 2 * margin, line * (small + 3) - 2)
            draw_text(draw, words, at, width - at[0] - margin, small, "#555555")
    return torch.cat([sheet, from_pil(foot)], 1)
