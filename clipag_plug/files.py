"""Files that appear complete or not at all, their SHA-256, and names for them. Imports no torch."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any


def write_atomically(
    path: str | Path, write: Callable[[str], object], *, parents: bool = False
) -> Path:
    """Calls `write` with a temporary name in the same folder, then moves that file into place.

    Args:
        path: the file to write or to replace.
        write: writes the file whose name it is given; the name keeps the suffix of `path`.
        parents: make the folder where it is missing.
    Returns: `path`. A failure leaves neither a temporary file nor a changed target; a killed process may leave
        `.NAME.*.tmp*`.
    Raises: FileNotFoundError if the folder is missing, ValueError if `path` is a folder.
    """
    path = Path(path)
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"the folder of {str(path)!r} does not exist; create it or choose another --output"
        )
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder; give a file name in it")
    handle, name = tempfile.mkstemp(f".tmp{path.suffix}", f".{path.stem[:40]}.", path.parent)
    os.close(handle)
    try:
        write(name)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def write_text(path: str | Path, text: str, *, parents: bool = False) -> Path:
    """Writes a text in UTF-8; see `write_atomically`."""
    return write_atomically(
        path, lambda name: Path(name).write_text(text, encoding="utf-8"), parents=parents
    )


def readable(value: Any, **how: Any) -> str:
    """JSON in which letters stay as they are, but for the bytes of a file's name that is not in UTF-8."""
    text = json.dumps(value, ensure_ascii=False, **how)
    return json.dumps(value, **how) if halved(text) else text


def halved(text: str) -> bool:
    """Whether it holds half a surrogate pair, which no file and no address can hold."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def write_json(path: str | Path, value: Any) -> Path:
    """Writes JSON in which letters stay readable, and makes the folder where it is missing."""
    return write_text(path, readable(value, indent=1) + "\n", parents=True)


def read_lines(path: str | Path, option: str) -> list[str]:
    """The lines of a text file in UTF-8, with a byte-order mark or without. Raises FileNotFoundError or ValueError;
    both name the option that the path was given to."""
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise FileNotFoundError(
            f"{option} {str(path)!r} cannot be read: {error.strerror}; give a text file"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{option} {str(path)!r} is not text in UTF-8; convert it") from error


def check_place(path: Path) -> None:
    """Raises PermissionError where a file of this path could not be written, even once its folder is made."""
    place = next(each for each in path.absolute().parents if each.exists())
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        what = "may not be written to" if place.is_dir() else "is a file and no folder"
        raise PermissionError(f"{str(place)!r} {what}; choose another --output") from error


def sha256(data: str | Path | bytes) -> str:
    """Hexadecimal SHA-256 of bytes, or of the file at a path, which is read in pieces."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    with open(data, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def slug(text: str, keep: str = "._@+") -> str:
    """`openai/ViT-B/32` -> `openai-ViT-B-32`: a file name in which letters and digits of any script and `keep` stay."""
    letters = "".join(letter if letter.isalnum() or letter in keep else "-" for letter in text)
    return re.sub("-+", "-", letters).strip("-.")


def root(download_root: str | Path | None = None) -> Path:
    """`download_root`, or $CLIPAG_HOME, or $XDG_CACHE_HOME/clipag_plug (~/.cache/clipag_plug)."""
    home = download_root or os.environ.get("CLIPAG_HOME")
    return Path(home).expanduser() if home else caches() / "clipag_plug"


def open_clip_folders() -> list[Path]:
    """Where open_clip is installed, found without importing it."""
    places: list[Any] = []
    with contextlib.suppress(metadata.PackageNotFoundError):
        # A program may have a package `open_clip` of its own, which hides the installed one.
        places.append(metadata.distribution("open_clip_torch").locate_file("open_clip"))
    spec = importlib.util.find_spec("open_clip")
    places += spec.submodule_search_locations or [] if spec else []
    return [Path(place) for place in places]


def caches() -> Path:
    """$XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser()
