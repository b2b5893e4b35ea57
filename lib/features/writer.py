"""Writing a feature store shard by shard (files: lib.features.layout; spec clip-features-and-detr.md §5).

Rank r of R writes the shards with k mod R = r and needs no word from the others; resuming means writing the shards
that do not exist.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from lib.features.layout import FIXED, FORMAT, RERUN, FeatureStoreError, open_shard
from lib.runs import atomic_write, write_json, write_text

LARGEST = {"float16": 6e4, "float32": 3e38}  # CLIP tokens are far below; float16 itself ends at 65,504
LIBRARIES = ("torch", "torchvision", "open_clip_torch", "pillow", "numpy")  # told, not part of the hash


@dataclass(frozen=True)
class ImageRecord:
    """What the index keeps of one image; an image that failed has an error and a zero feature record."""

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
        self.manifest["libraries"] = {name: metadata.version(name) for name in LIBRARIES}
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
        shapes = {open_shard(self.folder, "patches", k).shape[1:] for k in range(self.num_shards)}
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
            sizes = {len(open_shard(self.folder, kind, k)) for kind in ("patches", "cls")} | {len(self._facts(k))}
        except (FeatureStoreError, FileNotFoundError, json.JSONDecodeError):
            return False
        return sizes == {len(self.shard_ids(k))}

    def _facts(self, k: int) -> list[dict[str, Any]]:
        return json.loads((self.folder / f"records-{k:05d}.json").read_text())

    def _failures(self, k: int) -> Iterator[dict[str, Any]]:
        for i, fact in zip(self.shard_ids(k), self._facts(k), strict=True):
            if fact["error"]:
                yield {"id": i, "name": fact["name"], "reason": fact["error"]}


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
