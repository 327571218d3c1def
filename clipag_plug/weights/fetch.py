"""Weights from the network: the cache they lie in, one file from a URL, and the files of a hub repository.

A download is resumed where it broke off, checked whole, and put in place at once or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from ..files import caches, root, slug, write_text
from ..files import sha256 as hash_file
from .registry import Checkpoint, FetchError

VERSION = 2
TRIES = 5  # without any progress in between
TRIES_IN_ALL = 40
TIMEOUT = 30.0
PAUSE = 0.5
LONGEST_PAUSE = 60.0
CHUNK = 2**20
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
        folder = resources.files("clipag_plug.bundled")
        return "bundled" if folder.joinpath(f"{record.key}.safetensors").is_file() else "missing"
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
    partial = Partial(target.with_name(target.name + ".partial"))
    if not target.is_file():
        _download(url, partial, name, size or (seen or {}).get("size"))
    file = target if target.is_file() else partial.path
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
    partial.about.unlink(missing_ok=True)
    return digest


class Partial:
    """The unfinished file and what is known of its source (`<file>.json`)."""

    def __init__(self, path: Path) -> None:
        self.path, self.about = path, path.with_name(path.name + ".json")

    def size(self) -> int:
        """Bytes so far."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def known(self) -> dict[str, Any]:
        """{"url", "tag", "total"} of the download that was begun, or an empty table."""
        with contextlib.suppress(OSError, ValueError):
            value = json.loads(self.about.read_text(encoding="utf-8"))
            return value if isinstance(value, dict) else {}
        return {}

    def drop(self) -> None:
        """Deletes both."""
        self.path.unlink(missing_ok=True)
        self.about.unlink(missing_ok=True)


class _Passing(Exception):
    """Trouble that may be gone at the next try, after `pause` seconds if the server named some."""

    def __init__(self, reason: str, pause: float | None = None) -> None:
        super().__init__(reason)
        self.pause = pause


def _download(url: str, partial: Partial, name: str, size: int | None) -> None:
    """Tries until the partial file is whole."""
    if not url.startswith(("https://", "http://")):
        raise FetchError(f"{url} is no http address")
    if offline():
        raise FetchError(
            f"{name} is not in the cache and HF_HUB_OFFLINE forbids the network; unset it once, or download {url} "
            "on another machine, copy it here and load its path"
        )
    partial.path.parent.mkdir(parents=True, exist_ok=True)
    known = partial.known()
    whole = size or known.get("total")
    if whole and known.get("url") == url and partial.size() == whole:
        return  # the last run was killed before moving it
    idle, best = 0, partial.size()
    for attempt in range(1, TRIES_IN_ALL + 1):
        try:
            return _attempt(url, partial, name, size)
        except _Passing as trouble:
            # A server that cannot resume must get further than ever before to count as progress.
            idle = 0 if partial.size() > best else idle + 1
            best = max(best, partial.size())
            if idle >= TRIES or attempt == TRIES_IN_ALL:
                rest = f"; {best:,} bytes are kept, and the next call goes on from there"
                raise FetchError(
                    f"{url} failed {attempt} times, lastly because {trouble}{rest if partial.size() else ''}"
                ) from trouble
            pause = min(PAUSE * 2**idle, LONGEST_PAUSE) if trouble.pause is None else trouble.pause
            time.sleep(pause)


def _attempt(url: str, partial: Partial, name: str, size: int | None) -> None:
    headers = {"User-Agent": "clipag_plug", "Accept-Encoding": "identity"}
    have, known = partial.size(), partial.known()
    if have and known.get("url") == url and (size is None or have < size):
        headers["Range"] = f"bytes={have}-"
        if known.get("tag"):
            headers["If-Range"] = known["tag"]
    else:
        partial.drop()
    request = urllib.request.Request(url, headers=headers)
    try:
        # A fresh opener reads the proxies of the environment as they are now.
        with urllib.request.build_opener().open(request, timeout=TIMEOUT) as response:
            _receive(response, url, partial, name, size)
    except urllib.error.HTTPError as error:
        if error.code in _TEMPORARY:
            wait = error.headers.get("Retry-After", "")
            pause = min(float(wait), LONGEST_PAUSE) if wait.isdigit() else None
            raise _Passing(f"the server answered {error.code} {error.reason}", pause) from error
        partial.drop()
        if error.code == 416:  # what we hold does not fit what the server has now
            raise _Passing("the server has another file than the one that was begun") from error
        raise FetchError(f"{url} answered {error.code} {error.reason}") from error
    except (
        urllib.error.URLError,
        http.client.HTTPException,
        ConnectionError,
        TimeoutError,
    ) as error:
        reason = getattr(error, "reason", None) or error or type(error).__name__
        raise _Passing(f"the connection broke ({reason})") from error


