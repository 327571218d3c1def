"""Opens one weight file of any known kind, by what is in it and not by what it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from . import layouts, tensorfile
from .archive import Archive, Stored
from .errors import BadFileError

Weights = tuple[dict[str, Tensor], dict[str, str]]


def read(path: str | Path) -> Weights:
    """State dict under OpenAI's names (`visual.` for a tower alone), floats in fp32, and metadata.

    Tensors map the file where it holds them as they are needed. Raises FileNotFoundError, or
    BadFileError for a file that is damaged, hostile or of an unknown kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"the weight file {str(path)!r} does not exist")
    kind = sniff(path)
    if kind == "safetensors":
        raw, metadata = tensorfile.read(path)
        found = layouts.flatten(path, raw, lambda item: isinstance(item, Tensor))
        return layouts.unify(found), metadata
    if kind == "zip":
        archive = Archive(path)
        found = layouts.flatten(path, archive.read(), lambda item: isinstance(item, Stored))
        return layouts.unify({name: archive.tensor(item) for name, item in found.items()}), {}
    raise BadFileError(path, _WHY[kind])


def sniff(path: Path) -> str:
    """What the first bytes say: safetensors, zip, pickle, tar, page, pointer or unknown."""
    with open(path, "rb") as file:
        head = file.read(512)
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "zip"
    if head.startswith(b"version https://git-lfs"):
        return "pointer"
    if head.lstrip()[:1] == b"<":
        return "page"
    if head[257:262] == b"ustar":
        return "tar"
    length = int.from_bytes(head[:8], "little")
    if len(head) >= 10 and head[8:9] == b"{" and length >= 2:
        return "safetensors"
    if head[:1] == b"\x80":
        return "pickle"
    return "unknown"


_WHY: dict[str, Any] = {
    "pickle": "it is a bare pickle, which runs code when loaded; where it was made, torch.save its state_dict "
    "with torch 1.6 or later, or save it as safetensors",
    "tar": "it is a tar archive; unpack it and give the weight file inside",
    "page": "it is a web page and not weights: the download went wrong",
    "pointer": "it is a Git LFS pointer and not weights; run `git lfs pull` where it came from",
    "unknown": "it is neither safetensors nor a file of torch.save or TorchScript",
}
