"""The study of the training and the fixed prompts: variants change what they name, every word was taught."""

from __future__ import annotations

import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest

from clipag_plug.losses.attributes import NAMES
from clipag_plug.vocabulary import bundled_vocabulary, sentence

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


def test_the_fixed_prompts_are_whole_and_known() -> None:
    data = tomllib.loads((ROOT / "benchmarks" / "pair_prompts.toml").read_text("utf-8"))
    vocabulary = bundled_vocabulary()
    names, words = set(vocabulary.class_names), set(vocabulary.words)
    assert [len(data[group]) for group in ("class", "word", "colour", "two")] == [15] * 4
    assert data["sheet"] == [sentence(n, "a {}") for n in vocabulary.class_names[4:192:8]]
    assert set(data["class"]) <= names and set(data["word"]) <= words
    for prompt in data["colour"]:
        assert prompt["class"] in names and prompt["colour"] in NAMES
        assert prompt["colour"] in prompt["text"] and prompt["class"] in prompt["text"]
    for prompt in data["two"]:
        assert len(prompt["classes"]) == 2 and set(prompt["classes"]) <= names
        assert all(name in prompt["text"] for name in prompt["classes"])
