"""What the page may ask for: option sets of its own, checked like those of the command line. Imports no torch.

A request names models from a list and pictures by an id. It can name no path, and no option that reads or
writes a file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ..files import halved
from ..options.base import Options, option
from ..options.explain import METHODS
from ..options.generate import PRESETS

PAIR = ["clip-mini", "clipag-mini"]
SIZES = ("", "160", "224", "320", "448")
LONGEST_TEXT = 300
MOST_MAPS = 6


def _check_text(text: str, what: str) -> None:
    if halved(text):
        raise ValueError(f"the {what} holds half a character; write it again")
    if not text.strip():
        raise ValueError(f"the {what} is empty; write what to see, as: a goldfish")
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"the {what} has {len(text)} characters; at most {LONGEST_TEXT} are read")


@dataclass
class _Asked(Options):
    models: list[str] = option(PAIR, "one model, or two that are shown side by side")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= len(self.models) <= 2:
            raise ValueError(f"{len(self.models)} models are chosen; choose one or two")


@dataclass
class Paint(_Asked):
    """A picture from words, or from words and a picture."""

    prompt: str = option("", "what to paint")
    seed: int = option(0, "of the start and of the views", low=0, high=2**31 - 1)
    preset: str = option("fast", "settings to start from", choices=tuple(PRESETS))
    steps: int | None = option(None, "updates of the picture", low=1, high=2000)
    size: str = option("", "side in pixels", choices=SIZES)
    picture: str = option("", "picture to start from")
    strength: float = option(0.0, "noise mixed into it", low=0, high=1)
    count: int = option(1, "pictures, with seeds one after the other, by one model", low=1, high=4)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_text(self.prompt, "prompt")
        if self.count > 1 and len(self.models) > 1:
            raise ValueError("several pictures are painted by one model; choose one")


@dataclass
class Draw(_Asked):
    """A drawing of strokes from words."""

    prompt: str = option("", "what to draw")
    seed: int = option(0, "of the strokes and of the views", low=0, high=2**31 - 1)
    steps: int = option(100, "updates of the strokes", low=1, high=2000)
    strokes: int = option(64, "open curves", low=1, high=512)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_text(self.prompt, "prompt")


@dataclass
class Restyle(_Asked):
    """A picture in the style that words describe."""

    prompt: str = option("", "the style")
    picture: str = option("", "picture to restyle")
    seed: int = option(0, "of the network and of the views", low=0, high=2**31 - 1)
    steps: int = option(80, "updates of the network", low=1, high=2000)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_text(self.prompt, "prompt")
        if not self.picture:
            raise ValueError("there is no picture; choose one first")


@dataclass
class Look(_Asked):
    """Where the models look in a picture for each text."""

    picture: str = option("", "picture to explain")
    texts: list[str] = option([], "what to look for")
    method: str = option("gradcam", "how the maps are made", choices=METHODS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.picture:
            raise ValueError("there is no picture; choose one first")
        if not 1 <= len(self.texts) <= MOST_MAPS:
            raise ValueError(
                f"{len(self.texts)} texts are given; give 1 to {MOST_MAPS}, one a line"
            )
        for text in self.texts:
            _check_text(text, "text")


KINDS: dict[str, type[_Asked]] = {
    "paint": Paint,
    "style": Restyle,
    "draw": Draw,
    "explain": Look,
}


def read(kind: str, values: Any) -> Any:
    """The checked request. ValueError says what is wrong with it, in one sentence."""
    if kind not in KINDS:
        raise ValueError(f"there is no job {kind!r}; jobs: {', '.join(KINDS)}")
    if not isinstance(values, dict):
        raise ValueError("a request must be a JSON object")
    return KINDS[kind].from_dict(values)


def settings(recipe: str) -> dict[str, Any]:
    """What the form takes over from the recipe inside a picture, which may be anybody's; nothing where it is none."""
    try:
        found = json.loads(recipe)
        options, text = found["options"], found["prompt"]
        kind = {"ClipDraw": "draw", "Style": "style"}.get(found.get("job", ""), "paint")
        _check_text(text, "prompt")
        known = {"kind": kind, "prompt": text, "model": str(options.get("model"))[:200]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    for name, values in (
        ("seed", range(2**31)),
        ("steps", range(1, 2001)),
        ("strokes", range(513)),
    ):
        if type(value := options.get(name)) is int and value in values:
            known[name] = value
    for name, choices in (("preset", tuple(PRESETS)), ("size", SIZES)):
        if kind == "paint" and options.get(name) in choices:
            known[name] = options[name]
    return known
