"""`clipag completion`: what the shell offers, read off the commands and their option classes. Imports no torch."""

from __future__ import annotations

import sys
import typing
from collections.abc import Iterable
from dataclasses import dataclass, fields

from .options.base import flag
from .options.completion import Completion


@dataclass(frozen=True)
class Flag:
    """One flag: its spellings, what may follow, and what it says. values is empty where anything may follow."""

    names: tuple[str, ...]
    values: tuple[str, ...]
    help: str
    takes: bool  # a value


def run(options: Completion) -> int:
    """Prints the script."""
    sys.stdout.write(SCRIPTS[options.shell]())
    return 0


def commands() -> dict[str, str]:
    """Names and what they are for."""
    from .cli import COMMANDS

    return {name: command.help for name, command in COMMANDS.items()}


def flags(name: str) -> list[Flag]:
    """Every flag of a command, `--help` and `--recipe` among them."""
    from .cli import COMMANDS, resolve

    found = [
        Flag(("--help", "-h"), (), "say what it takes", False),
        Flag(("--recipe",), (), "read options from a file", True),
    ]
    options = resolve(COMMANDS[name].options)
    hints = typing.get_type_hints(options)
    for field in fields(options):
        meta = field.metadata
        if meta.get("positional"):
            continue
        long, short = flag(field.name), meta.get("short")
        switch = hints[field.name] is bool
        names = tuple(filter(None, (long, short, f"--no-{long[2:]}" if switch else "")))
        found.append(Flag(names, _values(field.name, meta), meta.get("help") or "", not switch))
    return found


def words(name: str) -> tuple[str, ...]:
    """What may stand without a flag, where that is a fixed set or the name of a model."""
    from .cli import COMMANDS, resolve

    found: tuple[str, ...] = ()
    for field in fields(resolve(COMMANDS[name].options)):
        if field.metadata.get("positional"):
            found += _values(field.name, field.metadata)
    return found


def _values(name: str, meta: typing.Any) -> tuple[str, ...]:
    if meta.get("choices"):
        return tuple(map(str, meta["choices"]))
    return _models() if name in ("model", "models", "ensemble", "judge", "against") else ()


def _models() -> tuple[str, ...]:
    from .weights.registry import checkpoints

    return tuple(record.key for record in checkpoints())


def bash() -> str:
    """A bash function: after a flag with known values those, after a dash the flags, else words and files."""
    cases, values = [], []
    for name in commands():
        listed = flags(name)
        offered = " ".join(spelling for each in listed for spelling in each.names)
        cases.append(f'    {name}) flags="{offered}"; words="{" ".join(words(name))}" ;;')
        for each in filter(lambda each: each.values, listed):
            patterns = "|".join(f"{name}:{spelling}" for spelling in each.names)
            values.append(f'    {patterns}) words="{" ".join(each.values)}"; flags= ;;')
    return _BASH.format(
        commands=" ".join(commands()), cases="\n".join(cases), values="\n".join(values)
    )


_BASH = """# bash completion for clipag; load it with: source <(clipag completion bash)
_clipag() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" command="${{COMP_WORDS[1]}}" flags= words=
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{commands} --help --version" -- "$word"))
    return
  fi
  case "$command" in
{cases}
  esac
  case "$command:${{COMP_WORDS[COMP_CWORD-1]}}" in
{values}
  esac
  case "$word" in
    -*) COMPREPLY=($(compgen -W "$flags" -- "$word")) ;;
    *) COMPREPLY=($(compgen -W "$words" -- "$word")) ;;
  esac
}}
complete -o bashdefault -o default -F _clipag clipag
"""


def zsh() -> str:
    """A zsh function on `_arguments`."""
    listed = "\n".join(f"    {_quoted(f'{name}:{help}')}" for name, help in commands().items())
    cases = []
    for name in commands():
        specs = [spec for each in flags(name) for spec in _zsh_specs(each)]
        offered = " ".join(words(name))
        specs.append(_quoted(f"*:word:({offered})" if offered else "*:file:_files"))
        body = " \\\n        ".join(specs)
        cases.append(f"    {name})\n      _arguments \\\n        {body} ;;")
    return _ZSH.format(commands=listed, cases="\n".join(cases))


_ZSH = """#compdef clipag
# zsh completion for clipag; load it with: source <(clipag completion zsh)
_clipag() {{
  local -a commands
  commands=(
{commands}
  )
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  local command=$words[2]
  shift words
  (( CURRENT-- ))
  case $command in
{cases}
  esac
}}
compdef _clipag clipag
"""


def _zsh_specs(each: Flag) -> Iterable[str]:
    help = each.help.replace("[", "(").replace("]", ")").replace(":", ",")
    for spelling in each.names:
        after = ""
        if each.takes:
            after = f":value:({' '.join(each.values)})" if each.values else ":value:_files"
        yield _quoted(f"{spelling}[{help}]{after}")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def fish() -> str:
    """Fish's `complete` lines."""
    lines = [
        "# fish completion for clipag; load it with: clipag completion fish | source",
        "complete -c clipag -n __fish_use_subcommand -l version",
    ]
    for name, help in commands().items():
        lines.append(f"complete -c clipag -n __fish_use_subcommand -f -a {name} -d {_fished(help)}")
        here = f"-n '__fish_seen_subcommand_from {name}'"
        if words(name):
            lines.append(f"complete -c clipag {here} -a {_fished(' '.join(words(name)))}")
        for each in flags(name):
            spelled = " ".join(
                f"-l {s[2:]}" if s.startswith("--") else f"-s {s[1:]}" for s in each.names
            )
            after = f" -x -a {_fished(' '.join(each.values))}" if each.values else ""
            after = after or (" -r" if each.takes else "")
            lines.append(f"complete -c clipag {here} {spelled}{after} -d {_fished(each.help)}")
    return "\n".join(lines) + "\n"


def _fished(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SCRIPTS = {"bash": bash, "zsh": zsh, "fish": fish}
