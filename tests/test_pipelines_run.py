"""The frame of the pipelines: models, seeds, files, recipes, and what is kept of a run that is stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from demo_helpers import bomb
from torch import nn

from clipag_plug import cli
from clipag_plug.images import read_image, read_recipe, write_image
from clipag_plug.options import COMMANDS
from clipag_plug.options.clipdraw import ClipDraw
from clipag_plug.paint import NotFiniteError
from clipag_plug.pipelines import clipdraw, clipstyler, output, vqgan_clip
from clipag_plug.pipelines.run import ENDING, Stop

ROOT = Path(__file__).resolve().parent.parent
TINY: dict[str, list[str]] = {
    "generate": ["--steps", "2", "--views", "1", "--init", "noise"],
    "clipdraw": ["--canvas", "32", "--strokes", "4", "--steps", "2", "--views", "1"],
    "vqgan": ["--size", "32", "--steps", "2", "--cuts", "1"],
    "style": ["-i", "photo.png", "-p", "demo", "--steps", "2", "--crops", "1"],
    "search": ["--budget", "4", "--batch", "2"],
}
QUICK: dict[str, Any] = {"canvas": 32, "size": 0, "strokes": 4, "steps": 2, "device": "cpu"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with a photograph."""
    monkeypatch.chdir(tmp_path)
    write_image("photo.png", torch.rand(3, 64, 80, generator=torch.Generator().manual_seed(0)))
    return tmp_path


