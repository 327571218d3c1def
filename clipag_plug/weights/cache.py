"""Where downloaded weights live, the lock that keeps two processes apart, and the record of hashes seen."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VERSION = 1


def root(download_root: str | os.PathLike[str] | None = None) -> Path:
    """`download_root`, or $CLIPAG_HOME, or $XDG_CACHE_HOME/clipag_plug (~/.cache/clipag_plug)."""
    if download_root:
        return Path(download_root).expanduser()
    home = os.environ.get("CLIPAG_HOME")
    if home:
        return Path(home).expanduser()
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser()
        / "clipag_plug"
    )


def offline() -> bool:
    """Whether $HF_HUB_OFFLINE or $TRANSFORMERS_OFFLINE forbids the network."""
    values = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(value.strip().upper() in ("1", "ON", "YES", "TRUE") for value in values)


def slug(text: str) -> str:
    """`openai/ViT-B/32` -> `openai-ViT-B-32`: a file name that says what it is."""
    return re.sub(r"[^\w.@+-]+", "-", text).strip("-.")


def converted(name: str, download_root: str | os.PathLike[str] | None = None) -> Path:
    """Where the converted weights of a model lie."""
    return root(download_root) / f"{slug(name)}.v{VERSION}.safetensors"


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Holds `<path>.lock` across processes. The system frees it even if its holder is killed."""
    import filelock

    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{path}.lock"):
        yield


class Trust:
    """Hashes seen on first contact with files whose hash nobody publishes (`trusted.json`)."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "trusted.json"

    def get(self, name: str) -> dict[str, Any] | None:
        """The recorded {"sha256", "size", "seen"} of a file, or None at first contact."""
        entry = self._read().get(name)
        return entry if isinstance(entry, dict) else None

    def put(self, name: str, sha256: str, size: int) -> None:
        """Records a hash; a later, different one is an error of `fetch`."""
        self._change(
            lambda known: known.update(
                {name: {"sha256": sha256, "size": size, "seen": time.strftime("%F")}}
            )
        )

    def forget(self, name: str) -> bool:
        """Drops a record, so that the next download is a first contact. False if there was none."""
        known = self.get(name) is not None
        self._change(lambda table: table.pop(name, None))
        return known

    def _change(self, change: Any) -> None:
        with lock(self.path):
            known = self._read()
            change(known)
            temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
            temporary.write_text(json.dumps(known, indent=1), encoding="utf-8")
            os.replace(temporary, self.path)

    def _read(self) -> dict[str, Any]:
        if not self.path.is_file():
            return {}
        try:
            known = json.loads(self.path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{str(self.path)!r} is damaged ({error}); delete it to trust the next downloads anew"
            ) from error
        return known if isinstance(known, dict) else {}
