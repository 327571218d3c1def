"""Runs what the pages in docs/ tell people to type, and keeps what is generated current."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import re
import runpy
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
import weights_helpers
from adapters_helpers import SCRIPTS, process  # noqa: F401
from safetensors.torch import save_file
from starlette.testclient import TestClient
from test_pipelines_search import random_biggan
from test_readme import FENCE, ROOT, check_arguments, check_install, check_make
from torch.distributed.run import get_args_parser
from train_helpers import VIT, architecture, jpeg, write_shard

import clipag_plug
from clipag_plug import cli
from clipag_plug.bench import __main__ as bench
from clipag_plug.images import read_image, read_recipe, write_image
from clipag_plug.options.base import flag
from clipag_plug.weights import configs, layouts

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
PIPELINES = (
    *("clipdraw", "vqgan-clip", "clipstyler", "clipasso", "styleclip", "deep-daze"),
    *("open_clip", "transformers"),
)


def blocks(kind: str) -> list[Any]:
    """Every fenced block of a kind, with the page it stands on; of the README what test_readme.py leaves."""
    found = []
    for page in (*PAGES, ROOT / "README.md"):
        for match in FENCE.finditer(page.read_text(encoding="utf-8")):
            if match["kind"] == kind and (page in PAGES or "tiny" in (match["test"] or "")):
                line = page.read_text(encoding="utf-8").count("\n", 0, match.start("text")) + 1
                place = f"{page.relative_to(ROOT)}:{line}"
                test, _, long = (match["test"] or "").partition(", ")
                marks = [getattr(pytest.mark, long)] if long else []
                found.append(pytest.param(match["text"], test, id=place, marks=marks))
    return found


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize(("text", "test"), blocks("sh"))
def test_commands(
    text: str,
    test: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLIPAG_HOME", str(tmp_path / "home"))
    write_image("photo.png", torch.rand(3, 64, 80))
    Path("photo.jpg").write_bytes(jpeg(np.random.default_rng(0)))
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[0] == "make":
            check_make(words)
        elif words[:2] == ["pip", "install"]:
            check_install(words)
        elif test == "tiny":
            check_arguments(words)
            stand_ins(tmp_path, text)
            execute(tiny(words), monkeypatch, capsys)
        else:
            for part in line.split("&&"):
                ending = shlex.split(test.removeprefix("append"))
                execute([*shlex.split(part), *ending], monkeypatch, capsys)


def execute(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs `clipag ...` or `python docs/...`, in this process: torch is loaded once."""
    capsys.readouterr()
    monkeypatch.setattr(uvicorn.Server, "run", functools.partialmethod(answers, words))
    if words[:2] == ["python", "-m"]:
        assert words[2] == "clipag_plug.bench"
        assert bench.main(words[3:]) == 0, capsys.readouterr().err
    elif words[0] == "python":
        monkeypatch.setattr(sys, "argv", words[1:])
        runpy.run_path(str(ROOT / words[1]), run_name="__main__")
    else:
        assert words[0] == "clipag"
        assert cli.main(words[1:]) == 0, capsys.readouterr().err
    out, err = capsys.readouterr()
    assert "nothing was answered" not in err
    if "-o" in words:
        assert Path(words[words.index("-o") + 1]).exists(), f"{words} wrote nothing"
    if "--json" in words:
        json.loads(out)


def answers(server: Any, words: list[str], sockets: list[socket.socket]) -> None:
    """In the place of uvicorn's loop, which the tests of the page run: one request, at the last name allowed."""
    name = words[words.index("--allow") + 1] if "--allow" in words else "localhost"
    client = TestClient(server.config.app, base_url=f"http://{name}")
    assert sockets[0].getsockname()[1] > 0
    if words[1] == "demo":
        assert "<title>" in client.get("/").text
    else:
        with client.websocket_connect("/") as connection:
            connection.send_json({"type": "config", "prompt": "a goldfish"})
            assert connection.receive_json()["type"] == "ready"


