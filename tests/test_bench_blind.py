"""Blind viewers: the page says nothing, the key everything, and answers are scored by WordNet."""

# ruff: noqa: F401, F811 (fixtures are imported and then named as arguments)

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from bench_helpers import run, served, trio
from PIL import Image

from clipag_plug.bench import blind
from clipag_plug.bench.__main__ import main
from clipag_plug.bench.data import read_list, subject
from clipag_plug.bench.records import read_record
from clipag_plug.bench.suites import read_suite
from clipag_plug.bench.wordnet import WordNet, find_wordnet, imagenet_names
from clipag_plug.model import CLIP

# offset: words, hypernyms, and how often the first word's first sense occurs in texts
SYNSETS = {
    "00000001": (["entity"], [], 9),
    "00000010": (["animal"], ["00000001"], 9),
    "00000011": (["dog", "domestic_dog"], ["00000010"], 4),
    "00000012": (["hunting_dog"], ["00000011"], 0),
    "00000013": (["retriever"], ["00000012"], 0),
    "00000014": (["golden_retriever"], ["00000013"], 0),
    "00000015": (["goldfish", "Carassius_auratus"], ["00000016"], 0),
    "00000016": (["fish"], ["00000010"], 5),
    "00000017": (["sunglasses", "dark_glasses", "shades"], ["00000018"], 0),
    "00000018": (["spectacles", "glasses"], ["00000001"], 0),
    "00000019": (["mouse"], ["00000010"], 1),
    "00000020": (["desk"], ["00000001"], 1),
}


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> WordNet:
    """A WordNet of a dozen nouns, in its own file format."""
    folder = tmp_path_factory.mktemp("wordnet")
    data, senses, counts = ["  1 licence"], {}, ["cat%2:30:00:: 1 7"]
    for key, (words, above, count) in SYNSETS.items():
        said = " ".join(f"{word} 0" for word in words)
        up = "".join(f" @ {other} n 0000" for other in above)
        data.append(f"{key} 05 n {len(words):02x} {said} {len(above):03}{up} | gloss; more")
        for word in words:
            senses.setdefault(word.lower(), []).append(key)
        counts.append(f"{words[0]}%1:05:00:: 1 {count}")
    # Enough kinds of animal that "animal" says too little.
    for number in range(1000):
        data.append(f"{number + 50_000_000} 05 n 01 beast{number} 0 001 @ 00000010 n 0000 | gloss")
    index = [f"{w} n {len(k)} 1 @ {len(k)} 0 {' '.join(k)}" for w, k in senses.items()]
    texts = {"data.noun": data, "index.noun": index, "cntlist.rev": counts}
    for name, lines in (texts | {"noun.exc": ["mice mouse"]}).items():
        (folder / name).write_text("\n".join(lines) + "\n", "latin1")
    return WordNet(find_wordnet(str(folder)))


@pytest.mark.parametrize(
    ("name", "guess", "relation"),
    [
        ("goldfish", "a Gold-Fish", "exact"),
        ("mice", "mouse", "exact"),
        ("golden retriever", "golden retrievers", "exact"),
        ("sunglasses", "dark glasses", "synonym"),
        ("sunglasses", "glasses", "kind"),
        ("golden retriever", "retriever", "kind"),  # a step up
        ("golden retriever", "hunting dog", "kind"),  # between it and the ordinary word
        ("golden retriever", "dog", "kind"),  # the ordinary word, three steps up
        ("golden retriever", "animal", ""),  # says too little
        ("golden retriever", "entity", ""),
        ("dog", "animal", "kind"),  # a step up, whatever it says
        ("dog", "golden retriever", ""),
        ("goldfish", "mouse", ""),
        ("goldfish", "", ""),
        ("goldfish", "zzz", ""),
        ("grinning face", "face", "kind"),  # not in WordNet: its last word
        ("grinning face", "grinning", ""),
    ],
)
def test_guesses_are_judged_by_wordnet(net: WordNet, name: str, guess: str, relation: str) -> None:
    assert net.relation(name, guess) == relation


def test_wordnet_is_asked_for_where_it_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--wordnet"):
        find_wordnet(str(tmp_path))
    assert imagenet_names()["goldfish"] == ["01443537"] and len(imagenet_names()["crane"]) == 2


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a close-up photo of a goldfish", "goldfish"),
        ("an oil painting of an orange", "orange"),
        ("a bowl of lemons", "bowl of lemons"),
        ("family: adult, child", "family: adult, child"),
    ],
)
def test_a_prompt_names_its_subject(prompt: str, said: str) -> None:
    assert subject(prompt) == said


SUITE = """
about = "t"
models = ["plain", "robust"]
judge = "judge"
seeds = [0, 1]
split = "test"
[entries.photo]
task = "generator_free"
title = "photo"
options = { prompts = "NAMES", template = "a photo of a {}", count = 0, steps = 1, views = 1, batch = 4, sets = false }
"""
NAMES = ("goldfish", "sunglasses", "golden retriever", "desk")


