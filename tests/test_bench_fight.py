"""The fight of canvases at tiny size: equal trials, chosen on development prompts, resumable, answered."""

# ruff: noqa: F401, F811 (fixtures are imported and then named as arguments)

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_helpers import served, trio
from PIL import Image

from clipag_plug.bench import engine, fight
from clipag_plug.bench.__main__ import main
from clipag_plug.bench.fight import Arena, Cell, Fight
from clipag_plug.bench.records import Record, read_records
from clipag_plug.bench.tasks import canvas
from clipag_plug.model import CLIP
from clipag_plug.options.generate import Generate

TINY = """
passes = [4, 8]
methods = ["pixels", "phase"]
seeds = [2, 1]
whole = 4
views = [0, 2]
prompts = "PROMPTS"
count = 4
development = 2
trials = 2
batch = 3
guides = ["plain", "judge"]
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    (tmp_path / "names.txt").write_text("goldfish\ndesk\nlemon\nteapot\n", "utf-8")
    path = tmp_path / "tiny.toml"
    path.write_text(TINY.replace("PROMPTS", str(tmp_path / "names.txt")), "utf-8")
    return path


def test_the_fight_by_one_command(
    served: dict[str, CLIP], tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["canvas", "--suite", str(tiny), "-m", "plain", "robust", "--judge", "judge"]
    served["third"] = served["robust"]
    tiny.write_text(tiny.read_text("utf-8").replace('["plain", "judge"]', '["plain", "third"]'))
    assert main([*line, "-o", str(tmp_path / "out")]) == 0
    text, said = capsys.readouterr()
    records, problems = read_records(tmp_path / "out", "canvas")
    assert not problems
    # 2 models x 2 methods x 2 numbers of views: 2 trials of a seed and a test of two; one ensemble of two seeds; then
    # the two best canvases of each model.
    assert len(records) == 2 * 2 * 2 * (2 + 2) + 2 + 4
    assert text.count("\n| 4 |") == 4 + 4 and "not shown" in text
    assert "not run" not in text.split("\n\n")[-1]
    tuned = [record for record in records if record.entry.startswith("tune")]
    assert len(tuned) == 16 and not any(record.pictures for record in tuned)
    assert {r.options["split"] for r in tuned} == {"development"}
    assert {r.options["split"] for r in records if r not in tuned} == {"test"}
    for record in records:
        options = canvas.Painted.from_dict(record.options)
        drawn = Generate(steps=options.steps(), views=options.views, patches=0)
        assert drawn.passes() * (1 + len(options.ensemble)) <= options.passes
    assert (tmp_path / "out" / "canvas.md").read_text("utf-8") == text
    for name in ("canvas.png", "canvas.webp"):
        Image.open(tmp_path / "out" / name).load()
    assert main([*line, "-o", str(tmp_path / "out")]) == 0
    again, said = capsys.readouterr()
    assert again == text and said.count("there already") == len(records)


def arena(scores: Callable[[str, str, int], tuple[float, list[float]]], **changes: Any) -> Arena:
    """A fight that was run: for model, method and views the score on development prompts and the test column."""
    own = Arena(
        Fight(passes=[200], seeds=[1], **changes), ("v", "r"), "judge", Path(), "cpu", print
    )
    for model, method, views in itertools.product("vr", own.fight.methods, own.fight.views):
        score, values = scores(model, method, views)
        metric = {"values": values, "title": "t", "by": "judge"}
        items = [str(n) for n in range(len(values))]
        record = Record(
            "canvas", "e", "canvas", model, 0, "", {}, {}, items, {"imagenet_top5": metric}
        )
        own.cells[model, method, views, 200] = Cell(0.1, score, False, [record])
    return own


def test_each_is_taken_at_its_best_on_development_prompts_and_answers_are_signed() -> None:
    n = 40

    def scores(model: str, method: str, views: int) -> tuple[float, list[float]]:
        hits = {"v": 4 + 10 * (method in ("pyramid", "phase")) + 8 * (views == 32), "r": 36}[model]
        best = views == 4 if model == "v" else views == 32  # on development prompts
        return float(best) + (method == "pyramid"), [1.0] * hits + [0.0] * (n - hits)

    own = arena(scores)
    assert own.best("v", 200) == ("pyramid", 4) and own.best("r", 200) == ("pyramid", 32)
    found = fight.answers(own)
    rows = [line.split(" | ") for line in found if line.startswith("| 200")]
    assert [row[-1].strip(" |") for row in rows] == ["yes"] * 5
    assert rows[0][2].startswith("+55.0 (+") and "robust: pyramid, 32 views" in rows[0][1]
    assert (
        rows[1][2].startswith("+55.0")
        and rows[2][2].startswith("+25.0")
        and rows[4][2].startswith("+20.0")
    )
    assert "not run" in found[-1]
    turned = arena(lambda model, *rest: scores({"v": "r", "r": "v"}[model], *rest))
    assert [r.split(" | ")[-1].strip(" |") for r in fight.answers(turned)[2:-1]] == [
        "no, the opposite"
    ] * 5
    alike = arena(lambda *_: (0.0, [0.0, 1.0] * 20))
    assert [r.split(" | ")[-1].strip(" |") for r in fight.answers(alike)[2:-1]] == ["not shown"] * 5


def test_every_method_paints_with_its_own_canvas_and_the_rest_alike() -> None:
    rules = {name: settings for name, (settings, _) in canvas.METHODS.items()}
    for name, settings in rules.items():
        made = Generate(**(canvas.EQUAL | settings), views=4, lr=0.1).resolved()
        assert made.canvas == settings["canvas"] and made.optimizer == settings["optimizer"]
        assert (made.init == "gray") != (name == "phase") and made.contrast == made.patches == 0
        assert made.decorrelate is (name in ("fourier", "phase"))
    assert rules["tilt 1"]["tilt"] == 1
    assert canvas.Painted(views=0, passes=200).steps() == 200
    assert canvas.Painted(views=32, passes=200).steps() == 6
    assert canvas.Painted(views=4, passes=240, ensemble=["a", "b"]).steps() == 20


def test_bad_fights_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="2 passes and 3 seeds"):
        Fight(passes=[1, 2])
    assert main(["canvas", "-m", "one"]) == 2
    assert "vanilla and a robust model" in capsys.readouterr().err