SHARDS = (
    "shards/train-0",
    "shards/val",
    "photos/0",
    "pairs/0",
    "sbu/0",
    "cc3m/0",
    "cc12m/0",
    "imagenet/0",
    "classes/0",
)


def stand_ins(folder: Path, text: str) -> None:
    """What the text takes for granted: programs, weights, a generator; eight small photographs in every shape that
    docs/training.md names, with captions and classes; suites of one cheap task, and runs."""
    if (folder / "photographs").exists():
        return
    for name, source in PROGRAMS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(source)
    if "biggan:" in text:
        generator, place = random_biggan(1000), folder / "weights" / "biggan-deep-256"
        place.mkdir(parents=True)
        torch.save(generator.state_dict(), place / "pytorch_model.bin")
        (place / "config.json").write_text(generator.config.to_json_string())
    if "hf-hub:" in text or "export" in text:
        config = {"model_cfg": weights_helpers.config(), "preprocess_cfg": {}}
        state, theirs = weights_helpers.weights(), weights_helpers.config()
        as_open_clip = {"open_clip_config.json": config, "open_clip_model.safetensors": state}
        state = {k: v.contiguous() for k, v in layouts.to_transformers(state).items()}
        as_transformers = {"config.json": configs.to_transformers(theirs)}
        as_transformers |= {"model.safetensors": state}
        for name, files in (
            (FARE, as_open_clip),
            ("openai/clip-vit-base-patch32", as_transformers),
        ):
            place = folder / "hub" / name
            place.mkdir(parents=True)
            for file, value in files.items():
                if file.endswith(".json"):
                    (place / file).write_text(json.dumps(value))
                else:
                    save_file(value, place / file)
        if "exported" in text and "clipag export" not in text:
            shutil.copytree(place, "exported")
    rng = np.random.default_rng(0)
    samples = [
        {"jpg": jpeg(rng), "cls": str(i % 5).encode(), "txt": f"thing {i}".encode()}
        for i in range(8)
    ]
    for name in SHARDS:
        (folder / name).parent.mkdir(exist_ok=True)
        write_shard(folder / f"{name}.tar", samples)
    for name in ("photographs", "held-out", "emoji"):
        (folder / name).mkdir()
        for number, sample in enumerate(samples):
            (folder / name / f"{number}.jpg").write_bytes(sample["jpg"])
            if name != "emoji":
                (folder / name / f"{number}.txt").write_bytes(sample["txt"])
    rows = "".join(f"emoji/{i}.jpg,thing {i}\n" for i in range(8))
    (folder / "emoji.csv").write_text("path,name\n" + rows)
    (folder / "tiny.toml").write_text(
        'about = "one task"\nmodels = ["clip-mini"]\njudge = "judge-mini"\n[entries.zeroshot]\n'
        'task = "zeroshot"\noptions = { steps = 1, count = 4, batch = 4 }\n'
    )
    (folder / "shown.toml").write_text(
        'about = "one picture"\nmodels = ["clip-mini"]\njudge = "judge-mini"\n[entries.photo]\n'
        'task = "generator_free"\noptions = { count = 1, steps = 1, sets = false }\n'
    )
    first = ["--recipe", "clipag-vit-b-32", "--data", "photographs", "--keep-last", "9", "-o"]
    for run, data in (("runs/mine", "photographs"), ("runs/other", "shards/train-*.tar")):
        first[3] = data
        if run in text and f"-o {run}" not in text:
            assert cli.main(tiny(["clipag", "train", *first, run])[1:]) == 0
    for checkpoint in (folder / "runs/other").glob("checkpoint-*.pt"):
        checkpoint.rename(checkpoint.with_name("checkpoint-00001000.pt"))


