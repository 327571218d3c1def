"""Opens a model by name: finds its file, reads it, and settles config, activation, pixels and text tower."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import write_text
from . import configs, fetch, layouts, read, registry
from .registry import (
    PREPROCESSING,
    BadFileError,
    Checkpoint,
    FetchError,
    Name,
    UnknownActivationError,
)

log = logging.getLogger("clipag_plug")
HOW_TO_SAY = (
    "append what the file does not say to its name: '{name}#gelu' for LAION-based weights or '{name}#quickgelu' for "
    "OpenAI-based ones"
)
_WORD = {True: "QuickGELU", False: "GELU"}
_CARD = (
    "method",
    "norm",
    "eps",
    "base",
    "data",
    "licence",
    "paper",
    "results",
    "results_note",
    "note",
)
UNPACKED = 2**26  # numbers in matrices that are stored without their empty rows


@dataclass
class Opened:
    """An opened model: its record, open_clip's config with `quick_gelu` settled, its weights in fp32, its card (which
    always has the "mean" and "std" of the model's input), and the files that were read."""

    record: Checkpoint
    config: dict[str, Any]
    state_dict: dict[str, Tensor]
    card: dict[str, Any]
    files: tuple[str, ...] = ()


def open_checkpoint(
    name: str | os.PathLike[str], download_root: str | os.PathLike[str] | None = None
) -> Opened:
    """Opens a registered key, `hf-hub:org/name`, `local-dir:path` or the path of a file.

    What a file does not say is appended to its name: `weights.pt#quickgelu,text=openai/ViT-B/32`. A user's file is read
    into memory; only files of the package's own cache are mapped.
    Raises: ValueError or FileNotFoundError for names and files, FetchError for downloads.
    """
    said = registry.parse(name)
    record = registry.get(said.value) if said.kind == "key" else None
    if record is None:
        whole = said.value if said.kind == "file" else os.fspath(name)
        record = Checkpoint(key=whole, sources=(whole,), method="unknown", resolution=None)
    if record.bundled:
        return _bundled(bundled(record), record)
    if said.kind == "file":
        return open_file(Path(said.value), record, said, download_root)
    if said.kind == "local-dir":
        return open_folder(Path(said.value), record, said, download_root)
    return _remote(record, said, download_root)


def bundled(record: Checkpoint) -> Path:
    """The weights of a model that comes with the package."""
    return Path(str(resources.files("clipag_plug.bundled"))) / f"{record.key}.safetensors"


def open_file(path: Path, record: Checkpoint, said: Name, download_root: Any = None) -> Opened:
    """A weight file; a config beside it is used if its name says that it belongs to it."""
    about = path.with_suffix(".json")
    if about != path and about.is_file() and "config" in configs.read_json(about):
        if path.suffix == ".safetensors":
            return _bundled(path, record)
        return _parts(path, about, record, said, download_root)
    for config, names in fetch.LAYOUTS.items():
        if path.name in names and (path.parent / config).is_file():
            return _parts(path, path.parent / config, record, said, download_root)
    return _parts(path, None, record, said, download_root)


def open_folder(folder: Path, record: Checkpoint, said: Name, download_root: Any = None) -> Opened:
    """A folder in open_clip's, transformers' or our own layout."""
    for config, names in fetch.LAYOUTS.items():
        if (folder / config).is_file():
            for file in names:
                if (folder / file).is_file():
                    return _parts(folder / file, folder / config, record, said, download_root)
            raise FileNotFoundError(
                f"{str(folder)!r} has {config} and no weights; one of {', '.join(names)} belongs there"
            )
    pairs = {
        file: configs.read_json(file.with_suffix(".json"))
        for file in sorted(folder.glob("*.safetensors"))
        if file.with_suffix(".json").is_file()
    }
    shared = {about.get("shares_text_with") for about in pairs.values()} - {None}
    own = [file for file in pairs if file.stem not in shared]
    if len(own) == 1:
        return _bundled(own[0], record)
    stopped = sorted([*folder.glob("checkpoint-*.pt"), *folder.glob("checkpoint.safetensors")])
    if not pairs and stopped:
        return _parts(stopped[-1], None, record, said, download_root)
    raise FileNotFoundError(
        f"{str(folder)!r} has no open_clip_config.json, no transformers config.json and no single pair of .safetensors "
        "and .json; give the path of the weight file itself"
    )


