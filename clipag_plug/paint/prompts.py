"""Weighted prompts: 'a fox:1 | blurry:-0.3'."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

_WEIGHT = re.compile(r"(.*):\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*", re.DOTALL)


def parse_prompt(prompt: str, prefix: str = "") -> list[tuple[str, float]]:
    """The parts of a prompt and their weights, 1 where none is written; parts of weight 0 are left out.

    `prefix` is put before the parts of positive weight. A text that itself ends in ':10' needs a weight after it.
    ValueError where a part is empty or every weight is 0.
    """
    parts = []
    for piece in prompt.split("|"):
        match = _WEIGHT.fullmatch(piece)
        text = (match[1] if match else piece).strip()
        weight = float(match[2]) if match else 1.0
        if not text:
            raise ValueError(
                f"prompt {prompt!r} has an empty part; write a text before each '|' and ':'"
            )
        if not math.isfinite(weight):
            raise ValueError(f"prompt {prompt!r} has a weight that is not finite")
        if weight:
            parts.append(
                (f"{prefix.strip()} {text}" if prefix.strip() and weight > 0 else text, weight)
            )
    if not parts:
        raise ValueError(
            f"prompt {prompt!r} has no part with a weight other than 0; nothing would be drawn"
        )
    return parts


def sweep(
    prompts: Sequence[str], prefixes: Sequence[str] = ()
) -> list[tuple[str, list[tuple[str, float]]]]:
    """Every prompt with every prefix: its caption and its parts, in the order of the prompts."""
    if not prompts:
        raise ValueError('no prompt; say what to draw, as in clipag generate "a goldfish"')
    return [
        (f"{prefix.strip()} {prompt.strip()}".strip(), parse_prompt(prompt, prefix))
        for prompt in prompts
        for prefix in prefixes or [""]
    ]
