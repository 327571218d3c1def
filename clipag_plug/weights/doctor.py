"""`clipag models` lists what can be loaded; `clipag doctor` says whether a model is there, whole, and run rightly."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from ..files import root, slug
from ..options.tools import Doctor, Models
from ..precision import told
from . import fetch, registry
from .registry import Checkpoint, FetchError, UnknownActivationError

_HEADER = ("model", "architecture", "activation", "training", "licence", "weights")
_ACTIVATION = {True: "QuickGELU", False: "GELU", None: "in its config"}
_PACKAGES = ("torch", "open_clip_torch", "safetensors", "huggingface_hub", "torchvision", "timm")


def models(options: Models) -> int:
    """Prints the models whose name fits the pattern; ValueError when none does. Imports no torch."""
    records = registry.match(options.pattern) if options.pattern else registry.checkpoints()
    if options.json:
        rows = [{**asdict(record), "weights": fetch.whereabouts(record)} for record in records]
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return 0
    lines = [_HEADER]
    for record in records:
        activation, licence = _ACTIVATION[record.quick_gelu], record.licence or "not stated"
        trained, where = registry.training(record), fetch.whereabouts(record)
        lines.append((record.key, record.arch or "?", activation, trained, licence, where))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(map(str.ljust, line, widths)).rstrip())
    return 0


@dataclass(frozen=True)
class Finding:
    """One checked thing. advice: what to do; empty where nothing is to be done."""

    what: str
    good: bool
    says: str
    advice: str = ""


def run(options: Doctor) -> int:
    """`clipag doctor`: prints the findings; 0 when all are good, 1 otherwise."""
    found = forget(options.model) if options.forget else list(examine(options.model))
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
    name = registry.parse(model)
    record = registry.find(name.value) if name.kind == "key" else None
    if record and not record.bundled:
        yield from _cached(record)
        if fetch.whereabouts(record) != "cached":
            return
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        yield from _weights(model)
    finally:
        os.environ.pop("HF_HUB_OFFLINE")
        os.environ.update({} if before is None else {"HF_HUB_OFFLINE": before})


def forget(model: str) -> list[Finding]:
    """Deletes the cached weights and the recorded hash of a registered model."""
    record, folder = registry.find(model), root()
    mine = (f"{slug(record.key)}.v", f"{slug(record.key)}+")
    there = folder.iterdir() if folder.is_dir() else ()
    files = [file for file in there if file.name.startswith(mine) and file.suffix != ".lock"]
    for file in files:
        file.unlink()
    known = "the" if fetch.Trust(folder).forget(record.key) else "no"
    return [Finding("forgotten", True, f"{len(files)} cached file(s) and {known} recorded hash")]


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
    yield Finding("precision", True, told("cuda" if torch.cuda.is_available() else "cpu"))
    folder = root()
    there = next(each for each in (folder, *folder.parents) if each.exists())
    free, writable = shutil.disk_usage(there).free, os.access(there, os.W_OK)
    advice = "set CLIPAG_HOME to a folder on a larger disk that you may write to"
    says = f"{folder} ({free / 1e9:,.0f} GB free{'' if writable else ', not writable'})"
    yield Finding("cache", writable, says, "" if writable and free > 2 * 10**9 else advice)
    if fetch.offline():
        yield Finding("network", True, "HF_HUB_OFFLINE is set: nothing will be downloaded")


def _cached(record: Checkpoint) -> Iterator[Finding]:
    path, where = fetch.converted(record.key), fetch.whereabouts(record)
    fetch.checked(path).unlink(missing_ok=True)  # what follows reads all of it
    if path.is_file():
        yield Finding("weights", True, f"{path} ({path.stat().st_size / 1e6:,.0f} MB)")
    elif where == "cached":
        yield Finding("weights", True, "in the Hugging Face cache")
    elif where == "by hand":
        advice = "download them by hand and load the file by its path"
        yield Finding("weights", False, str(record.note), advice)
    else:
        begun = list(root().glob(f"{slug(record.key)}.*.partial"))
        part = f"; {begun[0].stat().st_size:,} bytes of a broken download are kept" if begun else ""
        advice = f"load({record.key!r}) fetches {record.sources[0]}"
        yield Finding("weights", False, f"not downloaded yet{part}", advice)
    if record.sha256:
        known = f"SHA-256 {record.sha256[:16]}... is published"
        yield Finding("hash", True, f"{known}, and every download is compared with it")
    elif seen := fetch.Trust(root()).get(record.key):
        says = f"none is published; {seen['sha256'][:16]}... was recorded on {seen['seen']} and is held against it"
        yield Finding("hash", True, says)
    elif any(source.startswith("http") for source in record.sources):
        yield Finding("hash", True, "none is published; the first download will be recorded")


def _weights(model: str) -> Iterator[Finding]:
    from . import configs
    from .opening import open_checkpoint

    unknown = ""
    try:
        try:
            opened = open_checkpoint(model)
        except UnknownActivationError as error:
            unknown = str(error)
            opened = open_checkpoint(f"{model}{',' if '#' in model else '#'}gelu")
    except (ValueError, FetchError, FileNotFoundError) as error:
        again = f"clipag doctor {model} --forget, then load it again" if registry.get(model) else ""
        yield Finding("contents", False, str(error), again)
        return
    count = sum(value.numel() for value in opened.state_dict.values())
    own = configs.is_ours(opened.config)  # its constructor checks it, when it is built
    checked = "" if own else ", all as the architecture asks"
    says = f"{len(opened.state_dict)} tensors, {count / 1e6:,.1f} M numbers{checked}"
    yield Finding("contents", True, says)
    yield Finding("pixels", True, f"mean {opened.record.mean}, std {opened.record.std}")
    floats = {n: v for n, v in opened.state_dict.items() if v.is_floating_point()}
    bad = [name for name, value in floats.items() if not value.isfinite().all()]
    if bad:
        says = f"{bad[0]} and {len(bad) - 1} more hold NaN or infinity"
        yield Finding("numbers", False, says, "the file is damaged: get it again")
    elif not own:
        yield _activation(opened, unknown)


def _activation(opened: Any, unknown: str) -> Finding:
    """Compares the features of one picture and two sentences under both activations.

    unknown: why the activation is not settled; empty if it is.
    """
    settled = bool(opened.config["quick_gelu"])
    found = {quick: _reference(opened, quick) for quick in (False, True)}
    apart = 1 - float((found[False][0] * found[True][0]).sum())
    mine, other = found[settled][1], found[not settled][1]
    if unknown:
        margins = (f"{m:+.3f} under {_ACTIVATION[quick]}" for quick, (_, m) in found.items())
        says = (
            f"not stated; they differ by 1-cos = {apart:.3g}, the margin of the right sentence is "
        )
        says += ", ".join(margins)
        return Finding("activation", False, says, unknown)
    says = (
        f"{_ACTIVATION[settled]}; the other one would turn the features of the reference picture by 1-cos = "
        f"{apart:.3g} (margin of the right sentence: {mine:+.3f}, with the other {other:+.3f})"
    )
    if other <= max(mine, 0) + 0.02:
        return Finding("activation", True, says)
    better = _ACTIVATION[not settled]
    name = f"'{opened.record.key}#{better.lower()}'"
    advice = f"{better} fits better; if the model misbehaves, load it as {name}"
    return Finding("activation", False, says, advice)


def _reference(opened: Any, quick_gelu: bool) -> tuple[Any, float]:
    """Features (D,) of a red disc on white, and how much closer "a red circle" is than "a blue square"."""
    import open_clip
    import torch
    from torch.nn.functional import normalize

    config = {**opened.config, "quick_gelu": quick_gelu}
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    with torch.device("meta"):
        net = kind(**config)
    net.load_state_dict(opened.state_dict, assign=True, strict=False)
    text = getattr(net, "text", net)
    if text.attn_mask is not None:
        length = text.attn_mask.shape[-1]
        text.attn_mask = torch.full((length, length), float("-inf")).triu_(1)
    net.eval()
    side = int(opened.record.resolution or 224)
    axis = torch.linspace(-1, 1, side)
    disc = (axis[:, None] ** 2 + axis[None, :] ** 2 < 0.36).float()
    image = torch.stack([torch.ones(side, side), 1 - disc, 1 - disc])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (opened.record.mean, opened.record.std))
    with torch.no_grad():
        picture = normalize(net.encode_image(((image - mean) / std)[None]), dim=-1)[0]
        if opened.config["text_cfg"].get("hf_tokenizer_name"):
            return picture, 0.0
        tokens = open_clip.SimpleTokenizer(context_length=net.context_length)
        texts = net.encode_text(tokens(["a red circle", "a blue square"]))
        right, wrong = normalize(texts, dim=-1)
    return picture, float(picture @ right - picture @ wrong)
