"""A differentiable renderer of open cubic Bezier strokes in plain PyTorch, with the semantics of diffvg."""

from __future__ import annotations

from .render import render_strokes
from .svg import strokes_from_svg, strokes_to_svg

__all__ = ["render_strokes", "strokes_from_svg", "strokes_to_svg"]
