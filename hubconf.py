"""`torch.hub` entry points.

model, preprocess = torch.hub.load("<owner>/clipag_plug", "load", name="clipag-mini")
tokens = torch.hub.load("<owner>/clipag_plug", "tokenize", texts=["a goldfish"])
"""

from __future__ import annotations

from typing import Any as _Any

dependencies = [
    "torch",
    "torchvision",
    "open_clip",
    "huggingface_hub",
    "safetensors",
    "ftfy",
    "regex",
]


def load(
    *,
    name: str = "clipag",
    device: _Any = None,
    precision: str = "fp32",
    download_root: str | None = None,
) -> _Any:
    """The model and its preprocessing, as `clipag_plug.load` returns them."""
    import clipag_plug

    return clipag_plug.load(name, device, download_root=download_root, precision=precision)


def tokenize(*, texts: str | list[str], context_length: int = 77, truncate: bool = False) -> _Any:
    """Token ids (N, context_length), int32, as `clipag_plug.tokenize` returns them."""
    import clipag_plug

    return clipag_plug.tokenize(texts, context_length, truncate)
