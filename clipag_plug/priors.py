"""Start pictures: low-frequency noise, and the paper's class-conditional Gaussian mixture at 16x16."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

HINT = "fit one with benchmarks/make/prior.py of the repository"
TENSORS = ("means", "factors", "basis", "rest")


@dataclasses.dataclass
class Mixture:
    """A Gaussian per class over 3 x side x side pixels in [0, 1] (Ganz & Elad 2024, supplement 1.3).

    Covariance of class c: (factors[c] @ basis)^T (factors[c] @ basis) + diag(rest[c]).
    means: (C, 3 * side * side); factors: (C, rank, K); basis: (K, 3 * side * side) with orthonormal rows, shared by
    the classes; rest: (C, 1) or (C, 3 * side * side), the variance that the factors leave.
    """

    means: Tensor
    factors: Tensor
    basis: Tensor
    rest: Tensor
    classes: list[str]

    @property
    def side(self) -> int:
        return int((self.means.shape[1] // 3) ** 0.5)

    def sample(self, index: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One draw for each class number in `index` (M,): (M, 3, side, side), clamped to [0, 1]."""
        rank, pixels = self.factors.shape[1], self.means.shape[1]
        weights = torch.randn((len(index), 1, rank), generator=generator)
        noise = torch.randn((len(index), pixels), generator=generator)
        shape = (weights @ self.factors[index].float())[:, 0] @ self.basis.float()
        flat = self.means[index].float() + shape + noise * self.rest[index].float().sqrt()
        return flat.view(-1, 3, self.side, self.side).clamp(0, 1)

    @classmethod
    def load(cls, path: str | Path | None = None) -> Mixture:
        """Reads a mixture; None is the one in the package. FileNotFoundError, or ValueError if it is another file."""
        path = Path(path) if path else Path(__file__).parent / "bundled" / "prior.safetensors"
        if not path.is_file():
            raise FileNotFoundError(
                f"prior {str(path)!r} does not exist; {HINT}, or use --init noise"
            )
        return _load(str(path), path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _load(path: str, _changed: int) -> Mixture:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).float() for name in TENSORS}
            classes = json.loads((file.metadata() or {})["classes"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path!r} is not a fitted prior ({error}); {HINT}") from error
    return Mixture(**tensors, classes=classes)


def noise(
    shape: tuple[int, int],
    generator: torch.Generator | None = None,
    *,
    blobs: int = 16,
    deviation: float = 0.15,
) -> Tensor:
    """Grey (0.5) plus coloured Gaussian noise of about `blobs` cells along the short side: (3, H, W) in [0, 1].

    Low frequencies are what a picture starts with; white noise would be averaged away by every encoder.
    """
    height, width = shape
    cell = max(min(height, width) / blobs, 1)
    coarse = (max(round(height / cell), 1), max(round(width / cell), 1))
    field = torch.randn((1, 3, *coarse), generator=generator)
    field = F.interpolate(field, size=shape, mode="bicubic", align_corners=False)[0]
    return (0.5 + deviation * field).clamp(0, 1)
