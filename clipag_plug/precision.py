"""Which number format `--precision auto` means: by a table of what was measured, never by a trial at run time."""

from __future__ import annotations

from typing import Any, NamedTuple

# Towers by the module and the name of their class; a class that is not named here is of no family, and stays in fp32.
FAMILIES = {
    "clipag_plug.towers.vit.VisionTransformer": "vit",
    "clipag_plug.towers.resnet.ModifiedResNet": "resnet",
    "timm.models.convnext.ConvNeXt": "convnext",
    "clipag_plug.lite.LiteVisual": "lite",
    "clipag_plug.mini.MiniVisual": "mini",
}


class Measured(NamedTuple):
    """bf16 by autocast against fp32, of one family on one kind of processor (`benchmarks/precision.py`).

    guide, train: how many times as fast, forward and back to the pixels, and that with the way back to the weights
    besides; the smaller one of 4 and 32 images. features, gradient: smallest cosine of 32 images'. judged: what a judge
    recognised in pictures painted with it, less that in pictures painted in fp32, in points of top-5; None where it was
    not asked.
    """

    guide: float
    train: float
    features: float
    gradient: float
    judged: float | None


# What is not here was not measured, and stays in fp32: CUDA, AMX, every other tower.
MEASURED = {
    ("vit", "avx512_bf16"): Measured(1.35, 1.48, 0.9999, 0.9996, None),
    ("lite", "avx512_bf16"): Measured(1.37, 1.19, 0.9997, 0.924, None),
    ("mini", "avx512_bf16"): Measured(1.21, 1.26, 1.0, 0.970, 0.0),
}
# What a row has to show: speed, cosine of features, points.
QUICKER, CLOSE, WORSE = 1.1, 0.999, -3.0


def unit(device: str = "cpu") -> str:
    """The units for bf16 of a processor or a card: "amx_bf16", "avx512_bf16", "cuda 9.0", or "" for none."""
    import torch

    kind = torch.device(device).type
    if kind == "cuda":
        return "cuda {}.{}".format(*torch.cuda.get_device_capability(device))
    if kind != "cpu":
        return ""
    tests = {"amx_bf16": "_is_amx_tile_supported", "avx512_bf16": "_is_avx512_bf16_supported"}
    # bool() is False: torch may be too old to say.
    return next((name for name, test in tests.items() if getattr(torch.cpu, test, bool)()), "")


def family(visual: Any) -> str:
    """The family of an image tower, or ""."""
    kind = type(getattr(visual, "trunk", visual))
    return FAMILIES.get(f"{kind.__module__}.{kind.__qualname__}", "")


def pays(name: str, units: str, job: str) -> bool:
    """Whether bf16 was measured to be quicker and as good; job: "guide" or "train"."""
    row = MEASURED.get((name, units))
    return row is not None and (
        getattr(row, job) >= QUICKER and row.features >= CLOSE and (row.judged or 0.0) >= WORSE
    )


def resolve(asked: str, visual: Any, device: Any, job: str = "guide") -> str:
    """What is asked for; in place of "auto" bf16 where it pays for this tower on this device, else fp32."""
    if asked != "auto":
        return asked
    return "bf16" if pays(family(visual), unit(str(device)), job) else "fp32"


def told(device: str = "cpu") -> str:
    """What `auto` means on a device, for `clipag doctor`."""
    units, chosen = unit(device), []
    for job in ("guide", "train"):
        if names := [name for name in FAMILIES.values() if pays(name, units, job)]:
            chosen.append(f"{', '.join(names)} to {job}")
    if chosen:
        return f"auto is bf16 for {'; '.join(chosen)} ({units})"
    return f"auto is fp32: {'bf16 was not measured on ' + units if units else 'no units for bf16'}"
