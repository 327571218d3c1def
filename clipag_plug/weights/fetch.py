"""Weights from the network: the cache they lie in, one file from a URL, and the files of a hub repository.

A download is resumed where it broke off, checked whole, and put in place at once or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import http.client
import json
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..files import caches, root, slug, write_text
from ..files import sha256 as hash_file
from .registry import Checkpoint, FetchError, bundled

VERSION = 2
TRIES = 5  # without any progress in between
TRIES_IN_ALL = 40
TIMEOUT = 30.0
PAUSE = 0.5
LONGEST_PAUSE = 60.0
CHUNK = 2**20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)
_Root = str | Path | None
LAYOUTS = {
    "open_clip_config.json": (
        "open_clip_model.safetensors",
        "open_clip_pytorch_model.safetensors",
        "open_clip_pytorch_model.bin",
    ),
    "config.json": (
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ),
}


def offline() -> bool:
    """Whether $HF_HUB_OFFLINE or $TRANSFORMERS_OFFLINE forbids the network."""
    values = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(value.strip().upper() in ("1", "ON", "YES", "TRUE") for value in values)


def converted(name: str, download_root: _Root = None) -> Path:
    """Where the converted weights of a model lie."""
    return root(download_root) / f"{slug(name)}.v{VERSION}.safetensors"


def checked(path: Path) -> Path:
    """Where it is noted in which state a file of the cache was last read whole and found right."""
    return path.with_name(path.name + ".checked")


def whereabouts(record: Checkpoint) -> str:
    """Where the weights are now: bundled, cached, or what a first load would download from."""
    if record.bundled:
        return "bundled" if bundled(record).is_file() else "missing"
    home = Path(os.environ.get("HF_HOME") or caches() / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    hubs = [s.removeprefix("hf-hub:") for s in record.sources if s.startswith("hf-hub:")]
    folders = (hub / f"models--{name.replace('/', '--')}" / "snapshots" for name in hubs)
    if converted(record.key).is_file() or any(folder.is_dir() for folder in folders):
        return "cached"
    if hubs or not record.sources:
        return "hub" if hubs else "by hand"
    return f"{record.size / 1e6:,.0f} MB" if record.size else "url"


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
        entry = {"sha256": sha256, "size": size, "seen": time.strftime("%F")}
        self._change(lambda known: known.update({name: entry}))

    def forget(self, name: str) -> bool:
        """Drops a record, so that the next download is a first contact. False if there was none."""
        known = self.get(name) is not None
        self._change(lambda table: table.pop(name, None))
        return known

    def _change(self, change: Callable[[dict[str, Any]], object]) -> None:
        with lock(self.path):
            known = self._read()
            change(known)
            write_text(self.path, json.dumps(known, indent=1))

    def _read(self) -> dict[str, Any]:
        try:
            known = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise ValueError(
                f"{str(self.path)!r} is damaged ({error}); delete it to trust the next downloads anew"
            ) from error
        return known if isinstance(known, dict) else {}


def fetch(
    url: str,
    target: Path,
    *,
    name: str,
    size: int | None = None,
    sha256: str | None = None,
    seen: dict[str, Any] | None = None,
) -> str:
    """Downloads `url` to `target` unless it is there, and returns its SHA-256. The caller holds the lock of `target`.

    Args:
        size, sha256: the published ones.
        seen: the record of the first contact, where no hash is published; another hash is refused.
    Raises: FetchError, or OSError where the disk is full; the target is then absent.
    """
    download = _Download(url, target, name, size or (seen or {}).get("size"))
    if not target.is_file():
        download.run()
    file = target if target.is_file() else download.part
    digest, expected = hash_file(file), sha256 or (seen or {}).get("sha256")
    if expected and digest != expected:
        file.unlink()
        raise FetchError(
            f"{url} has SHA-256 {digest}, and {expected} was "
            + ("published" if sha256 or not seen else f"recorded on {seen.get('seen')}, at the first download")
            + ": the file is damaged or was exchanged, and was deleted"
            + ("" if sha256 else f"; if the change is right, `clipag doctor {name} --forget` accepts it")
        )  # fmt: skip
    if file is not target:
        os.replace(file, target)
    download.about.unlink(missing_ok=True)
    return digest


class _Passing(Exception):
    """Trouble that may be gone at the next try, after `pause` seconds if the server named some."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


