"""benchmarks/study.py: every variant is a recipe that the trainer takes, and each changes what its name says."""

from __future__ import annotations

import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PATH = ROOT / "benchmarks" / "study.toml"


@pytest.fixture(scope="module")
def study() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks" / "study.py"))


def test_variants_differ_from_the_recipe_in_what_they_name(study: dict[str, Any]) -> None:
    found = study["variants"](PATH, [], 0, {})
    listed = tomllib.loads(PATH.read_text("utf-8"))["variants"]
    assert list(found) == list(listed)
    base = found["recipe"].to_dict()
    for name, options in found.items():
        own = options.to_dict()
        changed = {key for key in base if own[key] != base[key]} - {"name"}
        assert changed == set(listed[name])


def test_a_budget_scales_them_all(study: dict[str, Any]) -> None:
    one, ten = (study["variants"](PATH, [], count, {}) for count in (0, 1_000_000))
    assert ten["recipe"].samples == 1_000_000
    for name, options in one.items():
        assert ten[name].samples == options.samples * 10


def test_settings_for_all_win(study: dict[str, Any]) -> None:
    lines = map(study["_assignment"], ("precision=bf16", "batch_size=512", "lr=1e-3", "bank=false"))
    given = tomllib.loads("\n".join(lines))
    (options,) = study["variants"](PATH, ["recipe"], 0, given).values()
    assert (options.precision, options.batch_size, options.lr) == ("bf16", 512, 1e-3)
    assert options.bank is False


def test_an_unknown_variant_is_named(study: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="eps 7"):
        study["variants"](PATH, ["eps 7"], 0, {})


def test_every_column_is_measured_by_the_suite(study: dict[str, Any]) -> None:
    suite = study["read_suite"](str(study["SUITE"]))
    entries = {entry.name: entry.options for entry in suite.entries}
    for metric in study["COLUMNS"].values():
        name, _, measure = metric.partition("/")
        assert name in entries
        if "@" in measure:
            assert float(measure.partition("@")[2]) in entries[name].radii
