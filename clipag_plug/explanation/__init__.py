"""Where a model looks for a text: heatmaps, the attack on them, their scores, their pictures."""

from __future__ import annotations

from ..options.explain import METHODS as METHODS
from ..options.explain import Explain as Explain
from .maps import explain as explain
from .maps import heatmaps as heatmaps
from .maps import negation_attack as negation_attack
from .maps import squash as squash
from .maps import text_features as text_features
