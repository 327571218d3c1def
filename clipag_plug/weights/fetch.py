"""Downloads one file: resumed where it broke off, checked whole, and put in place at once or not at all."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import cache
from .errors import FetchError
from .partial import Partial, progress, strong_tag

TRIES = 5  # without any progress in between
TRIES_IN_ALL = 40
TIMEOUT = 30.0
PAUSE = 0.5
LONGEST_PAUSE = 60.0
CHUNK = 2**20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)


def fetch(
    url: str,
    target: Path,
    *,
    name: str,
    size: int | None = None,
    sha256: str | None = None,
    seen: dict[str, Any] | None = None,
) -> str:
    """Downloads `url` to `target` unless it is there, and returns its SHA-256.

    Afterwards the target is the right file or absent. size and sha256 are the published ones;
    without the latter, `seen` is the record of the first contact, and another hash is refused. The
    caller holds the lock of `target`. Raises FetchError, or OSError where the disk is full.
    """
    partial = Partial(target.with_name(target.name + ".partial"))
    if target.is_file():
        file, digest = target, hash_file(target)
    else:
        file, digest = partial.path, _download(url, partial, name, size or (seen or {}).get("size"))
    expected = sha256 or (seen or {}).get("sha256")
    if expected and digest != expected:
        file.unlink()
        raise FetchError(
            f"{url} has SHA-256 {digest}, and {expected} was {_source(name, sha256, seen)}"
        )
    if file is not target:
        partial.move(target)
    return digest


def hash_file(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(url: str, partial: Partial, name: str, size: int | None) -> str:
    if not url.startswith(("https://", "http://")):
        raise FetchError(f"{url} is no http address")
    if cache.offline():
        raise FetchError(
            f"{name} is not in the cache and HF_HUB_OFFLINE forbids the network; unset it once, or download {url} "
            "on another machine, copy it here and load its path"
        )
    partial.path.parent.mkdir(parents=True, exist_ok=True)
    return _Job(url, name, partial, size).run()


def _source(name: str, sha256: str | None, seen: dict[str, Any] | None) -> str:
    refused = "the file is damaged or was exchanged, and was deleted"
    if sha256 or not seen:
        return f"published: {refused}"
    return (
        f"recorded on {seen.get('seen')}, when it was first downloaded: {refused}; if the change is known to be right, "
        f"`clipag doctor {name} --forget` accepts it"
    )


@dataclass
class _Job:
    url: str
    name: str
    partial: Partial
    size: int | None
    digest: Any = field(default_factory=hashlib.sha256)
    hashed: int = 0

    def run(self) -> str:
        """Tries until the file is whole; its SHA-256."""
        known = self.partial.known()
        whole = self.size or known.get("total")
        if whole and known.get("url") == self.url and self.partial.size() == whole:
            return hash_file(
                self.partial.path
            )  # all there: the last run was killed before moving it
        idle, best = 0, self.partial.size()
        for attempt in range(TRIES_IN_ALL):
            try:
                self._attempt()
                return str(self.digest.hexdigest())
            except _Passing as trouble:
                # A server that cannot resume must get further than ever before to count as progress.
                idle = 0 if self.partial.size() > best else idle + 1
                best = max(best, self.partial.size())
                if idle >= TRIES or attempt == TRIES_IN_ALL - 1:
                    kept = self.partial.size()
                    rest = (
                        f"; {kept:,} bytes are kept, and the next call goes on from there"
                        if kept
                        else ""
                    )
                    raise FetchError(
                        f"{self.url} failed {attempt + 1} times, lastly because {trouble}{rest}"
                    ) from trouble
                time.sleep(
                    trouble.pause
                    if trouble.pause is not None
                    else min(PAUSE * 2**idle, LONGEST_PAUSE)
                )
        raise AssertionError("unreachable")

    def _attempt(self) -> None:
        try:
            with self._request() as response:
                self._receive(response)
        except urllib.error.HTTPError as error:
            raise self._http(error) from error
        except (
            urllib.error.URLError,
            http.client.HTTPException,
            ConnectionError,
            TimeoutError,
        ) as error:
            raise _Passing(
                f"the connection broke ({getattr(error, 'reason', None) or error or type(error).__name__})"
            ) from error

    def _request(self) -> Any:
        headers = {"User-Agent": "clipag_plug", "Accept-Encoding": "identity"}
        have, known = self.partial.size(), self.partial.known()
        if have and known.get("url") == self.url and (self.size is None or have < self.size):
            headers["Range"] = f"bytes={have}-"
            if known.get("tag"):
                headers["If-Range"] = known["tag"]
        else:
            self.partial.drop()
        # A fresh opener reads the proxies of the environment as they are now.
        request = urllib.request.Request(self.url, headers=headers)
        return urllib.request.build_opener().open(request, timeout=TIMEOUT)

    def _http(self, error: urllib.error.HTTPError) -> Exception:
        if error.code == 416:  # what we hold does not fit what the server has now
            self.partial.drop()
            return _Passing("the server has another file than the one that was begun")
        if error.code in _TEMPORARY:
            wait = error.headers.get("Retry-After", "")
            pause = min(float(wait), LONGEST_PAUSE) if wait.isdigit() else None
            return _Passing(f"the server answered {error.code} {error.reason}", pause)
        self.partial.drop()
        return FetchError(f"{self.url} answered {error.code} {error.reason}")

    def _receive(self, response: Any) -> None:
        if self.url.startswith("https:") and not response.geturl().startswith("https:"):
            raise FetchError(f"{self.url} leads to {response.geturl()}, which is not encrypted")
        if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
            self.partial.drop()
            raise FetchError(
                f"{self.url} answered with a web page instead of the file; is a login or a captcha asked for?"
            )
        total = self._total(response)
        start = self.partial.size() if response.status == 206 else 0
        self._room(total - start if total else None)
        self.partial.note({"url": self.url, "tag": strong_tag(response.headers), "total": total})
        with open(self.partial.path, "r+b" if start else "w+b") as file:
            self._hash_up_to(start, file)
            with progress(self.name, total, start) as bar:
                try:
                    self._copy(response, file, bar)
                    file.flush()
                    os.fsync(file.fileno())
                except OSError as error:
                    self._full(error)
        if total is not None and self.partial.size() < total:
            raise _Passing(f"the connection ended after {self.partial.size():,} of {total:,} bytes")
        if total is not None and self.partial.size() > total:
            self.partial.drop()
            raise FetchError(f"{self.url} sent more than the {total:,} bytes it announced")

    def _hash_up_to(self, start: int, file: Any) -> None:
        """Brings the hash, and the position in the file, to `start`."""
        if self.hashed != start:
            self.digest, self.hashed = hashlib.sha256(), 0
            for block in iter(lambda: file.read(CHUNK), b""):
                self._add(block)
        file.seek(start)

    def _add(self, block: bytes) -> None:
        self.digest.update(block)
        self.hashed += len(block)

    def _total(self, response: Any) -> int | None:
        """Bytes of the whole file. Raises FetchError if they are not the expected ones."""
        length = response.headers.get("Content-Length")
        total = int(length) if length and length.isdigit() else None
        if response.status == 206:
            span = response.headers.get("Content-Range", "")
            first, _, whole = span.removeprefix("bytes ").partition("/")
            if first.split("-")[0] != str(self.partial.size()):
                self.partial.drop()
                raise _Passing(
                    f"the server sent the range {span!r} and not the one that was asked for"
                )
            total = (
                int(whole)
                if whole.isdigit()
                else (total + self.partial.size() if total is not None else None)
            )
        if self.size is not None and total is not None and total != self.size:
            self.partial.drop()
            raise FetchError(
                f"{self.url} has {total:,} bytes and {self.size:,} were expected: it is another file"
            )
        return self.size if self.size is not None else total

    def _copy(self, response: Any, file: Any, bar: Any) -> None:
        while True:
            try:
                block = response.read(CHUNK)
            except http.client.IncompleteRead as broken:
                block = broken.partial
                file.write(block)
                self._add(block)
                raise
            if not block:
                return
            file.write(block)
            self._add(block)
            bar.update(len(block))

    def _room(self, needed: int | None) -> None:
        free = shutil.disk_usage(self.partial.path.parent).free
        if needed is not None and needed > free:
            raise OSError(
                errno.ENOSPC,
                f"{self.name} needs {needed:,} more bytes in {str(self.partial.path.parent)!r} and {free:,} are free; "
                "make room, or set CLIPAG_HOME or download_root to another disk",
            )

    def _full(self, error: OSError) -> None:
        if error.errno not in _FULL:
            raise error
        # Half a file on a full disk only keeps it full.
        self.partial.drop()
        raise OSError(
            error.errno,
            f"the disk of {str(self.partial.path.parent)!r} is full while {self.name} was downloaded, and the part was "
            "deleted; make room, or set CLIPAG_HOME or download_root to another disk",
        ) from error


class _Passing(Exception):
    """Trouble that may be gone at the next try, after `pause` seconds if the server named some."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause
