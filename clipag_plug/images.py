"""Pictures as tensors (3, H, W) in [0, 1]: reading, RGB, resizing, PNG with its recipe, sheets, animations."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .files import check_place, readable, write_atomically

log = logging.getLogger(__name__)
RECIPE_KEY = "clipag_plug"


def read_image(path: str | Path) -> Tensor:
    """A picture as (3, H, W) in [0, 1], turned as its EXIF says; transparency is laid over white.

    Raises: FileNotFoundError, or ValueError when the file is no picture that Pillow can read.
    """
    with _open(path) as image:
        try:
            return from_pil(as_rgb(image))
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(
                f"{str(path)!r} cannot be used: {error}; give a complete 8- or 16-bit picture"
            ) from error


def as_rgb(image: Any) -> Any:
    """A PIL picture upright and in mode RGB, transparency laid over white, 16-bit greys scaled to 8 bits.

    Raises: ValueError for floats and for integers beyond 16 bits, whose white is unknown.
    """
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        wide = image.convert("I")  # Pillow's own way to 8 bits cuts everything above 255 off
        if not 0 <= wide.getextrema()[0] <= wide.getextrema()[1] <= 65535:
            raise ValueError("its values leave the 16 bits from 0 to 65535")
        return wide.point(lambda value: value * (1 / 257) + 0.5).convert("L").convert("RGB")
    if image.mode == "F":
        raise ValueError("its values are floats, and which of them is white is not known")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def from_pil(image: Any) -> Tensor:
    """A PIL picture in mode RGB as (3, H, W) in [0, 1]."""
    return levels_of(image).float() / 255


def levels_of(image: Any) -> Tensor:
    """A PIL picture in mode RGB as uint8 (3, H, W)."""
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return data.view(image.height, image.width, 3).permute(2, 0, 1).contiguous()


def to_pil(image: Tensor) -> Any:
    """(3, H, W) in [0, 1] as a PIL picture; values are clamped and rounded to the nearest of 256 levels."""
    from PIL import Image

    return Image.fromarray(to_levels(image).permute(1, 2, 0).contiguous().numpy())


def to_levels(image: Tensor) -> Tensor:
    """[0, 1] -> uint8 on the CPU. Raises: ValueError for NaN and infinity, of which no picture can be made."""
    image = image.detach().float().cpu()
    if not torch.isfinite(image).all():
        raise ValueError("the picture holds values that are not finite")
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def resize(images: Tensor, size: int | tuple[int, int], mode: str = "bicubic") -> Tensor:
    """Images (N, C, H, W) at another size, differentiable and without aliasing; bicubic is clamped to [0, 1].

    Args:
        size: (height, width), or the side of a square; the aspect is not kept.
        mode: "bicubic", "bilinear", "area" (the mean of the pixels that a new one covers) or "nearest".
    """
    size = (size, size) if isinstance(size, int) else size
    if tuple(images.shape[-2:]) == size:
        return images
    shrinks = size[0] < images.shape[-2] or size[1] < images.shape[-1]
    smooth = mode == "bicubic" or (mode == "bilinear" and shrinks)
    found = F.interpolate(images, size, mode=mode, antialias=smooth)
    return found.clamp(0, 1) if mode == "bicubic" else found


def png_bytes(image: Tensor, recipe: dict[str, Any] | None = None) -> bytes:
    """(3, H, W) in [0, 1] as PNG with `recipe` as JSON under the iTXt key `clipag_plug`.

    The bytes depend on the picture and the recipe alone.
    """
    from PIL.PngImagePlugin import PngInfo

    info, file = PngInfo(), io.BytesIO()
    if recipe is not None:
        info.add_itxt(RECIPE_KEY, readable(recipe, sort_keys=True))
    to_pil(image).save(file, format="PNG", pnginfo=info)
    return file.getvalue()


def write_image(path: str | Path, image: Tensor, recipe: dict[str, Any] | None = None) -> Path:
    """Writes `png_bytes`, atomically. Raises: ValueError for another suffix than .png."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(
            f"{str(path)!r} must end in .png: a picture carries its recipe, and only PNG can"
        )
    return write_atomically(path, lambda name: Path(name).write_bytes(png_bytes(image, recipe)))


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The recipe inside a PNG of ours. Raises: FileNotFoundError, or ValueError where there is none."""
    with _open(path) as image:
        text = getattr(image, "text", {}).get(RECIPE_KEY)
    if text is None:
        raise ValueError(
            f"{str(path)!r} holds no recipe; only a PNG written by clipag_plug can be replayed"
        )
    try:
        recipe = json.loads(text)
    except ValueError as error:
        raise ValueError(f"the recipe in {str(path)!r} is not valid JSON: {error}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"the recipe in {str(path)!r} is a {type(recipe).__name__}, not a table")
    return recipe


def refuse_taken(paths: Sequence[Path], *, overwrite: bool, folder: bool = False) -> None:
    """Looks, before any work, at the files that will be written; a picture of ours is replaced with a remark.

    folder: they lie in one run folder, where files beside a picture of ours are ours too.
    Raises: ValueError for a file that is not ours, unless `overwrite`; PermissionError for a folder that is none or
        may not be written to.
    """
    taken, ours = [path for path in paths if path.exists()], []
    for path in taken:
        with contextlib.suppress(ValueError, OSError):
            ours += [path] if read_recipe(path) else []
    others = [path for path in taken if path not in ours]
    if others and not overwrite and not (ours and folder):
        raise ValueError(
            f"{str(others[0])!r} exists and is no picture of clipag_plug; choose another name, or add --overwrite"
        )
    for path in paths:
        check_place(path)
    for path in taken:
        log.info("%s is replaced", path)


def contact_sheet(
    rows: Sequence[Sequence[Tensor | None]],
    *,
    title: str = "",
    groups: Sequence[tuple[str, int]] = (),
    headings: Sequence[str] = (),
    captions: Sequence[str] = (),
    notes: Sequence[Sequence[str]] = (),
    margin: int = 4,
    text: int = 10,
) -> Tensor:
    """Rows of pictures (3, h, w) of one size on white, with texts around them -> (3, H, W).

    Args:
        rows: None leaves a cell white, as does a short row.
        title: above everything.
        groups: (heading, columns it spans), above the headings.
        headings: one above each column.
        captions: one above each row.
        notes: for each row, one under each of its pictures.
        margin: pixels between the pictures; text: size of the letters in pixels.
    """
    from PIL import Image, ImageDraw

    sizes = {tuple(cell.shape[-2:]) for row in rows for cell in row if cell is not None}
    if len(sizes) != 1:
        raise ValueError(
            f"one sheet holds pictures of one size, at least one; got (h, w) {sorted(sizes)}"
        )
    ((height, width),) = sizes
    columns, small = max(map(len, rows)), round(text * 0.8)
    line, small_line = round(text * 1.3), round(small * 1.3)
    # Narrow pictures still leave room for what is written at them.
    pitch = (max(width, 96) if headings or notes else width) + margin
    wide = max(columns * pitch + margin, 320 if title else 0)
    step = height + margin + line * bool(captions) + small_line * bool(notes)
    y = margin + line * sum(map(bool, (title, groups, headings)))
    sheet = Image.new("RGB", (wide, y + len(rows) * step), "white")
    draw = ImageDraw.Draw(sheet)

    top, column = margin // 2, 0
    if title:
        draw_text(draw, title, (margin, top), wide - 2 * margin, text)
        top += line
    for heading, span in groups:
        left, right = margin + column * pitch, (column + span) * pitch
        if heading:
            draw_text(draw, heading, (left, top), right - left, text)
            draw.line((left, top + line - 2, right, top + line - 2), fill="#999999")
        column += span
    for number, heading in enumerate(headings):
        at = (margin + number * pitch, top + line * bool(groups))
        draw_text(draw, heading, at, pitch - margin, text)
    for number, row in enumerate(rows):
        if captions:
            draw_text(draw, captions[number], (margin, y), wide - 2 * margin, text)
        place = y + line * bool(captions)
        for column, cell in enumerate(row):
            if cell is not None:
                sheet.paste(to_pil(cell), (margin + column * pitch, place))
        for column, note in enumerate(notes[number] if notes else ()):
            at = (margin + column * pitch, place + height + 2)
            draw_text(draw, note, at, pitch - margin, small, "#555555")
        y += step
    return from_pil(sheet)


def draw_text(
    draw: Any, words: str, at: tuple[int, int], room: int, size: int, fill: str = "black"
) -> None:
    """Writes one line of `size` pixels with PIL's `draw`, cut to `room` pixels with an ellipsis."""
    from PIL import ImageFont

    font, words = ImageFont.load_default(size), " ".join(words.split())
    while len(words) > 1 and draw.textlength(words, font=font) > room:
        words = words[:-2].rstrip() + "…"
    draw.text(at, words, font=font, fill=fill)


