"""Reading and writing pictures: PNG with its recipe inside, contact sheets, animations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .files import write_atomically

RECIPE_KEY = "clipag_plug"


def read_image(path: str | Path) -> Tensor:
    """A picture as (3, H, W) in [0, 1], turned as its EXIF says; transparency is laid over white.

    Raises FileNotFoundError, or ValueError when the file is no picture that Pillow can read.
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

    Raises ValueError for floats and for integers beyond 16 bits, whose white is unknown.
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
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return data.view(image.height, image.width, 3).permute(2, 0, 1).contiguous().float() / 255


def to_pil(image: Tensor) -> Any:
    """(3, H, W) in [0, 1] as a PIL picture; values are clamped and rounded to the nearest of 256 levels."""
    from PIL import Image

    levels = to_levels(image).permute(1, 2, 0).contiguous()
    return Image.frombytes("RGB", (image.shape[2], image.shape[1]), levels.numpy().tobytes())


def to_levels(image: Tensor) -> Tensor:
    """[0, 1] -> uint8 on the CPU. NaN is a ValueError: a picture of it would lie."""
    image = image.detach().float().cpu()
    if not torch.isfinite(image).all():
        raise ValueError("the picture holds values that are not finite")
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def write_image(path: str | Path, image: Tensor, recipe: dict[str, Any] | None = None) -> Path:
    """Writes (3, H, W) in [0, 1] as PNG, atomically, with `recipe` as JSON under the iTXt key `clipag_plug`.

    The bytes depend on the picture and the recipe alone. Raises ValueError for another suffix.
    """
    from PIL.PngImagePlugin import PngInfo

    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(
            f"{str(path)!r} must end in .png: a picture carries its recipe, and only PNG can"
        )
    info = PngInfo()
    if recipe is not None:
        info.add_itxt(RECIPE_KEY, json.dumps(recipe, ensure_ascii=False, sort_keys=True))
    picture = to_pil(image)
    return write_atomically(path, lambda name: picture.save(name, format="PNG", pnginfo=info))


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The recipe inside a PNG of ours. Raises FileNotFoundError, or ValueError where there is none."""
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


def contact_sheet(
    rows: Sequence[Sequence[Tensor]],
    *,
    captions: Sequence[str] = (),
    headings: Sequence[str] = (),
    margin: int = 4,
) -> Tensor:
    """Rows of pictures (3, h, w) of one size on white -> (3, H, W).

    captions: text above each row; headings: text above each column. Short rows leave cells white.
    """
    if not rows or not rows[0]:
        raise ValueError("a contact sheet needs at least one picture")
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default()
    height, width = rows[0][0].shape[-2:]
    line = 14
    top = line if headings else 0
    step = height + margin + (line if captions else 0)
    columns = max(len(row) for row in rows)
    sheet = Image.new(
        "RGB", (columns * (width + margin) + margin, top + len(rows) * step + margin), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for column, heading in enumerate(headings):
        draw.text((margin + column * (width + margin), 1), heading, fill="black", font=font)
    for number, row in enumerate(rows):
        y = top + number * step + margin
        if captions:
            draw.text((margin, y - 2), captions[number], fill="black", font=font)
            y += line
        for column, image in enumerate(row):
            if tuple(image.shape[-2:]) != (height, width):
                raise ValueError(
                    f"pictures of {width}x{height} and {image.shape[-1]}x{image.shape[-2]} on one sheet"
                )
            sheet.paste(to_pil(image), (margin + column * (width + margin), y))
    return from_pil(sheet)


def write_animation(
    path: str | Path, frames: Sequence[Tensor], *, fps: float = 12, hold: float = 1.5
) -> Path:
    """Frames (3, H, W) as a looping .gif, .webp or animated .png, or as .mp4; the last is held `hold` seconds.

    MP4 needs imageio and PyAV and an ImportError says so. Raises ValueError for another suffix or no frame.
    """
    path = Path(path)
    if not frames:
        raise ValueError(f"no frame to write to {str(path)!r}")
    kind = path.suffix.lower()
    if kind == ".mp4":
        return write_atomically(path, lambda name: _write_mp4(name, frames, fps, hold))
    if kind not in (".gif", ".webp", ".png"):
        raise ValueError(f"{str(path)!r} must end in .gif, .webp, .png or .mp4")
    durations = [round(1000 / fps)] * (len(frames) - 1) + [round(1000 * hold)]
    first, *rest = [to_pil(frame) for frame in frames]
    settings: dict[str, Any] = {
        "save_all": True,
        "append_images": rest,
        "duration": durations,
        "loop": 0,
    }
    if kind == ".webp":
        settings.update(quality=90, method=4)
    return write_atomically(
        path, lambda name: first.save(name, format=kind[1:].upper(), **settings)
    )


def _write_mp4(name: str, frames: Sequence[Tensor], fps: float, hold: float) -> None:
    try:
        import av  # noqa: F401  (imageio names its plugin, this import checks that it can work)
        import imageio.v3 as iio
    except ImportError as error:
        raise ImportError(
            "MP4 needs imageio and PyAV: pip install imageio av; or write .webp or .gif"
        ) from error
    # H.264 in 4:2:0 wants even sides.
    pictures = [
        to_levels(f)[:, : f.shape[1] // 2 * 2, : f.shape[2] // 2 * 2].permute(1, 2, 0).numpy()
        for f in frames
    ]
    pictures += [pictures[-1]] * round(fps * hold)
    iio.imwrite(name, pictures, plugin="pyav", extension=".mp4", fps=fps, codec="libx264")


def _open(path: str | Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"picture {str(path)!r} does not exist")
    try:
        return Image.open(path)
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{str(path)!r} is not a picture that can be read; give a PNG, JPEG or WebP"
        ) from error