def _receive(response: Any, url: str, partial: Partial, name: str, size: int | None) -> None:
    if url.startswith("https:") and not response.geturl().startswith("https:"):
        raise FetchError(f"{url} leads to {response.geturl()}, which is not encrypted")
    if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        partial.drop()
        raise FetchError(
            f"{url} answered with a web page instead of the file; is a login or a captcha asked for?"
        )
    start = partial.size() if response.status == 206 else 0
    total = _total(response, url, partial, start, size)
    folder, remedy = (
        str(partial.path.parent),
        "make room, or set CLIPAG_HOME or download_root to another disk",
    )
    free = shutil.disk_usage(folder).free
    if total is not None and total - start > free:
        raise OSError(
            errno.ENOSPC,
            f"{name} needs {total - start:,} more bytes in {folder!r} and {free:,} are free; {remedy}",
        )
    tag = response.headers.get("ETag") or response.headers.get("Last-Modified")
    # A weak tag cannot vouch for a range.
    about = {"url": url, "tag": None if (tag or "").startswith("W/") else tag, "total": total}
    try:
        partial.about.write_text(json.dumps(about), encoding="utf-8")
        with open(partial.path, "r+b" if start else "w+b") as file:
            file.seek(start)
            _copy(response, file, name, total, start)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        partial.drop()  # half a file on a full disk only keeps it full
        raise OSError(
            error.errno,
            f"the disk of {folder!r} is full while {name} was downloaded, and the part was deleted; {remedy}",
        ) from error
    if total is not None and partial.size() < total:
        raise _Passing(f"the connection ended after {partial.size():,} of {total:,} bytes")
    if total is not None and partial.size() > total:
        partial.drop()
        raise FetchError(f"{url} sent more than the {total:,} bytes it announced")


def _total(response: Any, url: str, partial: Partial, start: int, size: int | None) -> int | None:
    """Bytes of the whole file, as far as they are known. Raises FetchError if they are not the expected ones."""
    length = response.headers.get("Content-Length") or ""
    total = int(length) + start if length.isdigit() else None
    if response.status == 206:
        span = response.headers.get("Content-Range", "")
        first, _, whole = span.removeprefix("bytes ").partition("/")
        if first.split("-")[0] != str(start):
            partial.drop()
            raise _Passing(f"the server sent the range {span!r} and not the one that was asked for")
        total = int(whole) if whole.isdigit() else total
    if None not in (size, total) and total != size:
        partial.drop()
        raise FetchError(
            f"{url} has {total:,} bytes and {size:,} were expected: it is another file"
        )
    return size if size is not None else total


def _copy(response: Any, file: Any, name: str, total: int | None, start: int) -> None:
    from tqdm.auto import tqdm

    hidden = not sys.stderr.isatty()
    with tqdm(
        total=total, initial=start, desc=name, unit="B", unit_scale=True, disable=hidden
    ) as bar:
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
    for config, weights in LAYOUTS.items():
        found = _file(plain, config, revision, download_root)
        if found is None:
            continue
        _file(plain, "preprocessor_config.json", revision, download_root)
        for candidate in weights:
            file = _file(plain, candidate, revision, download_root)
            if file is not None and candidate.endswith(".index.json"):
                for shard in set(
                    json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()
                ):
                    _file(plain, shard, revision, download_root)
            if file is not None:
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


def _file(name: str, file: str, revision: str, download_root: _Root) -> Path | None:
    """The local copy of a file, downloaded if need be; None where the repository has no such file."""
    from huggingface_hub import errors, hf_hub_download

    try:
        return Path(
            hf_hub_download(name, file, revision=revision or None, cache_dir=download_root or None)
        )
    except errors.LocalEntryNotFoundError as error:
        if offline():
            return None
        reason = f"{file} is not in the cache and the hub did not answer ({error})"
        raise FetchError(f"hf-hub:{name}: {reason}") from error
    except errors.EntryNotFoundError:
        return None
    except errors.GatedRepoError as error:
        raise FetchError(
            f"hf-hub:{name} is gated: accept its terms on its page and run `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FetchError(
            f"hf-hub:{name} does not exist, or is private; then run `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FetchError(f"hf-hub:{name} has no revision {revision!r}") from error
    except (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, OSError) as error:
        raise FetchError(f"hf-hub:{name}: {file} could not be downloaded ({error})") from error
