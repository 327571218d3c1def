"""Opens a model by name: finds its file, reads it, and settles config, activation and text tower."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from torch import Tensor

from . import configs, names, pack, registry, weights
from .check import check
from .errors import BadFileError, UnknownActivationError
from .names import Name
from .registry import Checkpoint


@dataclass
class Opened:
    """An opened model: its record, open_clip's config (with `quick_gelu` settled), its weights in
    fp32 under OpenAI's names, its card, and the files that were read."""

    record: Checkpoint
    config: dict[str, Any]
    state_dict: dict[str, Tensor]
    card: dict[str, Any]
    files: tuple[str, ...] = field(default=())


def open_checkpoint(
    name: str | os.PathLike[str],
    download_root: str | os.PathLike[str] | None = None,
    *,
    quick_gelu: bool | None = None,
    arch: str | None = None,
    text_from: str | None = None,
) -> Opened:
    """Opens a registered key, `hf-hub:org/name`, `local-dir:path` or a file path.

    quick_gelu, arch and text_from state what a bare file does not say; they can also be appended
    to the name (`weights.pt#quickgelu,text=openai/ViT-B/32`). Raises ValueError or
    FileNotFoundError for names and files, FetchError for downloads.
    """
    parsed = names.parse(name)
    given: dict[str, Any] = {"quick_gelu": quick_gelu, "arch": arch, "text_from": text_from}
    parsed = replace(parsed, **{key: value for key, value in given.items() if value is not None})
    if parsed.kind == "key":
        return _open_key(parsed, download_root)
    if parsed.kind == "hf-hub":
        from .remote import open_hub

        return open_hub(parsed.value, _unregistered(os.fspath(name)), parsed, download_root)
    if parsed.kind == "local-dir":
        return open_folder(
            Path(parsed.value), _unregistered(os.fspath(name)), parsed, download_root
        )
    return open_file(Path(parsed.value), _unregistered(parsed.value), parsed, download_root)


def _open_key(parsed: Name, download_root: Any) -> Opened:
    record = registry.find(parsed.value)
    if record.bundled:
        with resources.as_file(resources.files("clipag_plug.bundled")) as folder:
            path = folder / f"{record.key}.safetensors"
            if not path.is_file():
                raise FileNotFoundError(
                    f"{record.key} is not in this installation ({str(path)!r} is missing); install the package again"
                )
            return _open_bundled(path, record)
    from .remote import open_remote

    return open_remote(record, parsed, download_root)


def _unregistered(name: str) -> Checkpoint:
    return Checkpoint(key=name, sources=(name,), method="unknown", resolution=None)


def open_file(path: Path, record: Checkpoint, stated: Name, download_root: Any = None) -> Opened:
    """A weight file. A `.json` with the same stem (the bundled format) or an `open_clip_config.json`
    or `config.json` beside it gives the config; otherwise the tensors and the caller do."""
    beside = path.with_suffix(".json")
    if path.suffix == ".safetensors" and beside.is_file() and "config" in configs.read_json(beside):
        return _open_bundled(path, record)
    if not path.is_file():
        raise FileNotFoundError(f"the weight file {str(path)!r} does not exist")
    if path.name in _OPEN_CLIP_WEIGHTS and (path.parent / "open_clip_config.json").is_file():
        return open_parts(
            path, path.parent / "open_clip_config.json", record, stated, download_root
        )
    if path.name in _TRANSFORMERS_WEIGHTS and (path.parent / "config.json").is_file():
        return open_parts(path, path.parent / "config.json", record, stated, download_root)
    return open_parts(path, None, record, stated, download_root)


def open_folder(
    folder: Path, record: Checkpoint, stated: Name, download_root: Any = None
) -> Opened:
    """A folder in open_clip's, transformers' or the bundled layout."""
    for config, files in (
        ("open_clip_config.json", _OPEN_CLIP_WEIGHTS),
        ("config.json", _TRANSFORMERS_WEIGHTS),
    ):
        if (folder / config).is_file():
            for file in files:
                if (folder / file).is_file():
                    return open_parts(folder / file, folder / config, record, stated, download_root)
            raise FileNotFoundError(
                f"{str(folder)!r} has {config} and no weights; one of {', '.join(files)} belongs there"
            )
    pairs = [
        file for file in sorted(folder.glob("*.safetensors")) if file.with_suffix(".json").is_file()
    ]
    own = [
        file
        for file in pairs
        if "shares_text_with" in configs.read_json(file.with_suffix(".json")) or len(pairs) == 1
    ]
    derived = [
        file for file in own if configs.read_json(file.with_suffix(".json")).get("shares_text_with")
    ]
    choice = derived if len(derived) == 1 else own
    if len(choice) == 1:
        return _open_bundled(choice[0], record)
    raise FileNotFoundError(
        f"{str(folder)!r} has no open_clip_config.json, no transformers config.json and no single pair of "
        ".safetensors and .json; give the path of the weight file itself"
    )


