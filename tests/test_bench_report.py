"""Comparisons, claims, suites, the report and the command line."""

# ruff: noqa: F401, F811 (fixtures are imported and then named as arguments)

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from bench_helpers import finished, served, suite_file, trio

from clipag_plug.bench import engine, suites
from clipag_plug.bench.__main__ import main
from clipag_plug.bench.charts import spread
from clipag_plug.bench.compare import compare, judge_claims
from clipag_plug.bench.records import Metric, Record
from clipag_plug.bench.suites import Claim, read_suite
from clipag_plug.model import CLIP
from clipag_plug.options.bench import Bench


def made(model: str, seed: int = 0, **metrics: list[float]) -> Record:
    entries = {
        key: Metric(
            key,
            "share",
            "judge",
            numbers,
            at=float(key.split("_at_")[1]) if "_at_" in key else None,
        )
        for key, numbers in metrics.items()
    }
    found = {key.replace("_at_", "@"): metric.to_dict() for key, metric in entries.items()}
    items = [str(index) for index in range(len(next(iter(metrics.values()))))]
    return Record("s", "e", "t", model, seed, "f", {}, {}, items, found)


def test_comparisons_pool_seeds_and_refuse_what_is_no_pair() -> None:
    rows = compare(
        [
            made("a", 0, top=[0.0, 1]),
            made("a", 1, top=[0.0, 0]),
            made("b", 0, top=[1.0, 1]),
            made("b", 1, top=[1.0, 0]),
            made("b", 2, top=[0.0, 0]),
        ],
        "a",
        "b",
    )
    assert [row.count for row in rows] == [4]  # seed 2 has no partner
    assert (rows[0].theirs.value, rows[0].ours.value, rows[0].difference.value) == (0.25, 0.75, 0.5)
    assert rows[0].ratio is not None and rows[0].ratio.value == 3
    other = dataclasses.replace(made("b", 0, top=[1.0, 1]), items=["x", "y"])
    with pytest.raises(ValueError, match="different items"):
        compare([made("a", 0, top=[0.0, 1]), other], "a", "b")


@pytest.mark.parametrize(
    ("theirs", "ours", "holds", "text"),
    [
        (0.5, 2.0, True, "4.0x"),
        (0.5, 1.9, False, "3.8x"),
        (-0.1, 1.0, True, "∞"),
        (-0.1, -0.5, False, ""),
    ],
)
def test_a_factor_of_what_is_no_share_is_that_of_the_means(theirs, ours, holds, text) -> None:
    records = [made("a", gain=[theirs] * 4), made("b", gain=[ours] * 4)]
    for record in records:
        record.metrics["gain"]["unit"] = "nats"
    verdict = judge_claims([Claim("c", "e/gain", times=4.0)], compare(records, "a", "b"))[0]
    assert verdict.holds is holds and text in verdict.text


def test_claims_hold_or_fail_at_the_radius_that_is_asked_for() -> None:
    n = 20
    theirs = made(
        "a",
        seen_at_3=[0.0] * n,
        seen_at_6=[1.0] * 4 + [0.0] * 16,
        own_at_3=[1.0] * n,
        own_at_6=[1.0] * n,
    )
    ours = made(
        "b",
        seen_at_3=[1.0] * n,
        seen_at_6=[1.0] * 12 + [0.0] * 8,
        own_at_3=[1.0] * 17 + [0.0] * 3,
        own_at_6=[1.0] * n,
    )
    rows = compare([theirs, ours], "a", "b")
    reach = ("e/own", 0.9)  # at 3 the model itself reaches 85 %: the radius is 6

    def holds(**asked: Any) -> bool | None:
        return judge_claims([Claim("c", "e/seen", reach=reach, **asked)], rows)[0].holds

    assert holds(times=3.0) and not holds(times=3.1)
    assert holds(points=0.4) and not holds(points=0.41)
    assert holds(least=0.6) and not holds(least=0.61)
    assert holds(apart=True) and not holds(apart=True, least=0.9)
    verdict = judge_claims([Claim("c", "e/seen", reach=reach, times=3.0)], rows)[0]
    assert verdict.radius == 6 and "60.0 % against 20.0 %" in verdict.text
    assert (
        judge_claims([Claim("c", "e/seen", reach=("e/own", 1.1), times=1)], rows)[0].holds is None
    )
    assert judge_claims([Claim("c", "e/absent", least=0.1)], rows)[0].holds is None


def test_suites_of_the_package_make_sense() -> None:
    assert "quick" in suites.names()
    quick = read_suite("quick")
    assert quick.judge not in quick.models
    drawn = [entry.options for entry in quick.entries if entry.task.name == "generation"]
    assert {options.views > 0 for options in drawn} == {True, False}  # type: ignore[attr-defined]
    for options in drawn:
        assert 202 / options.every >= 40  # type: ignore[attr-defined]
    entries = {entry.name for entry in quick.entries}
    for claim in quick.claims:
        assert claim.metric.split("/")[0] in entries


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('modles = ["a"]', "modles"),
        ('models = ["a"]\n[entries.x]\ntask = "zeroshoot"', "zeroshot"),
        ('models = ["a"]\n[entries.x]\ntask = "zeroshot"\noptions = { epsilon = 1 }', "epsilon"),
        ('models = ["a"]\n[entries.x]\ntask = "generation"', "judge"),
        ('models = ["a", "a"]\n[entries.x]\ntask = "zeroshot"', "twice"),
        ("models = []", "no model"),
        (
            'models = ["a"]\n[entries.x]\ntask = "zeroshot"\n[[claims]]\ntext = "t"\nmetric = "m"\ntime = 2',
            "time",
        ),
    ],
)
def test_bad_suites_say_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_suite(str(path))


