"""The command line: exit codes, one-sentence errors, what goes to which stream."""

from __future__ import annotations

import dataclasses
import errno
import inspect
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from clipag_plug import cli
from clipag_plug.options import Command, resolve
from clipag_plug.options.base import Options, flag, option

ROOT = Path(__file__).parent.parent
SHIPPED = dict(cli.COMMANDS)


@dataclasses.dataclass
class Greet(Options):
    name: str = option(help="whom", positional=True)
    times: int = option(1, "how often", low=1)
    quiet: bool = option(False, "no chatter")


def greet(options: Greet) -> int | None:
    failures = {
        "value": ValueError("the name\n  is rude"),
        "file": FileNotFoundError("'x.png' is not there; type another name"),
        "os": PermissionError(errno.EACCES, "Permission denied", "out/x.png"),
        "import": ImportError("this needs webdataset: pip install 'clipag_plug[train]'"),
        "runtime": RuntimeError("not today"),
        "float": FloatingPointError("the loss is NaN at step 3"),
        "stop": KeyboardInterrupt(),
        "bug": KeyError("x"),
        "empty": ValueError(),
    }
    if options.name in failures:
        raise failures[options.name]
    print("hello " * options.times + options.name)
    return 7 if options.name == "seven" else None


@pytest.fixture(autouse=True)
def commands(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {
        "greet": Command(
            f"{__name__}:Greet", f"{__name__}:greet", "paint", "say hello", "clipag greet you"
        )
    }
    table["generate"] = cli.COMMANDS["generate"]
    monkeypatch.setattr(cli, "COMMANDS", table)


def test_results_go_to_stdout_and_nothing_else_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["greet", "you", "--times", "2"]) == 0
    assert capsys.readouterr() == ("hello hello you\n", "")


def test_a_handler_decides_its_exit_code() -> None:
    assert cli.main(["greet", "seven"]) == 7


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("value", "clipag: error: the name is rude"),
        ("file", "clipag: error: 'x.png' is not there; type another name"),
        ("os", "clipag: error: 'out/x.png': Permission denied"),
        ("import", "clipag: error: this needs webdataset: pip install 'clipag_plug[train]'"),
        ("runtime", "clipag: error: not today"),
        ("float", "clipag: error: the loss is NaN at step 3"),
        ("empty", "clipag: error: ValueError"),
    ],
)
def test_a_request_that_cannot_be_met_is_one_sentence(
    name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["greet", name]) == 2
    assert capsys.readouterr() == ("", message + "\n")


def test_ctrl_c_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["greet", "stop"]) == 130
    assert capsys.readouterr().err == "clipag: interrupted\n"


def test_a_bug_is_not_dressed_up() -> None:
    with pytest.raises(KeyError):
        cli.main(["greet", "bug"])


def test_a_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPAG_TRACEBACK", "1")
    with pytest.raises(RuntimeError):
        cli.main(["greet", "runtime"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["say what to do", "greet", "clipag --help"]),
        (["gret", "you"], ["there is no command 'gret'", "did you mean 'greet'"]),
        (["zzz"], ["there is no command 'zzz'", "greet"]),
        (["--loud"], ["say what to do", "clipag --help"]),
        (["greet", "you", "--loud"], ["no argument '--loud'", "clipag greet --help"]),
        (["greet", "you", "me"], ["no argument 'me'"]),
        (["greet", "you", "--tmies=3"], ["did you mean --times?"]),
        (["greet", "you", "--times", "often"], ["--times", "often", "clipag greet --help"]),
        (["greet", "you", "--times", "0"], ["--times", "at least 1"]),
        (["greet", "you", "--time", "3"], ["--time", "did you mean --times?"]),
        (["greet"], ["Greet needs a value for name"]),
        (["greet", "--recipe", "absent.json"], ["absent.json", "does not exist"]),
    ],
)
def test_a_bad_command_line_is_one_sentence(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("clipag: error: ") and err.count("\n") == 1
    for word in words:
        assert word in err


def test_a_recipe_fills_in_what_the_flags_leave_out(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('name = "you"\ntimes = 3\n')
    assert cli.parse(["greet", "--recipe", str(path)])[1] == Greet("you", 3)
    assert cli.parse(["greet", "me", "--recipe", str(path)])[1] == Greet("me", 3)
    path.write_text('name = "you"\ntmes = 3\n')
    assert cli.main(["greet", "--recipe", str(path)]) == 2


def test_help_shows_the_example_and_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["greet", "--help"]) == 0
    text = capsys.readouterr().out
    for word in (
        "usage: clipag greet [options] name",
        "clipag greet you",
        "--times",
        "--recipe",
        "Say hello.",
    ):
        assert word in text
    assert cli.main(["--help"]) == 0
    assert "say hello" in capsys.readouterr().out


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    import clipag_plug

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"clipag_plug {clipag_plug.__version__}\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = (
        "import os, sys\nfrom clipag_plug.cli import main\nsys.stdout = os.fdopen(3, 'w')\nos.read(0, 1)\n"
        "code = main(['--help'])\nsys.exit(code)"
    )
    reader, writer = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-c", f"import os; os.dup2({writer}, 3)\n{code}"],
        pass_fds=(writer,),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    os.close(writer)
    os.close(reader)
    _, err = child.communicate("x")
    assert (child.returncode, err) == (141, "")


def test_closed_streams_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)  # as Python has it after >&-
    assert cli.main(["greet", "you"]) == 0 and cli.main(["no-such-command"]) == 2


def test_python_m_is_the_same_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "clipag_plug", "gnerate"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "clipag: error: there is no command 'gnerate'; did you mean 'generate'?\n"


@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_registered_exists(name: str) -> None:
    command = SHIPPED[name]
    assert issubclass(command.options, Options)
    inspect.signature(resolve(command.handler)).bind("the options")


@pytest.mark.parametrize("name", SHIPPED)
def test_the_help_fits_a_screen_and_the_rest_is_a_flag_away(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "COMMANDS", SHIPPED)
    monkeypatch.setenv("COLUMNS", "80")
    texts = []
    for line in ([name, "--help"], ["help", name], [name, "--help-all"]):
        assert cli.main(line) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and texts[0].count("\n") <= 40
    fields = dataclasses.fields(SHIPPED[name].options)
    flags = [flag(field.name) for field in fields if not field.metadata["positional"]]
    assert all(each in texts[2] for each in flags)


@pytest.mark.parametrize("name", SHIPPED)
def test_the_example_in_the_help_is_a_valid_command_line(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "COMMANDS", SHIPPED)
    program, *arguments = shlex.split(SHIPPED[name].example)
    assert program == "clipag" and arguments[0] == name
    command, options = cli.parse(arguments)
    assert command is SHIPPED[name] and isinstance(options, command.options)


def test_shipped_recipes_are_found_by_name() -> None:
    with pytest.raises(FileNotFoundError, match="'absent' does not exist"):
        cli.find_recipe("absent", "train/recipes")
    with pytest.raises(FileNotFoundError, match="'absent' does not exist$"):
        cli.find_recipe("absent", "")
    for path in (ROOT / "clipag_plug" / "train" / "recipes").glob("*.toml"):
        assert cli.find_recipe(path.stem, "train/recipes") == str(path)
        assert SHIPPED["train"].recipes == "train/recipes"
