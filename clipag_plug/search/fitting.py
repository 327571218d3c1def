"""Fits the generator of the package to labelled photographs of 64 x 64.

python -m clipag_plug.search.fitting --data 'tiny-imagenet/train-*.tar.gz' -o generator.safetensors

Per class: k-means in whitened cosine coefficients; over all classes: the
covariance around the centroids, of which the leading directions are kept.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from .bundled import SIDE, PrototypeGenerator, encode

PROTOTYPES, RANK, ROUNDS = 20, 128, 20
CHUNK = 1000
log = logging.getLogger(__name__)


def fit(
    images: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    *,
    prototypes: int = PROTOTYPES,
    rank: int = RANK,
    seed: int = 0,
) -> PrototypeGenerator:
    """A generator of photographs uint8 (N, 64, 64, 3) with labels (N,).

    Raises ValueError where a class has fewer photographs than there are prototypes, or the size is another.
    """
    if images.shape[1:] != (SIDE, SIDE, 3):
        raise ValueError(f"photographs are {tuple(images.shape[1:])}; they must be (64, 64, 3)")
    counts = torch.bincount(labels, minlength=len(classes))
    if int(counts.min()) < prototypes:
        name = classes[int(counts.argmin())]
        raise ValueError(f"class {name!r} has {int(counts.min())} photographs; {prototypes} needed")
    codes = torch.cat([_codes(part) for part in images.split(CHUNK)])
    scale = codes.square().mean(0).sqrt().clamp_min(1e-6)
    codes /= scale
    generator = torch.Generator().manual_seed(seed)
    centres = torch.empty(len(classes), prototypes, codes.shape[1])
    covariance = torch.zeros(codes.shape[1], codes.shape[1])
    for label in range(len(classes)):
        own = codes[labels == label]
        centres[label], rest = kmeans(own, prototypes, generator)
        covariance += rest.T @ rest
    covariance /= len(codes)
    values, vectors = torch.linalg.eigh(covariance)
    keep = values.argsort(descending=True)[:rank]
    factor = (vectors[:, keep] * values[keep].clamp_min(0).sqrt()).T
    log.info(
        "kept %.1f %% of the variance around the centroids", 100 * values[keep].sum() / values.sum()
    )
    return PrototypeGenerator(centres, factor.contiguous(), scale, list(classes))


def kmeans(points: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm (1982) from the start of k-means++ (Arthur & Vassilvitskii 2007).

    Returns the centroids (count, K), and what is left of the points (N, K).
    """
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    far = torch.full((len(points),), torch.inf)
    while len(chosen) < count:
        far = torch.minimum(far, (points - points[chosen[-1]]).square().sum(1))
        weights = far if float(far.sum()) > 0 else torch.ones_like(far)
        chosen.append(int(torch.multinomial(weights, 1, generator=generator)))
    centres = points[chosen]
    nearest = torch.zeros(len(points), dtype=torch.long)
    for _ in range(ROUNDS):
        nearest = torch.cdist(points, centres).argmin(dim=1)
        sizes = torch.bincount(nearest, minlength=count)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        centres = torch.where(sizes[:, None] > 0, sums / sizes[:, None].clamp_min(1), centres)
    return centres, points - centres[nearest]


def _codes(images: Tensor) -> Tensor:
    return encode(images.permute(0, 3, 1, 2).float() / 127.5 - 1)


def main() -> None:
    """Reads the photographs and writes the generator."""
    from ..train.data import read_shards
    from ..vocabulary import bundled_vocabulary

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", nargs="+", required=True, help="shards with class numbers (.cls)")
    parser.add_argument("-o", "--output", type=Path, default=Path("generator.safetensors"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    photos = read_shards(options.data, SIDE)
    fitted = fit(
        torch.as_tensor(photos.images),
        torch.as_tensor(photos.labels),
        bundled_vocabulary().class_names,
        seed=options.seed,
    )
    print(fitted.save(options.output), options.output.stat().st_size)


if __name__ == "__main__":
    main()
