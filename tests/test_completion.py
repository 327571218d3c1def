"""Shell completion in the shells themselves where they are installed, and what all commands share."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import typing
from pathlib import Path

import pytest

from clipag_plug import cli
from clipag_plug.options.base import flag
from clipag_plug.options.tools import SHELLS

COMMANDS = dict(cli.COMMANDS)


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The scripts, as the command prints them."""
    found = {}
    for shell in SHELLS:
        found[shell] = tmp_path_factory.mktemp("completion") / f"clipag.{shell}"
        with pytest.MonkeyPatch.context() as patch:
            printed: list[str] = []
            patch.setattr("builtins.print", printed.append)
            assert cli.main(["completion", shell]) == 0
        found[shell].write_text(printed[0])
    return found


def offered(script: Path, *words: str) -> set[str]:
    """What bash offers for the last of the words."""
    typed = " ".join(f"'{word}'" for word in ("clipag", *words))
    program = (
        f"source {script}; COMP_WORDS=({typed}); COMP_CWORD={len(words)}; "
        '_shtab_clipag; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_offers_commands_flags_and_values(scripts: dict[str, Path]) -> None:
    script = scripts["bash"]
    assert offered(script, "") >= {*COMMANDS}
    assert offered(script, "gen") == {"generate"}
    assert {"--steps", "--step-size"} <= offered(script, "explain", "--step")
    assert {"fast", "paper", "natural"} <= offered(script, "generate", "--preset", "")
    assert offered(script, "generate", "-p", "pa") == {"paper"}
    assert "clipag-mini" in offered(script, "generate", "-m", "clipag-")
    assert "judge-mini" in offered(script, "doctor", "judge")


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_sound_and_has_every_flag(scripts: dict[str, Path], shell: str) -> None:
    if shutil.which(shell) is not None:
        done = subprocess.run([shell, "-n", str(scripts[shell])], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    text = scripts[shell].read_text()
    for name, command in COMMANDS.items():
        for field in dataclasses.fields(command.options):
            if not field.metadata.get("positional"):
                assert flag(field.name)[2:] in text, f"{shell}: clipag {name} {field.name}"


@pytest.mark.skipif(shutil.which("fish") is None, reason="no fish")
def test_fish_offers_them_too(scripts: dict[str, Path]) -> None:
    program = f'source {scripts["fish"]}; complete -C "clipag generate --preset pa"'
    done = subprocess.run(["fish", "-c", program], capture_output=True, text=True, check=True)
    assert "paper" in done.stdout


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
PLURAL = {"-m": {"model", "models", "module"}, "-o": {"output", "records"}}


@pytest.mark.parametrize("name", COMMANDS)
def test_shared_flags_and_help_are_alike_everywhere(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = COMMANDS[name].options
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        short = field.metadata.get("short")
        if short in LETTERS:
            assert field.name in PLURAL.get(short, {LETTERS[short]}), f"{name} {short}"
        if field.name in SHARED and not field.metadata.get("positional"):
            letter, kinds = SHARED[field.name]
            letter = (
                None if (name, field.name) == ("run", "model") else letter
            )  # -m MODULE, as python's
            assert short == letter, f"clipag {name} {flag(field.name)} has the letter {short}"
            found = set(typing.get_args(hints[field.name])) or {hints[field.name]}
            assert found - {type(None)} == kinds
        assert field.metadata.get("help"), f"clipag {name}: {field.name} says nothing"
    shown = COMMANDS[name].shown.split()
    assert set(shown) <= {field.name for field in dataclasses.fields(options)}
    assert cli.main([name, "--help-all"]) == 0
    whole = capsys.readouterr().out
    assert cli.main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"example:\n  clipag {name}" in text
    assert not shown or (len(text) < len(whole) and "--help-all" in text)
    for field in dataclasses.fields(options):
        if not field.metadata.get("positional"):
            assert f"{flag(field.name)}" in whole
