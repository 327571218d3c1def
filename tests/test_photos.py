"""The labelled photographs: what is in the package, what the boxes cover, and what bad files say."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
import torch

from clipag_plug.bundled.photos import Photographs, bundled_photos, read_photos
from clipag_plug.vocabulary import bundled_vocabulary

HEAD = "key\tclass\tx0\ty0\tx1\ty1\n"


def jpeg(side: int = 8) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


def pack(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_the_sample_covers_every_class() -> None:
    photos = bundled_photos()
    assert len(photos) == 505
    assert photos.images.shape == (505, 3, 64, 64)
    assert torch.bincount(photos.labels).tolist().count(0) == 0
    assert len(photos.labels.unique()) == len(bundled_vocabulary().class_names)
    assert (photos.boxes[:, :2] <= photos.boxes[:, 2:]).all()
    assert photos.boxes.min() >= 0
    assert photos.boxes.max() < 64


def test_pixels_enlarge_bilinearly_and_keep_the_mean() -> None:
    photos = bundled_photos()
    small, large = photos.pixels([3, 7]), photos.pixels([3, 7], 224)
    assert large.shape == (2, 3, 224, 224)
    assert float(large.min()) >= 0 and float(large.max()) <= 1
    assert torch.allclose(small.mean((2, 3)), large.mean((2, 3)), atol=5e-3)
    assert torch.equal(photos.pixels([7])[0], small[1])


def test_masks_are_the_boxes() -> None:
    boxes = torch.tensor([[0, 0, 3, 3], [1, 2, 1, 2], [0, 1, 1, 3]])
    photos = Photographs(
        ("a", "b", "c"), torch.zeros(3, 3, 4, 4, dtype=torch.uint8), torch.zeros(3), boxes, ""
    )
    masks = photos.masks([0, 1, 2])
    assert masks.mean((1, 2, 3)).tolist() == pytest.approx([1, 1 / 16, 6 / 16])
    assert masks[1, 0, 2, 1] == 1
    # A box that cuts larger cells, or smaller ones, keeps its share of the area.
    for side in (3, 8, 28):
        assert photos.masks([0, 1, 2], side).mean((1, 2, 3)).tolist() == pytest.approx(
            [1, 1 / 16, 6 / 16]
        )


def test_a_zip_of_ones_own(tmp_path: Path) -> None:
    table = HEAD + "one\t5\t0\t0\t7\t7\n"
    photos = read_photos(
        pack(tmp_path / "p.zip", {"one.jpg": jpeg(), "labels.tsv": table.encode()})
    )
    assert (photos.keys, photos.labels.tolist(), len(photos.sha256)) == (("one",), [5], 64)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"one.jpg": jpeg()}, "labels.tsv"),
        ({"labels.tsv": b"key\tlabel\n"}, "columns"),
        ({"labels.tsv": (HEAD + "one\t5\t0\t0\t7\t7\n").encode()}, "one.jpg"),
        (
            {"labels.tsv": (HEAD + "one\t5\t0\t0\t7\t7\n").encode(), "one.jpg": jpeg()[:40]},
            "one.jpg",
        ),
        (
            {
                "labels.tsv": (HEAD + "a\t5\t0\t0\t7\t7\nb\t5\t0\t0\t7\t7\n").encode(),
                "a.jpg": jpeg(8),
                "b.jpg": jpeg(16),
            },
            "sizes",
        ),
    ],
)
def test_bad_zips_say_what_is_wrong(
    tmp_path: Path, members: dict[str, bytes], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_photos(pack(tmp_path / "p.zip", members))


def test_what_is_no_zip_or_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "p.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match="zip"):
        read_photos(tmp_path / "p.zip")
    with pytest.raises(FileNotFoundError, match="absent.zip"):
        read_photos(tmp_path / "absent.zip")
