"""Shell completion, tried in the shells themselves where they are installed."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest

from clipag_plug import cli, completion
from clipag_plug.options.base import flag

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The scripts, as the command prints them."""
    folder = tmp_path_factory.mktemp("completion")
    found = {}
    for shell in completion.SCRIPTS:
        done = subprocess.run(
            [sys.executable, "-m", "clipag_plug", "completion", shell],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        found[shell] = folder / f"clipag.{shell}"
        found[shell].write_text(done.stdout)
    return found


def offered(script: Path, *words: str) -> set[str]:
    """What bash offers for the last of the words."""
    typed = " ".join(f"'{word}'" for word in ("clipag", *words))
    program = (
        f"source {script}; COMP_WORDS=({typed}); COMP_CWORD={len(words)}; _clipag; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_offers_commands_flags_and_values(scripts: dict[str, Path]) -> None:
    script = scripts["bash"]
    assert offered(script, "") == {*cli.COMMANDS, "--help", "--version"}
    assert offered(script, "gen") == {"generate"}
    assert {"--steps", "--step-size"} & offered(script, "explain", "--step") == {
        "--steps",
        "--step-size",
    }
    assert offered(script, "generate", "--preset", "") == {
        *("fast", "paper", "notebook", "natural", "sharp", "soft")
    }
    assert offered(script, "generate", "-p", "pa") == {"paper"}
    assert "clipag-mini" in offered(script, "generate", "-m", "clipag-")
    assert "judge-mini" in offered(script, "doctor", "judge")
    assert offered(script, "completion", "") == {"bash", "zsh", "fish"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_sound(scripts: dict[str, Path], shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    done = subprocess.run([shell, "-n", str(scripts[shell])], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish")
@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("clipag gen", "generate"),
        ("clipag generate --pres", "--preset"),
        ("clipag generate --preset pa", "paper"),
        ("clipag completion z", "zsh"),
    ],
)
def test_fish_offers_them_too(scripts: dict[str, Path], typed: str, expected: str) -> None:
    program = f'source {scripts["fish"]}; complete -C "{typed}"'
    done = subprocess.run(["fish", "-c", program], capture_output=True, text=True, check=True)
    assert expected in [line.split("\t")[0] for line in done.stdout.splitlines()]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh")
def test_zsh_knows_the_function(scripts: dict[str, Path], tmp_path: Path) -> None:
    program = f"autoload -U compinit; compinit -u -d {tmp_path}/dump; source {scripts['zsh']}; print $_comps[clipag]"
    done = subprocess.run(["zsh", "-f", "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("_clipag\n", "")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_flag_is_in_every_script(scripts: dict[str, Path], name: str) -> None:
    texts = {shell: path.read_text() for shell, path in scripts.items()}
    for field in dataclasses.fields(cli.resolve(cli.COMMANDS[name].options)):
        if field.metadata.get("positional"):
            continue
        long = flag(field.name)
        line = next(line for line in texts["bash"].splitlines() if line.startswith(f"    {name}) "))
        assert f"{long} " in line.replace('"', " ")
        assert f"'{long}[" in texts["zsh"]
        fished = rf"__fish_seen_subcommand_from {name}' .*-l {re.escape(long[2:])}( |$)"
        assert re.search(fished, texts["fish"], re.MULTILINE), long


# The same thing has the same name, letter and kind everywhere.
SHARED = {
    "output": ("-o", {str}),
    "variations": ("-n", {int}),
    "seed": ("-s", {int}),
    "model": ("-m", {str}),
    "steps": (None, {int}),
    "device": (None, {str}),
    "json": (None, {bool}),
    "quiet": ("-q", {bool}),
}
LETTERS = {letter: name for name, (letter, _) in SHARED.items() if letter}
# A list of models goes by the model's letter, the bench's folder of records by the output's.
PLURAL = {"-m": {"model", "models"}, "-o": {"output", "records"}}


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_shared_flags_are_the_same_everywhere(name: str) -> None:
    options = cli.resolve(cli.COMMANDS[name].options)
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        short = field.metadata.get("short")
        if short in LETTERS:
            assert field.name in PLURAL.get(short, {LETTERS[short]}), f"{name} {short}"
        if field.name in SHARED and not field.metadata.get("positional"):
            letter, kinds = SHARED[field.name]
            assert short == letter, f"clipag {name} {flag(field.name)} has the letter {short}"
            found = set(typing.get_args(hints[field.name])) or {hints[field.name]}
            assert found - {type(None)} == kinds


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_has_an_example_and_explains_every_flag(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"example:\n  clipag {name}" in text
    for field in dataclasses.fields(cli.resolve(cli.COMMANDS[name].options)):
        assert field.metadata.get("help"), f"clipag {name}: {field.name} says nothing"
