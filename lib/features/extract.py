"""Extraction of patch features into a store, by any number of ranks (spec clip-features-and-detr.md §5-§6).

Each rank computes the shards it owns and skips those that exist. Batches never cross a shard, so what a
shard holds depends neither on the number of ranks nor on where an earlier session was stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from lib.data.images import ImageError, decode_image, read_image_bytes
from lib.features.store import FeatureWriter, ImageRecord, shard_path

Encoder = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
Preprocess = Callable[[Image.Image], torch.Tensor]


def extract_features(
    model_encode: Encoder,
    image_paths: Sequence[Path | str],
    names: Sequence[str],
    folder: Path | str,
    manifest: Mapping[str, Any],
    *,
    preprocess: Preprocess,
    batch_size: int = 32,
    shard_size: int = 1024,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    strict: bool = False,
    dtype: Literal["float16", "float32"] = "float16",
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Compute this rank's missing shards; the rank that completes the set also writes the index.

    model_encode: images [B, 3, H, W] (float32, on the CPU; it moves them to its device) -> cls [B, D],
        patches [B, L, D], any float type and device. Called under inference mode.
    image_paths, names: parallel; a name is the image's key in the store.
    manifest: what shapes the features; see `FeatureWriter`.
    preprocess: decoded PIL image in the file's own mode -> tensor [3, H, W]; picklable if workers > 0.
    workers: DataLoader processes that decode images; 0 decodes in this process.
    strict: raise ImageError at the first unreadable image instead of recording it.
    progress: called as progress(done, total) with numbers of images of this rank's missing shards.

    Returns {"id", "name", "reason"} of every unreadable image in this rank's shards, those of earlier
    sessions included; their features are zero, and errors.jsonl lists them for all ranks.
    """
    writer = FeatureWriter(folder, manifest, names, shard_size=shard_size, dtype=dtype)
    if len(image_paths) != len(names):
        raise ValueError(f"extraction: {len(image_paths)} image paths for {len(names)} names, expected one each")
    shards = writer.missing_shards(rank, world)
    batches = [
        ids[start : start + batch_size]
        for ids in map(writer.shard_ids, shards)
        for start in range(0, len(ids), batch_size)
    ]
    loader = DataLoader(
        _ImageFiles([Path(path) for path in image_paths], preprocess),
        batch_sampler=batches,
        collate_fn=_collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )
    loaded, done, total = iter(loader), 0, sum(map(len, batches))
    if shards:  # one blank image tells L and D before any real one, readable or not
        blank = preprocess(Image.new("RGB", (256, 256)))
        (D,), (L, _) = (array.shape[1:] for array in _encode(model_encode, blank[None]))
    for k in shards:
        n = len(writer.shard_ids(k))
        patches, cls = np.zeros((n, L, D), dtype), np.zeros((n, D), dtype)
        records: list[ImageRecord] = []
        while len(records) < n:
            batch = next(loaded)
            if strict and batch.errors:
                raise batch.errors[0]
            if len(batch.images):
                rows = len(records) + batch.readable
                with np.errstate(over="ignore"):  # the writer names the image whose numbers do not fit
                    cls[rows], patches[rows] = _encode(model_encode, batch.images)
            records += batch.records
            done += len(batch.records)
            if progress:
                progress(done, total)
        writer.write_shard(k, patches, cls, records)
    failures = writer.failures(rank, world)
    if strict and failures:
        first = failures[0]
        raise ImageError(
            image_paths[first["id"]],
            f"recorded as unreadable by an earlier extraction: {first['reason']}",
            "a readable image file (strict extraction)",
            f"restore the image and rm {shard_path(writer.folder, 'patches', first['id'] // shard_size)}; it is"
            " computed again",
        )
    if not writer.missing_shards():
        writer.finish()
    return failures


def _encode(model_encode: Encoder, images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """cls [B, D] and patches [B, L, D] as float32 arrays; ValueError for any other shape."""
    with torch.inference_mode():
        cls, patches = model_encode(images)
    B = len(images)
    if cls.ndim != 2 or patches.ndim != 3 or not len(cls) == len(patches) == B or cls.shape[1] != patches.shape[2]:
        raise ValueError(
            f"extraction: the encoder gave cls {tuple(cls.shape)} and patches {tuple(patches.shape)} for {B} images, "
            f"expected ({B}, D) and ({B}, L, D)"
        )
    return cls.float().cpu().numpy(), patches.float().cpu().numpy()


@dataclass
class _Batch:
    """Consecutive images: the readable ones stacked [n, 3, H, W], their positions [n] in the batch, all records."""

    images: torch.Tensor
    readable: np.ndarray
    records: list[ImageRecord]
    errors: list[ImageError]

    def pin_memory(self) -> _Batch:
        """Called by the DataLoader when a GPU is present."""
        self.images = self.images.pin_memory()
        return self


class _ImageFiles(Dataset):
    """Item i: (preprocessed image or ImageError, its record). Errors are returned, so workers survive them."""

    def __init__(self, paths: list[Path], preprocess: Preprocess) -> None:
        self.paths, self.preprocess = paths, preprocess

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[torch.Tensor | ImageError, ImageRecord]:
        sha1 = ""
        try:
            data = read_image_bytes(self.paths[i])
            sha1 = hashlib.sha1(data).hexdigest()
            image = decode_image(data, self.paths[i])
        except ImageError as error:
            return error, ImageRecord(sha1=sha1, error=error.found)
        return self.preprocess(image), ImageRecord(*image.size, sha1)


def _collate(items: list[tuple[torch.Tensor | ImageError, ImageRecord]]) -> _Batch:
    found, records = zip(*items, strict=True)
    readable = [i for i, image in enumerate(found) if isinstance(image, torch.Tensor)]
    images = torch.stack([found[i] for i in readable]) if readable else torch.empty(0)
    errors = [error for error in found if isinstance(error, ImageError)]
    return _Batch(images, np.array(readable, np.int64), list(records), errors)