def test_unknown_suites_and_entries(suite_file: Path) -> None:
    with pytest.raises(FileNotFoundError, match="quick"):
        read_suite("quik")
    with pytest.raises(ValueError, match="entries: zeroshot"):
        read_suite(str(suite_file), only=["zeroshots"])


def test_the_command_prints_results_to_stdout_and_chatter_to_stderr(
    finished: tuple[Path, Path, list[engine.Done]],
    served: dict[str, CLIP],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, folder, _ = finished
    assert main(["run", str(path), "-o", str(folder), "--json"]) == 0
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert data["models"] == ["plain", "robust"] and data["claims"][0]["holds"] is True
    assert {row["metric"] for row in data["comparisons"]["robust"]} >= {
        "zeroshot/robust_top1",
        "views/top5",
    }
    assert "there already" in err and "[8/8]" in err
    assert main(["table", str(path), "-o", str(folder)]) == 0
    out, err = capsys.readouterr()
    assert "R-Precision" in out and "yes  clean top-1" in out and err == ""
    assert (
        main(["compare", "robust", "plain", "--suite", str(path), "-o", str(folder), "--json"]) == 0
    )
    turned = json.loads(capsys.readouterr().out)["comparisons"]["plain"]
    for row, mirror in zip(data["comparisons"]["robust"], turned):
        assert row["difference"]["value"] == pytest.approx(-mirror["difference"]["value"])


def test_every_format_says_the_same(
    finished: tuple[Path, Path, list[engine.Done]],
    served: dict[str, CLIP],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, folder, _ = finished

    def printed(form: str) -> str:
        assert main(["table", str(path), "-o", str(folder), "--format", form]) == 0
        return capsys.readouterr().out

    rows = json.loads(printed("json"))["comparisons"]["robust"]
    lines = list(csv.DictReader(io.StringIO(printed("csv"))))
    assert [line["metric"] for line in lines] == [row["metric"] for row in rows]
    for line, row in zip(lines, rows):
        for key, value in (
            ("baseline_value", row["theirs"]["value"]),
            ("model_low", row["ours"]["low"]),
            ("difference_high", row["difference"]["high"]),
        ):
            assert float(line[key]) == value
        low, high = row["difference"]["low"], row["difference"]["high"]
        sign = "+" if low > 0 else "-" if high < 0 else ""
        assert line["significant"] == ("" if row["diagnostic"] else sign)
    table = [line for line in printed("markdown").splitlines() if line.startswith("|")]
    assert all(line.replace("\\|", "").count("|") == 9 for line in table if "**" not in line)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    shown = {cell[0]: cell for cell in cells}
    for line, row in zip(lines, rows):
        cell = shown[row["title"]]
        assert cell[3].endswith(" *") == bool(line["significant"]) and cell[6] == str(row["count"])
    tex = printed("latex")
    assert tex.count("\\begin{tabular}") == tex.count("\\end{tabular}") == 1
    body = [line for line in tex.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert len(body) == len(rows) + 1 and all(line.count(" & ") == 7 for line in body)
    assert not re.search(r"(?<!\\)[%_#]", tex)


@pytest.mark.parametrize("wanted", [[14, 14], [280, 280, 14, 14], [100, 90, 20, 15], [200, 50]])
def test_names_of_curves_do_not_touch_and_stay_in_the_chart(wanted: list[float]) -> None:
    places = spread(wanted, 16, 14, 280)
    assert len(places) == len(wanted)
    order = sorted(places)
    assert order[0] >= 14 and order[-1] <= 280
    assert all(after - before >= 16 for before, after in zip(order, order[1:]))
    above = [
        (a, b) for a in range(len(wanted)) for b in range(len(wanted)) if wanted[a] < wanted[b]
    ]
    assert all(places[a] < places[b] for a, b in above)


def test_curves_that_are_apart_keep_their_heights() -> None:
    assert spread([200, 50], 16, 14, 280) == [200, 50]


def test_the_report_stands_alone(
    finished: tuple[Path, Path, list[engine.Done]],
    served: dict[str, CLIP],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, folder, _ = finished
    assert main(["run", str(path), "-o", str(folder), "--quiet"]) == 0
    page = (folder / "small.html").read_text(encoding="utf-8")
    sources = re.findall(r"""(?:src|href)=["']?([^"'> ]+)""", page)
    assert sources and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "http" not in re.sub(r'base64,[^"]+', "", page) and "@import" not in page
    assert "<test>" not in page and "&lt;test&gt;" in page
    assert "an Egyptian cat" in page and "How it was measured" in page
    assert page.count("<section>") == page.count("</section>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nonsense"], "no suite"),
        (["compare", "clip-mini"], "two models"),
        (["table", "-o", "empty"], "no record"),
        (["run", "--seeds", "-1"], "at least 0"),
        (["run", "-o", "file/records"], "file"),
    ],
)
def test_bad_requests_are_one_sentence(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_list_names_suites_and_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert "quick:" in out and "judge judge-mini" in out and "eps 1.5" in out


def test_options_take_a_suite_in_either_place() -> None:
    assert Bench(names=["quick"]).suite == Bench(suite="quick").suite == "quick"
    assert Bench(request="table", names=["other"]).suite == "other"
