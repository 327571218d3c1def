"""`clipag doctor`: is this model's file there, whole, and run with the right activation; and what to do."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from ..options.doctor import Doctor
from . import cache, names, registry
from .errors import BadFileError, FetchError, UnknownActivationError
from .listing import whereabouts

_PACKAGES = ("torch", "open_clip_torch", "safetensors", "huggingface_hub", "torchvision", "timm")
_WORDS = {True: "QuickGELU", False: "GELU"}


@dataclass(frozen=True)
class Finding:
    """One checked thing. advice: what to do; empty where nothing is to be done."""

    what: str
    good: bool
    says: str
    advice: str = ""


def run(options: Doctor) -> int:
    """Prints the findings; 0 when all are good, 1 otherwise."""
    if options.forget:
        found = forget(options.model)
    else:
        found = list(examine(options.model))
    if options.json:
        print(json.dumps([asdict(finding) for finding in found], indent=1, ensure_ascii=False))
    else:
        for finding in found:
            print(f"{'ok ' if finding.good else 'BAD'}  {finding.what:<12} {finding.says}")
            if finding.advice:
                print(f"{'':18}-> {finding.advice}")
    return 0 if all(finding.good for finding in found) else 1


def examine(model: str = "") -> Iterator[Finding]:
    """Checks the installation and, where one is named, a model. Nothing is downloaded."""
    yield from _surroundings()
    if not model:
        return
    name = names.parse(model)
    record = registry.find(name.value) if name.kind == "key" else None
    if record and not record.bundled:
        yield from _cached(record)
        if whereabouts(record) != "cached":
            return
    previous = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield from _weights(model)
    finally:
        if previous is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = previous


def forget(model: str) -> list[Finding]:
    """Deletes the cached weights and the recorded hash of a registered model."""
    record = registry.find(model)
    root = cache.root()
    stem = cache.slug(record.key)
    mine = (f"{stem}.v", f"{stem}+")
    there = root.iterdir() if root.is_dir() else ()
    files = [file for file in there if file.name.startswith(mine) and file.suffix != ".lock"]
    for file in files:
        file.unlink()
    known = cache.Trust(root).forget(record.key)
    return [
        Finding(
            "forgotten",
            True,
            f"{len(files)} cached file(s) and {'the' if known else 'no'} recorded hash",
        )
    ]


def _surroundings() -> Iterator[Finding]:
    versions = []
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            yield Finding("package", False, f"{package} is not installed", f"pip install {package}")
    yield Finding("versions", True, f"python {platform.python_version()}, {', '.join(versions)}")
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    yield Finding("device", True, f"{device}, {torch.get_num_threads()} threads")
    root = cache.root()
    there = next(folder for folder in (root, *root.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    writable = os.access(there, os.W_OK)
    advice = (
        ""
        if writable and free > 2 * 10**9
        else "set CLIPAG_HOME to a folder on a larger disk that you may write to"
    )
    yield Finding(
        "cache",
        writable,
        f"{root} ({free / 1e9:,.0f} GB free{'' if writable else ', not writable'})",
        advice,
    )
    if cache.offline():
        yield Finding("network", True, "HF_HUB_OFFLINE is set: nothing will be downloaded")


def _cached(record: registry.Checkpoint) -> Iterator[Finding]:
    path = cache.converted(record.key)
    where = whereabouts(record)
    if path.is_file():
        yield Finding("weights", True, f"{path} ({path.stat().st_size / 1e6:,.0f} MB)")
    elif where == "cached":
        yield Finding("weights", True, "in the Hugging Face cache")
    elif where == "by hand":
        yield Finding(
            "weights",
            False,
            str(record.note),
            "download them by hand and load the file by its path",
        )
    else:
        begun = list(cache.root().glob(f"{cache.slug(record.key)}.*.partial"))
        part = f"; {begun[0].stat().st_size:,} bytes of a broken download are kept" if begun else ""
        yield Finding(
            "weights",
            False,
            f"not downloaded yet{part}",
            f"load({record.key!r}) fetches {record.sources[0]}",
        )
    seen = cache.Trust(cache.root()).get(record.key)
    if record.sha256:
        yield Finding(
            "hash",
            True,
            f"SHA-256 {record.sha256[:16]}... is published, and every download is compared with it",
        )
    elif seen:
        yield Finding(
            "hash",
            True,
            f"SHA-256 {seen['sha256'][:16]}... was recorded on {seen['seen']}, at first contact",
        )
    elif any(source.startswith("http") for source in record.sources):
        yield Finding("hash", True, "none is published; the first download will be recorded")


def _weights(model: str) -> Iterator[Finding]:
    from .opening import open_checkpoint

    unknown = ""
    try:
        try:
            opened = open_checkpoint(model)
        except UnknownActivationError as error:
            unknown = str(error)
            opened = open_checkpoint(model, quick_gelu=False)
    except (BadFileError, FetchError, FileNotFoundError, ValueError) as error:
        again = f"clipag doctor {model} --forget, then load it again" if registry.get(model) else ""
        yield Finding("contents", False, str(error), again)
        return
    count = sum(value.numel() for value in opened.state_dict.values())
    own = "mini" in opened.config["vision_cfg"]  # its constructor checks it, when it is built
    checked = "" if own else ", all as the architecture asks"
    says = f"{len(opened.state_dict)} tensors, {count / 1e6:,.1f} M numbers{checked}"
    yield Finding("contents", True, says)
    bad = [
        name
        for name, value in opened.state_dict.items()
        if value.is_floating_point() and not value.isfinite().all()
    ]
    if bad:
        yield Finding(
            "numbers",
            False,
            f"{bad[0]} and {len(bad) - 1} more hold NaN or infinity",
            "the file is damaged: get it again",
        )
    elif not own:
        yield _activation(opened, unknown)


def _activation(opened: Any, unknown: str) -> Finding:
    """Compares the features of one picture and two sentences under both activations.

    unknown: why the activation is not settled; empty if it is.
    """
    settled = bool(opened.config["quick_gelu"])
    margins, features = {}, {}
    for quick in (False, True):
        features[quick], margins[quick] = _reference(opened, quick)
    apart = 1 - float((features[False] * features[True]).sum())
    if unknown:
        margin = ", ".join(f"{margins[quick]:+.3f} under {_WORDS[quick]}" for quick in margins)
        says = f"not stated; they differ by 1-cos = {apart:.3g}, the margin of the right sentence is {margin}"
        return Finding("activation", False, says, unknown)
    says = (
        f"{_WORDS[settled]}; the other one would turn the features of the reference picture by 1-cos = {apart:.3g} "
        f"(margin of the right sentence: {margins[settled]:+.3f}, with the other {margins[not settled]:+.3f})"
    )
    if margins[not settled] > max(margins[settled], 0) + 0.02:
        return Finding(
            "activation",
            False,
            says,
            f"{_WORDS[not settled]} fits better; if the model misbehaves, load it as "
            f"'{opened.record.key}#{_WORDS[not settled].lower()}'",
        )
    return Finding("activation", True, says)


def _reference(opened: Any, quick_gelu: bool) -> tuple[Any, float]:
    """Features (D,) of a red disc on white, and how much closer "a red circle" is than "a blue square"."""
    import open_clip
    import torch

    config = {**opened.config, "quick_gelu": quick_gelu}
    with torch.device("meta"):
        net = open_clip.CLIP(
            **{name: value for name, value in config.items() if name != "custom_text"}
        )
    net.load_state_dict(opened.state_dict, assign=True, strict=False)
    length = net.attn_mask.shape[-1] if net.attn_mask is not None else 0
    net.attn_mask = torch.full((length, length), float("-inf")).triu_(1) if length else None
    net.eval()
    side = int(opened.record.resolution or 224)
    axis = torch.linspace(-1, 1, side)
    disc = (axis[:, None] ** 2 + axis[None, :] ** 2 < 0.36).float()
    image = torch.stack([torch.ones(side, side), 1 - disc, 1 - disc])
    mean, std = (
        torch.tensor(values).view(3, 1, 1) for values in (opened.record.mean, opened.record.std)
    )
    with torch.no_grad():
        picture = torch.nn.functional.normalize(
            net.encode_image(((image - mean) / std)[None]), dim=-1
        )[0]
        if opened.config["text_cfg"].get("hf_tokenizer_name"):
            return picture, 0.0
        tokens = open_clip.SimpleTokenizer(context_length=net.context_length)(
            ["a red circle", "a blue square"]
        )
        right, wrong = torch.nn.functional.normalize(net.encode_text(tokens), dim=-1)
    return picture, float(picture @ right - picture @ wrong)
