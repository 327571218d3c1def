"""From a record of a data source to a sample: pixels, caption, class; or the cause why there is none."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from zlib import crc32

import numpy as np

from ..vocabulary import sentence

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = ("jpg", "jpeg", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff", "avif")
# Usual names of columns and JSON keys, those of img2dataset, open_clip and Hugging Face among them, the first wins.
IMAGE_NAMES = "image img jpg png webp filepath file_path filename file_name image_path image_file"
IMAGE_NAMES += " path file"
CAPTION_NAMES = "caption text txt title sentence captions description"
LABEL_NAMES = "label cls class class_id"
SMALLEST = 8  # pixels of the shorter side: below are tracking pixels and spacers
LARGEST = 178_956_970  # pixels; above Pillow takes a file for a decompression bomb
MAGIC = (b"\xff\xd8", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")
# Modes whose values are levels of known range. "I" and "F" are not: nothing says what white is.
CONVERTIBLE = frozenset(
    {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}
    | {"I;16", "I;16B", "I;16L", "I;16N"}
)
# Every cause there is; a broken shard or command counts as one bad item.
CAUSES = (
    *("no image", "empty image", "broken image", "not an image", "image too large"),
    *("image too small", "unsupported colour mode"),
    *("no caption", "empty caption", "caption not UTF-8", "broken metadata"),
    *("no class", "unknown class"),
    *("missing file", "broken row"),
    *("truncated shard", "unreadable shard", "failed command"),
)


class BadSample(Exception):
    """A sample that cannot be used; its text is one of CAUSES."""


@dataclass(frozen=True)
class Columns:
    """Names of a table's columns (and, for captions, of a JSON file's keys); an empty one means the usual names.

    templates: sentences whose braces captions go into; samples take turns by their names.
    """

    image: str = ""
    caption: str = ""
    label: str = ""
    templates: tuple[str, ...] = ("{}",)

    def find(self, present: Sequence[str], source: str) -> tuple[str, str | None, str | None]:
        """The columns of image, caption and class among those present; caption and class may be missing.

        Raises ValueError where a column that was named, or any for the image, is not there.
        """
        by_lower = {name.lower(): name for name in reversed(present)}
        found = []
        for what, usual in (
            ("image", IMAGE_NAMES),
            ("caption", CAPTION_NAMES),
            ("label", LABEL_NAMES),
        ):
            given = getattr(self, what)
            if given and given not in present:
                raise ValueError(
                    f"{source} has no column {given!r} (--{what}-column); it has {', '.join(present)}"
                )
            found.append(given or next((by_lower[n] for n in usual.split() if n in by_lower), None))
        if found[0] is None:
            raise ValueError(
                f"{source} has the columns {', '.join(present)}: none is known to hold images; give --image-column NAME"
            )
        return found[0], found[1], found[2]


@dataclass
class Record:
    """One raw sample: encoded bytes (or pixels uint8 (H, W, 3)), caption, class, JSON metadata; None where absent.

    error: the cause where the source itself could not go on at this place.
    """

    name: str
    image: bytes | np.ndarray | None = None
    text: Any = None
    label: Any = None
    metadata: bytes | None = None
    error: str = ""
    columns: Columns = field(default_factory=Columns)


class Source:
    """Records of one kind of data. bad: name -> cause of what was unusable on opening; classes: their names by number.

    Where it has a length (`Indexed`) records are at hand by number; else they come from front to back alone.
    """

    bad: dict[str, str] = {}
    classes: list[str] = []

    def records(self) -> Iterator[Record]:
        """All records, in order."""
        raise NotImplementedError


class Indexed(Source):
    """A source of `rows`, each of which tells where a record is."""

    rows: Sequence[Any] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def record(self, number: int) -> Record:
        """One record."""
        raise NotImplementedError

    def records(self) -> Iterator[Record]:
        return map(self.record, range(len(self)))


class Sample(NamedTuple):
    """image uint8 (size, size, 3), caption (may be empty), class (-1 unknown)."""

    image: np.ndarray
    text: str
    label: int


class Bad(NamedTuple):
    """The name of a sample that cannot be used, and the cause."""

    name: str
    cause: str


@dataclass(frozen=True)
class Decoder:
    """What a run needs of every sample: the side of the stored square, a caption or not, a class below `classes`
    or (0) none. shown: interpolation and resize mode of the transform that shows a model its images; None: the middle
    square, bicubic."""

    size: int
    need_text: bool = True
    classes: int = 0
    shown: tuple[str, str] | None = None

    def __call__(self, record: Record) -> Sample | Bad:
        try:
            if record.error:
                raise BadSample(record.error)
            text, label = self.caption(record), self.label(record)
            return Sample(pixels(record.image, self.size, self.shown), text, label)
        except BadSample as cause:
            return Bad(record.name, str(cause))

    def caption(self, record: Record) -> str:
        """The caption in its template, empty where none is needed. Raises BadSample."""
        try:
            value, columns = plain(record.text), record.columns
            if value is None and record.metadata is not None:
                value = plain(_keys(record.metadata), columns.caption or CAPTION_NAMES)
            if value is None:
                raise BadSample("no caption")
            try:
                # A table is read with surrogateescape: encoding it back shows whether its bytes were UTF-8.
                data = value if isinstance(value, bytes) else value.encode()
                text = data.decode().strip()
            except UnicodeError:
                raise BadSample("caption not UTF-8") from None
            if not text:
                raise BadSample("empty caption")
        except BadSample:
            if self.need_text:
                raise
            return ""
        template = columns.templates[
            crc32(record.name.encode(errors="replace")) % len(columns.templates)
        ]
        return text if template == "{}" else sentence(text, template)

    def label(self, record: Record) -> int:
        """The class, -1 where there is none and none is needed. Raises BadSample."""
        try:
            value = float(-1 if record.label is None else record.label)  # 3.0 where cells are empty
            label = int(value) if value.is_integer() else -1
        except (ValueError, TypeError, OverflowError):
            label = -1
        if self.classes and not 0 <= label < self.classes:
            raise BadSample("no class" if label < 0 else "unknown class")
        return label


def plain(value: Any, names: str = CAPTION_NAMES) -> bytes | str | None:
    """The text in a cell: of several the first, of a mapping the first of `names`; numbers and dates as text."""
    if isinstance(value, list | tuple):
        return plain(value[0]) if value else None
    if isinstance(value, dict):
        keys = [names] if names in value else names.split()
        return plain(next((value[key] for key in keys if key in value), None))
    if value is None or value != value:  # not a number
        return None
    return value if isinstance(value, bytes | str) else str(value)


def _keys(metadata: bytes) -> dict[str, Any]:
    try:
        found = json.loads(metadata)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BadSample("broken metadata")
    return found


def pixels(
    data: bytes | np.ndarray | None, size: int, shown: tuple[str, str] | None = None
) -> np.ndarray:
    """A square of an image as uint8 (size, size, 3), resized where it has another size; shown: see `Decoder`.

    Grey, palette, CMYK, 16-bit grey and other modes of known range become RGB, transparency becomes white; none of
    that is an error. Raises BadSample for the rest.
    """
    from PIL import Image, UnidentifiedImageError

    if data is None:
        raise BadSample("no image")
    if not len(data):
        raise BadSample("empty image")
    try:
        image = (
            Image.fromarray(data) if isinstance(data, np.ndarray) else Image.open(io.BytesIO(data))
        )
    except Image.DecompressionBombError:
        raise BadSample("image too large") from None
    except UnidentifiedImageError:
        known = isinstance(data, bytes) and data.startswith(MAGIC)
        raise BadSample("broken image" if known else "not an image") from None
    except Exception:  # Pillow raises many types for broken data; each is the same to us
        raise BadSample("broken image") from None
    if image.width * image.height > LARGEST:
        raise BadSample("image too large")
    if min(image.size) < SMALLEST:
        raise BadSample("image too small")
    if image.mode not in CONVERTIBLE:
        raise BadSample("unsupported colour mode")
    try:
        if shown is None and min(image.size) >= 2 * size:
            image.draft("RGB", (size, size))  # a JPEG is decoded at a half, quarter or eighth
        image = to_rgb(image)
    except Exception:
        raise BadSample("broken image") from None
    if shown is not None:
        return np.asarray(_as_shown(image, size, *shown))
    if image.size != (size, size):
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        image = image.crop(box).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _as_shown(image: Image.Image, size: int, interpolation: str, mode: str) -> Image.Image:
    """Resize and CenterCrop of torchvision, of which the transforms of clip and open_clip are made, to the pixel."""
    from PIL import Image

    how, short = Image.Resampling[interpolation.upper()], min(image.size)
    if mode == "squash":
        return image.resize((size, size), how)
    if short != size:
        width, height = (int(size * n / short) for n in image.size)
        image = image.resize((width, height), how)
    left, top = (round((n - size) / 2) for n in image.size)
    return image.crop((left, top, left + size, top + size))


def to_rgb(image: Image.Image) -> Image.Image:
    """Any convertible image as RGB; what is transparent becomes white, 16-bit grey keeps its upper 8 bits."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.uint16) >> 8
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