ARGPARSE = "import argparse, clip\nparser = argparse.ArgumentParser()\n{}\nparser.parse_args()\nclip.load('ViT-B/32')\n"
PROGRAMS = {  # what the real programs take
    "predict.py": (SCRIPTS / "clipdraw.py").read_text(),
    "clipdraw.ipynb": json.dumps(
        {"cells": [{"cell_type": "code", "source": "import clip\nclip.load('RN50')"}]}
    ),
    "generate.py": ARGPARSE.format(
        "parser.add_argument('-p')\nparser.add_argument('-i', type=int)"
    ),
    "train_CLIPstyler.py": ARGPARSE.format(
        "for name in ('content_path', 'content_name', 'exp_name', 'text'): parser.add_argument('--' + name)"
    ),
    "painterly_rendering.py": ARGPARSE.format(
        "parser.add_argument('target')\nparser.add_argument('--num_paths', type=int)\n"
        "parser.add_argument('--clip_model_name', default='RN101')\nparser.add_argument('--output_dir', required=True)"
    ),
    "optimization/run_optimization.py": "import criteria\n"
    + ARGPARSE.format("parser.add_argument('--description')"),
    "criteria.py": "",
    "dream.py": "import clip\nclip.load('ViT-B/32')",
    "their_script.py": "import open_clip\nopen_clip.create_model('ViT-B-32', pretrained='openai')",
}
FARE = "chs20/FARE4-ViT-B-32-laion2B-s34B-b79K"
CHEAP = {  # what a command costs little with
    "clipdraw": "--steps 2 --strokes 8 --canvas 64",
    "vqgan": "--steps 2 --cuts 2 --size 64",
    "style": "--steps 2 --crops 2 --size 64",
    "search": "--budget 4",
    "bench": "--suite tiny.toml --records records --seeds 0",
    "paper": "--size tiny --records records",
    "blind": "--suite shown.toml --records records",
    "demo": "--port 0",
    "serve": "--port 0",
}


def tiny(words: list[str]) -> list[str]:
    """The command at a cost that a test can pay: bundled models or stand-ins for what would be fetched, few steps,
    a small tower from scratch; torchrun with one worker."""
    if words[0] == "torchrun":
        own = words[1 : words.index("-m") + 2]
        assert get_args_parser().parse_args(own).training_script == "clipag_plug.train"
        words = ["clipag", "train", *words[len(own) + 1 :]]
    if words[1] in ("run", "demo", "serve"):
        bundled = {"clipag": "clipag-mini", "fare4-b32-laion": "clip-mini"}
        words = [words[0], words[1], *(bundled.get(word, word) for word in words[2:])]
    if words[1] in ("export", "doctor"):
        models = (f"hf-hub:{FARE}" if word == "clipag" else word for word in words[2:])
        words = [*words[:2], *(word.replace("hf-hub:", "local-dir:hub/") for word in models)]
    if words[:2] != ["clipag", "train"]:
        command = words[1] if words[0] == "clipag" else words[3]
        return [*words, *CHEAP.get(command, "").split()]
    cheap = ["--samples", "8", "--batch-size", "4", "--accumulation", "1", "--attack-steps", "1"]
    cheap += [
        "--init",
        "",
        "--architecture",
        architecture(VIT),
        "--resolution",
        "32",
        "--grow",
        "1",
    ]
    cheap += ["--text-steps", "0", "--precision", "fp32", "--device", "cpu", "--decoders", "0"]
    names = [] if "tecoa" not in words else ["--class-names", "bundled"]
    return [*words, *cheap, *names]


