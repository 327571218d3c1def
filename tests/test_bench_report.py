"""Comparisons, claims, suites, the report and the command line."""

# ruff: noqa: F401, F811 (fixtures are imported and then named as arguments)

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import re
import statistics
from pathlib import Path
from types import SimpleNamespace as Namespace
from typing import Any

import chromium
import pytest
from bench_helpers import finished, served, suite_file, trio
from PIL import Image

from clipag_plug.bench import engine, suites
from clipag_plug.bench.__main__ import main
from clipag_plug.bench.compare import compare, judged, result_of
from clipag_plug.bench.records import Metric, Record, read_records
from clipag_plug.bench.report import cells, write_report
from clipag_plug.bench.suites import Claim, read_suite
from clipag_plug.model import CLIP
from clipag_plug.options.bench import Bench

ROOT = Path(__file__).parent.parent


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
    assert [(row.count, row.seeds) for row in rows] == [(2, 2)]  # seed 2 has no partner
    assert rows[0].deviation == 0  # the gap is .5 with either seed
    assert (rows[0].theirs.value, rows[0].ours.value, rows[0].difference.value) == (0.25, 0.75, 0.5)
    assert rows[0].ratio == 3
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
    verdict = judged(Claim("c", "e/gain", times=4.0), compare(records, "a", "b"))
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
    reach = {
        "reach_metric": "e/own",
        "reach": 0.9,
    }  # at 3 the model itself reaches 85 %: the radius is 6

    def holds(**asked: Any) -> bool | None:
        return judged(Claim("c", "e/seen", **reach, **asked), rows).holds  # type: ignore[arg-type]

    assert holds(times=3.0) and not holds(times=3.1)
    assert holds(points=0.4) and not holds(points=0.41)
    assert holds(least=0.6) and not holds(least=0.61)
    assert holds(apart=True) and not holds(apart=True, least=0.9)
    verdict = judged(Claim("c", "e/seen", **reach, times=3.0), rows)  # type: ignore[arg-type]
    assert verdict.radius == 6 and "60.0 % against 20.0 %" in verdict.text
    unreached = Claim("c", "e/seen", reach_metric="e/own", reach=1.1, times=1.0)
    assert judged(unreached, rows).holds is None
    for absent in (
        Claim("c", "e/absent", least=0.1),
        Claim("c", "e/seen", reach_metric="e/absent"),
    ):
        verdict = judged(absent, rows)
        assert verdict.holds is None and "not run" in verdict.text and "%" not in verdict.text


def rows_of(theirs: list[Record], ours: list[Record]) -> list[Any]:
    return compare([*theirs, *ours], "a", "b")


def test_seeds_are_no_items_and_their_spread_is_said() -> None:
    one, two = [0.0, 1, 0, 1, 0, 0, 1, 0, 1, 0, 0, 0], [1.0, 1, 1, 1, 1, 0, 1, 0, 1, 0, 1, 0]
    single = rows_of([made("a", top=one)], [made("b", top=two)])[0]
    many = rows_of(
        [made("a", seed, top=one) for seed in range(20)],
        [made("b", seed, top=two) for seed in range(20)],
    )[0]
    assert single.p == many.p == 0.125 and not many.mark
    assert many.difference.low <= single.difference.low + 0.02
    assert (many.count, many.seeds, many.deviation) == (12, 20, 0)
    assert single.deviation is None
    assert "12 x 20 seeds" in cells(many) and "SD over seeds 0.0" in cells(many)[3]


def test_stars_are_adjusted_within_the_table_and_directions_spelled_out() -> None:
    n = 12
    weak, strong = [1.0] * 8 + [0.0] * 4, [1.0] * 12
    columns = {f"k{number}": [0.0] * n for number in range(9)}
    rows = rows_of([made("a", top=[0.0] * n, other=[0.0] * n)], [made("b", top=weak, other=strong)])
    assert [row.mark for row in rows] == ["+", "+"] and rows[0].p == pytest.approx(2 / 2**8)
    more = rows_of([made("a", top=[0.0] * n, **columns)], [made("b", top=weak, **columns)])
    assert more[0].p == pytest.approx(10 * 2 / 2**8) and not more[0].mark
    record = made("b", top=strong)
    record.metrics["top"]["better"] = "lower"
    worse = rows_of([made("a", top=[0.0] * n)], [record])[0]
    assert (worse.mark, worse.outcome) == ("+", "loss")
    record.metrics["top"]["diagnostic"] = True
    own = rows_of([made("a", top=[0.0] * n)], [record])[0]
    assert (own.mark, own.outcome) == ("", "") and cells(own)[-1] == "itself"


