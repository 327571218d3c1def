"""Fits the generator of `clipag search` to labelled photographs of 64 x 64: k-means and a covariance.

    python benchmarks/make/generator.py --data 'tiny-imagenet/train-*.tar.gz' -o generator.safetensors

Per class: k-means in whitened cosine coefficients; over all classes: the covariance around the centroids, of which the
leading directions are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from clipag_plug.files import write_atomically
from clipag_plug.pipelines.generators import (
    LIMITS,
    SIDE,
    PrototypeGenerator,
    colours,
    cosines,
    kept,
)
from clipag_plug.train.data import read_shards
from clipag_plug.vocabulary import bundled_vocabulary

PROTOTYPES, RANK, ROUNDS = 20, 128, 20
CHUNK = 1000


def fit(
    images: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    *,
    prototypes: int = PROTOTYPES,
    rank: int = RANK,
    seed: int = 0,
) -> PrototypeGenerator:
    """A generator of photographs uint8 (N, 64, 64, 3) with labels (N,), at least `prototypes` of each class."""
    counts = torch.bincount(labels, minlength=len(classes))
    if int(counts.min()) < prototypes:
        name = classes[int(counts.argmin())]
        raise ValueError(f"class {name!r} has {int(counts.min())} photographs; {prototypes} needed")
    codes = torch.cat(
        [encode(part.permute(0, 3, 1, 2).float() / 127.5 - 1) for part in images.split(CHUNK)]
    )
    scale = codes.square().mean(0).sqrt().clamp_min(1e-6)
    codes /= scale
    generator = torch.Generator().manual_seed(seed)
    centres = torch.empty(len(classes), prototypes, codes.shape[1])
    covariance = torch.zeros(codes.shape[1], codes.shape[1])
    for label in range(len(classes)):
        centres[label], rest = kmeans(codes[labels == label], prototypes, generator)
        covariance += rest.T @ rest
    values, vectors = torch.linalg.eigh(covariance / len(codes))
    keep = values.argsort(descending=True)[:rank]
    factor = (vectors[:, keep] * values[keep].clamp_min(0).sqrt()).T
    share = 100 * values[keep].sum() / values.sum()
    sys.stderr.write(f"kept {share:.1f} % of the variance around the centroids\n")
    return PrototypeGenerator(centres, factor.contiguous(), scale, list(classes))


def kmeans(points: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm (1982) from the start of k-means++ (Arthur & Vassilvitskii 2007): the centroids (count, K) and
    the difference of each point (N, K) from its own."""
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


def encode(images: Tensor) -> Tensor:
    """Pictures (n, 3, 64, 64) in [-1, 1] as the kept cosine coefficients (n, K), brightness first."""
    planes = torch.einsum("dc,nchw->ndhw", colours().to(images), images)
    basis = cosines().to(images)
    spectrum = basis @ planes @ basis.T
    return torch.cat([spectrum[:, plane, kept(limit)] for plane, limit in enumerate(LIMITS)], dim=1)


def save(model: PrototypeGenerator, path: Path) -> Path:
    """Writes a generator as fp16 safetensors."""
    named = {"prototypes": model.prototypes, "factor": model.factor, "scale": model.scale}
    half = {name: tensor.half().contiguous() for name, tensor in named.items()}
    about = {"classes": json.dumps(model.classes, ensure_ascii=False)}
    return write_atomically(path, lambda name: save_file(half, name, about))


def main() -> None:
    """Reads the photographs and writes the generator."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", nargs="+", required=True, help="shards with class numbers (.cls)")
    parser.add_argument("-o", "--output", type=Path, default=Path("generator.safetensors"))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    photos = read_shards(given.data, SIDE)
    images, labels = torch.as_tensor(photos.images), torch.as_tensor(photos.labels)
    fitted = fit(images, labels, bundled_vocabulary().class_names, seed=given.seed)
    print(save(fitted, given.output), given.output.stat().st_size)


if __name__ == "__main__":
    main()
