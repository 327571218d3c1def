"""The models that can be loaded by name, read from `registry.json`. Imports no torch."""

from __future__ import annotations

import difflib
import fnmatch
import functools
import json
from dataclasses import asdict, dataclass, field
from importlib import resources
from typing import Any

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Checkpoint:
    """What is known of one model before its file is opened; None stands for "not known".

    arch: name of an open_clip config, or "mini" for the bundled models, whose config lies beside
    the weights. quick_gelu None: the file's own config decides. sources: tried in order; URLs or
    `hf-hub:org/name`. size and sha256 are those of the file behind a URL. eps is in [0, 1] pixel
    units. base: the model it was fine-tuned from. text_from: where the text tower comes from when
    the file holds an image tower only. results: published numbers in percent.
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

    def to_dict(self) -> dict[str, Any]:
        """Every field, ready for JSON."""
        return asdict(self)


@functools.cache
def _table() -> dict[str, Checkpoint]:
    text = resources.files(__package__).joinpath("registry.json").read_text(encoding="utf-8")
    records = {}
    for row in json.loads(text):
        for name in ("sources", "aliases", "mean", "std"):
            if name in row:
                row[name] = tuple(row[name])
        records[row["key"]] = Checkpoint(**row)
    return records


def checkpoints() -> list[Checkpoint]:
    """Every registered model, the bundled ones first."""
    return list(_table().values())


def get(name: str) -> Checkpoint | None:
    """The record with this key or alias (case does not matter), or None."""
    wanted = name.casefold()
    for record in _table().values():
        if wanted in (known.casefold() for known in (record.key, *record.aliases)):
            return record
    return None


def find(name: str) -> Checkpoint:
    """The record with this key or alias. Raises ValueError that names the closest keys."""
    record = get(name)
    if record is None:
        raise ValueError(f"no model is called {name!r}; {suggest(name)}")
    return record


def match(pattern: str) -> list[Checkpoint]:
    """Records whose key or alias fits a shell pattern such as `fare*b32*`; a plain word also
    matches anywhere in the key. Raises ValueError when nothing fits."""
    wanted = pattern.casefold()
    if not any(mark in wanted for mark in "*?["):
        wanted = f"*{wanted}*"
    found = [
        record
        for record in checkpoints()
        if any(
            fnmatch.fnmatchcase(known.casefold(), wanted) for known in (record.key, *record.aliases)
        )
    ]
    if not found:
        raise ValueError(f"no model fits {pattern!r}; {suggest(pattern)}")
    return found


def training(record: Checkpoint) -> str:
    """`fare linf 4/255`, `clipag l2 1.5` or `vanilla`."""
    return " ".join(filter(None, (record.method, ball(record.norm, record.eps))))


def ball(norm: str | None, eps: float | None) -> str:
    """A perturbation ball in words: Linf radii in the customary 255ths."""
    if norm is None:
        return ""
    if eps is None:
        return norm
    whole = eps * 255
    if norm == "linf" and abs(whole - round(whole)) < 1e-6:
        return f"{norm} {round(whole)}/255"
    return f"{norm} {eps:g}"


def suggest(name: str) -> str:
    """A sentence that offers the closest keys, for error messages."""
    keys = [record.key for record in checkpoints()]
    folded = {key.casefold(): key for key in keys}
    close = difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(folded[key]) for key in close) + "?"
    return "`clipag models` lists the names; a file is given by its path, a repository as 'hf-hub:org/name'"
