"""Runs what the README tells people to type.

Every ```sh, ```console and ```python block counts. `make X` must be a target, `pip install` must
name this package and extras it has, everything else is executed. A comment before a block changes
that: `<!-- test: append ... -->` runs them with cheaper settings at the end, and of `<!-- test: tiny -->`
the arguments are checked here; test_docs.py runs them on small stand-ins.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.make import bundle
from clipag_plug import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(
    r"(?:^<!-- test: (?P<test>.*?) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Line:
    """A shell command, the output printed below it (console blocks), and how to test it."""

    command: str
    expected: str
    test: str


def blocks(kind: str) -> list[re.Match[str]]:
    return [match for match in FENCE.finditer(README) if match["kind"] == kind]


def shell_lines() -> list[Line]:
    """Commands of sh blocks, and those after `$` in console blocks with the output that follows."""
    lines = []
    for block in blocks("sh"):
        text = block["text"].replace("\\\n", " ")
        for command in text.splitlines():
            if command.strip() and not command.startswith("#"):
                lines.append(Line(command, "", block["test"] or ""))
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block["text"], flags=re.MULTILINE)[1:]:
            command, _, expected = part.partition("\n")
            lines.append(Line(command, expected, block["test"] or ""))
    return lines


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in words[1:]:
        assert "=" in target or re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target


def check_install(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    target = words[-1]
    name, _, extras = target.rstrip("]").partition("[")
    assert name in (".", project["name"]), f"{target!r} is not this package"
    assert set(filter(None, extras.split(","))) <= set(project["optional-dependencies"])


def check_arguments(words: list[str]) -> None:
    """`clipag X ...`, `python -m clipag_plug.X ...` or torchrun with it: known command, known flags, valid values."""
    if words[0] == "torchrun":
        words = ["python", *words[words.index("-m") :]]
    if words[0] == "python":
        if words[1] == "benchmarks/make/bundle.py":
            bundle.make_parser().parse_args(words[2:])
            return
        assert words[1] == "-m" and words[2].startswith("clipag_plug")
        words = ["clipag", *words[2].split(".")[1:], *words[3:]]
    assert words[0] == "clipag", words
    try:
        cli.parse(words[1:])
    except SystemExit as end:
        assert end.code == 0


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `clipag` and `python` that are this checkout and this interpreter."""
    folder = tmp_path_factory.mktemp("bin")
    for name, command in (("clipag", "-m clipag_plug "), ("python", "")):
        (folder / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {command}"$@"\n')
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.skipif(os.name == "nt", reason="the commands are for a POSIX shell")
@pytest.mark.parametrize("line", shell_lines(), ids=lambda line: line.command)
def test_commands(line: Line, programs: Path, tmp_path: Path) -> None:
    words = shlex.split(line.command, comments=True)
    if words[0] == "make":
        return check_make(words)
    if words[:2] == ["pip", "install"]:
        return check_install(words)
    if line.test.startswith("tiny"):
        return check_arguments(words)
    command = f"{line.command} {line.test.removeprefix('append')}"
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "100",
    }
    done = subprocess.run(
        command,
        shell=True,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if line.expected:
        assert line.expected.strip() in done.stdout + done.stderr
    else:
        assert done.returncode == 0, done.stderr
        for output in re.findall(r" -o (\S+)", line.command):
            assert (tmp_path / output).exists(), f"{line.command} wrote no {output}"


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: f"at {block.start()}")
def test_snippets(block: re.Match[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    number = README.count("\n", 0, block.start("text"))
    code = compile("\n" * number + block["text"], str(ROOT / "README.md"), "exec")
    exec(code, {"__name__": "__main__"})


def test_every_block_says_what_it_is() -> None:
    kinds = {match["kind"] for match in FENCE.finditer(README)}
    assert kinds <= {"sh", "console", "python", "text", "bibtex"}
    assert blocks("sh") and blocks("python")


def test_links_point_at_files_that_exist() -> None:
    for target in re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", README):
        assert (ROOT / target).exists(), target
