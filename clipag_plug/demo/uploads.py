"""Pictures that the page sends: checked before they are decoded, kept without their metadata."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from typing import Any

FORMATS = ("PNG", "JPEG", "WEBP")
LONGEST = 1024  # px; models see 224, and a larger one only costs time


class UploadError(ValueError):
    """A file that is no picture of ours; `status` is the HTTP status that says why."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Uploads:
    """A folder of pictures, each under the hash of its content."""

    def __init__(self, folder: Path, most_bytes: int, most_pixels: int) -> None:
        self.folder, self.most_bytes, self.most_pixels = folder, most_bytes, most_pixels

    def add(self, data: bytes) -> dict[str, Any]:
        """Checks, decodes and keeps a picture; its id and its size. UploadError where it is none."""
        from ..files import write_atomically

        picture = self.decode(data)
        name = hashlib.sha256(data).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}.png"
        if not path.is_file():
            write_atomically(path, lambda temporary: picture.save(temporary, format="PNG"))
        return {"id": name, "width": picture.width, "height": picture.height}

    def decode(self, data: bytes) -> Any:
        """An upright RGB picture of at most LONGEST pixels a side. The header is judged before the pixels are read."""
        from PIL import Image

        from ..images import as_rgb  # loads torch, and the page is to open before that

        if len(data) > self.most_bytes:
            raise UploadError(self.too_large(), 413)
        kinds = "PNG, JPEG or WebP"
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise UploadError(self.too_many_pixels(), 413) from error
        except Exception as error:  # Pillow's parsers raise many things on hostile bytes
            raise UploadError(f"this file is no picture; choose a {kinds}", 415) from error
        if image.width * image.height > self.most_pixels:
            raise UploadError(self.too_many_pixels(image.size), 413)
        if min(image.size) < 8:
            raise UploadError("the picture is smaller than 8 pixels; choose a larger one", 415)
        try:
            image.draft("RGB", (LONGEST, LONGEST))  # JPEG only: decodes at a fraction of the size
            picture = as_rgb(image)
        except Exception as error:
            raise UploadError(
                f"the picture is damaged ({' '.join(str(error).split())}); choose a complete {kinds}",
                415,
            ) from error
        picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
        return Image.frombytes("RGB", picture.size, picture.tobytes())  # nothing but the pixels

    def path(self, name: str) -> Path:
        """The file of an upload. FileNotFoundError for an id that is none, whatever it looks like."""
        path = self.folder / f"{name}.png"
        if not re.fullmatch(r"[0-9a-f]{16}", name) or not path.is_file():
            raise FileNotFoundError("the uploaded picture is gone; choose it again")
        return path

    def too_large(self) -> str:
        return f"the file is larger than {self.most_bytes / 2**20:g} MiB; choose a smaller one"

    def too_many_pixels(self, size: tuple[int, int] | None = None) -> str:
        given = (
            f"the picture has {size[0]} x {size[1]} pixels" if size else "the picture is too big"
        )
        return f"{given}; at most {self.most_pixels / 1e6:g} megapixels are taken: choose a smaller one"
