"""What a broken download leaves behind, and how its progress is shown."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Partial:
    """The unfinished file and what is known of its source (`<file>.json`)."""

    def __init__(self, path: Path) -> None:
        self.path, self.about = path, path.with_name(path.name + ".json")

    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def known(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            value = json.loads(self.about.read_text(encoding="utf-8"))
            return value if isinstance(value, dict) else {}
        return {}

    def note(self, about: dict[str, Any]) -> None:
        self.about.write_text(json.dumps(about), encoding="utf-8")

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)
        self.about.unlink(missing_ok=True)

    def move(self, target: Path) -> None:
        os.replace(self.path, target)
        self.about.unlink(missing_ok=True)


def strong_tag(headers: Any) -> str | None:
    """What identifies the server's version of the file; weak ones cannot vouch for a range."""
    tag = headers.get("ETag")
    if tag and not tag.startswith("W/"):
        return str(tag)
    return headers.get("Last-Modified")


@contextlib.contextmanager
def progress(name: str, total: int | None, start: int) -> Iterator[Any]:
    """A progress bar on stderr, where somebody looks at it."""
    from tqdm.auto import tqdm

    hidden = not sys.stderr.isatty()
    with tqdm(
        total=total, initial=start, desc=name, unit="B", unit_scale=True, disable=hidden
    ) as bar:
        yield bar