def write_animation(
    path: str | Path, frames: Sequence[Tensor], *, fps: float = 12, hold: float = 1.5
) -> Path:
    """Frames (3, H, W) as a looping .gif, .webp or animated .png, or as .mp4; the last is held `hold` seconds.

    Raises: ImportError for MP4 without imageio and PyAV, ValueError for another suffix or no frame.
    """
    path = Path(path)
    if not frames:
        raise ValueError(f"no frame to write to {str(path)!r}")
    kind = path.suffix.lower()
    if kind == ".mp4":
        return write_atomically(path, lambda name: _write_mp4(name, frames, fps, hold))
    if kind not in (".gif", ".webp", ".png"):
        raise ValueError(f"{str(path)!r} must end in .gif, .webp, .png or .mp4")
    first, *rest = map(to_pil, frames)
    settings: dict[str, Any] = {"save_all": True, "append_images": rest, "loop": 0}
    settings["duration"] = [round(1000 / fps)] * len(rest) + [round(1000 * hold)]
    if kind == ".webp":
        settings |= {"quality": 90, "method": 4}
    settings["format"] = kind[1:].upper()
    return write_atomically(path, lambda name: first.save(name, **settings))


def mp4_writer() -> Any:
    """imageio. Raises: ImportError where it, or PyAV, which writes, is not installed."""
    try:
        import av  # noqa: F401  (imageio names its plugin, this import checks that it can work)
        import imageio.v3 as iio
    except ImportError as error:
        raise ImportError(
            "MP4 needs imageio and PyAV: pip install imageio av; or write .webp or .gif"
        ) from error
    return iio


