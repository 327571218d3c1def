"""Adversarial fine-tuning in miniature: packs bundled photographs as a shard and trains on it for a few steps.

The data are far too few to improve the model; the example shows the moving parts.
"""

import io
import tarfile
from pathlib import Path

from clipag_plug.bundled.photos import bundled_photos
from clipag_plug.images import to_pil
from clipag_plug.options.train import Train
from clipag_plug.train.command import run

folder = Path("runs/examples")
folder.mkdir(parents=True, exist_ok=True)
photos = bundled_photos()

with tarfile.open(folder / "photos.tar", "w") as archive:
    for row in range(128):
        stream = io.BytesIO()
        to_pil(photos.pixels([row])[0]).save(stream, "JPEG")
        for suffix, data in (
            ("jpg", stream.getvalue()),
            ("cls", str(int(photos.labels[row])).encode()),
        ):
            member = tarfile.TarInfo(f"{photos.keys[row]}.{suffix}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))

run(
    Train(
        data=[str(folder / "photos.tar")],
        captions="vocabulary",
        init="clip-mini",
        resolution=32,
        eps=2.5,
        attack_steps=2,
        bank=True,
        samples=256,
        batch_size=32,
        lr=1e-4,
        output=str(folder / "train"),
        device="cpu",
    )
)
