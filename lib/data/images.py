"""Reading image files: fully decoded or refused with a reason.

Pixels stay in the file's own mode: CLIP's transform resizes first and converts to RGB afterwards, which
differs from convert-first for palette, 1-bit and CMYK files (spec clip-features-and-detr.md §2). The EXIF
orientation is not applied, because annotations and published features ignore it.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

from PIL import Image, UnidentifiedImageError

# What PIL's decoders raise on damaged bytes, by format; OSError covers truncated JPEG data.
_DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class ImageError(ValueError):
    """An image file cannot be used; path, found, expected and mend are attributes and make up the message."""

    def __init__(self, path: Path | str, found: str, expected: str, mend: str) -> None:
        super().__init__(path, found, expected, mend)  # all arguments, so that the error survives pickling
        self.path, self.found, self.expected, self.mend = Path(path), found, expected, mend

    def __str__(self) -> str:
        return f"{self.path}\n  found: {self.found}\n  expected: {self.expected}\n  mend: {self.mend}"


def read_image(path: Path | str) -> Image.Image:
    """The decoded image in the file's own mode. Raises ImageError if it is missing, truncated or no image."""
    return decode_image(read_image_bytes(path), path)


def read_image_bytes(path: Path | str) -> bytes:
    """The file's bytes. Raises ImageError if there is no readable, non-empty file."""
    expected = "a readable image file"
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        mend = "copy the image there, or correct the image folder (data.root) or the name in the annotation file"
        raise ImageError(path, "no such file", expected, mend) from None
    except OSError as error:
        raise ImageError(path, error.strerror or str(error), expected, "check the path and its permissions") from error
    if not data:
        raise ImageError(path, "an empty file (0 bytes)", expected, "copy or download the image again")
    return data


def decode_image(data: bytes, path: Path | str) -> Image.Image:
    """Decode all pixels of a file's bytes; `path` only names it in an ImageError."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except UnidentifiedImageError:
        found = f"{len(data)} bytes that are no known image format (they begin with {data[:8]!r})"
        raise ImageError(path, found, "an image that PIL can open", "replace the file by the original image") from None
    except _DECODE_ERRORS as error:
        found = f"a damaged or truncated image of {len(data)} bytes ({error})"
        raise ImageError(path, found, "a complete image", "copy or download the image again") from error
    return image
