"""Training and test shards of the pictograms: each drawing turned, moved, scaled and laid on backgrounds of its own.

Needs the folder of pictogram shards (64x64 RGBA PNG, concept, JSON). Writes shards of 64x64 JPEG with `.txt`
(the concept) and `.cls` (its place in the sorted list, `concepts.txt`): `drawings-*.tar` of the designs for training,
`drawings-held-out.tar` of the others, on white and unmoved.
"""

from __future__ import annotations

import argparse
import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from words import concepts, pictograms  # its neighbour

SIDE, OVER = 64, 2  # pixels; the factor at which a drawing is placed before it is averaged down


def background(rng: np.random.Generator) -> Image.Image:
    """White in a third of cases, else one colour or a gradient between two, with blurred patches in some."""
    if rng.random() < 0.35:
        return Image.new("RGB", (SIDE, SIDE), "white")
    ends = rng.integers(0, 256, (2, 3))
    share = np.linspace(0, 1, SIDE)[:, None, None] * (rng.random() < 0.5)
    area = np.broadcast_to(ends[0] * (1 - share) + ends[1] * share, (SIDE, SIDE, 3))
    if rng.random() < 0.3:
        patches = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        area = 0.6 * area + 0.4 * np.asarray(patches.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    picture = Image.fromarray(area.astype(np.uint8))
    return picture.rotate(90 * int(rng.integers(4)))


def placed(drawing: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The drawing at 0.7 to 1.05 times its size, turned by up to 12 degrees, moved, mirrored in half of cases."""
    large = drawing.resize((SIDE * OVER, SIDE * OVER), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        large = large.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    scale, turn = rng.uniform(0.7, 1.05), rng.uniform(-12, 12)
    move = rng.uniform(-0.1, 0.1, 2) * SIDE * OVER
    centre, cos, sin = (
        SIDE * OVER / 2,
        np.cos(np.radians(turn)) / scale,
        np.sin(np.radians(turn)) / scale,
    )
    x, y = centre + move
    affine = (cos, sin, centre - cos * x - sin * y, -sin, cos, centre + sin * x - cos * y)
    return large.transform(
        large.size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR
    ).resize((SIDE, SIDE), Image.Resampling.BOX)


def composed(drawing: Image.Image, ground: Image.Image) -> Image.Image:
    ground = ground.convert("RGBA")
    ground.alpha_composite(drawing)
    return ground.convert("RGB")


class Shard:
    """A tar file of samples, counted."""

    def __init__(self, path: Path) -> None:
        self.tar, self.count = tarfile.open(path, "w"), 0  # noqa: SIM115

    def add(self, picture: Image.Image, concept: str, index: int) -> None:
        jpeg = io.BytesIO()
        picture.save(jpeg, "JPEG", quality=95, subsampling=0)
        for kind, data in (
            ("jpg", jpeg.getvalue()),
            ("txt", concept.encode()),
            ("cls", str(index).encode()),
        ):
            member = tarfile.TarInfo(f"{self.count:06d}.{kind}")
            member.size = len(data)
            self.tar.addfile(member, io.BytesIO(data))
        self.count += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictograms", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--variants", type=int, default=6, help="pictures of each drawing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/pair"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    index = {concept: i for i, concept in enumerate(concepts(args.pictograms))}
    (args.output / "concepts.txt").write_text("\n".join(index) + "\n", encoding="utf-8")
    rng = np.random.default_rng(args.seed)
    samples = [
        (sample["concept"], Image.open(io.BytesIO(png)).convert("RGBA"))
        for _, sample, png in pictograms(args.pictograms)
    ]
    for variant in range(args.variants):
        shard = Shard(args.output / f"drawings-{variant:02d}.tar")
        for row in rng.permutation(len(samples)):
            concept, drawing = samples[row]
            shard.add(composed(placed(drawing, rng), background(rng)), concept, index[concept])
        shard.tar.close()
    held_out = Shard(args.output / "drawings-held-out.tar")
    for _, sample, png in pictograms(args.pictograms, held_out=True):
        drawing = Image.open(io.BytesIO(png)).convert("RGBA")
        white = Image.new("RGB", (SIDE, SIDE), "white")
        held_out.add(composed(drawing, white), sample["concept"], index[sample["concept"]])
    held_out.tar.close()
    print(f"{args.variants * len(samples)} drawings for training, {held_out.count} held out")


if __name__ == "__main__":
    main()
