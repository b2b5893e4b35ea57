"""The sharded feature store (spec clip-features-and-detr.md §5).

    manifest.json         what the features are, and the hash of that
    index.parquet         id, name, width, height, sha1 of the file's bytes, split, error
    errors.jsonl          one line an image that could not be read; its record is zero
    patches-00012.npy     [n, L, D] float16, the records of shard 12
    cls-00012.npy         [n, D]
    records-00012.json    the images' facts, merged into the index by `finish`

An id is the position in the list of names; shard k holds ids k * shard_size onwards. Rank r of R writes the
shards with k mod R = r and needs no word from the others. `patches-*.npy` is renamed into place last, so a
shard exists if and only if it is complete, and resuming means writing the shards that do not exist.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from lib.runs import atomic_write, read_jsonl, write_json, write_text

FORMAT = "hoi-workbench features 1"
RERUN = "run notebook 01_feature_extraction again (make run): it computes only what is missing"
FIXED = ("format", "dtype", "shard_size", "count", "names_sha256")  # manifest entries that callers do not set
LARGEST = {"float16": 6e4, "float32": 3e38}  # CLIP tokens are far below; float16 itself ends at 65,504


class FeatureStoreError(RuntimeError):
    """A store is missing, damaged or made otherwise than asked; the message names file, finding and mend."""

    def __init__(self, path: Path | str, found: str, expected: str, mend: str) -> None:
        super().__init__(f"{path}\n  found: {found}\n  expected: {expected}\n  mend: {mend}")


@dataclass(frozen=True)
class ImageRecord:
    """What the index keeps of one image; a failed image has an error and a zero feature record."""

    width: int = 0
    height: int = 0
    sha1: str = ""
    error: str = ""


class FeatureWriter:
    """Write a store shard by shard; any number of writers may share the folder, one a rank.

    manifest: everything that shapes the features (model, weight hash, preprocessing, precision ...),
        JSON-able; its entries "L" and "D", if given, are enforced. The hash over it, the names, the shard
        size and the dtype identifies the store: a folder begun with another one is refused with
        FeatureStoreError.
    names: one unique name an image, in the order of ids. sizes: [N, 2] width, height, for callers without
        records.
    """

    def __init__(
        self,
        folder: Path | str,
        manifest: Mapping[str, Any],
        names: Sequence[str],
        sizes: np.ndarray | None = None,
        shard_size: int = 1024,
        dtype: Literal["float16", "float32"] = "float16",
    ) -> None:
        self.folder, self.names, self.shard_size = Path(folder), list(names), shard_size
        self.sizes = np.zeros((len(self.names), 2), int) if sizes is None else np.asarray(sizes)
        self.dtype = np.dtype(dtype)
        if len(set(self.names)) != len(self.names):
            repeated = sorted(name for name, n in pd.Series(self.names).value_counts().items() if n > 1)
            raise ValueError(f"feature store: names {repeated[:3]} occur more than once, expected unique names")
        reserved = sorted(set(FIXED) & set(manifest))
        if reserved:
            raise ValueError(f"feature store: manifest keys {reserved} are set by the store itself: rename them")
        self.manifest = {
            "format": FORMAT,
            "settings": json.loads(json.dumps(manifest)),
            "dtype": dtype,
            "shard_size": shard_size,
            "count": len(self.names),
            "names_sha256": hashlib.sha256("\n".join(self.names).encode()).hexdigest(),
        }
        self.manifest["hash"] = _hash(self.manifest)
        path = self.folder / "manifest.json"
        if not path.is_file():
            write_json(path, self.manifest)  # every rank writes the same bytes
        _refuse_other(path, json.loads(path.read_text()), self.manifest)

    @property
    def num_shards(self) -> int:
        return -(-len(self.names) // self.shard_size)

    def shard_ids(self, k: int) -> range:
        """Ids of shard k."""
        return range(k * self.shard_size, min((k + 1) * self.shard_size, len(self.names)))

    def missing_shards(self, rank: int = 0, world: int = 1) -> list[int]:
        """Shards of this rank that are absent or damaged."""
        return [k for k in range(rank, self.num_shards, world) if not self._is_whole(k)]

    def write_shard(
        self, k: int, patches: np.ndarray, cls: np.ndarray, records: Sequence[ImageRecord] | None = None
    ) -> None:
        """Write shard k: patches [n, L, D] and cls [n, D] in the order of `shard_ids(k)`, cast to the store's dtype.

        Raises ValueError for wrong shapes and for numbers the dtype cannot hold.
        """
        ids = self.shard_ids(k)
        if records is None:
            records = [ImageRecord(int(w), int(h)) for w, h in self.sizes[ids.start : ids.stop]]
        settings = self.manifest["settings"]
        L, D = settings.get("L", patches.shape[1]), settings.get("D", patches.shape[-1])
        expected = {"patches": (len(ids), L, D), "cls": (len(ids), D), "records": (len(ids),)}
        found = {"patches": patches.shape, "cls": cls.shape, "records": (len(records),)}
        if found != expected:
            raise ValueError(
                f"feature store {self.folder}, shard {k}: found shapes {found}, expected {expected}; "
                "the encoder must give the L and D of the manifest, one record an id"
            )
        limit = LARGEST[self.dtype.name]
        for name, values in (("patches", patches), ("cls", cls)):
            # Written so that nan fails too.
            if values.size and not (values.max() < limit and values.min() > -limit):
                bad = np.flatnonzero(~(np.abs(values) < limit).reshape(len(values), -1).all(1))
                raise ValueError(
                    f"feature store {self.folder}: {name} of {self.names[ids[bad[0]]]} ({len(bad)} images of shard "
                    f"{k}) holds nan or a magnitude above {limit:g}; expected numbers that fit {self.dtype}: check "
                    'the weights, or store with dtype="float32"'
                )
        for stale in self.folder.glob(f".*-{k:05d}.*.tmp"):  # of a killed session: nobody else writes this shard
            stale.unlink()
        facts = [{"name": self.names[i], **asdict(record)} for i, record in zip(ids, records, strict=True)]
        write_json(self.folder / f"records-{k:05d}.json", facts)
        self._save(f"cls-{k:05d}.npy", cls)
        self._save(f"patches-{k:05d}.npy", patches)

    def failures(self, rank: int = 0, world: int = 1) -> list[dict[str, Any]]:
        """{"id", "name", "reason"} of unreadable images in this rank's shards, earlier sessions included."""
        return [failure for k in range(rank, self.num_shards, world) for failure in self._failures(k)]

    def finish(self) -> None:
        """Write index.parquet, errors.jsonl and the final manifest; any rank may call it once no shard is missing."""
        missing = self.missing_shards()
        if missing:
            raise FeatureStoreError(
                self.folder,
                f"shards {missing[:10]} of {self.num_shards} missing",
                "all shards before the index is written",
                f"wait for the other ranks, or {RERUN}",
            )
        shapes = {_open(self.folder, "patches", k).shape[1:] for k in range(self.num_shards)}
        if len(shapes) > 1:
            raise FeatureStoreError(
                self.folder,
                f"shards of shapes {sorted(shapes)}",
                "one [L, D]",
                f"rm -r {self.folder}; extract again",
            )
        L, D = shapes.pop() if shapes else (0, 0)
        facts = [fact for k in range(self.num_shards) for fact in self._facts(k)]
        index = pd.DataFrame(facts, columns=["name", "width", "height", "sha1", "error"])
        index.insert(0, "id", np.arange(len(index)))
        index.insert(5, "split", str(self.manifest["settings"].get("split", "")))
        atomic_write(self.folder / "index.parquet", lambda stream: index.to_parquet(stream, index=False))
        write_text(self.folder / "errors.jsonl", "".join(json.dumps(failure) + "\n" for failure in self.failures()))
        write_json(self.folder / "manifest.json", self.manifest | {"L": L, "D": D, "complete": True})

    def _save(self, name: str, values: np.ndarray) -> None:
        values = np.ascontiguousarray(values, self.dtype)
        atomic_write(self.folder / name, lambda stream: np.save(stream, values, allow_pickle=False))

    def _is_whole(self, k: int) -> bool:
        try:
            sizes = {len(_open(self.folder, kind, k)) for kind in ("patches", "cls")} | {len(self._facts(k))}
        except (FeatureStoreError, FileNotFoundError, json.JSONDecodeError):
            return False
        return sizes == {len(self.shard_ids(k))}

    def _facts(self, k: int) -> list[dict[str, Any]]:
        return json.loads((self.folder / f"records-{k:05d}.json").read_text())

    def _failures(self, k: int) -> Iterator[dict[str, Any]]:
        for i, fact in zip(self.shard_ids(k), self._facts(k), strict=True):
            if fact["error"]:
                yield {"id": i, "name": fact["name"], "reason": fact["error"]}


