"""Pictures on disk: exact, atomic, with their recipe, and clear about bad files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from clipag_plug.files import sha256, slug, write_atomically, write_text
from clipag_plug.images import (
    contact_sheet,
    read_image,
    read_recipe,
    resize,
    write_animation,
    write_image,
)

RECIPE = {"prompt": "une forêt 🌲", "options": {"steps": 3, "lr": 0.05}}


def levels(height: int = 6, width: int = 5) -> torch.Tensor:
    return (
        torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(0)) / 255
    )


def test_round_trip_is_exact_and_repeatable(tmp_path: Path) -> None:
    first = write_image(tmp_path / "a.png", levels(), RECIPE)
    second = write_image(tmp_path / "b.png", levels(), RECIPE)
    assert torch.equal(read_image(first), levels())
    assert read_recipe(first) == RECIPE
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert torch.equal(read_image(tmp_path / "clear.png"), torch.ones(3, 4, 4))
    Image.new("L", (4, 4), 51).save(tmp_path / "grey.png")
    assert torch.allclose(read_image(tmp_path / "grey.png"), torch.full((3, 4, 4), 0.2))


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_image(tmp_path / "nowhere.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="not a picture"):
        read_image(tmp_path / "text.png")
    whole = write_image(tmp_path / "whole.png", torch.rand(3, 64, 64)).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="half"):
        read_image(tmp_path / "half.png")
    with pytest.raises(ValueError, match="no recipe"):
        read_recipe(tmp_path / "whole.png")


def test_nothing_is_left_by_a_failure(tmp_path: Path) -> None:
    kept = write_image(tmp_path / "kept.png", levels())
    before = kept.read_bytes()
    with pytest.raises(ValueError, match="not finite"):
        write_image(kept, torch.full((3, 4, 4), float("nan")))

    def fail(name: str) -> None:
        Path(name).write_text("half")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_atomically(kept, fail)
    assert kept.read_bytes() == before and os.listdir(tmp_path) == ["kept.png"]
    with pytest.raises(FileNotFoundError, match="does not exist"):
        write_image(tmp_path / "no" / "a.png", levels())
    with pytest.raises(ValueError, match=".png"):
        write_image(tmp_path / "a.jpg", levels())


def test_files_are_made_hashed_and_named(tmp_path: Path) -> None:
    path = write_text(tmp_path / "deep" / "a.txt", "ä", parents=True)
    assert path.read_bytes() == "ä".encode() and path.stat().st_mode & 0o400
    assert sha256(path) == sha256("ä".encode()) == hashlib.sha256("ä".encode()).hexdigest()
    with pytest.raises(ValueError, match="is a folder"):
        write_text(tmp_path / "deep", "")
    assert slug("openai/ViT-B/32") == "openai-ViT-B-32"
    assert slug("eine Füchsin!_1", keep="") == "eine-Füchsin-1"


def test_resize_averages_where_it_reduces_and_stays_in_range() -> None:
    images = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(0))
    assert resize(images, (12, 16)) is images
    assert torch.allclose(resize(images, (6, 8), "area"), F.avg_pool2d(images, 2))
    stripes = (torch.arange(64) % 2).float().expand(1, 3, 64, 64)
    for mode in ("bicubic", "bilinear"):
        assert (resize(stripes, (64, 16), mode) - 0.5).abs().max() < 0.1
    edge = resize((images > 0.5).float(), 37)
    assert edge.shape == (1, 3, 37, 37) and edge.min() == 0 and edge.max() == 1
    wanted = F.interpolate(images, (24, 32), mode="bilinear", align_corners=False)
    assert torch.equal(resize(images, (24, 32), "bilinear"), wanted)


def test_sheet_holds_its_pictures() -> None:
    images = [torch.full((3, 8, 10), value) for value in (0.0, 0.2, 0.4)]
    sheet = contact_sheet([images[:2], images[2:]], margin=2)
    assert sheet.shape == (3, 2 * 10 + 2, 2 * 12 + 2)
    assert torch.equal(sheet[:, 2:10, 2:12], images[0]) and torch.equal(
        sheet[:, 2:10, 14:24], images[1]
    )
    assert torch.equal(sheet[:, 12:20, 2:12], images[2]) and (sheet[:, 12:20, 14:24] == 1).all()
    captioned = contact_sheet([images], captions=["three"], headings=["a", "b", "c"])
    assert captioned.shape[1] > sheet.shape[1] // 2 + 8
    with pytest.raises(ValueError, match="of one size"):
        contact_sheet([[images[0], torch.zeros(3, 4, 4)]])
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_animation(tmp_path: Path, kind: str) -> None:
    frames = [torch.full((3, 8, 8), value / 4) for value in range(4)]
    path = write_animation(tmp_path / f"run.{kind}", frames, fps=10, hold=1)
    with Image.open(path) as found:
        assert found.n_frames == 4
        found.seek(3)
        assert abs(found.convert("RGB").getpixel((4, 4))[0] - 191) <= 3


def test_animation_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no frame"):
        write_animation(tmp_path / "a.gif", [])
    with pytest.raises(ValueError, match="must end"):
        write_animation(tmp_path / "a.bmp", [torch.zeros(3, 4, 4)])


def test_mp4_or_a_clear_refusal(tmp_path: Path) -> None:
    path = tmp_path / "run.mp4"
    try:
        import av  # noqa: F401
        import imageio.v3 as iio
    except ImportError:
        with pytest.raises(ImportError, match="pip install imageio av"):
            write_animation(path, [torch.zeros(3, 8, 8)])
        assert not path.exists()
        return
    write_animation(
        path, [torch.full((3, 33, 32), value / 4) for value in range(4)], fps=10, hold=0.5
    )
    assert iio.imread(path, plugin="pyav").shape == (9, 32, 32, 3)
