"""What `benchmarks/ports_quality.py` keeps of earlier pictures."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "ports_quality.py"
WEIGHTS = {"clip-mini": "a", "clipag-mini": "b", "judge-mini": "c", "vqgan-mini": "d"}
FACTS: dict[str, Any] = {"seed": 0, "torch": "2", "weights": WEIGHTS}
BOTH = ["clip-mini", "clipag-mini"]


@pytest.mark.parametrize(
    ("changed", "left"),
    [
        ({}, BOTH),
        ({"weights": {**WEIGHTS, "clipag-mini": "new"}}, ["clip-mini"]),
        ({"weights": {**WEIGHTS, "judge-mini": "new"}}, BOTH),
        ({"weights": {**WEIGHTS, "vqgan-mini": "new"}}, []),
    ],
)
def test_pictures_of_unchanged_weights_are_kept(changed: dict[str, Any], left: list[str]) -> None:
    script = runpy.run_path(str(SCRIPT))
    before = {**FACTS, "done": {"lemon": dict.fromkeys(BOTH, "picture")}}
    now = {**FACTS, **changed}
    found = script["kept"](before, now)
    assert list(found["done"]["lemon"]) == left
    assert {name: found[name] for name in FACTS} == now


def test_other_settings_keep_nothing() -> None:
    kept = runpy.run_path(str(SCRIPT))["kept"]
    before = {**FACTS, "done": {"lemon": dict.fromkeys(BOTH, "picture")}}
    assert kept(before, {**FACTS, "seed": 1})["done"] == {} == kept({}, FACTS)["done"]
