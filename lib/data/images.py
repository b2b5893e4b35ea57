"""Reading image files: fully decoded or refused with a reason.

Pixels stay in the file's own mode: CLIP's transform resizes first and converts to RGB afterwards, which
differs from convert-first for palette, 1-bit and CMYK files (spec clip-features-and-detr.md §2). The EXIF
orientation is not applied, because annotations and published features ignore it.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from lib.engine.progress import Progress
from lib.errors import FoundExpected

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

_AGAIN = "copy or download the image again"
_REPLACE = "replace the file by the original image"


class ImageError(FoundExpected):
    """An image file cannot be used: path, finding, expectation, mend."""


class MissingImageError(ImageError, FileNotFoundError):
    """There is no such file."""


def read_image(path: Path | str) -> Image.Image:
    """The decoded image in the file's own mode. Raises ImageError if it is missing, truncated or no image."""
    return decode_image(read_image_bytes(path), path)


def image_sizes(paths: Sequence[Path]) -> np.ndarray:
    """[I, 2] width and height from the files' headers, EXIF orientation not applied, for annotations without sizes."""
    sizes = np.zeros((len(paths), 2), np.int64)
    with Progress("image sizes", len(paths)) as progress:
        for index, path in enumerate(paths):
            sizes[index] = image_size(path)
            progress.step()
    return sizes


def image_size(path: Path | str) -> tuple[int, int]:
    """(width, height) from a file's header. Raises ImageError if it is missing or no image."""
    try:
        with Image.open(path) as image:
            return image.size
    except FileNotFoundError:
        raise _no_such_file(path) from None
    except UnidentifiedImageError:
        raise ImageError(path, "no known image format", "an image that PIL can open", _REPLACE) from None
    except _DECODE_ERRORS as error:
        raise ImageError(path, f"a damaged header ({error})", "a complete image", _AGAIN) from error


def _no_such_file(path: Path | str) -> MissingImageError:
    mend = (
        "copy the image there, or correct the image folder (data.root, data.images) or the name in the annotation file"
    )
    return MissingImageError(path, "no such file", "a readable image file", mend)


def read_image_bytes(path: Path | str) -> bytes:
    """The file's bytes. Raises ImageError if there is no readable, non-empty file."""
    expected = "a readable image file"
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise _no_such_file(path) from None
    except OSError as error:
        raise ImageError(path, error.strerror or str(error), expected, "check the path and its permissions") from error
    if not data:
        raise ImageError(path, "an empty file (0 bytes)", expected, _AGAIN)
    return data


def decode_image(data: bytes, path: Path | str) -> Image.Image:
    """Decode all pixels of a file's bytes; `path` only names it in an ImageError."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except UnidentifiedImageError:
        found = f"{len(data)} bytes that are no known image format (they begin with {data[:8]!r})"
        raise ImageError(path, found, "an image that PIL can open", _REPLACE) from None
    except _DECODE_ERRORS as error:
        found = f"a damaged or truncated image of {len(data)} bytes ({error})"
        raise ImageError(path, found, "a complete image", _AGAIN) from error
    return image
