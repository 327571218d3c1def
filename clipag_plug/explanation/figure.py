"""Heatmaps over pictures, on sheets with headings and a colour bar, drawn with Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..images import from_pil, to_pil
from .maps import resized

# From black over purple and orange to pale yellow: lightness grows all the way, so that the scale
# survives grey print and colour blindness. Nine points of the "inferno" scale (CC0).
PALETTE = (
    *((0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85)),
    *((227, 89, 51), (249, 140, 10), (249, 201, 50), (252, 255, 164)),
)
MARGIN = 8
TEXT, SMALL = 15, 12
LINE = 1.3


def colours(values: Tensor) -> Tensor:
    """Values (h, w) in [0, 1] as colours (3, h, w)."""
    palette = torch.tensor(PALETTE, dtype=torch.float32) / 255
    at = values.detach().float().cpu().clamp(0, 1) * (len(PALETTE) - 1)
    low = at.floor().long().clamp(max=len(PALETTE) - 2)
    part = (at - low)[..., None]
    return (palette[low] * (1 - part) + palette[low + 1] * part).permute(2, 0, 1)


def overlay(picture: Tensor, heat: Tensor) -> Tensor:
    """A map (h, w) in [0, 1] in colour over a picture (3, h, w), itself in grey so that every colour is the map's.

    The colour covers more where the map is high, which leaves the picture legible where it is low.
    """
    grey = (picture * picture.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0, keepdim=True)
    cover = 0.35 + 0.35 * heat.detach().float().cpu().clamp(0, 1)
    return (1 - cover) * grey.cpu() + cover * colours(heat)


def fitted(picture: Tensor, cell: int) -> Tensor:
    """A picture (3, H, W) scaled so that its longer side is `cell`; the aspect is kept."""
    height, width = picture.shape[-2:]
    scale = cell / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    # A picture of a few pixels is shown as its pixels, not as a blur.
    if max(height, width) * 4 <= cell:
        return F.interpolate(picture[None], size=size, mode="nearest")[0]
    return F.interpolate(picture[None], size=size, mode="bicubic", antialias=True)[0].clamp(0, 1)


@dataclass
class Sheet:
    """Rows of pictures of one size, with texts around them.

    title: above everything. groups: (heading, columns it spans) above the headings. headings: above
    the columns. captions: above each row's first picture. notes: under each row. scale: whether the
    colour bar is drawn, and `legend` what stands beside it.
    """

    rows: list[list[Tensor | None]]
    title: str = ""
    groups: Sequence[tuple[str, int]] = ()
    headings: Sequence[str] = ()
    captions: Sequence[str] = ()
    notes: Sequence[Sequence[str]] = field(default_factory=list)
    scale: bool = True
    legend: Sequence[str] = (
        "0: nothing here speaks for the text",
        "1: the strongest place of each map",
    )

    def draw(self) -> Tensor:
        """The sheet as (3, H, W) in [0, 1]."""
        from PIL import Image, ImageDraw

        height, width = next(
            cell.shape[-2:] for row in self.rows for cell in row if cell is not None
        )
        columns = max(len(row) for row in self.rows)
        pitch = max(width, 96) + MARGIN  # narrow pictures still leave room for a heading
        sheet_width = max(columns * pitch + MARGIN, 320)
        big, small = round(TEXT * LINE), round(SMALL * LINE)
        top = MARGIN + big * (bool(self.title) + bool(self.groups) + bool(self.headings))
        step = height + MARGIN + big * bool(self.captions) + small * bool(self.notes)
        bottom = 2 * small + MARGIN if self.scale else 0
        sheet = Image.new("RGB", (sheet_width, top + len(self.rows) * step + bottom), "white")
        pen = _Pen(ImageDraw.Draw(sheet))
        y = MARGIN // 2
        if self.title:
            pen.write(self.title, MARGIN, y, sheet_width - 2 * MARGIN)
            y += big
        if self.groups:
            self._write_groups(pen, y, pitch)
            y += big
        for number, heading in enumerate(self.headings):
            pen.write(heading, MARGIN + number * pitch, y, pitch - MARGIN)
        y = top
        for number, row in enumerate(self.rows):
            if self.captions:
                pen.write(self.captions[number], MARGIN, y, sheet_width - 2 * MARGIN)
                y += big
            for column, cell in enumerate(row):
                if cell is not None:
                    sheet.paste(to_pil(cell), (MARGIN + column * pitch, y))
            y += height + 2
            if self.notes:
                for column, note in enumerate(self.notes[number]):
                    pen.write(note, MARGIN + column * pitch, y, pitch - MARGIN, SMALL, "#555555")
                y += small
            y += MARGIN - 2
        if self.scale:
            self._draw_scale(sheet, pen, y, sheet_width)
        return from_pil(sheet)

    def _write_groups(self, pen: _Pen, y: int, pitch: int) -> None:
        column = 0
        for heading, span in self.groups:
            left, right = MARGIN + column * pitch, (column + span) * pitch
            if heading:
                pen.write(heading, left, y, right - left)
                bottom = y + round(TEXT * LINE) - 2
                pen.draw.line((left, bottom, right, bottom), fill="#999999")
            column += span

    def _draw_scale(self, sheet: Any, pen: _Pen, y: int, width: int) -> None:
        length = min(256, width - 2 * MARGIN)
        bar = colours(torch.linspace(0, 1, length).expand(SMALL, length))
        sheet.paste(to_pil(bar), (MARGIN, y))
        for text, x in (
            ("0", MARGIN),
            ("0.5", MARGIN + length // 2 - 8),
            ("1", MARGIN + length - 7),
        ):
            pen.write(text, x, y + SMALL + 1, 40, SMALL)
        if width > length + 120:
            left = length + 2 * MARGIN
            for line, text in enumerate(self.legend):
                at = y - 2 + line * (SMALL + 3)
                pen.write(text, left, at, width - left - MARGIN, SMALL, "#555555")


class _Pen:
    """Writes one line that fits its place."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw

    def write(
        self, text: str, x: int, y: int, width: int, size: int = TEXT, fill: str = "black"
    ) -> None:
        from PIL import ImageFont

        font = ImageFont.load_default(size)
        text = " ".join(text.split())
        while len(text) > 1 and self.draw.textlength(text, font=font) > width:
            text = text[:-2].rstrip() + "…"
        self.draw.text((x, y), text, font=font, fill=fill)


