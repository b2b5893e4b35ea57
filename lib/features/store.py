"""Reading a feature store (files: lib.features.layout; spec clip-features-and-detr.md §5).

store = FeatureStore.open("runs/demo/features/test")
patches, cls = store.batch(store.ids(["HICO_test2015_00000001.jpg"]))
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from lib.features.layout import FIXED, FORMAT, RERUN, FeatureStoreError, Kind, mend_by_rerun, open_shard, shard_path
from lib.runs import read_jsonl

SHARED_MEMORY = Path("/dev/shm")


class FeatureStore:
    """Random access to a finished store: `store[i]`, `store.batch(ids)`, `store.ids(names)`.

    Shard files are opened on first use. A read takes one record from its place (pread), so processes and threads may
    share a store, and a cold disk is asked for the records alone; those of a batch, or of `prefetch`, all at once.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], index: pd.DataFrame) -> None:
        self.folder, self.manifest, self.index = folder, manifest, index
        self._files: dict[tuple[Kind, int], _ShardFile] = {}
        self._cls: dict[int, Tensor] = {}
        self._shared: dict[Kind, Tensor] = {}

    @classmethod
    def open(cls, folder: Path | str, expect: Mapping[str, Any] | None = None, preload: bool = False) -> FeatureStore:
        """Open a finished store.

        preload: read all of it into shared memory, where every process of this machine finds it.

        expect: entries that the store must have been made with: settings of its manifest, and L, D, dtype,
            count. Raises FeatureStoreError naming what differs, or which file is absent, and the mend.
        """
        folder = Path(folder)
        path = folder / "manifest.json"
        if not path.is_file():
            raise FeatureStoreError(
                path,
                "no file" if folder.is_dir() else "no such folder",
                "a folder of extracted features",
                "run notebook 01_feature_extraction for this data set, or correct the features folder",
            )
        manifest = json.loads(path.read_text())
        if manifest.get("format") != FORMAT:
            raise FeatureStoreError(
                path, f"format {manifest.get('format')!r}", repr(FORMAT), f"rm -r {folder}; extract again"
            )
        if not manifest.get("complete"):
            have = len(list(folder.glob("patches-*.npy")))
            total = -(-manifest["count"] // manifest["shard_size"])
            raise FeatureStoreError(
                folder, f"an unfinished extraction ({have} of {total} shards)", "a finished one", RERUN
            )
        stated = manifest["settings"] | {key: manifest[key] for key in ("L", "D", *FIXED)}
        wanted = json.loads(json.dumps(dict(expect or {})))
        differing = [key for key in wanted if key not in stated or stated[key] != wanted[key]]
        if differing:
            raise FeatureStoreError(
                path,
                ", ".join(f"{key} = {stated.get(key, '(absent)')!r}" for key in differing),
                ", ".join(f"{key} = {wanted[key]!r}" for key in differing),
                "extract with these settings into another folder, or use the model that made these features",
            )
        index_path = folder / "index.parquet"
        if not index_path.is_file():
            raise FeatureStoreError(
                index_path,
                "no file",
                "the index of the store",
                mend_by_rerun(folder),
            )
        store = cls(folder, manifest, pd.read_parquet(index_path))
        if preload:
            store.preload()
        return store

    def __len__(self) -> int:
        return self.manifest["count"]

    @property
    def shape(self) -> tuple[int, int]:
        """(L, D): patch tokens an image, feature dimension."""
        return self.manifest["L"], self.manifest["D"]

    @property
    def fingerprint(self) -> str:
        """Hash of everything that shaped the store."""
        return self.manifest["hash"]

    @property
    def errors(self) -> list[dict[str, Any]]:
        """{"id", "name", "reason"} of the images whose record is zero because they could not be read."""
        return read_jsonl(self.folder / "errors.jsonl")

    @cached_property
    def _id_of(self) -> dict[str, int]:
        return dict(zip(self.index["name"], self.index["id"], strict=True))

    def ids(self, names: Sequence[str]) -> np.ndarray:
        """Ids [B] int64 of image names; raises FeatureStoreError naming those the store lacks."""
        unknown = [name for name in names if name not in self._id_of]
        if unknown:
            raise FeatureStoreError(
                self.folder,
                f"no record of {len(unknown)} images, e.g. {unknown[:3]}",
                f"names among the {len(self)} indexed, e.g. {self.index['name'].iloc[0] if len(self) else '-'!r}",
                "extract features for the folder that holds these images",
            )
        return np.array([self._id_of[name] for name in names], np.int64)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        """patches [L, D] and cls [D], float32."""
        patches, cls = self.batch([i])
        return patches[0], cls[0]

    def batch(self, ids: Sequence[int] | np.ndarray, normalize: bool = False) -> tuple[Tensor, Tensor]:
        """patches [B, L, D] and cls [B, D], float32, in the order of `ids` (read from disk in ascending order).

        normalize: divide every token by its L2 norm.
        """
        ids = np.asarray(ids, np.int64)
        if len(ids) and not (ids.min() >= 0 and ids.max() < len(self)):
            raise IndexError(f"{self.folder}: ids {ids.min()}..{ids.max()}, expected 0..{len(self) - 1}")
        L, D = self.shape
        patches, cls = torch.empty(len(ids), L, D), torch.empty(len(ids), D)
        if self._shared:
            for kind, out in (("patches", patches), ("cls", cls)):
                out.copy_(self._shared[kind][torch.from_numpy(ids)])
        else:
            self.prefetch(ids)
            record = torch.empty(L, D, dtype=getattr(torch, self.manifest["dtype"]))
            for place in np.argsort(ids, kind="stable").tolist():
                k, row = divmod(int(ids[place]), self.manifest["shard_size"])
                self._file("patches", k).read(row, record)
                patches[place].copy_(record)  # torch casts faster than numpy
                cls[place].copy_(self._class_tokens(k)[row])
        return (F.normalize(patches, dim=-1), F.normalize(cls, dim=-1)) if normalize else (patches, cls)

    def prefetch(self, ids: Sequence[int] | np.ndarray) -> None:
        """Ask the disk for the patches of `ids` without waiting; a later read finds them in memory or on their way."""
        if not self._shared:
            for i in np.asarray(ids).tolist():
                k, row = divmod(i, self.manifest["shard_size"])
                self._file("patches", k).prefetch(row)

    def _class_tokens(self, k: int) -> Tensor:
        """All class tokens [n, D] of a shard, kept: they are small, and one read of each would cost a disk a seek."""
        if k not in self._cls:
            self._cls[k] = self._file("cls", k).read_all()
        return self._cls[k]

    def preload(self) -> None:
        """Read the whole store into shared memory; FeatureStoreError where that is too small."""
        L, D = self.shape
        dtype = getattr(torch, self.manifest["dtype"])
        needed = len(self) * (L + 1) * D * dtype.itemsize
        free = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else needed
        if needed > free:
            raise FeatureStoreError(
                self.folder,
                f"{needed / 1e9:.1f} GB of features and {free / 1e9:.1f} GB free in {SHARED_MEMORY}",
                "room for the whole store",
                "features.preload=false, or give the container more shared memory (docker: --shm-size)",
            )
        shapes: dict[Kind, tuple[int, ...]] = {"patches": (len(self), L, D), "cls": (len(self), D)}
        whole = {kind: torch.empty(shape, dtype=dtype).share_memory_() for kind, shape in shapes.items()}
        for kind, values in whole.items():
            for k, part in enumerate(values.split(self.manifest["shard_size"])):
                self._file(kind, k).read(0, part)
        self._shared = whole
        self._files.clear()

    def _file(self, kind: Kind, k: int) -> _ShardFile:
        if (kind, k) not in self._files:
            (L, D), size = self.shape, self.manifest["shard_size"]
            rows = min(size, len(self) - k * size)
            expected = (rows, L, D) if kind == "patches" else (rows, D)
            self._files[kind, k] = _ShardFile(self.folder, kind, k, expected, self.manifest["dtype"])
        return self._files[kind, k]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}, "_cls": {}}  # spawned workers open their own