_OPEN_CLIP_WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_TRANSFORMERS_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def _open_bundled(path: Path, record: Checkpoint) -> Opened:
    state, config, card = pack.read_bundled(path)
    side = config.get("vision_cfg", {}).get("image_size", 224)
    record = replace(
        record,
        arch=record.arch or "mini",
        quick_gelu=bool(config.get("quick_gelu", False)),
        resolution=side,
        norm=card.get("norm", record.norm),
        eps=card.get("eps", record.eps),
        method=card.get("method", record.method),
        mean=tuple(card.get("mean", record.mean)),
        std=tuple(card.get("std", record.std)),
    )
    config = {**config, "quick_gelu": record.quick_gelu}
    if "mini" not in config.get("vision_cfg", {}):
        check(path, state, config)
    return Opened(record, config, state, {**card_of(record), **card}, (str(path),))


def open_parts(
    path: Path, config_path: Path | None, record: Checkpoint, stated: Name, download_root: Any
) -> Opened:
    """A weight file and the config that belongs to it, if any: reads both, settles what is open."""
    state, _ = weights.read(path)
    config: dict[str, Any] | None = None
    preprocess: dict[str, Any] = {}
    if config_path is not None and config_path.name == "config.json":
        config = configs.from_transformers(config_path)
    elif config_path is not None:
        config, preprocess = configs.from_open_clip(config_path)
        # open_clip leaves the key out where it means plain GELU.
        config.setdefault("quick_gelu", False)
    return settle(path, state, config, preprocess, record, stated, download_root)


def settle(
    path: Path,
    state: dict[str, Tensor],
    config: dict[str, Any] | None,
    preprocess: dict[str, Any],
    record: Checkpoint,
    stated: Name,
    download_root: Any,
) -> Opened:
    """Config, activation and text tower from the file, the registry and the caller, in this order
    of authority from last to first; the first two must not contradict each other."""
    base = None
    if not any(
        name.startswith(("token_embedding.", "transformer.", "ln_final.")) for name in state
    ):
        base = _text_tower(path, record, stated, download_root)
        state = {
            **{
                name: value
                for name, value in base.state_dict.items()
                if not name.startswith("visual.")
            },
            **state,
        }
    elif stated.text_from:
        raise ValueError(
            f"{str(path)!r} has a text tower of its own; leave text={stated.text_from} out"
        )
    if config is not None and stated.arch:
        raise ValueError(f"{str(path)!r} has a config of its own; leave arch={stated.arch} out")
    arch = stated.arch or record.arch
    if config is None:
        if arch:
            config = configs.named(arch)
        elif base is not None:
            config = {name: value for name, value in base.config.items() if name != "quick_gelu"}
        else:
            config = configs.from_shapes(path, state)
    config = {**config, "quick_gelu": _activation(path, config, record, stated, base)}
    check(path, state, config)
    side = config["vision_cfg"].get("image_size", 224)
    known = {
        name: preprocess[name] for name in ("interpolation", "resize_mode") if preprocess.get(name)
    }
    known |= {name: tuple(preprocess[name]) for name in ("mean", "std") if preprocess.get(name)}
    record = replace(record, arch=arch, quick_gelu=config["quick_gelu"], resolution=side, **known)
    files = (str(path), *(base.files if base else ()))
    return Opened(record, config, state, card_of(record), files)


def _activation(
    path: Path, config: dict[str, Any], record: Checkpoint, stated: Name, base: Opened | None
) -> bool:
    if stated.quick_gelu is not None:
        return stated.quick_gelu
    own, known = config.get("quick_gelu"), record.quick_gelu
    if own is None and known is None and base is not None:
        return bool(base.config["quick_gelu"])
    if own is None and known is None:
        raise UnknownActivationError(
            f"{str(path)!r} does not say whether it needs GELU or QuickGELU, and the wrong one gives wrong features "
            "without any error: " + names.HOW_TO_SAY.format(name=record.key)
        )
    if own is not None and known is not None and own != known:
        word = {True: "QuickGELU", False: "GELU"}
        raise UnknownActivationError(
            f"the config of {record.key} says {word[bool(own)]} and the registry {word[known]}: one is wrong, and the "
            "wrong activation gives wrong features; " + names.HOW_TO_SAY.format(name=record.key)
        )
    return bool(known if own is None else own)


def _text_tower(path: Path, record: Checkpoint, stated: Name, download_root: Any) -> Opened:
    source = stated.text_from or record.text_from
    if not source:
        raise BadFileError(
            path,
            "it holds an image tower and no text tower; say whose text tower belongs to it, for example "
            f"'{record.key}#text=openai/ViT-B/32' or '{record.key}#text=laion/ViT-B/32'",
        )
    return open_checkpoint(source, download_root)


def card_of(record: Checkpoint) -> dict[str, Any]:
    """What the registry knows, as the card of a model that brings none."""
    wanted = (
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
    values = {name: getattr(record, name) for name in wanted}
    return {name: value for name, value in values.items() if value not in (None, {}, ())}
