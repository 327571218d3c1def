"""From a record of a data source to a sample: pixels, caption, class; or the cause why there is none."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..vocabulary import sentence
from .tally import BadSample

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
SMALLEST = 8  # pixels of the shorter side: below are tracking pixels and spacers
LARGEST = 178_956_970  # pixels; above Pillow takes a file for a decompression bomb
MAGIC = (b"\xff\xd8", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*")
# Modes whose values are levels of known range. "I" and "F" are not: nothing says what white is.
CONVERTIBLE: tuple[str, ...] = (
    "1",
    "L",
    "LA",
    "La",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
)
CONVERTIBLE += ("LAB", "HSV", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass
class Record:
    """One raw sample: encoded bytes (or pixels uint8 (H, W, 3)), caption, class, JSON metadata; None where absent.

    error: the cause where the source itself could not go on at this place.
    """

    name: str
    image: bytes | np.ndarray | None = None
    text: bytes | str | None = None
    label: bytes | str | int | None = None
    metadata: bytes | None = None
    error: str = ""
    template: str = ""  # a caption goes into its braces


@dataclass
class Sample:
    """image uint8 (size, size, 3), caption (may be empty), class (-1 unknown)."""

    image: np.ndarray
    text: str
    label: int


@dataclass(frozen=True)
class Decoder:
    """What a run needs of every sample: the side of the stored square, a caption or not, a class below `classes`
    or (0) none."""

    size: int
    need_text: bool = True
    classes: int = 0

    def __call__(self, record: Record) -> Sample:
        """Raises BadSample with the first cause that it meets."""
        if record.error:
            raise BadSample(record.error)
        text, label = self.caption(record), self.label(record)
        return Sample(pixels(record.image, self.size), text, label)

    def caption(self, record: Record) -> str:
        text = record.text
        if text is None and record.metadata is not None:
            text = self._from_metadata(record.metadata)
        if text is None:
            if self.need_text:
                raise BadSample("no caption")
            return ""
        text = self._decoded(text).strip()
        if self.need_text and not text:
            raise BadSample("empty caption")
        return sentence(text, record.template) if text and record.template else text

    def _from_metadata(self, metadata: bytes) -> str | None:
        """The caption in the JSON file that img2dataset writes beside an image."""
        try:
            caption: Any = json.loads(metadata)["caption"]
        except KeyError:
            return None
        except (ValueError, TypeError):
            if self.need_text:
                raise BadSample("broken metadata") from None
            return None
        return caption if isinstance(caption, str) else None

    def _decoded(self, text: bytes | str) -> str:
        try:
            # A table is read with surrogateescape: encoding it back shows whether its bytes were UTF-8.
            return text.decode("utf-8") if isinstance(text, bytes) else text.encode().decode()
        except UnicodeError:
            if self.need_text:
                raise BadSample("caption not UTF-8") from None
            return ""

    def label(self, record: Record) -> int:
        try:
            label = -1 if record.label is None else int(record.label)
        except ValueError:
            label = -1
        if self.classes and label < 0:
            raise BadSample("no class")
        if self.classes and label >= self.classes:
            raise BadSample("unknown class")
        return label


def pixels(data: bytes | np.ndarray | None, size: int) -> np.ndarray:
    """The middle square of an image as uint8 (size, size, 3), resized where it has another size (bicubic).

    Grey, palette, CMYK, 16-bit grey and other modes of known range become RGB, transparency becomes white; none of
    that is an error. Raises BadSample for the rest.
    """
    from PIL import Image, UnidentifiedImageError

    if data is None:
        raise BadSample("no image")
    if isinstance(data, np.ndarray):
        image = Image.fromarray(data)
    elif not data:
        raise BadSample("empty image")
    else:
        try:
            image = Image.open(io.BytesIO(data))
        except Image.DecompressionBombError:
            raise BadSample("image too large") from None
        except UnidentifiedImageError:
            raise BadSample("broken image" if data.startswith(MAGIC) else "not an image") from None
        except Exception:  # Pillow raises many types for broken data; each is the same to us
            raise BadSample("broken image") from None
    if image.width * image.height > LARGEST:
        raise BadSample("image too large")
    if min(image.size) < SMALLEST:
        raise BadSample("image too small")
    if image.mode not in CONVERTIBLE:
        raise BadSample("unsupported colour mode")
    try:
        if min(image.size) >= 2 * size:
            image.draft("RGB", (size, size))  # a JPEG is decoded at a half, quarter or eighth
        image = to_rgb(image)
    except Exception:
        raise BadSample("broken image") from None
    if image.size != (size, size):
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        image = image.crop(box).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)


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