class _ShardFile:
    """An open shard of [rows, ...] records; FeatureStoreError if it is not what the manifest says."""

    def __init__(self, folder: Path, kind: Kind, k: int, shape: tuple[int, ...], dtype: str) -> None:
        self.folder, self.path = folder, shard_path(folder, kind, k)
        shard = open_shard(folder, kind, k)
        if shard.shape != shape or shard.dtype != dtype:
            raise FeatureStoreError(
                self.path,
                f"shape {shard.shape} of {shard.dtype}",
                f"shape {shape} of {dtype}, as the manifest says",
                mend_by_rerun(folder, self.path),
            )
        self.shape, self.dtype = shape, getattr(torch, dtype)
        self.start, self.record_bytes = shard.offset, shard.nbytes // shape[0]
        self.stream = self.path.open("rb", buffering=0)
        if hasattr(os, "posix_fadvise"):  # no reading ahead into the neighbours
            os.posix_fadvise(self.stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)

    def prefetch(self, row: int) -> None:
        """Ask the system to read a record ahead."""
        if hasattr(os, "posix_fadvise"):
            place = self.start + row * self.record_bytes
            os.posix_fadvise(self.stream.fileno(), place, self.record_bytes, os.POSIX_FADV_WILLNEED)

    def read_all(self) -> Tensor:
        """Every record of the shard."""
        out = torch.empty(self.shape, dtype=self.dtype)
        self.read(0, out)
        return out

    def read(self, row: int, out: Tensor) -> None:
        """Fill `out`, contiguous and of the shard's type, with the records from `row` on."""
        place, view = self.start + row * self.record_bytes, memoryview(out.numpy()).cast("B")
        while view:
            count = os.preadv(self.stream.fileno(), [view], place)
            if not count:
                raise FeatureStoreError(
                    self.path, f"the end of the file at {place} bytes", "whole records",
                    mend_by_rerun(self.folder, self.path),
                )  # fmt: skip
            place, view = place + count, view[count:]
