"""Options of the commands whose result is no picture and no measurement: models, other programs, the servers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .base import DEVICE, Options, option

FORMATS = ("open_clip", "openai", "transformers", "bundled")
SHELLS = ("bash", "zsh", "fish")


@dataclass
class Models(Options):
    """Which registered models to list, and how."""

    pattern: str = option(
        "", "only names that fit: a part of them, or a pattern such as 'fare*b32*'", positional=True
    )
    json: bool = option(False, "print every known field as JSON instead of a table")


@dataclass
class Words(Options):
    """What a model makes of words: whether it was taught them, and which known things it takes them for."""

    texts: list[str] = option(help="words or sentences", positional=True, metavar="TEXT")
    model: str = option("clipag-mini", "key or file of the model", short="-m")
    count: int = option(5, "nearest known things to show", low=1)
    json: bool = option(False, "print JSON instead of a table")


@dataclass
class Doctor(Options):
    """Checks of a model: its files, its hash, its activation, and what surrounds it."""

    model: str = option(
        "", "any name that load() takes; empty checks the installation alone", positional=True
    )
    forget: bool = option(
        False, "delete the cached weights and the recorded hash: the next load starts anew"
    )
    json: bool = option(False, "print the findings as JSON")


@dataclass
class Export(Options):
    """A model, written as files that another library loads."""

    model: str = option(help="any name that load() takes", positional=True)
    folder: str = option(help="folder to write to; it may exist", positional=True)
    format: str = option("open_clip", "whose layout to write", choices=FORMATS, short="-f")
    any_activation: bool = option(
        False,
        "write OpenAI's layout for a GELU model too, though OpenAI's code would compute QuickGELU",
    )
    push: str = option(
        "", "also upload the folder to this Hugging Face repository, org/name", metavar="ORG/NAME"
    )
    private: bool = option(False, "make that repository private")


@dataclass
class Run(Options):
    """Runs somebody else's script or notebook, unmodified, with this package's models in the place of CLIP."""

    script: str = option("", "Python script or notebook", positional=True, metavar="SCRIPT")
    arguments: list[str] = option(
        [],
        "arguments of the script; everything behind its name is the script's",
        positional=True,
        metavar="ARG",
    )
    module: str = option(
        "",
        "module to run in place of a script, as by `python -m`; its arguments follow",
        short="-m",
    )
    model: str = option(
        "",
        "key or file given for every model the script asks for; default: the robust counterpart of each",
    )
    adapter: str = option("auto", "adapter of the pipeline; auto tells it by the script's imports")
    device: str = option("", "cpu sends hard-coded CUDA to the CPU", choices=("", "cpu"))
    cells: str = option("", "cells of a notebook to run, counted from 0, as 2-4,6; default: all")
    quiet: bool = option(False, "do not log what was answered and shimmed", short="-q")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.script or self.module):
            raise ValueError("Run needs a value for script, or -m MODULE")
        self.chosen_cells()

    def chosen_cells(self) -> set[int] | None:
        """Numbers in `cells`, None for all. Raises ValueError for what is no list of numbers and ranges."""
        if not self.cells:
            return None
        chosen: set[int] = set()
        for part in self.cells.split(","):
            match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
            if match is None:
                raise ValueError(
                    f"--cells is {self.cells!r}; it must be numbers and ranges, as 2-4,6"
                )
            chosen |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
        return chosen


@dataclass
class Demo(Options):
    """A page in the browser: paint, restyle, draw and explain, two models side by side."""

    output: str = option(
        "runs", "folder of the gallery; it is made where it is missing", short="-o"
    )
    models: list[str] = option(
        [],
        "further models to offer, by key or file, besides the bundled and the downloaded ones",
        short="-m",
    )
    host: str = option(
        "127.0.0.1", "address to listen on; 0.0.0.0 lets the whole network use this machine"
    )
    port: int = option(8600, "port to listen on; 0 takes a free one", low=0, high=65535)
    allow: list[str] = option(
        [], "further names in the address bar to answer to, as those of a proxy", metavar="NAME"
    )
    upload_limit: float = option(20.0, "largest upload in MiB", low=0.01, high=1024)
    pixel_limit: float = option(40.0, "largest upload in megapixels", low=0.01, high=1000)
    queue: int = option(20, "jobs that may wait", low=1)
    device: str = option("", DEVICE)
    quiet: bool = option(False, "no remarks on stderr", short="-q")


@dataclass
class Serve(Options):
    """A loss server for programs in any language: pictures in, loss and gradient out, over a WebSocket."""

    model: str = option("clipag", "model for clients that name none of the registry", short="-m")
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 lets the whole network use it")
    port: int = option(8765, "port to listen on", low=0, high=65535)
    allow: list[str] = option(
        [], "web pages besides those of this machine that may connect", metavar="ORIGIN"
    )
    clients: int = option(32, "connections at a time", low=1)
    pixel_limit: float = option(4.0, "largest picture in megapixels", low=0.01, high=64)
    device: str = option("", DEVICE)
    quiet: bool = option(False, "no remarks on stderr", short="-q")


@dataclass
class Completion(Options):
    """A script that lets the shell complete commands, flags and their values."""

    shell: str = option("bash", "for which shell", positional=True, choices=SHELLS)