def _bundled(path: Path, record: Checkpoint) -> Opened:
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(path)!r} is missing from this installation; install the package again"
        )
    state, config, card = read_bundled(path)
    known: dict[str, Any] = {name: card[name] for name in ("norm", "eps", "method") if name in card}
    known |= configs.preprocessing(path, card)
    known |= {
        "resolution": config["vision_cfg"].get("image_size", 224),
        "arch": record.arch or "mini",
    }
    record = replace(record, quick_gelu=bool(config.get("quick_gelu")), **known)
    config = {**config, "quick_gelu": record.quick_gelu}
    if not configs.is_ours(config):
        state = configs.fit(path, state, config)
    return Opened(record, config, state, {**card_of(record), **card}, (str(path),))


def read_bundled(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """State dict in fp32, config and card of a `.safetensors` file in our own layout and the `.json` beside it."""
    about = configs.read_json(path.with_suffix(".json"))
    config = configs.from_open_clip(path.with_suffix(".json"), {"config": about.get("config")})
    values, _ = read.tensors(path)
    state: dict[str, Tensor] = {}
    if key := about.get("shares_text_with"):
        if key == path.stem or Path(key).name != key:
            raise BadFileError(
                path, f"it shares the text tower of {key!r}, which is no other model here"
            )
        shared = read_bundled(path.with_name(f"{key}.safetensors"))[0]
        state = {name: value for name, value in shared.items() if not name.startswith("visual.")}
    total = 0
    for name, shape in dict(about.get("packed") or {}).items():
        rows, index = values.pop(f"{name}.rows", None), values.pop(f"{name}.index", None)
        if rows is None or index is None or len(shape) != 2 or rows.shape != (len(index), shape[1]):
            raise BadFileError(
                path, f"its .json packs {name!r}, and the rows in the file do not fit"
            )
        total += shape[0] * shape[1]
        if total > UNPACKED or not all(0 <= row < shape[0] for row in index.tolist()):
            raise BadFileError(
                path, f"its .json packs {name!r}, and the shape {shape} does not fit"
            )
        state[name] = torch.zeros(shape, dtype=torch.float32)
        state[name][index.long()] = rows.float()
    return {**state, **layouts.unify(values)}, config, dict(about.get("card") or {})


def _parts(
    path: Path, about: Path | None, record: Checkpoint, said: Name, download_root: Any
) -> Opened:
    """A weight file and the config that belongs to it, if any: reads both, settles what is open."""
    state = layouts.unify(_tensors(path))
    config: dict[str, Any] | None = None
    pixels: dict[str, Any] = {}
    recipe = path.with_name("recipe.json")
    if path.name.startswith("checkpoint") and recipe.is_file() and not said.arch:
        start = configs.read_json(recipe)
        if text := start.get("architecture"):
            own = (
                json.loads(text) if text.lstrip().startswith("{") else configs.read_json(Path(text))
            )
            config = configs.from_open_clip(recipe, {"quick_gelu": False, **own})
        elif start.get("init"):
            name = start["init"]  # of a run's folder, too
            name = f"local-dir:{name}" if Path(name).is_dir() else name
            initial = open_checkpoint(name, download_root)
            config = initial.config
            pixels = {name: getattr(initial.record, name) for name in PREPROCESSING}
    if about is not None:
        config = configs.named(str(about))
        value = configs.read_json(about)
        pixels = configs.preprocessing(
            about, value.get("preprocess_cfg") or value.get("card") or {}
        )
        processor = about.with_name("preprocessor_config.json")
        if about.name == "config.json" and processor.is_file():
            pixels = configs.preprocessing(processor, configs.read_json(processor))
        config.setdefault("quick_gelu", False)  # open_clip leaves it out where it means plain GELU
    return _settle(path, state, config, pixels, record, said, download_root)


def _tensors(path: Path) -> dict[str, Tensor]:
    """One file, or all that an `.index.json` names."""
    if not path.name.endswith(".index.json"):
        return read.tensors(path, lambda found: layouts.choose(path, found))[0]
    table = configs.read_json(path).get("weight_map")
    table = table if isinstance(table, dict) else {}
    shards = sorted(map(str, set(table.values())))
    if not shards or any(Path(shard).name != shard for shard in shards):
        raise BadFileError(path, "its weight_map names no files of its folder")
    merged: dict[str, Tensor] = {}
    for shard in shards:
        merged |= read.tensors(path.with_name(shard))[0]
    lost = sorted(set(table) - set(merged))
    if lost:
        raise BadFileError(path, f"its shards lack {len(lost)} tensors, such as {lost[0]!r}")
    return layouts.choose(path, merged)


def _settle(
    path: Path,
    state: dict[str, Tensor],
    config: dict[str, Any] | None,
    pixels: Mapping[str, Any],
    record: Checkpoint,
    said: Name,
    download_root: Any,
) -> Opened:
    """Config, activation and text tower from the file, the registry and the caller, in this order
    of authority from last to first; the first two must not contradict each other."""
    base = None
    if not any(
        n.startswith(("token_embedding.", "transformer.", "ln_final.", "text.")) for n in state
    ):
        base = _text_tower(path, state, record, said, download_root)
        text = {n: v for n, v in base.state_dict.items() if not n.startswith("visual.")}
        state = {**text, **state}
        pixels = {**{name: getattr(base.record, name) for name in PREPROCESSING}, **pixels}
    elif said.text_from:
        raise ValueError(
            f"{str(path)!r} has a text tower of its own; leave text={said.text_from} out"
        )
    if config is not None and said.arch:
        raise ValueError(f"{str(path)!r} has a config of its own; leave arch={said.arch} out")
    config, own = _config(path, state, config, record, said, base)
    if config["text_cfg"] is None and base is None:
        raise BadFileError(path, "its config is of an image tower alone and its tensors are not")
    if config["text_cfg"] is None and base is not None:
        config = {**config, "text_cfg": base.config["text_cfg"]}
    config = {**config, "quick_gelu": _activation(path, config, record, said, base)}
    if not configs.is_ours(config):
        state = configs.fit(path, state, config)
    known = {**own, **pixels, "arch": said.arch or record.arch, "quick_gelu": config["quick_gelu"]}
    record = replace(record, resolution=config["vision_cfg"].get("image_size", 224), **known)
    files = (str(path), *(base.files if base else ()))
    return Opened(record, config, state, card_of(record), files)


def _config(
    path: Path,
    state: Mapping[str, Tensor],
    config: dict[str, Any] | None,
    record: Checkpoint,
    said: Name,
    base: Opened | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config, and the pixels that belong to its architecture where the file does not say them."""
    arch = said.arch or record.arch
    if config is not None:
        return config, {}
    if base is not None and not arch:
        return {name: value for name, value in base.config.items() if name != "quick_gelu"}, {}
    if not arch:
        for about in (read_bundled(bundled(r)) for r in registry.checkpoints() if r.bundled):
            if {n: v.shape for n, v in about[0].items()} == {n: v.shape for n, v in state.items()}:
                return about[1], configs.preprocessing(path, about[2])
        arch, config = configs.infer(path, state)
        return config, configs.published(arch)
    if (known := registry.get(arch)) and known.bundled:
        _, config, card = read_bundled(bundled(known))
        return config, configs.preprocessing(path, card)
    return configs.named(arch), configs.published(arch) if said.arch else {}


def _activation(
    path: Path, config: dict[str, Any], record: Checkpoint, said: Name, base: Opened | None
) -> bool:
    if said.quick_gelu is not None:
        return said.quick_gelu
    own, known = config.get("quick_gelu"), record.quick_gelu
    if own is None and known is None and base is not None:
        return bool(base.config["quick_gelu"])
    if own is None and known is None:
        raise UnknownActivationError(
            f"{str(path)!r} does not say whether it needs GELU or QuickGELU, and the wrong one gives wrong features "
            f"without any error: {HOW_TO_SAY.format(name=record.key)}"
        )
    if own is not None and known is not None and own != known:
        raise UnknownActivationError(
            f"the config of {record.key} says {_WORD[bool(own)]}, the registry {_WORD[known]}: one is wrong, and the "
            f"wrong one gives wrong features; {HOW_TO_SAY.format(name=record.key)}"
        )
    return bool(known if own is None else own)


def _text_tower(
    path: Path, state: Mapping[str, Tensor], record: Checkpoint, said: Name, download_root: Any
) -> Opened:
    source = said.text_from or record.text_from
    if not source:
        raise BadFileError(
            path,
            "it holds an image tower and no text tower; say whose text tower belongs to it, for example "
            f"'{record.key}#text=openai/ViT-B/32' or '{record.key}#text=laion/ViT-B/32'",
        )
    return open_checkpoint(source, download_root)


def card_of(record: Checkpoint) -> dict[str, Any]:
    """What the registry and the file's config say, as the card of a model that brings none."""
    values = {name: getattr(record, name) for name in (*_CARD, *PREPROCESSING)}
    return {name: value for name, value in values.items() if value not in (None, {}, ())}


def _remote(record: Checkpoint, said: Name, download_root: Any) -> Opened:
    """A model from the cache or from the first of its sources that answers."""
    sources = record.sources if said.kind == "key" else (f"hf-hub:{said.value}",)
    if not sources:
        raise FetchError(
            f"{record.key} has no address to load it from: {record.note}; once you have the file, "
            "load 'FILE#quickgelu,text=openai/ViT-B/32'"
        )
    path = fetch.converted(_cache_name(record.key, said), download_root)
    download = path.with_name(path.name.removesuffix(".safetensors") + ".download")
    cached = _from_cache(path, record)
    if cached is not None:
        if download.exists():  # its process was killed between converting and cleaning up
            with fetch.lock(path):
                download.unlink(missing_ok=True)
        return cached
    failures = []
    for source in sources:
        try:
            if source.startswith("hf-hub:"):
                return _hub(source.removeprefix("hf-hub:"), record, said, download_root)
            return _url(source, path, download, record, said, download_root)
        except FetchError as error:
            failures.append(str(error))
            log.info("%s", error)
    if len(failures) == 1:
        raise FetchError(failures[0])
    raise FetchError(
        f"{record.key} could not be had from any of its {len(failures)} sources: {'; '.join(failures)}"
    )


def _url(
    url: str, path: Path, download: Path, record: Checkpoint, said: Name, download_root: Any
) -> Opened:
    trust = fetch.Trust(path.parent)

    def obtain() -> Opened:
        seen = None if record.sha256 else trust.get(record.key)
        digest = fetch.fetch(
            url, download, name=record.key, size=record.size, sha256=record.sha256, seen=seen
        )
        try:
            opened = open_file(download, record, said, download_root)
        except BadFileError:
            # Kept, it would be refused again and again; gone, the next call downloads it anew.
            download.unlink(missing_ok=True)
            raise
        if not record.sha256 and seen is None:
            trust.put(record.key, digest, download.stat().st_size)
        return opened

    opened = _converted(path, record, obtain)
    download.unlink(missing_ok=True)
    return opened


def _hub(name: str, record: Checkpoint, said: Name, download_root: Any) -> Opened:
    """A repository: open_clip's safetensors are read where the hub's cache has them, anything else is converted once
    into our own."""
    folder = fetch.repository(name, download_root)
    if (folder / "open_clip_config.json").is_file() and list(folder.glob("open_clip*.safetensors")):
        return open_folder(folder, record, said, download_root)
    path = fetch.converted(_cache_name(f"hf-{name}-{folder.name[:16]}", said), download_root)
    return _converted(path, record, lambda: open_folder(folder, record, said, download_root))


def _converted(path: Path, record: Checkpoint, obtain: Callable[[], Opened]) -> Opened:
    """The model in our cache, made by `obtain` and written where it is not there yet; then mapped."""
    cached = _from_cache(path, record)
    if cached is not None:
        return cached
    with fetch.lock(path):
        cached = _from_cache(path, record)  # another process may have been faster
        if cached is not None:
            return cached
        for leftover in path.parent.glob(f".{path.stem}.*.tmp*"):  # of a process that was killed
            leftover.unlink(missing_ok=True)
        opened = obtain()
        known = {
            n: getattr(opened.record, n)
            for n in ("arch", "quick_gelu", "resolution", *PREPROCESSING)
        }
        about = {"config": opened.config, "record": known, "card": opened.card}
        metadata = {f"clipag_plug.{name}": json.dumps(value) for name, value in about.items()}
        read.write(path, opened.state_dict, metadata)
    result = _from_cache(path, record)
    if result is None:
        raise FetchError(
            f"{str(path)!r} vanished right after it was written; is another program clearing the cache?"
        )
    return result


def _from_cache(path: Path, record: Checkpoint) -> Opened | None:
    if not path.is_file():
        return None
    about, note = path.stat(), fetch.checked(path)
    # Reading all of it to compare its checksum takes longer than the rest; a change to the file changes one of these.
    state = f"{about.st_size} {about.st_mtime_ns} {about.st_ino}"
    known_good = note.is_file() and note.read_text(encoding="utf-8") == state
    try:
        tensors, metadata = read.tensors(path, mapped=True, check=not known_good)
        config, known, card = (
            json.loads(metadata[f"clipag_plug.{name}"]) for name in ("config", "record", "card")
        )
    except (BadFileError, KeyError, ValueError) as error:
        reason = error.reason if isinstance(error, BadFileError) else "it lacks its config"
        raise BadFileError(path, f"{reason}; delete it, and the next call makes it anew") from error
    if not known_good:
        with contextlib.suppress(OSError):  # a cache that others own
            write_text(note, state)
    known = {
        name: tuple(value) if isinstance(value, list) else value for name, value in known.items()
    }
    return Opened(replace(record, **known), config, tensors, card, (str(path),))


def _cache_name(name: str, said: Name) -> str:
    """What the caller states about a file changes what is made of it, so it is part of the name."""
    gelu = {True: "quickgelu", False: "gelu", None: None}[said.quick_gelu]
    return "+".join([name, *filter(None, (gelu, said.arch, said.text_from))])
