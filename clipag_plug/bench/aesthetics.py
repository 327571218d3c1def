"""The LAION aesthetic predictor (Schuhmann 2022): a linear head on the image features of OpenAI's ViT-L/14.

Nothing is downloaded: the user's two files are recognised by their hashes. Its published layers have no activations
between them, so they are one vector and one number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

HEAD = "sac+logos+ava1-l14-linearMSE.pth"
HEAD_SHA256 = "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0"
BACKBONE = "ViT-L-14.pt"
BACKBONE_SHA256 = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"
SOURCE = (
    f"download {HEAD} (github.com/christophschuhmann/improved-aesthetic-predictor) and {BACKBONE} "
    "(OpenAI's CLIP) into one folder and give --aesthetic FOLDER"
)
BATCH = 32


@dataclass(frozen=True)
class Predictor:
    """weight (D,) and bias of the collapsed head; features: images in [0, 1] -> (N, D)."""

    weight: Tensor
    bias: float
    features: Callable[[Tensor], Tensor]
    name: str = f"{HEAD} on OpenAI ViT-L/14"
    sha256: str = HEAD_SHA256 + BACKBONE_SHA256

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Scores (N,), about 1 to 10, of images in [0, 1]."""
        parts = [F.normalize(self.features(part).float(), dim=-1) for part in images.split(BATCH)]
        return torch.cat(parts).cpu() @ self.weight + self.bias


def find_predictor(folder: str, device: torch.device | str = "cpu") -> Predictor | str:
    """The predictor from a folder with both files, or the reason why there is none.

    ValueError where a file of that name has another content: a score of something else would carry the same name.
    """
    if not folder:
        return f"no --aesthetic was given: {SOURCE}"
    paths = {name: Path(folder) / name for name in (HEAD, BACKBONE)}
    missing = [name for name, path in paths.items() if not path.is_file()]
    if missing:
        return f"{folder!r} lacks {' and '.join(missing)}: {SOURCE}"
    for name, wanted in ((HEAD, HEAD_SHA256), (BACKBONE, BACKBONE_SHA256)):
        found = _sha256(paths[name])
        if found != wanted:
            raise ValueError(
                f"{str(paths[name])!r} has SHA-256 {found[:12]}..., not {wanted[:12]}...; {SOURCE}"
            )
    from .. import clip

    model = clip.load_model(str(paths[BACKBONE]), device=device)
    model = model.float().eval().requires_grad_(False)
    side = int(model.visual.input_resolution)

    def features(images: Tensor) -> Tensor:
        shown = F.interpolate(images.to(device), (side, side), mode="bicubic", antialias=True)
        encoded: Tensor = model.encode_image(model.normalize(shown.clamp(0, 1)))
        return encoded

    return Predictor(*collapse(torch.load(paths[HEAD], weights_only=True)), features)


def collapse(layers: dict[str, Tensor]) -> tuple[Tensor, float]:
    """Linear layers `layers.N.weight` (out, in) and `layers.N.bias`, applied in order of N, as one (D,) and bias."""
    numbers = sorted({int(key.split(".")[1]) for key in layers})
    weight, bias = None, torch.zeros(1, dtype=torch.float64)
    for number in numbers:
        own = layers[f"layers.{number}.weight"].double()
        bias = own @ (bias if weight is not None else bias.new_zeros(own.shape[1]))
        bias = bias + layers[f"layers.{number}.bias"].double()
        weight = own if weight is None else own @ weight
    if weight is None or weight.shape[0] != 1:
        raise ValueError("the head does not end in one number; it is not the aesthetic predictor")
    return weight[0].float(), float(bias)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
