"""Names of run folders."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Any

import pytest

from clipag_plug.cli import main
from clipag_plug.images import read_recipe
from clipag_plug.pipelines.runs import new_run, run_name, slug


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a goldfish", "a-goldfish"),
        ("An oil painting, of a FOX!", "an-oil-painting-of-a-fox"),
        ("a fox:1 | blurry:-0.3", "a-fox-1-blurry-0-3"),
        ("../../etc/passwd", "etc-passwd"),
        ("金魚", "金魚"),
        ("...", "picture"),
        ("x" * 99, "x" * 40),
    ],
)
def test_a_slug_is_a_plain_name(text: str, expected: str) -> None:
    assert slug(text) == expected


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    day = datetime.date(2026, 11, 1)
    assert run_name("a goldfish", 7, day) == "2026-11-01-a-goldfish-7"
    names = [new_run("a goldfish", 7, tmp_path / "runs").name for _ in range(3)]
    today = run_name("a goldfish", 7)
    assert names == [today, f"{today}-2", f"{today}-3"]


QUICK = ["--steps", "1", "--views", "1", "--init", "noise"]


@pytest.fixture
def model_by_key(monkeypatch: pytest.MonkeyPatch, tiny_clip: Any) -> None:
    """Every key loads the tiny model."""
    import clipag_plug.clip

    monkeypatch.setattr(clipag_plug.clip, "load_model", lambda name, device=None: tiny_clip)


def test_a_prompt_alone_gets_a_run_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model_by_key: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["generate", "a goldfish", "--seed", "3", *QUICK]) == 0
    name = run_name("a goldfish", 3)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [name, f"{name}-2"]
    files = sorted(path.name for path in (tmp_path / "runs" / name).iterdir())
    assert files == ["image.png", "progress.webp", "recipe.json", "steps.csv"]
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == str(Path("runs", name, "image.png"))
    assert err == ""  # no bar where nobody looks
    first, second = (tmp_path / "runs" / each / "image.png" for each in (name, f"{name}-2"))
    assert first.read_bytes() == second.read_bytes()


def test_json_is_one_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model_by_key: None
) -> None:
    arguments = [
        "a fox",
        "a cat",
        "-n",
        "2",
        "-s",
        "0",
        "-o",
        str(tmp_path / "a.png"),
        "--json",
        "--quiet",
    ]
    assert main(["generate", *arguments, *QUICK]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == "" and len(found["files"]) == 4 and all(map(os.path.isfile, found["files"]))
    painted = [(each["prompt"], each["seed"]) for each in found["pictures"]]
    assert painted == [("a fox", 0), ("a fox", 1), ("a cat", 0), ("a cat", 1)]
    # How the result is told is not part of what made it.
    assert not {"json", "quiet"} & set(read_recipe(found["files"][0])["options"])


def test_a_folder_that_cannot_be_written_to_is_refused_before_painting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").write_text("a file where the folder should be")
    assert main(["generate", "a fox", "--model", "no-such-model", *QUICK]) == 2
    assert "no-such-model" not in capsys.readouterr().err
