"""What a model name means: a key, `hf-hub:org/name`, `local-dir:path` or the path of a file."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from . import registry

Kind = Literal["key", "hf-hub", "local-dir", "file"]
ACTIVATIONS = {"gelu": False, "quickgelu": True}
HOW_TO_SAY = (
    "append what the file does not say to its name: '{name}#gelu' for LAION-based weights or "
    "'{name}#quickgelu' for OpenAI-based ones (or pass quick_gelu=False / True)"
)


@dataclass(frozen=True)
class Name:
    """A parsed model name. The last three are what the caller states about the file, else None."""

    kind: Kind
    value: str
    quick_gelu: bool | None = None
    arch: str | None = None
    text_from: str | None = None

    @property
    def stated(self) -> bool:
        """Whether the caller states anything about the file."""
        return (self.quick_gelu, self.arch, self.text_from) != (None, None, None)


def parse(name: str | os.PathLike[str]) -> Name:
    """Reads a name such as `clipag`, `hf-hub:org/model` or
    `weights.pt#quickgelu,arch=ViT-B-32,text=openai/ViT-B/32`.

    Raises ValueError for a bare `org/name`, an unknown key or a malformed statement, and
    FileNotFoundError for a path that is not there.
    """
    text = os.fspath(name)
    if not text:
        raise ValueError("the model name is empty; `clipag models` lists the names")
    whole, _, statement = text.partition("#")
    if statement and os.path.exists(text):
        whole, statement = text, ""
    return replace(_source(whole), **_statement(text, statement))


def _source(text: str) -> Name:
    kinds: tuple[Kind, ...] = ("hf-hub", "local-dir")
    for kind in kinds:
        if text.startswith(kind + ":"):
            value = text[len(kind) + 1 :]
            if kind == "hf-hub" and not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", value):
                raise ValueError(
                    f"{text!r} is no repository; write 'hf-hub:org/name' or 'hf-hub:org/name@revision'"
                )
            if kind == "local-dir" and not Path(value).is_dir():
                raise FileNotFoundError(f"the folder {value!r} of {text!r} does not exist")
            return Name(kind, value)
    if registry.get(text):
        return Name("key", registry.find(text).key)
    if os.path.isfile(text):
        return Name("file", text)
    if os.path.isdir(text):
        raise ValueError(f"{text!r} is a folder; write 'local-dir:{text}'")
    if re.fullmatch(r"https?://.+", text):
        raise ValueError(
            f"{text!r} is an address; download the file and give its path, or 'hf-hub:org/name' for a repository"
        )
    if os.path.splitext(text)[1].lower() in (
        ".pt",
        ".pth",
        ".bin",
        ".ckpt",
        ".tar",
        ".safetensors",
    ):
        raise FileNotFoundError(f"the weight file {text!r} does not exist")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        raise ValueError(
            f"{text!r} could be a repository or a folder: write 'hf-hub:{text}' or 'local-dir:{text}' "
            f"({registry.suggest(text)})"
        )
    raise ValueError(f"no model is called {text!r}; {registry.suggest(text)}")


def _statement(name: str, statement: str) -> dict[str, Any]:
    stated: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in statement.split(","))):
        word, _, value = part.partition("=")
        if word.lower() in ACTIVATIONS and not value:
            stated["quick_gelu"] = ACTIVATIONS[word.lower()]
        elif word in ("arch", "text") and value:
            stated["arch" if word == "arch" else "text_from"] = value
        else:
            raise ValueError(
                f"{name!r} states {part!r}; after '#' come gelu or quickgelu, arch=NAME and text=NAME, joined by commas"
            )
    return stated