def _write_mp4(name: str, frames: Sequence[Tensor], fps: float, hold: float) -> None:
    height, width = (side // 2 * 2 for side in frames[0].shape[1:])  # H.264 in 4:2:0 wants it
    even = [to_levels(frame)[:, :height, :width].permute(1, 2, 0).numpy() for frame in frames]
    even += [even[-1]] * round(fps * hold)
    mp4_writer().imwrite(name, even, plugin="pyav", extension=".mp4", fps=fps, codec="libx264")


def _open(path: str | Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    if Path(path).is_dir():
        raise ValueError(f"{str(path)!r} is a folder; give one of the pictures in it")
    if not Path(path).is_file():
        raise FileNotFoundError(f"picture {str(path)!r} does not exist")
    try:
        return Image.open(path)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{str(path)!r} has more pixels than can be read ({error}); make it smaller first"
        ) from error
    except UnidentifiedImageError as error:
        with open(path, "rb") as file:
            what = foreign(file.read(4096)) or "not a picture that can be read"
        raise ValueError(f"{str(path)!r} is {what}; give a PNG, JPEG, WebP or GIF") from error


_STARTS = {
    **dict.fromkeys((b"II*\0", b"MM\0*"), "a TIFF or a camera's raw picture"),
    b"BM": "a BMP picture",
    b"%PDF": "a PDF",
    b"8BPS": "a Photoshop picture",
    **dict.fromkeys((b"\xff\x0a", b"\0\0\0\x0cJXL "), "a JPEG XL picture"),
    **dict.fromkeys((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  "), "a JPEG 2000 picture"),
    b"\0\0\x01\0": "an icon",
    b"PK\x03\x04": "a ZIP file",
}


def foreign(head: bytes) -> str:
    """What a file that Pillow does not read is, as far as its first bytes say; else nothing."""
    if head[4:8] == b"ftyp":
        return "an AVIF picture" if head[8:12] in (b"avif", b"avis") else "a HEIC picture or a film"
    if b"<svg" in head.lower() or head[:2] == b"\x1f\x8b":
        return "a drawing in SVG" if b"<svg" in head.lower() else "a compressed file"
    return next((what for start, what in _STARTS.items() if head.startswith(start)), "")
