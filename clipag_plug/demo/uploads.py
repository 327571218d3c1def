"""Pictures that a reader sends: checked before they are decoded, one at a time, and kept as pixels alone."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import threading
from pathlib import Path
from typing import Any

from ..files import write_atomically
from .requests import settings

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
KINDS = "PNG, JPEG, WebP or GIF"
LONGEST = 2048  # px, as much as a restyled picture may have; the others are shown smaller anyway


class UploadError(ValueError):
    """A file that is no picture of ours; `status` is the HTTP status that says why."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Uploads:
    """A folder of pictures, each under the hash of its content. One picture at a time is decoded."""

    def __init__(self, folder: Path, most_bytes: int, most_pixels: int) -> None:
        self.folder, self.most_bytes, self.most_pixels = folder, most_bytes, most_pixels
        self._one_at_a_time = threading.Lock()

    def add(self, data: bytes) -> dict[str, Any]:
        """Checks, decodes and keeps a picture; its id and its size. UploadError where it is none."""
        if len(data) > self.most_bytes:
            raise UploadError(self.too_large(), 413)
        name = hashlib.sha256(data).hexdigest()[:16]
        path = self.folder / f"{name}.png"
        with self._one_at_a_time:
            picture = self.decode(data)
            asked = settings(recipe_in(data))
        if not path.is_file():
            write_atomically(
                path, lambda temporary: picture.save(temporary, format="PNG"), parents=True
            )
        found = {"id": name, "width": picture.width, "height": picture.height}
        return found | ({"settings": asked} if asked else {})

    def decode(self, data: bytes) -> Any:
        """An upright RGB picture of at most LONGEST pixels a side, of a moving one the first.

        The header is judged before the pixels are read.
        """
        from PIL import Image

        from ..images import as_rgb, foreign  # loads torch, and the page is to open before that

        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise UploadError(self.too_many_pixels(), 413) from error
        except Exception as error:  # Pillow's parsers raise many things on hostile bytes
            what = foreign(data[:4096]) or "no picture"
            raise UploadError(f"this file is {what}; choose a {KINDS}", 415) from error
        if image.width * image.height > self.most_pixels:
            raise UploadError(self.too_many_pixels(image.size), 413)
        if min(image.size) < 8:
            raise UploadError("the picture is smaller than 8 pixels; choose a larger one", 415)
        if min(image.size) * LONGEST < 8 * max(image.size):
            raise UploadError("the picture is too narrow for its length; choose another", 415)
        try:
            image.draft("RGB", (LONGEST, LONGEST))  # JPEG only: decodes at a fraction of the size
            if image.mode in ("RGB", "RGBA", "L", "LA"):  # before copies of all the pixels are made
                image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS, reducing_gap=3)
            picture = as_rgb(image)
        except Exception as error:
            said = " ".join(str(error).split())
            raise UploadError(
                f"the picture is damaged ({said}); choose a complete {KINDS}", 415
            ) from error
        picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
        return Image.frombytes("RGB", picture.size, picture.tobytes())  # nothing but the pixels

    def path(self, name: str) -> Path:
        """The file of an upload. FileNotFoundError for an id that is none, whatever it looks like."""
        path = self.folder / f"{name}.png"
        if not re.fullmatch(r"[0-9a-f]{16}", name) or not path.is_file() or path.is_symlink():
            raise FileNotFoundError("the uploaded picture is gone; choose it again")
        return path

    def too_large(self) -> str:
        return f"the file is larger than {self.most_bytes / 2**20:g} MiB; choose a smaller one"

    def too_many_pixels(self, size: tuple[int, int] | None = None) -> str:
        given = (
            f"the picture has {size[0]} x {size[1]} pixels" if size else "the picture is too big"
        )
        return f"{given}; at most {self.most_pixels / 1e6:g} megapixels are taken: choose a smaller one"


def recipe_in(data: bytes) -> str:
    """The text under our key in a PNG, or nothing."""
    from PIL import Image

    from ..images import RECIPE_KEY

    with contextlib.suppress(Exception):  # as above
        return str(Image.open(io.BytesIO(data), formats=("PNG",)).info.get(RECIPE_KEY) or "")
    return ""