def clipag(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(list(words))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("name", TINY)
def test_every_command_has_the_common_flags(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [name, "a lemon | fog:-0.5", *TINY[name]]
    code, out, err = clipag(capsys, *line, "-q", "-n", "2", "-s", "3", "--json")
    assert code == 0 and err == ""
    found = json.loads(out)
    assert [made["seed"] for made in found["pictures"]] == [3, 4]
    assert all(made["model"] == "clipag-mini" and made["steps"] >= 2 for made in found["pictures"])
    (run,) = Path("runs").iterdir()
    assert run.name.endswith("-3") and all(Path(path).is_file() for path in found["files"])
    names = {path.name for path in run.iterdir()}
    assert names >= {"image-1.png", "image-2.png", "recipe.json", "steps.csv", "progress-1.webp"}
    recipes = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    assert [recipe["seed"] for recipe in recipes] == [3, 4]
    # The second variation is the picture of its own seed, with the same bytes, wherever it is written.
    again = line if name != "generate" else [name, "--from", str(run / "image-2.png")]
    seed = ["-s", "4"] if name != "generate" else []  # its recipe holds the batch it was painted in
    assert clipag(capsys, *again, *seed, "-o", "one.png")[1] == "one.png\n"
    assert Path("one.png").read_bytes() == (run / "image-2.png").read_bytes()
    assert read_recipe("one.png")["seed"] == 4


@pytest.mark.parametrize("name", TINY)
def test_comparison_is_a_sheet(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = [name, "a lemon", "a fox", *TINY[name], "--compare", "--animation", "film.webp"]
    code, out, err = clipag(capsys, *line, "--frames", "2", "-o", "sheet.png")
    assert code == 0, err
    films = [f"film-{model}-{n}.webp" for model in ("clip-mini", "clipag-mini") for n in (1, 2)]
    assert out.split() == ["sheet.png", *films]
    assert read_recipe("sheet.png")["sheet_of"] == 4
    assert min(read_image("sheet.png").shape[-2:]) > 2 * 32


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("clipdraw", "no prompt"),
        ("vqgan ' '", "prompt is empty"),
        ("clipdraw 'a | '", "empty part"),
        ("vqgan 'a:0|b:0'", "weight"),
        ("style a", "--image"),
        ("style a -i none.png", "does not exist"),
        ("style a -i photo.png --size 64", "--crop-size"),
        ("style a -i photo.png --features vgg19 --vgg none.pth", "none.pth"),
        ("style a -i photo.png --mode fast", "network"),
        ("vqgan a --size 4x4", "between 8"),
        ("vqgan a --cut-method all", "latest"),
        ("vqgan a --autoencoder no-such", "vqgan-mini"),
        ("clipdraw a --crop-low 0.9 --crop-high 0.5", "above"),
        ("clipdraw a --steps 0", "at least 1"),
        ("clipdraw a --stroke 3", "did you mean --strokes"),
        ("clipdraw a -s 18446744073709551616", "--seed"),
        ("search a -s -1", "--seed"),
        ("clipdraw a --device gpu", "cuda"),
        ("vqgan a --output d.jpg", ".png"),
        ("vqgan a -o none/d.png", "does not exist"),
        ("style a -i photo.png -o d.png --animation d.png", "same file"),
        ("clipdraw a --svg d.txt", ".svg"),
        ("search a -o taken", "is a file"),
        ("generate a -o taken", "is a file"),
        ("generate a -o photo.png", "--overwrite"),
        ("generate a --animation photo.png", "--overwrite"),
        ("generate a --device gpu", "cuda"),
        ("generate a -s 18446744073709551616", "--seed"),
        ("generate a -i huge.png", "more pixels"),
        ("explain photo.png dog -o photo.png", "--overwrite"),
        ("explain photo.png dog --device gpu", "cuda"),
        ("demo --device gpu", "cuda"),
        ("vqgan 'a \udce9'", "no text in UTF-8"),
        ("explain photo.png 'a \udce9'", "not in UTF-8"),
        ("generate a --views 0 --policy nonsense", "nonsense"),
        ("demo -o taken", "is a file"),
        ("demo --host no.invalid", "cannot listen"),
        ("serve --host no.invalid", "clipag serve --port"),
        ("explain . dog", "is a folder"),
        ("demo --models nobody", "no model is called"),
        ("explain photo.png dog taken", "second file"),
        ("generate a --recipe photo.png", "generate --from photo.png"),
        ("generate a --device cuda:99", "does not have"),
        ("demo --device cuda:99", "does not have"),
        ("search a -m nobody", "`clipag models` lists the names"),
        ("generate a -o b.png --log b.txt", ".csv"),
        ("search a --generator stylegan", "must be bundled"),
        ("search a --generator biggan:nowhere", "BigGAN"),
        ("search a --template x", "must hold {}"),
        ("search a --method refine --budget 1", "at least 2"),
        ("search a -m judge-mini --compare", "--vanilla"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    line: str, words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shlex

    Path("taken").write_text("mine")
    Path("huge.png").write_bytes(bomb(20_000, 20_000))
    before = sorted(folder.iterdir())
    code, out, err = clipag(capsys, *shlex.split(line))
    assert (code, out) == (2, "") and words in err and err.count("\n") == 1, err
    assert sorted(folder.iterdir()) == before


def test_a_folder_that_goes_away_meanwhile_loses_no_picture(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("out").mkdir()
    monkeypatch.setattr(Stop, "__call__", lambda *_: shutil.rmtree("out", ignore_errors=True))
    code, out, err = clipag(capsys, "search", "a lemon", *TINY["search"], "-q", "-o", "out/a.png")
    (kept,) = Path("runs").glob("*/image.png")
    assert (code, out) == (2, "") and str(kept.parent) in err and err.count("\n") == 1
    assert read_recipe(kept)["prompt"] == "a lemon"


def test_a_place_that_takes_no_file_is_found_out_before_any_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    code, out, err = clipag(capsys, "search", "a lemon", "-o", "a.png")
    assert (code, out) == (2, "") and "may not be written to" in err


def test_a_film_that_cannot_be_written_is_refused_before_any_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr(
        "clipag_plug.pipelines.run.guide_for", lambda *_, **__: pytest.fail("loaded")
    )
    code, out, err = clipag(capsys, "search", "a lemon", "-o", "a.png", "--animation", "a.mp4")
    assert (code, out) == (2, "") and "pip install imageio av" in err


def test_names_of_files_that_are_not_in_utf_8(capsys: pytest.CaptureFixture[str]) -> None:
    photo = os.fsdecode(b"caf\xe9.png")
    shutil.copy("photo.png", photo)
    line = ["style", "a lemon", "-i", photo, "-p", "demo", "--steps", "1", "--crops", "1"]
    assert clipag(capsys, *line, "-o", "run", "-q")[0] == 0
    assert read_recipe("run/image.png")["options"]["image"] == photo
    assert json.loads(Path("run/recipe.json").read_text())["options"]["image"] == photo


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: clipdraw([]), "no prompt"),
        (lambda: clipdraw("a", stroke=3), "did you mean 'strokes'"),
        (lambda: clipdraw("a", model=nn.Linear(1, 1)), "CLIP"),
        (lambda: vqgan_clip("a", size="4x4"), "between 8"),
        (lambda: clipstyler("a", torch.rand(3, 8, 8), mode="fast"), "network"),
    ],
)
def test_bad_calls_say_what_to_do(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_a_seed_that_is_not_given_is_random_and_written_down(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ["clipdraw", "a lemon", *TINY["clipdraw"], "-o"]
    assert [clipag(capsys, *line, each, "-q")[0] for each in ("a.png", "b.png")] == [0, 0]
    seeds = [read_recipe(each)["seed"] for each in ("a.png", "b.png")]
    assert seeds[0] != seeds[1]
    assert clipag(capsys, *line, "c.png", "-s", str(seeds[0]))[0] == 0
    assert Path("a.png").read_bytes() == Path("c.png").read_bytes() != Path("b.png").read_bytes()


@pytest.mark.parametrize("name", ["generate", "clipdraw"])
def test_nothing_that_is_not_ours_is_replaced(
    name: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    line = [name, "a lemon", *TINY[name]]
    before = Path("photo.png").read_bytes()
    code, _, err = clipag(capsys, *line, "-o", "photo.png")
    assert code == 2 and "--overwrite" in err and Path("photo.png").read_bytes() == before
    assert clipag(capsys, *line, "-o", "photo.png", "--overwrite")[0] == 0
    caplog.clear()
    assert clipag(capsys, *line, "-o", "photo.png")[0] == 0  # a picture of ours now
    assert "photo.png is replaced" in caplog.text
    Path("film.webp").write_text("mine")
    assert clipag(capsys, *line, "-o", "d.png", "--animation", "film.webp")[0] == 2
    assert Path("film.webp").read_text() == "mine" and not Path("d.png").exists()
    assert [clipag(capsys, *line, "-o", "run")[0] for _ in range(2)] == [0, 0]  # a run folder
    Path("run/image.png").write_bytes(b"mine")
    assert clipag(capsys, *line, "-o", "run")[0] == 2


def test_names_outside_a_code_page_are_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    page = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", page)
    assert cli.main(["clipdraw", "a lemon", *TINY["clipdraw"], "-o", "柠檬.png", "-q"]) == 0
    page.flush()
    assert page.buffer.getvalue() == b"\\u67e0\\u6aac.png\n"  # type: ignore[attr-defined]


def test_a_failing_model_leaves_the_last_good_picture(
    tiny_clip: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(100))
    encode = tiny_clip.encode_image
    monkeypatch.setattr(
        tiny_clip, "encode_image", lambda x: encode(x) * (float("nan") if next(calls) > 1 else 1)
    )
    with pytest.raises(NotFiniteError, match="step 2") as caught:
        clipdraw("a fox", model=tiny_clip, **{**QUICK, "steps": 5})
    (work,) = caught.value.results
    assert work.recipe["stopped_after"] == 2 == len(work.losses) and work.image.isfinite().all()


def test_a_signal_ends_the_loop_and_not_the_process(request: pytest.FixtureRequest) -> None:
    was = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored where a shell has put us behind
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, was))
    before = signal.getsignal(signal.SIGTERM)
    with Stop() as stop:
        with pytest.raises(KeyboardInterrupt):  # nothing to keep yet
            os.kill(os.getpid(), signal.SIGINT)
        stop.asked = 0
        stop()
        for number in ENDING:
            os.kill(os.getpid(), number)
            assert stop.asked == number
        with pytest.raises(KeyboardInterrupt):
            stop()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.long
@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize("name", TINY)
def test_a_stopped_command_keeps_the_picture_so_far(name: str, number: int, folder: Path) -> None:
    endless = {"search": ["--budget", "100000", "--batch", "2"]}
    settings = endless.get(name, [*TINY[name], "--steps", "100000"])
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from clipag_plug.cli import main; "
    # Says when a step is done: then there is something to keep.
    script += "from clipag_plug.pipelines import run; old = run.Stop.__call__; "
    script += "run.Stop.__call__ = lambda s, step: (open('stepped', 'w').close(), old(s, step)); "
    script += f"sys.exit(main({[name, 'a lemon', *settings, '-o', 'out.png']!r}))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    for _ in range(1200):
        if Path("stepped").exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    assert read_recipe("out.png")["stopped_after"] > 0 and read_image("out.png").std() > 0
    assert sorted(path.name for path in folder.iterdir()) == ["out.png", "photo.png", "stepped"]


@pytest.mark.parametrize("several", [False, True])
def test_files(several: bool) -> None:
    options = ClipDraw(prompts=["a", "b"], output="x/fox.png", svg="fox.svg", variations=1)
    if not several:
        options = options.replace(prompts=["a"])
    named = output.files(options, ["m"], options.count())
    found = {kind: list(map(str, paths)) for kind, paths in named.items()}
    ends = ["-1", "-2"] if several else [""]
    assert found == {
        "picture": [f"x/fox{end}.png" for end in ends],
        "svg": [f"fox{end}.svg" for end in ends],
    }


def test_the_same_flags_mean_the_same_in_every_command() -> None:
    import dataclasses

    common = {"output", "overwrite", "animation", "frames", "model", "compare", "vanilla", "seed"}
    common |= {"prompts", "variations", "device", "json", "quiet"}
    fields = [{f.name: f for f in dataclasses.fields(COMMANDS[name].options)} for name in TINY]
    for name in common:
        first, *others = (each[name] for each in fields)
        assert all((o.default, o.metadata) == (first.default, first.metadata) for o in others), name
