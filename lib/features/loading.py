"""Image files to batches for extraction, in two decode modes (spec clip-features-and-detr.md §2).

`exact` is PIL and open_clip's transform, as the published features were made. `fast` decodes JPEG and resizes 8-bit
tensors with torchvision: at most a few grey levels off, twice as quick.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional as v2

from lib.data.images import ImageError, decode_image, read_image_bytes
from lib.features.writer import ImageRecord

DecodeMode = Literal["exact", "fast"]
Preprocess = Callable[[Image.Image], Tensor]
DECODE_MODES = ("exact", "fast")
_MOST_WORKERS = 16  # decoding saturates one device before that


@dataclass(frozen=True)
class ExactDecode:
    """File bytes -> ([3, n, n], (width, height)): PIL in the file's own mode, then `preprocess` (CLIP's transform)."""

    preprocess: Preprocess

    def __call__(self, data: bytes, path: Path) -> tuple[Tensor, tuple[int, int]]:
        image = decode_image(data, path)
        return self.preprocess(image), image.size


@dataclass(frozen=True)
class FastDecode:
    """As `ExactDecode`, for RGB and grey JPEG by torchvision; every other file, and a damaged one, goes to `exact`.

    size: n, side of the square that CLIP sees. mean, std: of its normalisation.
    """

    exact: ExactDecode
    size: int
    mean: Sequence[float]
    std: Sequence[float]

    def __call__(self, data: bytes, path: Path) -> tuple[Tensor, tuple[int, int]]:
        if not _plain_jpeg(data):
            return self.exact(data, path)
        try:
            pixels = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)  # (3, h, w)
        except RuntimeError:
            return self.exact(data, path)  # says what is wrong with the file, or reads it after all
        height, width = pixels.shape[1:]
        pixels = v2.resize(pixels, [self.size], v2.InterpolationMode.BICUBIC, antialias=True)
        pixels = v2.to_dtype(v2.center_crop(pixels, [self.size, self.size]), torch.float32, scale=True)
        return v2.normalize(pixels, list(self.mean), list(self.std)), (width, height)


Decode = Callable[[bytes, Path], tuple[Tensor, tuple[int, int]]]


def _plain_jpeg(data: bytes) -> bool:
    """A JPEG whose colours mean the same before and after resizing: RGB or grey, not CMYK."""
    if data[:2] != b"\xff\xd8":
        return False
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.mode in ("RGB", "L")
    except OSError:
        return False


@dataclass
class Batch:
    """Consecutive images: the readable ones stacked [n, 3, H, W], their positions [n] in the batch, all records."""

    images: Tensor
    readable: np.ndarray
    records: list[ImageRecord]
    errors: list[ImageError]

    def pin_memory(self) -> Batch:
        """Called by the DataLoader when a GPU is present."""
        self.images = self.images.pin_memory()
        return self


def load_batches(
    paths: Sequence[Path], decode: Decode, batches: Iterable[Sequence[int]], workers: int
) -> Iterator[Batch]:
    """Batches of decoded images in the given order, `workers` processes reading ahead (0 = none)."""
    return iter(
        DataLoader(
            _ImageFiles(list(paths), decode),
            batch_sampler=list(batches),
            collate_fn=_collate,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
        )
    )


def decoding_workers(workers: int, device: torch.device, ranks: int = 1) -> int:
    """The number of decoding processes; -1 = none on a CPU (the model needs it), this rank's cores beside a GPU."""
    if workers >= 0:
        return workers
    return 0 if device.type == "cpu" else min(_MOST_WORKERS, max(1, (os.cpu_count() or 1) // ranks - 1))


class _ImageFiles(Dataset):
    """Item i: (preprocessed image or ImageError, its record). Errors are returned, so workers survive them."""

    def __init__(self, paths: list[Path], decode: Decode) -> None:
        self.paths, self.decode = paths, decode

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor | ImageError, ImageRecord]:
        sha1 = ""
        try:
            data = read_image_bytes(self.paths[i])
            sha1 = hashlib.sha1(data).hexdigest()
            image, (width, height) = self.decode(data, self.paths[i])
        except ImageError as error:
            return error, ImageRecord(sha1=sha1, error=error.found)
        return image, ImageRecord(width, height, sha1)


def _collate(items: list[tuple[Tensor | ImageError, ImageRecord]]) -> Batch:
    found, records = zip(*items, strict=True)
    readable = [i for i, image in enumerate(found) if isinstance(image, Tensor)]
    images = torch.stack([found[i] for i in readable]) if readable else torch.empty(0)
    errors = [error for error in found if isinstance(error, ImageError)]
    return Batch(images, np.array(readable, np.int64), list(records), errors)
