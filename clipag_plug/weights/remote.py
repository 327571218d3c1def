"""Models from the network: downloaded under a lock, converted once, mapped from then on."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import cache, hub, opening, tensorfile
from .errors import BadFileError, FetchError
from .fetch import fetch
from .names import Name
from .registry import Checkpoint

_CONFIG, _RECORD, _CARD = "clipag_plug.config", "clipag_plug.record", "clipag_plug.card"
log = logging.getLogger("clipag_plug")


def open_remote(record: Checkpoint, stated: Name, download_root: Any) -> opening.Opened:
    """A registered model, from the cache or from the first of its sources that answers."""
    if not record.sources:
        raise FetchError(
            f"{record.key} has no address to load it from: {record.note}; once you have the file, "
            "load 'FILE#quickgelu,text=openai/ViT-B/32'"
        )
    path = cache.converted(_cache_name(record.key, stated), download_root)
    cached = _from_cache(path, record)
    if cached is not None:
        if _download(path).exists():  # its process was killed between converting and cleaning up
            with cache.lock(path):
                _download(path).unlink(missing_ok=True)
        return cached
    failures = []
    for source in record.sources:
        try:
            if source.startswith("hf-hub:"):
                return open_hub(source.removeprefix("hf-hub:"), record, stated, download_root)
            return _open_url(source, path, record, stated, download_root)
        except FetchError as error:
            failures.append(str(error))
            log.info("%s", error)
    raise FetchError(
        f"{record.key} could not be had from any of its {len(failures)} sources: "
        + "; ".join(failures)
    )


def _download(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".safetensors") + ".download")


def _open_url(
    url: str, path: Path, record: Checkpoint, stated: Name, download_root: Any
) -> opening.Opened:
    folder = cache.root(download_root)

    trust = cache.Trust(folder)

    def obtain() -> tuple[opening.Opened, list[Path]]:
        file = _download(path)
        seen = None if record.sha256 else trust.get(record.key)
        digest = fetch(
            url, file, name=record.key, size=record.size, sha256=record.sha256, seen=seen
        )
        try:
            opened = opening.open_file(file, record, stated, download_root)
        except BadFileError:
            # Kept, it would be refused again and again; gone, the next call downloads it anew.
            file.unlink(missing_ok=True)
            raise
        if not record.sha256 and seen is None:
            trust.put(record.key, digest, file.stat().st_size)
        return opened, [file]

    return _converted(path, record, obtain)


def open_hub(
    repository: str, record: Checkpoint, stated: Name, download_root: Any
) -> opening.Opened:
    """A Hugging Face repository in open_clip's or transformers' layout.

    safetensors that hold fp32 under OpenAI's names are mapped where the hub's cache has them;
    anything else is converted once into our own cache.
    """
    config, weights = hub.files(repository, download_root)
    # The hub's cache names a file's blob by its hash, and the snapshot links to it; where links are
    # not to be had, size and time stand for the hash.
    about = weights.stat()
    linked = weights.is_symlink()
    identity = weights.resolve().name[:16] if linked else f"{about.st_size}-{about.st_mtime_ns}"
    path = cache.converted(_cache_name(f"hf-{repository}-{identity}", stated), download_root)
    cached = _from_cache(path, record)
    if cached is not None:
        return cached
    opened = opening.open_parts(weights, config, record, stated, download_root)
    if (
        weights.suffix == ".safetensors"
        and config.name == "open_clip_config.json"
        and len(opened.files) == 1
    ):
        raw, _ = tensorfile.read(weights)
        if all(
            name in raw and raw[name].dtype == value.dtype
            for name, value in opened.state_dict.items()
        ):
            return opened
    return _converted(path, record, lambda: (opened, []))


def _converted(
    path: Path, record: Checkpoint, obtain: Callable[[], tuple[opening.Opened, list[Path]]]
) -> opening.Opened:
    with cache.lock(path):
        cached = _from_cache(path, record)  # another process may have been faster
        if cached is not None:
            return cached
        for leftover in path.parent.glob(f".{path.name}.*.tmp"):  # of a process that was killed
            leftover.unlink(missing_ok=True)
        opened, used = obtain()
        known = {name: getattr(opened.record, name) for name in ("arch", *_PREPROCESS)}
        tensorfile.write(
            path,
            opened.state_dict,
            {
                _CONFIG: json.dumps(opened.config),
                _RECORD: json.dumps(known),
                _CARD: json.dumps(opened.card),
            },
        )
        del opened
        for file in used:
            file.unlink(missing_ok=True)
    result = _from_cache(path, record)
    if result is None:
        raise FetchError(
            f"{str(path)!r} vanished right after it was written; is another program clearing the cache?"
        )
    return result


_PREPROCESS = ("quick_gelu", "mean", "std", "interpolation", "resize_mode", "resolution")


def _from_cache(path: Path, record: Checkpoint) -> opening.Opened | None:
    if not path.is_file():
        return None
    try:
        tensors, metadata = tensorfile.read(path)
        known = json.loads(metadata[_RECORD])
        config, card = json.loads(metadata[_CONFIG]), json.loads(metadata[_CARD])
    except (BadFileError, KeyError, ValueError) as error:
        reason = error.reason if isinstance(error, BadFileError) else "it lacks its config"
        raise BadFileError(path, f"{reason}; delete it, and the next call makes it anew") from error
    known = {
        name: tuple(value) if isinstance(value, list) else value for name, value in known.items()
    }
    return opening.Opened(replace(record, **known), config, tensors, card, (str(path),))


def _cache_name(name: str, stated: Name) -> str:
    """What the caller states about a file changes what is made of it, so it is part of the name."""
    parts = [name]
    if stated.quick_gelu is not None:
        parts.append("quickgelu" if stated.quick_gelu else "gelu")
    return "+".join([*parts, *filter(None, (stated.arch, stated.text_from))])


__all__ = ["open_hub", "open_remote"]
