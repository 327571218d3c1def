"""Strokes as SVG and back: one path element a stroke, `M x y` and then one `C` a segment."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

import torch
from torch import Tensor

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
Stroke = tuple[Tensor, Tensor, Tensor]  # points (3k + 1, 2), width (), RGBA (4,)


def strokes_to_svg(
    strokes: Iterable[Stroke], width: int, height: int, background: str | None = None
) -> str:
    """The text of an SVG file. Widths are half of the visible width, as in render_strokes; background is CSS."""
    lines = []
    if background is not None:
        lines.append(f'<rect width="100%" height="100%" fill={quoteattr(background)}/>')
    for points, radius, color in strokes:
        pairs = [f"{x:.6g} {y:.6g}" for x, y in points.tolist()]
        curves = " ".join("C " + " ".join(pairs[i : i + 3]) for i in range(1, len(pairs), 3))
        red, green, blue = color[:3].detach().clamp(0, 1).mul(255).round().int().tolist()
        lines.append(
            f'<path d="M {pairs[0]} {curves}" fill="none" stroke="rgb({red}, {green}, {blue})" '
            f'stroke-width="{2 * float(radius):.6g}" stroke-opacity="{float(color[3]):.6g}" '
            'stroke-linecap="round" stroke-linejoin="round"/>'
        )
    body = "".join(f"    {line}\n" for line in lines)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" version="1.1" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">\n'
        f"  <g>\n{body}  </g>\n</svg>\n"
    )


def strokes_from_svg(file: str | Path) -> tuple[int, int, list[Stroke]]:
    """Canvas width and height and the strokes of a file that holds nothing but what `strokes_to_svg` writes.

    ValueError names the first element or path that is something else.
    """
    root = ElementTree.parse(file).getroot()
    strokes = []
    for element in root.iter():
        tag = str(element.tag).rpartition("}")[2]
        if tag == "path":
            strokes.append(_stroke(element.attrib))
        elif tag not in ("svg", "g", "defs", "title") and element.get("width") != "100%":
            raise ValueError(
                f"<{tag}> in {str(file)!r} is no stroke; accepted: open cubic <path> elements"
            )
    sides = [root.get(side, "0").removesuffix("px") for side in ("width", "height")]
    return round(float(sides[0])), round(float(sides[1])), strokes


def _stroke(attributes: dict[str, str]) -> Stroke:
    data, color = attributes.get("d", ""), attributes.get("stroke", "")
    values = [float(x) for x in re.findall(NUMBER, data)]
    commands = re.sub(r"[\s,]+", "", re.sub(NUMBER, "", data))
    levels = re.fullmatch(rf"rgb\(\s*({NUMBER})\s*,\s*({NUMBER})\s*,\s*({NUMBER})\s*\)", color)
    if not re.fullmatch(r"MC+", commands) or len(values) < 8 or len(values) % 6 != 2:
        raise ValueError(
            f"the path {data[:40]!r} is no open cubic stroke; accepted: M x y, then C and six numbers a segment"
        )
    if attributes.get("fill", "none") != "none" or levels is None:
        raise ValueError(
            f"a path has fill {attributes.get('fill')!r} and stroke {color!r}; accepted: fill 'none' and "
            "stroke 'rgb(r, g, b)'"
        )
    rgba = [float(level) / 255 for level in levels.groups()]
    rgba.append(float(attributes.get("stroke-opacity", "1")))
    half = torch.tensor(float(attributes.get("stroke-width", "1")) / 2)
    return torch.tensor(values).view(-1, 2), half, torch.tensor(rgba)
