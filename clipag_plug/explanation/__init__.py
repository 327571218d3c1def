"""Where a model looks for a text: heatmaps, the attack on them, their scores, their pictures."""

from __future__ import annotations

from ..options.explain import METHODS, Explain
from .attack import negation_attack
from .maps import explain, heatmaps, squash, text_features

__all__ = [
    "METHODS",
    "Explain",
    "explain",
    "heatmaps",
    "negation_attack",
    "squash",
    "text_features",
]