class FeatureStore:
    """Random access to a finished store: `store[i]`, `store.batch(ids)`, `store.ids(names)`.

    Memory maps are opened on first use in each process, so a store may be built before DataLoader workers
    start.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], index: pd.DataFrame) -> None:
        self.folder, self.manifest, self.index = folder, manifest, index
        self._maps: dict[tuple[int, str, int], np.ndarray] = {}

    @classmethod
    def open(cls, folder: Path | str, expect: Mapping[str, Any] | None = None) -> FeatureStore:
        """Open a finished store.

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
                _rerun(folder),
            )
        return cls(folder, manifest, pd.read_parquet(index_path))

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

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        """patches [L, D] and cls [D], float32."""
        patches, cls = self.batch([i])
        return patches[0], cls[0]

    def batch(self, ids: Sequence[int] | np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """patches [B, L, D] and cls [B, D], float32, in the order of `ids` (read shard by shard, ascending)."""
        ids = np.asarray(ids, np.int64)
        if len(ids) and not (ids.min() >= 0 and ids.max() < len(self)):
            raise IndexError(f"{self.folder}: ids {ids.min()}..{ids.max()}, expected 0..{len(self) - 1}")
        patches = np.empty((len(ids), *self.shape), self.manifest["dtype"])
        cls = np.empty((len(ids), self.shape[1]), self.manifest["dtype"])
        shard, row = np.divmod(ids, self.manifest["shard_size"])
        for k in np.unique(shard):
            where = np.flatnonzero(shard == k)
            where = where[np.argsort(row[where], kind="stable")]
            patches[where] = self._map("patches", int(k))[row[where]]
            cls[where] = self._map("cls", int(k))[row[where]]
        return torch.from_numpy(patches).float(), torch.from_numpy(cls).float()  # torch casts faster than numpy

    def _map(self, kind: Literal["patches", "cls"], k: int) -> np.ndarray:
        key = (os.getpid(), kind, k)  # a forked worker must not share its parent's map
        if key not in self._maps:
            L, D = self.shape
            rows = min(self.manifest["shard_size"], len(self) - k * self.manifest["shard_size"])
            expected = (rows, L, D) if kind == "patches" else (rows, D)
            shard = _open(self.folder, kind, k)
            if shard.shape != expected or shard.dtype != self.manifest["dtype"]:
                raise FeatureStoreError(
                    shard_path(self.folder, kind, k),
                    f"shape {shard.shape} of {shard.dtype}",
                    f"shape {expected} of {self.manifest['dtype']}, as the manifest says",
                    _rerun(self.folder, shard_path(self.folder, kind, k)),
                )
            self._maps[key] = shard
        return self._maps[key]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}  # spawned workers open their own


