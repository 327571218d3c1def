"""Python scripts that a script starts in their turn, which then run under `clipag run` too."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .patching import Patch

PYTHON = re.compile(r"python(3(\.\d+)?)?(\.exe)?")


def follow(patch: Patch) -> None:
    """Rewrites `[python, script.py, ...]` in subprocess; other programs, `-c` and `-m` are left alone."""
    original = subprocess.Popen.__init__

    @functools.wraps(original)
    def start(self: Any, args: Any, *arguments: Any, **keywords: Any) -> None:
        original(self, rewritten(patch, args) if patch.active else args, *arguments, **keywords)

    patch.replace(subprocess.Popen, "__init__", start)


def rewritten(patch: Patch, args: Any) -> Any:
    """The command line that runs the same script with this patch's model and device."""
    if not isinstance(args, list | tuple) or len(args) < 2:
        return args
    words = [os.fspath(word) for word in args]
    if not PYTHON.fullmatch(os.path.basename(str(words[0]))) or not str(words[1]).endswith(".py"):
        return args
    patch.say("children", f"{words[1]} runs under clipag too")
    own = [sys.executable, "-m", __package__.partition(".")[0], "run"]
    own += ["--model", patch.guide.model] if patch.guide.model else []
    own += ["--device", patch.device] if patch.device else []
    return [*own, *words[1:]]
