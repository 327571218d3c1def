"""Opens a model by name: finds its file, reads it, and settles config, activation, pixels and text tower."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import write_text
from . import configs, fetch, layouts, read, registry
from .registry import (
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
    *("method", "norm", "eps", "base", "data", "licence", "paper"),
    *("results", "results_note", "note"),
)
UNPACKED = 2**26  # numbers in matrices that are stored without their empty rows
_TEXT = ("token_embedding.", "transformer.", "ln_final.", "text.")


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
        key = said.value if said.kind == "file" else os.fspath(name)
        source = f"{said.kind}:{said.value}"
        record = Checkpoint(key=key, sources=(source,), method="unknown", resolution=None)
    request = _Request(said, record, download_root)
    if record.bundled:
        return request.own(registry.bundled(record))
    if said.kind == "file":
        return request.file(Path(said.value))
    return request.folder(Path(said.value)) if said.kind == "local-dir" else request.remote()


def card_of(record: Checkpoint) -> dict[str, Any]:
    """What the registry and the file's config say, as the card of a model that brings none."""
    values = {name: getattr(record, name) for name in _CARD} | record.pixels
    return {name: value for name, value in values.items() if value not in (None, {}, ())}


@dataclass(frozen=True)
class _Request:
    """What is to be opened: the name that was given, what the registry knows of it, and the folder of the cache."""

    said: Name
    record: Checkpoint
    download_root: Any

    def file(self, path: Path) -> Opened:
        """A weight file; a config beside it is used if its name says that it belongs to it."""
        about = path.with_suffix(".json")
        if about != path and about.is_file() and "config" in configs.read_json(about):
            return self.own(path) if path.suffix == ".safetensors" else self.parts(path, about)
        beside = (path.with_name(c) for c, names in fetch.LAYOUTS.items() if path.name in names)
        return self.parts(path, next(filter(Path.is_file, beside), None))

    def folder(self, folder: Path) -> Opened:
        """A folder in open_clip's, transformers' or our own layout."""
        for config, names in fetch.LAYOUTS.items():
            if (folder / config).is_file():
                for file in names:
                    if (folder / file).is_file():
                        return self.parts(folder / file, folder / config)
                raise FileNotFoundError(
                    f"{str(folder)!r} has {config} and no weights; one of {', '.join(names)} belongs there"
                )
        pairs = {
            file: configs.read_json(file.with_suffix(".json"))
            for file in sorted(folder.glob("*.safetensors"))
            if file.with_suffix(".json").is_file()
        }
        shared = {about.get("shares_text_with") for about in pairs.values()}
        own = [file for file in pairs if file.stem not in shared]
        if len(own) == 1:
            return self.own(own[0])
        stopped = sorted([*folder.glob("checkpoint-*.pt"), *folder.glob("checkpoint.safetensors")])
        if stopped and not pairs:
            return self.parts(stopped[-1], None)
        raise FileNotFoundError(
            f"{str(folder)!r} has no open_clip_config.json, no transformers config.json and no single pair of "
            ".safetensors and .json; give the path of the weight file itself"
        )

    def own(self, path: Path) -> Opened:
        """A file in the layout of the models that come with the package."""
        if not path.is_file():
            raise FileNotFoundError(
                f"{str(path)!r} is missing from this installation; install the package again"
            )
        state, config, card = read_bundled(path)
        known: dict[str, Any] = {n: card[n] for n in ("norm", "eps", "method") if n in card}
        known |= {**configs.preprocessing(path, card), "arch": self.record.arch or "mini"}
        return self._settled(path, state, config, known, card)

    def parts(self, path: Path, about: Path | None) -> Opened:
        """A weight file and the config that belongs to it, if any.

        Config, activation and text tower are those of the file, the registry and the caller, in this order of
        authority from last to first; the first two must not contradict each other.
        """
        state, base, said = layouts.unify(_tensors(path)), None, self.said
        config, pixels = _described(about) if about else self._of_run(path)
        if not any(name.startswith(_TEXT) for name in state):
            base = self._text_tower(path)
            text = {n: v for n, v in base.state_dict.items() if not n.startswith("visual.")}
            state = {**text, **state}
            pixels = {**base.record.pixels, **pixels}
        elif said.text_from:
            raise ValueError(
                f"{str(path)!r} has a text tower of its own; leave text={said.text_from} out"
            )
        if config is None:
            config, usual = self._architecture(path, state, base)
            pixels = {**usual, **pixels}
        elif said.arch:
            raise ValueError(f"{str(path)!r} has a config of its own; leave arch={said.arch} out")
        if config["text_cfg"] is None:
            if base is None:
                why = "its config is of an image tower alone and its tensors are not"
                raise BadFileError(path, why)
            config = {**config, "text_cfg": base.config["text_cfg"]}
        config = {**config, "quick_gelu": self._activation(path, config, base)}
        known = {**pixels, "arch": said.arch or self.record.arch}
        return self._settled(path, state, config, known, {}, base.files if base else ())

    def _settled(
        self,
        path: Path,
        state: dict[str, Tensor],
        config: dict[str, Any],
        known: Mapping[str, Any],
        card: Mapping[str, Any],
        files: tuple[str, ...] = (),
    ) -> Opened:
        config = {**config, "quick_gelu": bool(config.get("quick_gelu"))}
        if not configs.is_ours(config):
            state = configs.fit(path, state, config)
        side, act = config["vision_cfg"].get("image_size", 224), config["quick_gelu"]
        record = replace(self.record, resolution=side, quick_gelu=act, **known)
        return Opened(record, config, state, {**card_of(record), **card}, (str(path), *files))

    def _of_run(self, path: Path) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """Config and pixels of a checkpoint of `clipag train`, from the recipe beside it."""
        recipe = path.with_name("recipe.json")
        if self.said.arch or not path.name.startswith("checkpoint") or not recipe.is_file():
            return None, {}
        start = configs.read_json(recipe)
        if text := start.get("architecture"):
            inline = text.lstrip().startswith("{")
            value = json.loads(text) if inline else configs.read_json(Path(text))
            return configs.from_open_clip(recipe, {"quick_gelu": False, **value}), {}
        if not (name := start.get("init")):
            return None, {}
        name = f"local-dir:{name}" if Path(name).is_dir() else name  # a run's folder
        initial = open_checkpoint(name, self.download_root)
        return initial.config, initial.record.pixels

    def _text_tower(self, path: Path) -> Opened:
        source = self.said.text_from or self.record.text_from
        if source:
            return open_checkpoint(source, self.download_root)
        key = self.record.key
        raise BadFileError(
            path,
            "it holds an image tower and no text tower; say whose text tower belongs to it, for example "
            f"'{key}#text=openai/ViT-B/32' or '{key}#text=laion/ViT-B/32'",
        )

    def _architecture(
        self, path: Path, state: Mapping[str, Tensor], base: Opened | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The config where the file brings none, and the pixels that belong to such an architecture."""
        arch = self.said.arch or self.record.arch
        if base is not None and not arch:
            return {name: v for name, v in base.config.items() if name != "quick_gelu"}, {}
        if not arch:
            shapes = {name: value.shape for name, value in state.items()}
            for record in filter(lambda record: record.bundled, registry.checkpoints()):
                known, config, card = read_bundled(registry.bundled(record))
                if {name: value.shape for name, value in known.items()} == shapes:
                    return config, configs.preprocessing(path, card)
            arch, config = configs.infer(path, state)
            return config, configs.published(arch)
        if (ours := registry.get(arch)) and ours.bundled:
            _, config, card = read_bundled(registry.bundled(ours))
            return config, configs.preprocessing(path, card)
        return configs.named(arch), configs.published(arch) if self.said.arch else {}

    def _activation(self, path: Path, config: dict[str, Any], base: Opened | None) -> bool:
        if self.said.quick_gelu is not None:
            return self.said.quick_gelu
        own, known, key = config.get("quick_gelu"), self.record.quick_gelu, self.record.key
        if own is None and known is None:
            if base is not None:
                return bool(base.config["quick_gelu"])
            raise UnknownActivationError(
                f"{str(path)!r} does not say whether it needs GELU or QuickGELU, and the wrong one gives wrong "
                f"features without any error: {HOW_TO_SAY.format(name=key)}"
            )
        if own is not None and known is not None and own != known:
            raise UnknownActivationError(
                f"the config of {key} says {_WORD[bool(own)]}, the registry {_WORD[known]}: one is wrong, and the "
                f"wrong one gives wrong features; {HOW_TO_SAY.format(name=key)}"
            )
        return bool(known if own is None else own)

    def remote(self) -> Opened:
        """A model from the cache or from the first of its sources that answers."""
        record = self.record
        if not record.sources:
            raise FetchError(
                f"{record.key} has no address to load it from: {record.note}; once you have the file, "
                "load 'FILE#quickgelu,text=openai/ViT-B/32'"
            )
        path = self._cache(record.key)
        download = path.with_name(path.name.removesuffix(".safetensors") + ".download")
        if path.is_file():
            opened = _from_cache(path, record)
            if download.exists():  # its process was killed between converting and cleaning up
                with fetch.lock(path):
                    download.unlink(missing_ok=True)
            return opened
        failures = []
        for source in record.sources:
            try:
                if source.startswith("hf-hub:"):
                    return self._hub(source.removeprefix("hf-hub:"))
                return self._url(source, path, download)
            except FetchError as error:
                failures.append(str(error))
                log.info("%s", error)
        if len(failures) == 1:
            raise FetchError(failures[0])
        raise FetchError(
            f"{record.key} could not be had from any of its {len(failures)} sources: {'; '.join(failures)}"
        )

    def _url(self, url: str, path: Path, download: Path) -> Opened:
        trust, record = fetch.Trust(path.parent), self.record

        def obtain() -> Opened:
            seen = None if record.sha256 else trust.get(record.key)
            known: dict[str, Any] = {"size": record.size, "sha256": record.sha256, "seen": seen}
            digest = fetch.fetch(url, download, name=record.key, **known)
            try:
                opened = self.file(download)
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

    def _hub(self, name: str) -> Opened:
        """A repository: open_clip's safetensors are read where the hub's cache has them, anything else is converted
        once into our own."""
        folder = fetch.repository(name, self.download_root)
        if (folder / "open_clip_config.json").is_file() and [
            *folder.glob("open_clip*.safetensors")
        ]:
            return self.folder(folder)
        path = self._cache(f"hf-{name}-{folder.name[:16]}")
        return _converted(path, self.record, lambda: self.folder(folder))

    def _cache(self, name: str) -> Path:
        """What the caller states about a file changes what is made of it, so it is part of the name."""
        act = {True: "quickgelu", False: "gelu", None: None}[self.said.quick_gelu]
        stated = filter(None, (act, self.said.arch, self.said.text_from))
        return fetch.converted("+".join([name, *stated]), self.download_root)


def read_bundled(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """State dict in fp32, config and card of a `.safetensors` file in our own layout and the `.json` beside it."""
    about = configs.read_json(path.with_suffix(".json"))
    config = configs.from_open_clip(path.with_suffix(".json"), {"config": about.get("config")})
    values, _ = read.tensors(path)
    state: dict[str, Tensor] = {}
    if key := about.get("shares_text_with"):
        if key == path.stem or Path(key).name != key:
            why = f"it shares the text tower of {key!r}, which is no other model here"
            raise BadFileError(path, why)
        state = text_tower(path.with_name(f"{key}.safetensors"))
    total = 0
    for name, shape in dict(about.get("packed") or {}).items():
        rows, index = values.pop(f"{name}.rows", None), values.pop(f"{name}.index", None)
        if rows is None or index is None or len(shape) != 2 or rows.shape != (len(index), shape[1]):
            why = f"its .json packs {name!r}, and the rows in the file do not fit"
            raise BadFileError(path, why)
        total += shape[0] * shape[1]
        if total > UNPACKED or not all(0 <= row < shape[0] for row in index.tolist()):
            why = f"its .json packs {name!r}, and the shape {shape} does not fit"
            raise BadFileError(path, why)
        state[name] = torch.zeros(shape, dtype=torch.float32)
        state[name][index.long()] = rows.float()
    return {**state, **layouts.unify(values)}, config, dict(about.get("card") or {})


def text_tower(path: Path) -> dict[str, Tensor]:
    """The tensors of a bundled model's text tower."""
    state = read_bundled(path)[0]
    return {name: value for name, value in state.items() if not name.startswith("visual.")}


def _described(about: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Config and pixels in a file beside the weights."""
    config, value = configs.named(str(about)), configs.read_json(about)
    pixels = configs.preprocessing(about, value.get("preprocess_cfg") or value.get("card") or {})
    processor = about.with_name("preprocessor_config.json")
    if about.name == "config.json" and processor.is_file():
        pixels = configs.preprocessing(processor, configs.read_json(processor))
    return {"quick_gelu": False, **config}, pixels  # left out by open_clip where it is plain GELU


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


def _converted(path: Path, record: Checkpoint, obtain: Callable[[], Opened]) -> Opened:
    """The model in our cache, made by `obtain` and written where it is not there yet; then mapped."""
    with contextlib.nullcontext() if path.is_file() else fetch.lock(path):
        if not path.is_file():  # another process may have been faster
            for leftover in path.parent.glob(f".{path.stem}.*.tmp*"):  # of one that was killed
                leftover.unlink(missing_ok=True)
            opened = obtain()
            made = opened.record
            known = {name: getattr(made, name) for name in ("arch", "quick_gelu", "resolution")}
            known |= made.pixels
            about = {"config": opened.config, "record": known, "card": opened.card}
            metadata = {f"clipag_plug.{name}": json.dumps(value) for name, value in about.items()}
            read.write(path, opened.state_dict, metadata)
    return _from_cache(path, record)


def _from_cache(path: Path, record: Checkpoint) -> Opened:
    try:
        about, note = path.stat(), fetch.checked(path)
        # Reading all of it to compare its checksum takes longer than the rest; a change to the file changes one of
        # these.
        state = f"{about.st_size} {about.st_mtime_ns} {about.st_ino}"
        known_good = note.is_file() and note.read_text(encoding="utf-8") == state
        tensors, metadata = read.tensors(path, mapped=True, check=not known_good)
        config, known, card = (
            json.loads(metadata[f"clipag_plug.{name}"]) for name in ("config", "record", "card")
        )
    except FileNotFoundError as error:
        raise FetchError(
            f"{str(path)!r} vanished right after it was written; is another program clearing the cache?"
        ) from error
    except (BadFileError, KeyError, ValueError) as error:
        reason = error.reason if isinstance(error, BadFileError) else "it lacks its config"
        raise BadFileError(path, f"{reason}; delete it, and the next call makes it anew") from error
    if not known_good:
        with contextlib.suppress(OSError):  # a cache that others own
            write_text(note, state)
    known = {name: tuple(v) if isinstance(v, list) else v for name, v in known.items()}
    return Opened(replace(record, **known), config, tensors, card, (str(path),))