def test_crossed_factors_and_blocks_are_the_units() -> None:
    theirs, ours = (
        made("a", top=[0.1 * n for n in range(12)]),
        made("b", top=[0.2 * n for n in range(12)]),
    )
    for record in (theirs, ours):
        record.drawn = {"photograph": list("aaaabbbbcccc"), "style": list("wxyz") * 3}
    row = rows_of([theirs], [ours])[0]
    assert row.count == 3 and row.difference.high == math.inf and row.p >= 0.25 and not row.mark
    for record in (theirs, ours):
        record.metrics["top"]["blocks"] = 6
    assert rows_of([theirs], [ours])[0].count == 6


@pytest.mark.parametrize("size", ["tiny", "demo", "paper"])
def test_figures_of_the_papers_are_suites(size: str) -> None:
    for name in suites.papers():
        suite = suites.read_paper(name, size, ["a", "b", "c"], "d", [3])
        assert (suite.models, suite.judge, suite.seeds) == (("a", "b", "c"), "d", (3,))
        assert suite.split == "test" and suite.entries and suite.name.endswith(size)
        plain = suites.read_paper(name, size)
        assert plain.judge not in plain.models
    with pytest.raises(ValueError, match="clipag:figure1"):
        suites.read_paper("clipag:figure99", size)


def test_every_figure_and_table_of_the_papers_is_there() -> None:
    wanted = [f"clipag:figure{number}" for number in range(1, 10)] + ["clipag:clipdraw"]
    wanted += [
        f"gan-search:{kind}" for kind in ("table1", "table2", "table3", "figure2", "figure3")
    ]
    assert sorted(suites.papers()) == sorted(wanted)
    page = (ROOT / "docs" / "paper.md").read_text("utf-8")
    assert set(re.findall(r"bench paper ([a-z-]+:\w+)", page)) == set(wanted)
    found = suites.read_paper("clipag:figure7", "paper").entries[0].options
    assert (found.steps, found.views, found.preset, found.count) == (1000, 32, "paper", 100)  # type: ignore[attr-defined]
    assert suites.read_paper("gan-search:table3", "paper").seeds == (0, 1, 2)


def test_published_tables_have_means_and_deviations_over_seeds() -> None:
    records = []
    for seed, best, needed in ((0, 0.2, 5), (1, 0.4, 7)):
        record = made("a", seed, best_random_k1=[best], fid_random_k1=[10.0 * best])
        record.notes = {"curves": {"random_k1": []}, "needed": {"random_k1": needed}}
        records.append(record)
    result: Any = Namespace(records=records, suite=Namespace(models=("a",)))
    one = suites.published(result, "gan-search:table1")
    assert (
        "| best | k = 1 |" in one
        and "| a | 0.300 ± 0.141 |" in one
        and "| a | 3.000 ± 1.414 |" in one
    )
    assert "| a | 6.00 ± 1.41 |" in suites.published(result, "gan-search:table2")
    assert "| a, seed 1 | 0.400 |" in suites.published(result, "gan-search:table3")
    assert suites.published(result, "clipag:figure7") == ""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "clipag:figure3" else pytest.mark.long)
        for name in suites.papers()
    ],
)
def test_a_figure_is_made_by_one_command(
    name: str, served: dict[str, CLIP], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch_fidelity")
    line = ["-m", "plain", "robust", "--judge", "judge", "-o", str(tmp_path), "-q"]
    assert main(["paper", name, "--size", "tiny", *line]) == 0
    out = capsys.readouterr().out
    table = suites.papers()[name]
    suite = suites.read_paper(name, "tiny", ["plain", "robust"])
    assert (tmp_path / f"{suite.name}.html").is_file() and (
        tmp_path / f"{suite.name}.tex"
    ).is_file()
    Image.open(tmp_path / f"{suite.name}-pictures.png").load()
    records = read_records(tmp_path, suite.name)[0]
    assert len(records) == len(suite.entries) * len(suite.seeds) * 2
    if name == "clipag:figure3":
        assert all(list(r.pictures) == ["start", "half way", "pictures"] for r in records)
    if "shows" in table:
        lines = [line for line in out.splitlines() if line.startswith("| plain")]
        assert len(lines) == len(table["shows"]) * (4 if table.get("each") else 1)
        mean = statistics.fmean(
            r.notes["needed"]["random_k1"] for r in records if r.model == "plain"
        )
        assert "±" in lines[-1] and (table["shows"] != ["needed"] or f"| {mean:.2f} ±" in lines[0])


def test_papers_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper", "list"]) == 0
    assert capsys.readouterr().out.startswith("clipag:figure1\tVQGAN+CLIP")


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
        ('models = ["a"]\nsplit = "tests"\n[entries.x]\ntask = "zeroshot"', "split"),
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
            ("theirs_value", row["theirs"]["value"]),
            ("ours_low", row["ours"]["low"]),
            ("difference_high", row["difference"]["high"]),
        ):
            assert float(line[key]) == value
        assert line["significant"] == row["significant"]
    table = [line for line in printed("markdown").splitlines() if line.startswith("|")]
    assert all(line.replace("\\|", "").count("|") == 10 for line in table if "**" not in line)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]
    shown = {cell[0]: cell for cell in cells}
    for line, row in zip(lines, rows):
        cell = shown[row["title"]]
        assert cell[3].endswith(" *") == bool(line["significant"]) and cell[7] == str(row["count"])
    tex = printed("latex")
    assert tex.count("\\begin{tabular}") == tex.count("\\end{tabular}") == 1
    body = [line for line in tex.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert len(body) == len(rows) + 1 and all(line.count(" & ") == 8 for line in body)
    assert not re.search(r"(?<!\\)[%_#]", tex[: tex.index("\n% ")])


def test_the_report_stands_alone(
    finished: tuple[Path, Path, list[engine.Done]],
    served: dict[str, CLIP],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, folder, _ = finished
    assert main(["run", str(path), "-o", str(folder), "--quiet"]) == 0
    page = (folder / "small.html").read_text(encoding="utf-8")
    sources = re.findall(r"""(?:src|href)=["']?([^"'> ]+)""", page)
    assert sources and all(source.startswith("data:image/") for source in sources)
    assert "http" not in re.sub(r'base64,[^"]+', "", page) and "@import" not in page
    assert "<test>" not in page and "&lt;test&gt;" in page
    assert "an Egyptian cat" in page and "How it was measured" in page
    assert page.count("<section") == page.count("</section>")
    assert page.count("<details") == page.count("</details>") > 5  # pictures and tables are folded
    for word in ("better", "no significant difference", "worse", "holds", "image/svg+xml"):
        assert word in page
    assert "p (Holm)" in (folder / "small.tex").read_text("utf-8")
    assert (folder / "small.csv").read_text("utf-8").startswith("baseline,model,metric")
    assert {file.read_bytes()[:4] for file in folder.glob("small-*.pdf")} == {b"%PDF"}
    for file in (folder / "small.png", *folder.glob("small-*.png")):
        Image.open(file).load()


@pytest.mark.skipif(chromium.find() is None, reason="no Chromium")
def test_the_report_fits_its_readers(tmp_path: Path) -> None:
    """The longest suite's report is at most 6,000 pixels tall at 1280, and nothing is cut off at 390."""
    result = result_of(read_suite("quick"), ROOT / "benchmarks" / "results" / "records")
    for record in result.records:
        record.pictures = {}  # the committed records come without
    path = write_report(result, tmp_path / "quick.html", tmp_path)
    browser = chromium.Browser(tmp_path)
    try:
        for width, tallest in ((1280, 6000), (390, 20_000)):
            browser.size(width, 800)
            browser.go(path.as_uri())
            browser.wait("document.readyState === 'complete' && !!document.querySelector('table')")
            height, across = browser.run(
                "[document.documentElement.scrollHeight, document.documentElement.scrollWidth]"
            )
            assert 800 < height <= tallest and across <= width
    finally:
        browser.close()


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
