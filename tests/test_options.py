"""The machinery that every job's options share: checks, recipes, flags."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import pytest

from clipag_plug.options.base import (
    Options,
    add_arguments,
    flag,
    from_arguments,
    option,
    read_recipe,
)


@dataclasses.dataclass
class Job(Options):
    prompts: list[str] = option(help="what to paint", positional=True)
    output: str = option("out.png", "file to write", short="-o")
    steps: int = option(100, "steps, 100 % of them", low=1, high=1000)
    rate: float = option(0.5, "learning rate", low=0)
    norm: str = option("l2", "ball", choices=("l2", "linf"))
    limit: int | None = option(None, "at most so many", low=0)
    sizes: list[int] = option([8, 16], "sides", low=1)
    batch_size: int = option(4, "images at once")
    quiet: bool = option(False, "say nothing", short="-q")


def parse(*argv: str, recipe: str | None = None) -> Job:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_arguments(parser, Job)
    return from_arguments(Job, parser.parse_args(argv), recipe)


def test_every_field_can_be_given_as_a_flag() -> None:
    job = parse(
        *("a cat", "a dog", "-o", "x.png", "--steps", "7", "--rate", "1e-3", "--norm", "linf"),
        *("--limit", "3", "--sizes", "4", "5", "--batch-size", "2", "--quiet"),
    )
    assert job == Job(["a cat", "a dog"], "x.png", 7, 1e-3, "linf", 3, [4, 5], 2, True)


def test_flags_left_out_keep_the_defaults() -> None:
    assert parse("a cat") == Job(["a cat"])
    assert parse("a cat", "--no-quiet").quiet is False


def test_lists_are_not_shared_between_instances() -> None:
    Job(["a cat"]).sizes.append(1)
    assert Job(["a cat"]).sizes == [8, 16]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"steps": 0}, ("--steps", "0", "between 1 and 1000")),
        ({"steps": 1001}, ("--steps", "1001")),
        ({"rate": -1.0}, ("--rate", "at least 0")),
        ({"rate": float("nan")}, ("--rate", "nan")),
        ({"norm": "l1"}, ("--norm", "'l1'", "'l2', 'linf'")),
        ({"limit": -1}, ("--limit", "at least 0")),
        ({"sizes": [8, 0]}, ("--sizes", "0")),
        ({"stpes": 3}, ("'stpes'", "did you mean 'steps'")),
        ({"zzzzzz": 3}, ("'zzzzzz'", "known options", "batch_size")),
        ({"steps": "many"}, ("--steps", "'many'", "int")),
        ({"steps": 1.5}, ("--steps", "1.5", "int")),
        ({"steps": True}, ("--steps", "True", "int")),
        ({"steps": None}, ("--steps", "None", "int")),
        ({"rate": "fast"}, ("--rate", "'fast'", "float")),
        ({"quiet": "yes"}, ("--quiet", "'yes'", "bool")),
        ({"output": 3}, ("--output", "3", "str")),
        ({"sizes": 8}, ("--sizes", "8", "list")),
        ({"sizes": [8, "x"]}, ("--sizes", "'x'", "int")),
    ],
)
def test_bad_values_are_refused_by_name(values: dict[str, object], words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        Job.from_dict({"prompts": ["a cat"], **values})
    for word in words:
        assert word in str(caught.value)


def test_a_missing_value_is_named() -> None:
    with pytest.raises(ValueError, match="prompts"):
        Job.from_dict({})
    with pytest.raises(ValueError, match="prompts"):
        parse("--steps", "3")


def test_a_recipe_may_hold_the_positional_values(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text('{"prompts": ["a cat"]}')
    assert parse(recipe=str(path)) == Job(["a cat"])
    assert parse("a dog", recipe=str(path)) == Job(["a dog"])


def test_whole_numbers_are_floats_and_none_is_an_optional() -> None:
    assert Job(["a cat"], rate=1, limit=None).rate == 1


def test_replace_checks_and_leaves_the_original_alone() -> None:
    job = Job(["a cat"])
    assert job.replace(steps=3).steps == 3
    assert job.steps == 100
    with pytest.raises(ValueError):
        job.replace(steps=0)


@pytest.mark.parametrize("suffix", [".json", ".toml"])
def test_a_recipe_is_read_back_and_flags_win(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"recipe{suffix}"
    job = Job(["un café", "ein Bär"], steps=7, sizes=[3])
    if suffix == ".json":
        path.write_text(job.to_json(), encoding="utf-8")
        assert "café" in path.read_text(encoding="utf-8")
    else:
        lines = [
            f"{k} = {json.dumps(v, ensure_ascii=False)}"
            for k, v in job.to_dict().items()
            if v is not None
        ]
        path.write_text("\n".join(lines), encoding="utf-8")
    assert Job.from_file(path) == job
    assert parse("--steps", "9", recipe=str(path)) == job.replace(steps=9)


def test_broken_recipes_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        read_recipe(tmp_path / "absent.json")
    for name, text in [("a.json", "{"), ("a.toml", "x = "), ("b.json", "[1]"), ("c.json", '"x"')]:
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(ValueError, match=name):
            read_recipe(path)
    binary = tmp_path / "d.json"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"d\.json"):
        read_recipe(binary)


def test_help_shows_defaults_choices_and_survives_a_percent_sign() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser, Job)
    text = " ".join(parser.format_help().split())
    assert "100 % of them [100]" in text
    assert "ball (l2, linf) [l2]" in text
    assert flag("batch_size") == "--batch-size" and "--batch-size" in text
