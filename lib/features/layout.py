"""Files of a feature store and the errors about them (spec clip-features-and-detr.md §5).

    manifest.json         what the features are, and the hash of that
    index.parquet         id, name, width, height, sha1 of the file's bytes, split, error
    errors.jsonl          one line an image that could not be read; its record is zero
    patches-00012.npy     [n, L, D] float16, the records of shard 12
    cls-00012.npy         [n, D]
    records-00012.json    the images' facts, merged into the index once all shards are there

An id is the position in the list of names; shard k holds ids k * shard_size onwards. `patches-*.npy` is renamed into
place last, so a shard exists if and only if it is complete.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np

from lib.errors import FoundExpected

FORMAT = "hoi-workbench features 1"
FIXED = ("format", "dtype", "shard_size", "count", "names_sha256")  # manifest entries that callers do not set
RERUN = "run notebook 01_feature_extraction again (make run): it computes only what is missing"
SHARD_BYTES, SHARD_IMAGES = 210e6, 1024

Kind = Literal["patches", "cls"]


class FeatureStoreError(FoundExpected):
    """A store is missing, damaged or made otherwise than asked; the message names file, finding and mend."""


def images_per_shard(L: int, D: int, dtype: str = "float16") -> int:
    """Images a shard for shards of about 200 MB: 1,024 for ViT-B/16, 256 for ViT-L/14@336px (spec §5)."""
    images = SHARD_BYTES / (L * D * np.dtype(dtype).itemsize)
    return min(SHARD_IMAGES, 2 ** max(0, round(math.log2(images))))


def shard_path(folder: Path, kind: Kind, k: int) -> Path:
    """File of shard k."""
    return folder / f"{kind}-{k:05d}.npy"


def open_shard(folder: Path, kind: Kind, k: int) -> np.ndarray:
    """Memory map of one shard file; FeatureStoreError if it is absent, truncated or no array."""
    path = shard_path(folder, kind, k)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        found = "no file"
    except (ValueError, OSError, EOFError) as error:
        found = f"a truncated or damaged file of {path.stat().st_size} bytes ({error})"
    raise FeatureStoreError(path, found, "a complete .npy shard", mend_by_rerun(folder, path))


def mend_by_rerun(folder: Path, *damaged: Path) -> str:
    """Mend: remove damaged files and the run's record that the artefact (this folder or its parent) is complete."""
    records = [path for path in (folder / "artifact.json", folder.parent / "artifact.json") if path.is_file()]
    removed = " ".join(map(str, (*damaged, *records)))
    return f"rm -f {removed}; {RERUN}" if removed else RERUN
