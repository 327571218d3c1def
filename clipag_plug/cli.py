"""The `clipag` command: one sub-command a job, its flags read off the job's option class.

Results go to stdout, chatter and errors to stderr. Exit codes: 0 for done, 2 for a request that
cannot be met (one sentence on stderr says why), 130 for Ctrl-C, 141 for a reader that went away.
Reading the help, or checking the flags, imports no torch.
"""

from __future__ import annotations

import argparse
import difflib
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

try:
    from .options import COMMANDS, GROUPS, Command, resolve
    from .options.base import Options, add_arguments, flag, from_arguments
    from .version import __version__
except KeyboardInterrupt:  # Ctrl-C before `main` is there to answer it
    sys.exit(130)


class UsageError(ValueError):
    """A command line that does not say anything sensible."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """One line a flag where it fits: `-o, --output OUTPUT`, and of a switch not `--no-...` beside it."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=24)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = sorted(action.option_strings, key=len)
        if not names:
            return super()._format_action_invocation(action)
        if isinstance(action, argparse.BooleanOptionalAction):
            names = [name for name in names if not name.startswith("--no-")]
        value = {0: "", "+": f" {action.metavar} ..."}.get(action.nargs, f" {action.metavar}")
        return ", ".join(names) + value


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (default: `sys.argv`) and returns its exit code."""
    # Closed, as by >&-: what is said goes nowhere, and the rest goes on.
    sys.stdout, sys.stderr = (
        stream or open(os.devnull, "w")  # noqa: SIM115
        for stream in (sys.stdout, sys.stderr)
    )
    for stream in (sys.stdout, sys.stderr):  # a code page lacks letters that file names have
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            command, options = parse(sys.argv[1:] if argv is None else argv)
            _check_device(getattr(options, "device", ""))
            _log_to_stderr(quiet=getattr(options, "quiet", False))
            code = resolve(command.handler)(options) or 0
        except SystemExit as end:  # argparse leaves this way after --help and --version
            code = int(end.code or 0)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as stop:
        return _fail(str(stop) or "interrupted", 130)
    except BrokenPipeError:
        # The interpreter flushes stdout once more on its way out: give it somewhere to write.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, ImportError, RuntimeError, FloatingPointError) as error:
        if os.environ.get("CLIPAG_TRACEBACK"):
            raise
        return _fail(f"error: {_sentence(error)}", 2)


def parse(argv: Sequence[str]) -> tuple[Command, Options]:
    """The command and its checked options. Raises ValueError for a command line that makes no
    sense, FileNotFoundError for a recipe that is not there, SystemExit(0) after `--help`."""
    argv = list(argv)
    if argv[:1] == ["help"]:  # `clipag help generate` is `clipag generate --help`
        argv = [*argv[1:2], "--help"]
    chosen = argv[0] if argv else ""
    if not chosen or chosen.startswith("-"):
        build_parser().parse_known_args(argv)  # ends here for --help and --version
        raise UsageError(f"say what to do: {', '.join(COMMANDS)}; see `clipag --help`")
    if chosen not in COMMANDS:
        close = difflib.get_close_matches(chosen, COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"commands: {', '.join(COMMANDS)}"
        raise UsageError(f"there is no command {chosen!r}; {hint}")
    command = COMMANDS[chosen]
    argv, behind = _split(argv, command.options) if command.passes_on else (argv, [])
    arguments, unknown = job_parser(chosen, "--help-all" in argv).parse_known_args(argv[1:])
    if behind:
        setattr(arguments, command.passes_on, behind)
    if unknown:
        known = [flag(field.name) for field in fields(command.options)]
        close = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"see `clipag {chosen} --help`"
        raise UsageError(f"clipag {chosen} has no argument {unknown[0]!r}; {hint}")
    recipe = find_recipe(arguments.recipe_file, command.recipes) if arguments.recipe_file else None
    return command, from_arguments(command.options, arguments, recipe)


def build_parser() -> argparse.ArgumentParser:
    """The parser of `clipag` itself, whose help lists the commands by group."""
    lines = []
    for group in GROUPS:
        names = [name for name in COMMANDS if COMMANDS[name].group == group]
        lines += [f"{group}:", *(f"  {name:<12}{COMMANDS[name].help}" for name in names), ""]
    lines += ["example:", f"  {COMMANDS['generate'].example}"]
    lines += ["", "`clipag help COMMAND` explains one."]
    parser = _Parser(
        prog="clipag",
        usage="clipag [--version] COMMAND ...",
        description="CLIP whose image gradients follow the text: paint with it, train it, measure it.",
        epilog="\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"clipag_plug {__version__}")
    return parser


def job_parser(name: str, whole: bool = False) -> argparse.ArgumentParser:
    """The parser of one command. Its help explains the main flags, or all of them where it is `whole`."""
    command = COMMANDS[name]
    positional = [f for f in fields(command.options) if f.metadata.get("positional")]
    words = [field.metadata.get("metavar") or field.name for field in positional]
    shown = "" if whole else command.shown
    rest = f"\n\n`clipag {name} --help-all` explains every flag." if shown else ""
    parser = _Parser(
        prog=f"clipag {name}",
        usage=" ".join(["clipag", name, "[options]", *words]),
        description=f"{command.help[0].upper()}{command.help[1:]}.",
        epilog=f"example:\n  {command.example}{rest}",
        formatter_class=_Formatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("-h", "--help", "--help-all", action="help", help=argparse.SUPPRESS)
    add_arguments(parser, command.options, shown).add_argument(
        "--recipe",
        dest="recipe_file",
        metavar="FILE",
        help="read options from a .json or .toml file; flags beside it win",
    )
    return parser


def complete(options: Any) -> None:
    """`clipag completion`: the script that lets a shell complete commands, flags and their values."""
    import shtab

    from .weights.registry import checkpoints

    models = [record.key for record in checkpoints()]
    parser = build_parser()
    commands = parser.add_subparsers()
    for name, command in COMMANDS.items():
        job = commands.add_parser(name, help=command.help)
        add_arguments(job, command.options)
        choices = {f.name: f.metadata.get("choices") for f in fields(command.options)}
        choices |= dict.fromkeys(("model", "models", "ensemble", "judge", "against"), models)
        for action in job._actions:  # offered, not demanded: this parser parses nothing
            action.choices = [str(c) for c in choices.get(action.dest) or ()] or None
    print(shtab.complete(parser, options.shell))


def _split(argv: list[str], options: type[Options]) -> tuple[list[str], list[str]]:
    """The command line up to its first positional argument, and what lies behind it."""
    switches = {"-h", "--help"}
    for field in fields(options):
        if isinstance(field.default, bool):
            switches |= {flag(field.name), "--no-" + flag(field.name)[2:], field.metadata["short"]}
    place = 1
    while place < len(argv) and argv[place].startswith("-") and argv[place] != "--":
        if argv[place] in ("-m", "--module"):  # what follows is the module's, as of `python`
            return argv[: place + 2], argv[place + 2 :]
        place += 1 if "=" in argv[place] or argv[place] in switches else 2
    if argv[place : place + 1] == ["--"]:
        argv = argv[:place] + argv[place + 1 :]
    return argv[: place + 1], argv[place + 1 :]


def find_recipe(name: str, folder: str) -> str:
    """The path of a recipe: a file as it is, else the one of this name in a folder of the package.

    Raises FileNotFoundError, naming the recipes that come with the package.
    """
    if os.path.exists(name):
        return name
    shipped = {path.stem: path for path in sorted((Path(__file__).parent / folder).glob("*.toml"))}
    if folder and name in shipped:
        return str(shipped[name])
    known = f"; recipes in the package: {', '.join(shipped)}" if folder and shipped else ""
    raise FileNotFoundError(f"recipe {name!r} does not exist{known}")


def _log_to_stderr(quiet: bool) -> None:
    import logging

    logging.basicConfig(format="clipag: %(message)s", stream=sys.stderr)
    logging.getLogger("clipag_plug").setLevel(logging.WARNING if quiet else logging.INFO)


def _check_device(name: str) -> None:
    """Before any work. Raises: ValueError for a device that this machine does not have."""
    kind, _, number = (name or "cpu").partition(":")
    if kind == "cpu":
        return
    import torch

    mps = torch.backends.mps.is_available()
    if not (mps if kind == "mps" else torch.cuda.device_count() > int(number or 0)):
        raise ValueError(f"--device is {name!r}, which this machine does not have; leave it out")


def _fail(text: str, code: int) -> int:
    print(f"clipag: {text}", file=sys.stderr)
    return code


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{os.fspath(error.filename)!r}: {error.strerror}"
    else:
        text = str(error) or type(error).__name__
    text = text.partition("; available models = ")[
        0
    ]  # as `clip` says it; `clipag models` lists them
    return " ".join(text.split())
