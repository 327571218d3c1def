"""Fits the start pictures' mixture (clipag_plug.priors.Mixture) to labelled pictures.

python benchmarks/make/prior.py SOURCE... -o FILE
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from clipag_plug.files import write_atomically
from clipag_plug.images import as_rgb, from_pil
from clipag_plug.priors import TENSORS, Mixture

SIDE = 16
FLOOR = 1e-4 / 4  # the authors add 1e-4 to the covariance of pixels in [-1, 1]; ours are in [0, 1]


def fit(images: dict[str, Tensor], *, rank: int = 90, basis: int = 96) -> Mixture:
    """Fits one Gaussian per class: the class's leading `rank` directions inside `basis` principal components of all.

    images: class name -> pictures (n, 3, side, side) in [0, 1], n >= 2. The variance that the factors do not span is
    spread evenly over the pixels, never below the authors' floor. With rank >= n - 1 and basis = 3 * side * side this
    is the notebook's full covariance exactly.
    """
    flat = {name: group.flatten(1).float() for name, group in images.items()}
    for name, group in flat.items():
        if len(group) < 2:
            raise ValueError(
                f"class {name!r} has {len(group)} picture(s); a Gaussian needs at least 2"
            )
    means = torch.stack([group.mean(0) for group in flat.values()])
    pixels = means.shape[1]
    scatter = sum(
        (group - mean).T @ (group - mean) / len(group)
        for group, mean in zip(flat.values(), means, strict=True)
    )
    _, vectors = torch.linalg.eigh(scatter)  # eigenvalues ascend
    components = vectors.flip(1)[:, : min(basis, pixels)].T.contiguous()
    factors, rest = [], []
    for group, mean in zip(flat.values(), means, strict=True):
        centred = group - mean
        inside = centred @ components.T / len(group) ** 0.5
        _, values, directions = torch.linalg.svd(inside, full_matrices=False)
        kept = F.pad(values[:rank, None] * directions[:rank], (0, 0, 0, max(rank - len(values), 0)))
        factors.append(kept)
        left = centred.square().sum() / len(group) - kept.square().sum()
        rest.append((left / pixels).clamp(min=0) + FLOOR)
    return Mixture(means, torch.stack(factors), components, torch.stack(rest)[:, None], list(flat))


def save(mixture: Mixture, path: str | Path) -> Path:
    """Writes the mixture as fp16 safetensors, atomically."""
    tensors = {name: getattr(mixture, name).half().contiguous() for name in TENSORS}
    # Variances below 6e-5 are subnormal in fp16 and would lose digits.
    tensors["rest"] = mixture.rest.float().contiguous()
    metadata = {"classes": json.dumps(mixture.classes, ensure_ascii=False)}
    return write_atomically(path, lambda name: save_file(tensors, name, metadata=metadata))


def read_pictures(
    *sources: str | Path, side: int = SIDE, limit: int | None = None
) -> dict[str, Tensor]:
    """Pictures by class at side x side: from WebDataset tar shards, or from a folder with one sub-folder per class.

    sources: each a .tar or .tar.gz, a folder of them, or a folder of class folders. limit: pictures
    per class. Raises FileNotFoundError, or ValueError where no labelled picture is found.
    """
    groups: dict[str, list[Tensor]] = {}
    for name, data in _samples(sources):
        group = groups.setdefault(name, [])
        if limit is None or len(group) < limit:
            group.append(_shrink(data, side))
    if not groups:
        given = ", ".join(map(repr, map(str, sources)))
        raise ValueError(
            f"no labelled picture in {given}; give shards with KEY.jpg and KEY.cls or class folders"
        )
    return {name: torch.stack(groups[name]) for name in sorted(groups, key=_numeric)}


def _samples(sources: Sequence[str | Path]) -> Iterator[tuple[str, bytes]]:
    for source in map(Path, sources):
        if not source.exists():
            raise FileNotFoundError(
                f"{str(source)!r} does not exist; give a folder or a .tar shard"
            )
        shards = [source] if source.is_file() else sorted(source.glob("*.tar*"))
        yield from _from_shards(shards) if shards else _from_folders(source)


def _from_shards(shards: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    for shard in shards:
        parts: dict[str, dict[str, bytes]] = {}
        with tarfile.open(shard) as archive:
            for member in archive:
                key, _, suffix = member.name.rpartition(".")
                file = archive.extractfile(member)
                if file is None or suffix not in ("jpg", "jpeg", "png", "webp", "cls"):
                    continue
                sample = parts.setdefault(key, {})
                sample["cls" if suffix == "cls" else "image"] = file.read()
                if len(sample) == 2:
                    yield sample["cls"].decode().strip(), sample["image"]
                    del parts[key]


def _from_folders(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp") and path.parent != folder:
            yield path.relative_to(folder).parts[0], path.read_bytes()


def _shrink(data: bytes, side: int) -> Tensor:
    """An encoded picture as (3, side, side) in [0, 1]: its central square, reduced by area averaging."""
    with Image.open(io.BytesIO(data)) as image:
        square = min(image.size)
        left, top = (image.width - square) // 2, (image.height - square) // 2
        box = (left, top, left + square, top + square)
        return from_pil(as_rgb(image).resize((side, side), Image.Resampling.BOX, box=box))


def _numeric(name: str) -> tuple[int, str]:
    return (int(name) if name.isdigit() else -1, name)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sources = "tar shards with KEY.jpg and KEY.cls, or a folder of class folders"
    parser.add_argument("source", nargs="+", help=sources)
    parser.add_argument("-o", "--output", required=True, help="file to write (.safetensors)")
    parser.add_argument("--rank", type=int, default=90, help="directions per class [90]")
    parser.add_argument("--basis", type=int, default=96, help="components they live in [96]")
    parser.add_argument("--side", type=int, default=SIDE, help=f"side of the pictures [{SIDE}]")
    parser.add_argument("--limit", type=int, help="pictures per class")
    given = parser.parse_args(arguments)
    try:
        pictures = read_pictures(*given.source, side=given.side, limit=given.limit)
        path = save(fit(pictures, rank=given.rank, basis=given.basis), given.output)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stderr.write(f"{path}: {len(pictures)} classes, {path.stat().st_size / 1e6:.2f} MB\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