class _Download:
    """A file on its way: its bytes so far (`<target>.partial`) and what is known of its source (`.json` beside it)."""

    def __init__(self, url: str, target: Path, name: str, size: int | None) -> None:
        self.url, self.name, self.size = url, name, size
        self.part = target.with_name(target.name + ".partial")
        self.about = self.part.with_name(self.part.name + ".json")

    @property
    def have(self) -> int:
        """Bytes so far."""
        return self.part.stat().st_size if self.part.is_file() else 0

    def known(self) -> dict[str, Any]:
        """{"tag", "total"} of the download from this address that was begun, or an empty table."""
        with contextlib.suppress(OSError, ValueError):
            value = json.loads(self.about.read_text(encoding="utf-8"))
            return value if isinstance(value, dict) and value.get("url") == self.url else {}
        return {}

    def drop(self) -> None:
        """Deletes both files."""
        self.part.unlink(missing_ok=True)
        self.about.unlink(missing_ok=True)

    def run(self) -> None:
        """Tries until the partial file is whole."""
        if not self.url.startswith(("https://", "http://")):
            raise FetchError(f"{self.url} is no http address")
        if offline():
            raise FetchError(
                f"{self.name} is not in the cache and HF_HUB_OFFLINE forbids the network; unset it once, or download "
                f"{self.url} on another machine, copy it here and load its path"
            )
        self.part.parent.mkdir(parents=True, exist_ok=True)
        known = self.known()
        if known and self.have == (self.size or known.get("total")):
            return  # the last run was killed before moving it
        idle, best = 0, self.have
        for attempt in range(1, TRIES_IN_ALL + 1):
            try:
                return self._attempt()
            except _Passing as trouble:
                # A server that cannot resume must get further than ever before to count as progress.
                idle = 0 if self.have > best else idle + 1
                best = max(best, self.have)
                if idle >= TRIES or attempt == TRIES_IN_ALL:
                    rest = f"; {best:,} bytes are kept, and the next call goes on from there"
                    raise FetchError(
                        f"{self.url} failed {attempt} times, lastly because {trouble}{rest if self.have else ''}"
                    ) from trouble
                usual = min(PAUSE * 2**idle, LONGEST_PAUSE)
                time.sleep(usual if trouble.pause is None else trouble.pause)

    def _attempt(self) -> None:
        headers = {"User-Agent": "clipag_plug", "Accept-Encoding": "identity"}
        have, known = self.have, self.known()
        if have and known and (self.size is None or have < self.size):
            headers["Range"] = f"bytes={have}-"
            if known.get("tag"):
                headers["If-Range"] = known["tag"]
        else:
            self.drop()
        request = urllib.request.Request(self.url, headers=headers)
        try:
            # A fresh opener reads the proxies of the environment as they are now.
            with urllib.request.build_opener().open(request, timeout=TIMEOUT) as response:
                self._receive(response)
        except urllib.error.HTTPError as error:
            if error.code in _TEMPORARY:
                wait = error.headers.get("Retry-After", "")
                pause = min(float(wait), LONGEST_PAUSE) if wait.isdigit() else None
                raise _Passing(f"the server answered {error.code} {error.reason}", pause) from error
            self.drop()
            if error.code == 416:  # what we hold does not fit what the server has now
                why = "the server has another file than the one that was begun"
                raise _Passing(why) from error
            raise FetchError(f"{self.url} answered {error.code} {error.reason}") from error
        except (
            urllib.error.URLError,
            http.client.HTTPException,
            ConnectionError,
            TimeoutError,
        ) as error:
            reason = getattr(error, "reason", None) or error or type(error).__name__
            raise _Passing(f"the connection broke ({reason})") from error

    def _receive(self, response: Any) -> None:
        url, name, place = self.url, self.name, str(self.part.parent)
        if url.startswith("https:") and not response.geturl().startswith("https:"):
            raise FetchError(f"{url} leads to {response.geturl()}, which is not encrypted")
        if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
            self.drop()
            raise FetchError(
                f"{url} answered with a web page instead of the file; is a login or a captcha asked for?"
            )
        start = self.have if response.status == 206 else 0
        total, free = self._total(response, start), shutil.disk_usage(place).free
        remedy = "make room, or set CLIPAG_HOME or download_root to another disk"
        if total is not None and total - start > free:
            needs = f"{name} needs {total - start:,} more bytes in {place!r} and {free:,} are free"
            raise OSError(errno.ENOSPC, f"{needs}; {remedy}")
        tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        # A weak tag cannot vouch for a range.
        about = {"url": url, "tag": None if tag.startswith("W/") else tag, "total": total}
        try:
            self.about.write_text(json.dumps(about), encoding="utf-8")
            with open(self.part, "ab" if start else "wb") as file:
                _copy(response, file, name, total, start)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            self.drop()  # half a file on a full disk only keeps it full
            why = f"the disk of {place!r} is full while {name} was downloaded, and the part was deleted"
            raise OSError(error.errno, f"{why}; {remedy}") from error
        if total is not None and self.have < total:
            raise _Passing(f"the connection ended after {self.have:,} of {total:,} bytes")
        if total is not None and self.have > total:
            self.drop()
            raise FetchError(f"{url} sent more than the {total:,} bytes it announced")

    def _total(self, response: Any, start: int) -> int | None:
        """Bytes of the whole file, as far as they are known. Raises FetchError if they are not the expected ones."""
        length = response.headers.get("Content-Length") or ""
        total = int(length) + start if length.isdigit() else None
        if response.status == 206:
            span = response.headers.get("Content-Range", "")
            first, _, whole = span.removeprefix("bytes ").partition("/")
            if first.split("-")[0] != str(start):
                self.drop()
                why = f"the server sent the range {span!r} and not the one that was asked for"
                raise _Passing(why)
            total = int(whole) if whole.isdigit() else total
        if self.size is not None and total not in (None, self.size):
            self.drop()
            raise FetchError(
                f"{self.url} has {total:,} bytes and {self.size:,} were expected: it is another file"
            )
        return total if self.size is None else self.size


