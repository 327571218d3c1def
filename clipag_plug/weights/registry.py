"""The models that can be loaded by name, and what a name means. Imports no torch."""

from __future__ import annotations

import difflib
import fnmatch
import functools
import json
import os
import re
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
# What a model's images go through; each field of `Checkpoint` is also a key of cards and caches.
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


class BadFileError(ValueError):
    """A weight file that is damaged, hostile, or of a kind that is not read here."""

    def __init__(self, path: Any, reason: str) -> None:
        self.path, self.reason = os.fspath(path), reason
        super().__init__(f"refused {self.path!r}: {reason}")


class UnknownActivationError(ValueError):
    """Nothing says whether a file needs GELU or QuickGELU, or two sources say different things."""


class FetchError(RuntimeError):
    """A download that did not end with the right file; nothing was put in its place."""


@dataclass(frozen=True)
class Checkpoint:
    """What is known of one model before its file is opened; None stands for "not known".

    Args:
        arch: name of an open_clip config, or "mini" for the bundled models.
        quick_gelu: None if the file's own config decides.
        sources: tried in order; URLs or `hf-hub:org/name`.
        size, sha256: of the file behind a URL.
        eps: radius of the training attack, in [0, 1] pixel units.
        base: the model it was fine-tuned from.
        text_from: whose text tower belongs to a file with an image tower only.
        results: published accuracies in percent.
    """

    key: str
    arch: str | None = None
    quick_gelu: bool | None = None
    sources: tuple[str, ...] = ()
    size: int | None = None
    sha256: str | None = None
    licence: str | None = None
    method: str = "vanilla"
    norm: str | None = None
    eps: float | None = None
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    resolution: int | None = 224
    base: str | None = None
    text_from: str | None = None
    data: str | None = None
    paper: str | None = None
    note: str | None = None
    bundled: bool = False
    aliases: tuple[str, ...] = ()
    results: dict[str, float] = field(default_factory=dict)
    results_note: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Its key, then its aliases."""
        return self.key, *self.aliases

    @property
    def pixels(self) -> dict[str, Any]:
        """What its images go through, by the names of `PREPROCESSING`."""
        return {name: getattr(self, name) for name in PREPROCESSING}


@functools.cache
def _table() -> dict[str, Checkpoint]:
    text = resources.files(__package__).joinpath("registry.json").read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = [
        {name: tuple(v) if isinstance(v, list) else v for name, v in row.items()}
        for row in json.loads(text)
    ]
    return {row["key"]: Checkpoint(**row) for row in rows}


def checkpoints() -> list[Checkpoint]:
    """Every registered model, the bundled ones first."""
    return list(_table().values())


def bundled(record: Checkpoint) -> Path:
    """The weights of a model that comes with the package."""
    return Path(str(resources.files("clipag_plug.bundled"))) / f"{record.key}.safetensors"


def get(name: str) -> Checkpoint | None:
    """The record with this key or alias (case does not matter), or None."""
    wanted = name.casefold()
    return next((r for r in checkpoints() if wanted in map(str.casefold, r.names)), None)


def find(name: str) -> Checkpoint:
    """The record with this key or alias. Raises ValueError that names the closest keys."""
    record = get(name)
    if record is None:
        raise ValueError(f"no model is called {name!r}; {suggest(name)}")
    return record


def match(pattern: str) -> list[Checkpoint]:
    """Records whose key or alias fits a shell pattern, or contains a plain word. Raises ValueError for none."""
    wanted = pattern.casefold()
    if not any(mark in wanted for mark in "*?["):
        wanted = f"*{wanted}*"
    found = [r for r in checkpoints() if fnmatch.filter(map(str.casefold, r.names), wanted)]
    if not found:
        raise ValueError(f"no model fits {pattern!r}; {suggest(pattern)}")
    return found


def suggest(name: str) -> str:
    """A sentence that offers the closest keys, for error messages."""
    folded = {record.key.casefold(): record.key for record in checkpoints()}
    close = difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(folded[key]) for key in close) + "?"
    return "`clipag models` lists the names; a file is given by its path, a repository as 'hf-hub:org/name'"


def training(record: Checkpoint) -> str:
    """`fare linf 4/255`, `clipag l2 1.5` or `vanilla`."""
    return " ".join(filter(None, (record.method, ball(record.norm, record.eps))))


def ball(norm: str | None, eps: float | None) -> str:
    """A perturbation ball in words: Linf radii in the customary 255ths."""
    if norm is None or eps is None:
        return norm or ""
    if norm == "linf" and abs(eps * 255 - round(eps * 255)) < 1e-6:
        return f"{norm} {round(eps * 255)}/255"
    return f"{norm} {eps:g}"


@dataclass(frozen=True)
class Name:
    """A parsed model name; the last three are what it states about the file, else None."""

    kind: Literal["key", "hf-hub", "local-dir", "file"]
    value: str
    quick_gelu: bool | None = None
    arch: str | None = None
    text_from: str | None = None


def parse(name: str | os.PathLike[str]) -> Name:
    """Reads a name such as `clipag`, `hf-hub:org/model` or `weights.pt#quickgelu,arch=ViT-B-32,text=clip-mini`.

    Raises: ValueError for a bare `org/name`, an unknown key or a malformed statement, FileNotFoundError for a path
        that is not there.
    """
    text = os.fspath(name)
    # A '#' may belong to a file's own name: the longest beginning that exists is the file.
    ends = [mark.start() for mark in re.finditer("#|$", text)]
    there = [end for end in ends if os.path.exists(text[:end].removeprefix("local-dir:"))]
    end = there[-1] if there else ends[0]
    return Name(*_source(text[:end]), **_statement(text, text[end + 1 :]))


def _source(text: str) -> tuple[Any, str]:
    kind, _, value = text.partition(":")
    if kind == "hf-hub":
        if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", value):
            raise ValueError(
                f"{text!r} is no repository; write 'hf-hub:org/name' or 'hf-hub:org/name@revision'"
            )
        return kind, value
    if kind == "local-dir":
        if not Path(value).is_dir():
            raise FileNotFoundError(f"the folder {value!r} of {text!r} does not exist")
        return kind, value
    if get(text):
        return "key", find(text).key
    if os.path.isfile(text):
        return "file", text
    why = f"no model is called {text!r}; {suggest(text)}"
    if os.path.isdir(text):
        why = f"{text!r} is a folder; write 'local-dir:{text}'"
    elif not text:
        why = "the model name is empty; `clipag models` lists the names"
    elif re.fullmatch(r"https?://.+", text):
        why = f"{text!r} is an address; download the file and give its path, or 'hf-hub:org/name' for a repository"
    elif re.search(r"\.(pt|pth|bin|ckpt|tar|safetensors)$", text, re.IGNORECASE):
        raise FileNotFoundError(f"the weight file {text!r} does not exist")
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        why = f"{text!r} could be a repository or a folder: write 'hf-hub:{text}' or 'local-dir:{text}' "
        why += f"({suggest(text)})"
    raise ValueError(why)


def _statement(name: str, statement: str) -> dict[str, Any]:
    stated: dict[str, Any] = {}
    # A comma may belong to a path: only one before another statement separates.
    for part in re.split(r",(?=\s*(?:\w*gelu\b|arch=|text=))", statement):
        word, _, value = part.strip().partition("=")
        if word.lower() in ("gelu", "quickgelu") and not value:
            stated["quick_gelu"] = word.lower() == "quickgelu"
        elif word in ("arch", "text") and value:
            stated["arch" if word == "arch" else "text_from"] = value
        elif word or value:
            raise ValueError(
                f"{name!r} states {part!r}; after '#' come gelu or quickgelu, arch=NAME or arch=FILE.json, and "
                "text=NAME, joined by commas"
            )
    return stated