@pytest.mark.parametrize(("text", "test"), blocks("python"))
def test_snippets(text: str, test: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if test == "tiny":
        stand_ins(tmp_path, text)
    exec(compile(text, "a page of docs/", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_block_says_what_it_is_and_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert {match["kind"] for match in FENCE.finditer(text)} <= {"sh", "console", "python", "text"}
    assert text.count("```") == 2 * len(FENCE.findall(text)), "a block that is not tested"
    for target in re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", text):
        assert (page.parent / target).exists(), target


def test_every_page_is_listed() -> None:
    text = (DOCS / "README.md").read_text(encoding="utf-8")
    for page in PAGES:
        if page.name != "README.md":
            assert f"({page.relative_to(DOCS).as_posix()})" in text, page
    assert {page.stem for page in (DOCS / "pipelines").glob("*.md")} == {
        *PIPELINES,
        "your-renderer",
    }


def test_flags_that_the_pages_mention_exist() -> None:
    known = {"--help", "--version", "--recipe", "--upgrade"}
    for command in cli.COMMANDS.values():
        fields = dataclasses.fields(command.options)
        known |= {flag(field.name) for field in fields} | {"--from"}
    for name in ("demo", "command-line", "training", "faq"):
        text = (DOCS / f"{name}.md").read_text(encoding="utf-8")
        for found in re.findall(r"`[^`\n]*?(--[a-z][a-z-]+)", text):
            assert found in known, f"{name}.md: {found}"


def test_the_table_of_checkpoints_is_current() -> None:
    make = runpy.run_path(str(DOCS / "make_checkpoints.py"))
    written = (DOCS / "checkpoints.md").read_text(encoding="utf-8")
    assert written == make["page"](), "run: python docs/make_checkpoints.py"


def test_the_page_of_the_bundled_models_is_what_their_cards_say() -> None:
    make = runpy.run_path(str(DOCS / "make_models.py"))
    written = (DOCS / "models.md").read_text(encoding="utf-8")
    assert written == make["page"](), "run: python docs/make_models.py"
    assert all((DOCS / f"models-{key}.webp").is_file() for key in make["RECIPES"])


def test_the_reference_holds_every_public_name() -> None:
    make = runpy.run_path(str(DOCS / "make_reference.py"))
    text = make["page"]()
    for name in clipag_plug.__all__:
        docstring = (getattr(clipag_plug, name).__doc__ or "").strip().splitlines()[0]
        assert f"### `{name}`" in text and docstring in text
    for name, command in cli.COMMANDS.items():
        section = text.partition(f"### `clipag {name}`")[2].partition("\n### ")[0]
        for field in dataclasses.fields(command.options):
            spelled = field.name if field.metadata.get("positional") else flag(field.name)
            assert f"| `{spelled}` |" in section, f"{name} {spelled}"


def install(line: str) -> None:
    """Runs a notebook's `%pip install ...` offline: what is installed already satisfies it."""
    command, *words = shlex.split(line.removeprefix("%"))
    assert command == "pip" and "{" not in line and "OWNER" not in line
    if importlib.util.find_spec("pip") is None:
        pytest.skip("no pip in this environment")
    words = [*words, "--no-index", "--disable-pip-version-check"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words], capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 0, done.stderr


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    book = json.loads((ROOT / "examples" / "colab.ipynb").read_text(encoding="utf-8"))
    assert book["nbformat"] == 4 and all(cell.get("outputs", []) == [] for cell in book["cells"])
    names: dict[str, Any] = {"__name__": "__main__"}
    names["install"] = lambda line: install(line.format(**names))
    ran = 0
    for cell in book["cells"]:
        if cell["cell_type"] != "code":
            continue
        lines = "".join(cell["source"]).splitlines()
        text = "\n".join(f"install({line!r})" if line[:1] == "%" else line for line in lines)
        text = re.sub(r"^steps = \d+", "steps = 2", text, flags=re.MULTILINE)  # a form field
        exec(compile(text, "colab.ipynb", "exec"), names)
        ran += 1
    assert ran >= 5 and names["pictures"]["clipag-mini"].steps == 2
    assert read_recipe(tmp_path / "picture.png")["prompt"] == names["prompt"]


def test_the_picture_of_the_readme_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "picture.png"
    words = ["a lemon", "a goldfish", "--steps", "1", "--cell", "64", "-o", str(target)]
    monkeypatch.setattr(sys, "argv", ["make_readme_picture.py", *words])
    runpy.run_path(str(ROOT / "benchmarks" / "make" / "readme_picture.py"), run_name="__main__")
    assert read_recipe(target)["models"] == {"vanilla": "clip-mini", "CLIPAG": "clipag-mini"}
    assert read_image(target).std() > 0.05