def _copy(response: Any, file: Any, name: str, total: int | None, start: int) -> None:
    from tqdm.auto import tqdm

    shown: dict[str, Any] = {"unit": "B", "unit_scale": True, "disable": not sys.stderr.isatty()}
    with tqdm(total=total, initial=start, desc=name, **shown) as bar:
        try:
            while block := response.read(CHUNK):
                file.write(block)
                bar.update(len(block))
        except http.client.IncompleteRead as broken:
            file.write(broken.partial)
            raise
        finally:
            file.flush()
        os.fsync(file.fileno())


def repository(name: str, download_root: _Root = None) -> Path:
    """The snapshot of `org/name` or `org/name@revision` in the hub's cache, config and weights downloaded if need be.

    HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT, tokens and proxies are huggingface_hub's business and keep their meaning.
    Raises FetchError.
    """
    plain, _, revision = name.partition("@")
    get = functools.partial(_file, plain, revision, download_root)
    for config, weights in LAYOUTS.items():
        if (found := get(config)) is None:
            continue
        get("preprocessor_config.json")
        for candidate in weights:
            if (file := get(candidate)) is None:
                continue
            if candidate.endswith(".index.json"):
                shards = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
                for shard in set(shards.values()):
                    get(shard)
            return found.parent
        rest = " in the local cache; unset HF_HUB_OFFLINE to download" if offline() else ""
        raise FetchError(f"hf-hub:{name} has {config} and none of {', '.join(weights)}{rest}")
    if offline():
        raise FetchError(
            f"hf-hub:{name} is not in the local cache and HF_HUB_OFFLINE forbids the network; unset it once, or "
            "copy the repository's files to a folder and load 'local-dir:FOLDER'"
        )
    raise FetchError(
        f"hf-hub:{name} has no open_clip_config.json and no config.json, as open_clip and transformers write them"
    )


def _file(name: str, revision: str, download_root: _Root, file: str) -> Path | None:
    """The local copy of a file, downloaded if need be; None where the repository has no such file."""
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(
            hf_hub_download(name, file, revision=revision or None, cache_dir=download_root or None)
        )
    except errors.LocalEntryNotFoundError as error:
        if offline():
            return None
        reason = f": {file} is not in the cache and the hub did not answer ({error})"
        raise FetchError(f"hf-hub:{name}{reason}") from error
    except errors.EntryNotFoundError:
        return None
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, OSError) as error:
        reason = f": {file} could not be downloaded ({error})"
        if isinstance(error, errors.GatedRepoError):
            reason = " is gated: accept its terms on its page and run `hf auth login`"
        elif isinstance(error, errors.RepositoryNotFoundError):
            reason = " does not exist, or is private; then run `hf auth login`"
        elif isinstance(error, errors.RevisionNotFoundError):
            reason = f" has no revision {revision!r}"
        raise FetchError(f"hf-hub:{name}{reason}") from error