@pytest.fixture
def suite_path(tmp_path: Path) -> Path:
    (tmp_path / "names.txt").write_text("\n".join(NAMES), "utf-8")
    path = tmp_path / "own.toml"
    path.write_text(SUITE.replace("NAMES", str(tmp_path / "names.txt")), "utf-8")
    return path


def answers(path: Path, key: dict[str, dict[str, str]], **named: list[str]) -> str:
    """A viewer who names the robust model's pictures as told, by subject, and nothing of the other's."""
    said = {
        n: named[e["subject"].split()[0]] if e["model"] == "robust" else [] for n, e in key.items()
    }
    path.write_text(json.dumps(said | {"by": path.stem}), "utf-8")
    return str(path)


def test_pictures_are_shown_blind_and_answers_scored(
    served: dict[str, CLIP],
    net: WordNet,
    suite_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("clipag_plug.bench.wordnet.find_wordnet", lambda folder: Path())
    monkeypatch.setattr("clipag_plug.bench.wordnet.WordNet", lambda folder: net)
    folder = tmp_path / "records"
    line = ["blind", str(suite_path), "-o", str(folder), "-q"]
    assert main(line) == 0
    page = Path(capsys.readouterr().out.strip())
    html = page.read_text("utf-8")
    plain = re.sub(r'base64,[^"]+', "", html)
    assert not [word for word in (*NAMES, "plain", "robust", "photo of") if word in plain]
    assert "http" not in plain and "src=" in plain and plain.count("<figure>") == 16
    files = sorted((page.parent / "pictures").iterdir())
    assert [file.name for file in files] == [f"{n:03}.png" for n in range(1, 17)]
    assert not any(Image.open(file).info for file in files)  # no recipe inside
    assert not [file for file in page.parent.rglob("*") if "key" in file.name]
    key = json.loads((folder / "own-blind-key.json").read_text("utf-8"))
    assert sorted({e["model"] for e in key.values()}) == ["plain", "robust"]
    assert [e["model"] for e in key.values()] != sorted(e["model"] for e in key.values())
    one = answers(
        tmp_path / "one.json",
        key,
        goldfish=["fish", "goldfish"],
        sunglasses=["shades"],
        golden=["mouse", "dog"],
        desk=[],
    )
    two = answers(
        tmp_path / "two.json", key, goldfish=["cat"], sunglasses=[], golden=["dog"], desk=[]
    )
    assert main([*line, "--answers", one, two, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["metric"]: row for row in found["comparisons"]["robust"]}
    shares = {name: row["ours"]["value"] for name, row in rows.items()}
    assert shares == {"photo/exact": 1 / 8, "photo/synonym": 2 / 8, "photo/kind": 4 / 8}
    assert all(row["theirs"]["value"] == 0 for row in rows.values())
    assert rows["photo/kind"]["count"] == 4 and rows["photo/kind"]["seeds"] == 2  # prompts, viewers
    assert rows["photo/kind"]["judge"] == "one; two"
    # Of 16 pictures the viewers differ in 4: the robust goldfish and sunglasses, of two seeds.
    assert "2 viewers agree on 75% of pictures" in found["remarks"][1]
    assert "goldfish" in (folder / "own-named.html").read_text("utf-8")
    record = read_record(folder / "own-named" / "photo" / "robust.0.json")
    assert record.pictures["pictures"]["marks"] == ["hit", "hit", "near", "miss"]


def test_a_choice_among_four_is_a_share_of_its_own(
    served: dict[str, CLIP], net: WordNet, suite_path: Path, tmp_path: Path
) -> None:
    suite = read_suite(str(suite_path), seeds=[0])
    run(suite_path, tmp_path, seeds=[0])
    page = blind.make(suite, tmp_path, net=net)
    assert page.read_text("utf-8").count("<select") == 8
    key = json.loads((tmp_path / "own-blind-key.json").read_text("utf-8"))
    assert all(sorted(each["choices"]) == sorted(NAMES) for each in key.values())
    path = tmp_path / "said.json"
    said = {n: each["subject"] if each["model"] == "robust" else "desk" for n, each in key.items()}
    path.write_text(json.dumps(said), "utf-8")
    result = blind.score(suite, tmp_path, [str(path)])
    (row,) = result.rows["robust"]
    assert (row.metric, row.ours.value, row.theirs.value) == ("photo/chosen", 1, 0.25)
    assert "one viewer" in result.remarks[1]
    path.write_text(json.dumps(said | {"1": "cat"}), "utf-8")
    with pytest.raises(ValueError, match="none of the choices"):
        blind.score(suite, tmp_path, [str(path)])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "lacks picture 1"),
        ('{"1": [], "2": ["cat"]}', "picture 2"),
        ("[]", "no answers"),
        ("{", "no answers"),
        ('{"1": 3}', "no answers"),
    ],
)
def test_answers_that_do_not_fit_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=said):
        blind._read(path, {"1": {}})


def test_the_lists_of_names_do_not_meet() -> None:
    for name in ("things", "cartoons"):
        lists = [read_list(split)[name] for split in ("development", "test")]
        assert all(len(each) >= 20 for each in lists)  # type: ignore[arg-type]
        assert not set(lists[0]) & set(lists[1])  # type: ignore[call-overload]