def shard_path(folder: Path, kind: str, k: int) -> Path:
    """File of shard k; kind is "patches" or "cls"."""
    return folder / f"{kind}-{k:05d}.npy"


def _rerun(folder: Path, *damaged: Path) -> str:
    """Mend: remove damaged files and the run's record that the artefact (this folder or its parent) is complete."""
    records = [path for path in (folder / "artifact.json", folder.parent / "artifact.json") if path.is_file()]
    removed = " ".join(map(str, (*damaged, *records)))
    return f"rm -f {removed}; {RERUN}" if removed else RERUN


def _open(folder: Path, kind: str, k: int) -> np.ndarray:
    """Memory map of one shard file; FeatureStoreError if it is absent, truncated or no array."""
    path = shard_path(folder, kind, k)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        found = "no file"
    except (ValueError, OSError, EOFError) as error:
        found = f"a truncated or damaged file of {path.stat().st_size} bytes ({error})"
    raise FeatureStoreError(path, found, "a complete .npy shard", _rerun(folder, path))


def _hash(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _refuse_other(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """FeatureStoreError with both sides of every entry in which two manifests differ."""
    if found.get("hash") == wanted["hash"]:
        return
    old, new = ({**m.get("settings", {}), **{key: m.get(key) for key in FIXED}} for m in (found, wanted))
    differing = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    raise FeatureStoreError(
        path,
        ", ".join(f"{key} = {old.get(key, '(absent)')!r}" for key in differing),
        ", ".join(f"{key} = {new.get(key, '(absent)')!r}" for key in differing),
        f"extract into another folder, or discard these features: rm -r {path.parent}",
    )
