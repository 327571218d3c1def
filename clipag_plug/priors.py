"""Start pictures: low-frequency noise, and the paper's class-conditional Gaussian mixture at 16x16."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

SIDE = 16
FLOOR = 1e-4 / 4  # the authors add 1e-4 to the covariance of pixels in [-1, 1]; ours are in [0, 1]


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

    def distribution(self, index: int) -> torch.distributions.LowRankMultivariateNormal:
        """The Gaussian of one class, over flat pixels."""
        loc = self.means[index].float()
        factor = (self.factors[index].float() @ self.basis.float()).T
        return torch.distributions.LowRankMultivariateNormal(
            loc, factor, self.rest[index].float().expand_as(loc)
        )

    def sample(self, index: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One draw for each class number in `index` (M,): (M, 3, side, side), clamped to [0, 1]."""
        rank, pixels = self.factors.shape[1], self.means.shape[1]
        weights = torch.randn((len(index), 1, rank), generator=generator)
        noise = torch.randn((len(index), pixels), generator=generator)
        shape = (weights @ self.factors[index].float())[:, 0] @ self.basis.float()
        flat = self.means[index].float() + shape + noise * self.rest[index].float().sqrt()
        return flat.view(-1, 3, self.side, self.side).clamp(0, 1)

    def save(self, path: str | Path) -> Path:
        """Writes the mixture as fp16 safetensors, atomically."""
        from safetensors.torch import save_file

        from .files import write_atomically

        tensors = {
            name: getattr(self, name).half().contiguous() for name in ("means", "factors", "basis")
        }
        # Variances below 6e-5 are subnormal in fp16 and would lose digits.
        tensors["rest"] = self.rest.float().contiguous()
        metadata = {"classes": json.dumps(self.classes, ensure_ascii=False)}
        return write_atomically(path, lambda name: save_file(tensors, name, metadata=metadata))

    @classmethod
    def load(cls, path: str | Path | None = None) -> Mixture:
        """Reads a mixture; None is the one in the package. FileNotFoundError, or ValueError if it is another file."""
        path = Path(path) if path else Path(__file__).parent / "bundled" / "prior.safetensors"
        if not path.is_file():
            hint = (
                "fit one with python -m clipag_plug.priors fit SOURCE -o FILE, or use --init noise"
            )
            raise FileNotFoundError(f"prior {str(path)!r} does not exist; {hint}")
        return _load(str(path), path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=2)
def _load(path: str, _changed: int) -> Mixture:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {
                name: file.get_tensor(name).float()
                for name in ("means", "factors", "basis", "rest")
            }
            classes = json.loads((file.metadata() or {})["classes"])
    except (SafetensorError, KeyError, ValueError) as error:
        hint = "make one with python -m clipag_plug.priors fit SOURCE -o FILE"
        raise ValueError(f"{path!r} is not a fitted prior ({error}); {hint}") from error
    return Mixture(**tensors, classes=classes)


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
    import tarfile

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
    import io

    from PIL import Image

    from .images import from_pil

    with Image.open(io.BytesIO(data)) as image:
        square = min(image.size)
        left, top = (image.width - square) // 2, (image.height - square) // 2
        box = (left, top, left + square, top + square)
        return from_pil(image.convert("RGB").resize((side, side), Image.Resampling.BOX, box=box))


def _numeric(name: str) -> tuple[int, str]:
    return (int(name) if name.isdigit() else -1, name)


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m clipag_plug.priors fit SOURCE -o FILE`."""
    import argparse
    import sys

    parser = argparse.ArgumentParser(prog="python -m clipag_plug.priors", description=__doc__)
    command = parser.add_subparsers(dest="command", required=True).add_parser(
        "fit", help="fit the mixture"
    )
    command.add_argument(
        "source",
        nargs="+",
        help="tar shards with KEY.jpg and KEY.cls, or a folder of class folders",
    )
    command.add_argument("-o", "--output", required=True, help="file to write (.safetensors)")
    command.add_argument("--rank", type=int, default=90, help="directions per class [90]")
    command.add_argument("--basis", type=int, default=96, help="components they live in [96]")
    command.add_argument("--side", type=int, default=SIDE, help=f"side of the pictures [{SIDE}]")
    command.add_argument("--limit", type=int, help="pictures per class")
    given = parser.parse_args(arguments)
    try:
        pictures = read_pictures(*given.source, side=given.side, limit=given.limit)
        mixture = fit(pictures, rank=given.rank, basis=given.basis)
        path = mixture.save(given.output)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stderr.write(
        f"{path}: {len(mixture.classes)} classes, {path.stat().st_size / 1e6:.2f} MB\n"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
