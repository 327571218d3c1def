"""The `clipag` command: one sub-command a job, its flags read off the job's option class.

Results go to stdout, chatter and errors to stderr. Exit codes: 0 for done, 2 for a request that
cannot be met (one sentence on stderr says why), 130 for Ctrl-C, 141 for a reader that went away.
Reading the help, or checking the flags, imports no torch.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from .options.base import Options, add_arguments, flag, from_arguments
from .version import __version__


@dataclass(frozen=True)
class Command:
    """A job: where its option class and its handler live (`module:name`), and what to say of it.

    A handler takes the options and returns an exit code, or None for success. `recipes` is a folder
    of the package whose recipe files can be named without their path and ending. `passes_on` is the
    option that takes everything behind the first positional argument, flags included, as it is.
    """

    options: str
    handler: str
    help: str
    example: str
    recipes: str = ""
    passes_on: str = ""


COMMANDS = {
    "generate": Command(
        "clipag_plug.options.generate:Generate",
        "clipag_plug.paint.command:run",
        "paint a picture from a sentence, with the gradients of CLIP alone",
        'clipag generate "a goldfish" -o goldfish.png',
    ),
    "explain": Command(
        "clipag_plug.options.explain:Explain",
        "clipag_plug.explanation.command:run",
        "show what a model sees in a picture",
        'clipag explain photo.jpg "a goldfish" -o maps.png',
    ),
    "train": Command(
        "clipag_plug.options.train:Train",
        "clipag_plug.train.command:run",
        "train an image encoder, adversarially or plainly",
        "clipag train --recipe clip-mini --data 'shards/train-*.tar' -o runs/clip-mini",
        recipes="train/recipes",
    ),
    "bench": Command(
        "clipag_plug.options.bench:Bench",
        "clipag_plug.bench.__main__:run",
        "measure robustness and perceptual alignment, and write a report",
        "clipag bench --suite quick",
    ),
    "search": Command(
        "clipag_plug.options.search:Search",
        "clipag_plug.search.command:run",
        "search a class-conditional generator for the picture that fits a sentence",
        'clipag search "a goldfish" -o goldfish.png',
    ),
    "demo": Command(
        "clipag_plug.options.demo:Demo",
        "clipag_plug.demo.command:run",
        "open a page to paint, draw and explain in, two models side by side",
        "clipag demo --port 8600",
    ),
    "run": Command(
        "clipag_plug.options.run:Run",
        "clipag_plug.adapters.command:run",
        "run somebody else's CLIP script or notebook, unmodified, on CLIPAG",
        "clipag run --model clipag-mini --device cpu generate.py -p 'a goldfish' -i 50",
        passes_on="arguments",
    ),
    "clipdraw": Command(
        "clipag_plug.options.clipdraw:ClipDraw",
        "clipag_plug.pipelines.drawing:run",
        "draw with strokes towards a sentence (CLIPDraw)",
        'clipag clipdraw "a goldfish" --preset demo --compare -o goldfish.png --svg goldfish.svg',
    ),
    "vqgan": Command(
        "clipag_plug.options.vqgan:Vqgan",
        "clipag_plug.pipelines.latents:run",
        "steer the codes of a VQGAN with sentences (VQGAN+CLIP)",
        'clipag vqgan "a lemon | a banana:-0.3" --preset demo --compare -o lemon.png',
    ),
    "style": Command(
        "clipag_plug.options.style:Style",
        "clipag_plug.pipelines.styling:run",
        "give a picture the style that a sentence describes (CLIPStyler)",
        'clipag style "a coral reef" --image photo.jpg --preset demo --compare -o styled.png',
    ),
    "models": Command(
        "clipag_plug.options.models:Models",
        "clipag_plug.weights.listing:run",
        "list the models that can be loaded by name",
        "clipag models",
    ),
    "export": Command(
        "clipag_plug.options.export:Export",
        "clipag_plug.weights.export:run",
        "write a model in another library's format",
        "clipag export clipag-mini exported --format bundled",
    ),
    "completion": Command(
        "clipag_plug.options.completion:Completion",
        "clipag_plug.completion:run",
        "print the script that lets a shell complete commands and flags",
        "clipag completion bash",
    ),
    "doctor": Command(
        "clipag_plug.options.doctor:Doctor",
        "clipag_plug.weights.doctor:run",
        "say what a weight file is and whether it is sound",
        "clipag doctor clipag-mini",
    ),
}


class UsageError(ValueError):
    """A command line that does not say anything sensible."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (default: `sys.argv`) and returns its exit code."""
    try:
        try:
            command, options = parse(sys.argv[1:] if argv is None else argv)
            code = _run(command, options)
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
    chosen = argv[0] if argv else ""
    if not chosen:
        raise UsageError(f"say what to do: {', '.join(COMMANDS)}; see `clipag --help`")
    if not chosen.startswith("-") and chosen not in COMMANDS:
        close = difflib.get_close_matches(chosen, COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"commands: {', '.join(COMMANDS)}"
        raise UsageError(f"there is no command {chosen!r}; {hint}")
    behind: list[str] = []
    if chosen in COMMANDS and COMMANDS[chosen].passes_on:
        argv, behind = _split(argv, resolve(COMMANDS[chosen].options))
    arguments, unknown = build_parser(chosen).parse_known_args(argv)
    if chosen not in COMMANDS:
        raise UsageError(f"say what to do: {', '.join(COMMANDS)}; see `clipag --help`")
    command = COMMANDS[chosen]
    if behind:
        setattr(arguments, command.passes_on, behind)
    if unknown:
        known = [flag(field.name) for field in fields(resolve(command.options))]
        close = difflib.get_close_matches(unknown[0].partition("=")[0], known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"see `clipag {chosen} --help`"
        raise UsageError(f"clipag {chosen} has no argument {unknown[0]!r}; {hint}")
    recipe = find_recipe(arguments.recipe_file, command.recipes) if arguments.recipe_file else None
    return command, from_arguments(resolve(command.options), arguments, recipe)


def build_parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """The parser with every command's name, and the flags of the `chosen` one alone: the option
    classes of the others need not be imported."""
    style: dict[str, Any] = {
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
    }
    parser = _Parser(
        prog="clipag",
        description="CLIP whose image gradients follow the text: paint with it, train it, measure it.",
        epilog=f"example:\n  {COMMANDS['generate'].example}\n\n`clipag COMMAND --help` explains one.",
        **style,
    )
    parser.add_argument("--version", action="version", version=f"clipag_plug {__version__}")
    jobs = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)
    for name, command in COMMANDS.items():
        job = jobs.add_parser(
            name,
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            epilog=f"example:\n  {command.example}",
            **style,
        )
        if name == chosen:
            job.add_argument(
                "--recipe",
                dest="recipe_file",
                metavar="FILE",
                help="read options from a .json or .toml file; flags beside it win",
            )
            options = resolve(command.options)
            add_arguments(job, options)
            job.usage = " ".join(["clipag", name, "[options]", *_positionals(options)])
    return parser


def _split(argv: list[str], options: type[Options]) -> tuple[list[str], list[str]]:
    """The command line up to its first positional argument, and what lies behind it."""
    switches = {"-h", "--help"}
    for field in fields(options):
        if isinstance(field.default, bool):
            switches |= {flag(field.name), "--no-" + flag(field.name)[2:], field.metadata["short"]}
    place = 1
    while place < len(argv) and argv[place].startswith("-") and argv[place] != "--":
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


def resolve(path: str) -> Any:
    """The object behind `module:name`."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _positionals(options: type[Options]) -> list[str]:
    positional = [field for field in fields(options) if field.metadata.get("positional")]
    return [field.metadata.get("metavar") or field.name for field in positional]


def _run(command: Command, options: Options) -> int:
    import logging

    logging.basicConfig(format="clipag: %(message)s", stream=sys.stderr)
    quiet = getattr(options, "quiet", False)
    logging.getLogger("clipag_plug").setLevel(logging.WARNING if quiet else logging.INFO)
    return resolve(command.handler)(options) or 0


def _fail(text: str, code: int) -> int:
    print(f"clipag: {text}", file=sys.stderr)
    return code


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{os.fspath(error.filename)!r}: {error.strerror}"
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())
