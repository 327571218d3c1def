"""The generator in the package: prototypes of each class, mixed by z, and a covariance around them, in a cosine basis.

z = (selector, residual): the selector's softmax mixes the class's prototypes, which are k-means centroids of its
training photographs; the residual is multiplied by a factor of the covariance that the centroids leave, shared by all
classes and scaled by `truncation`. A picture is the inverse cosine transform of the result. Everything is closed form
or k-means: see `fitting`.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

SIDE = 64
LUMA, CHROMA = 24, 12  # frequencies u + v below these are kept
SHARPNESS = 4.0  # of the softmax: with it one prototype mostly has it all
FILE = "generator.safetensors"


@dataclass
class PrototypeGenerator:
    """prototypes (C, P, K), factor (R, K), scale (K,) of the coefficients; see the module. float32.

    truncation: how far the residual goes, 1 for the photographs' own spread, less for tamer pictures.
    """

    prototypes: Tensor
    factor: Tensor
    scale: Tensor
    classes: list[str]
    truncation: float = 0.3
    name: str = "bundled"
    soft: bool = True

    @property
    def dim_z(self) -> int:
        return self.prototypes.shape[1] + self.factor.shape[0]

    def latents(self, count: int, generator: torch.Generator) -> Tensor:
        """z from a standard normal distribution."""
        return torch.randn(count, self.dim_z, generator=generator)

    def __call__(self, z: Tensor, y: Tensor) -> Tensor:
        """Pictures (n, 3, 64, 64), within [-1, 1]."""
        shares = (SHARPNESS * z[:, : self.prototypes.shape[1]]).softmax(dim=1)
        chosen = torch.einsum("nc,np,cpk->nk", y, shares, self.prototypes)
        residual = z[:, self.prototypes.shape[1] :] @ self.factor
        return decode((chosen + self.truncation * residual) * self.scale).clamp(-1, 1)

    def to(self, device: torch.device | str) -> PrototypeGenerator:
        """The generator on another device."""
        self.prototypes, self.factor, self.scale = (
            tensor.to(device) for tensor in (self.prototypes, self.factor, self.scale)
        )
        return self

    def save(self, path: str | Path) -> Path:
        """Writes the generator as fp16 safetensors, atomically."""
        from safetensors.torch import save_file

        from ..files import write_atomically

        tensors = {
            "prototypes": self.prototypes,
            "factor": self.factor,
            "scale": self.scale,
        }
        half = {name: tensor.half().contiguous().cpu() for name, tensor in tensors.items()}
        about = {"classes": json.dumps(self.classes, ensure_ascii=False)}
        return write_atomically(path, lambda name: save_file(half, name, about))

    @classmethod
    def load(cls, path: str | Path) -> PrototypeGenerator:
        """Reads what `save` wrote. Raises FileNotFoundError, or ValueError where the file is another."""
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(f"generator {str(path)!r} does not exist")
        try:
            with safe_open(str(path), framework="pt") as file:
                classes = json.loads(file.metadata()["classes"])
                tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (a file, no dict)
            return cls(tensors["prototypes"], tensors["factor"], tensors["scale"], classes)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{str(path)!r} is no generator of clipag_plug: {error}; "
                "python -m clipag_plug.search.fitting writes one"
            ) from error


def bundled_generator() -> PrototypeGenerator:
    """The generator in the package: 202 classes, 64 x 64 pixels."""
    with resources.as_file(resources.files("clipag_plug.bundled").joinpath(FILE)) as path:
        return PrototypeGenerator.load(path)


def encode(images: Tensor) -> Tensor:
    """Pictures (n, 3, 64, 64) in [-1, 1] as the kept cosine coefficients (n, K), luma first."""
    planes = torch.einsum("dc,nchw->ndhw", _COLOURS.to(images), images)
    basis = _cosines().to(images)
    spectrum = basis @ planes @ basis.T
    return torch.cat([spectrum[:, i][:, _kept(limit)] for i, limit in enumerate(_LIMITS)], dim=1)


def decode(coefficients: Tensor) -> Tensor:
    """The inverse of `encode` on what it keeps; values may leave [-1, 1]."""
    basis = _cosines().to(coefficients)
    spectrum = coefficients.new_zeros(len(coefficients), 3, SIDE, SIDE)
    start = 0
    for plane, limit in enumerate(_LIMITS):
        mask = _kept(limit)
        count = int(mask.sum())
        spectrum[:, plane, mask] = coefficients[:, start : start + count]
        start += count
    planes = basis.T @ spectrum @ basis
    return torch.einsum("dc,ndhw->nchw", _COLOURS.to(coefficients), planes)


# An orthonormal turn of RGB: brightness, red against blue, green against both.
_COLOURS = torch.tensor(
    [
        [1 / math.sqrt(3)] * 3,
        [1 / math.sqrt(2), 0.0, -1 / math.sqrt(2)],
        [-1 / math.sqrt(6), 2 / math.sqrt(6), -1 / math.sqrt(6)],
    ]
)
_LIMITS = (LUMA, CHROMA, CHROMA)


@functools.cache
def _cosines() -> Tensor:
    """The orthonormal DCT-II matrix (64, 64), frequencies along the rows."""
    places = (torch.arange(SIDE, dtype=torch.float64) + 0.5) * math.pi / SIDE
    rows = torch.arange(SIDE, dtype=torch.float64)[:, None] * places
    matrix = rows.cos() * math.sqrt(2 / SIDE)
    matrix[0] /= math.sqrt(2)
    return matrix.float()


@functools.cache
def _kept(limit: int) -> Tensor:
    index = torch.arange(SIDE)
    return index[:, None] + index < limit