def text_sheet(
    picture: Tensor, maps: Tensor, texts: Sequence[str], *, cell: int, title: str = ""
) -> Tensor:
    """A picture (3, H, W) and its maps (M, h, w) for M texts on one sheet, at most four pictures a row."""
    shown = fitted(picture.cpu(), cell)
    heats = [overlay(shown, heat) for heat in shown_maps(maps, shown)]
    cells, names = [shown, *heats], ["picture", *texts]
    across = min(4, len(cells))
    rows: list[list[Tensor | None]] = [
        [*cells[i : i + across]] for i in range(0, len(cells), across)
    ]
    notes = [names[i : i + across] for i in range(0, len(cells), across)]
    return Sheet(rows, title=title, notes=notes).draw()


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

    maps: (models, 2, M, h, w), clean first. notes: for each text what stands under its 1 + 2 * models pictures.
    """
    shown = fitted(picture.cpu(), cell)
    rows: list[list[Tensor | None]] = []
    for number in range(len(texts)):
        heats = [shown_maps(pair[:, number], shown) for pair in maps]
        rows.append([shown, *(overlay(shown, heat) for pair in heats for heat in pair)])
    return Sheet(
        rows,
        groups=[("", 1), *((name, 2) for name in models)],
        headings=["picture", *("clean", "under attack") * len(models)],
        captions=list(texts),
        notes=notes,
    ).draw()


def shown_maps(maps: Tensor, picture: Tensor) -> Tensor:
    """Maps (K, h, w) at the size of a picture."""
    return resized(maps[None].cpu(), *picture.shape[-2:])[0].clamp(0, 1)
