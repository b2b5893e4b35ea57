"""Random reads from the feature store against one pickle an image, as EZ-HOI's programs keep them.

    python -m benchmarks.feature_store --json store.json

Records have ViT-B/16's size (196 patch tokens of 512 numbers). The baseline is `pickle.load(open(file, "rb"))` of files
that hold what the old extraction saved: a float32 view behind the class token. Both sides deliver float32 patch tokens
of the same images in the same random order, one image at a time, and ours also in the batches of a training loader,
whose records the disk is asked for together. Cold: the page cache of every file is dropped before each run.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import arguments, compare, report
from lib.features.legacy import legacy_file
from lib.features.store import FeatureStore
from lib.features.writer import FeatureWriter

L, D, SHARD, BATCH = 196, 512, 1024, 8


def write_both(folder: Path, records: int) -> tuple[Path, Path, list[str]]:
    """The same random tokens as a store and as pickles; returns both folders and the image names."""
    names = [f"HICO_train2015_{i:08d}.jpg" for i in range(records)]
    store, pickles = folder / "store", folder / "pickles"
    pickles.mkdir()
    writer = FeatureWriter(store, {"L": L, "D": D}, names, shard_size=SHARD)
    generator = torch.Generator().manual_seed(0)
    for k in range(writer.num_shards):
        tokens = torch.randn(len(writer.shard_ids(k)), 1 + L, D, generator=generator).half()
        writer.write_shard(k, tokens[:, 1:].numpy(), tokens[:, 0].numpy())
        for i, image in zip(writer.shard_ids(k), tokens, strict=True):
            saved = image.float()[1:]  # the whole storage goes into the file, class token included
            with legacy_file(pickles, names[i]).open("wb") as stream:
                pickle.dump(saved, stream)
                stream.flush()
                os.fsync(stream.fileno())
    writer.finish()
    return store, pickles, names


def drop_page_cache(folder: Path) -> None:
    """Forget a folder's files, so that the next read comes from the disk."""
    for path in folder.iterdir():
        with path.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def checksum(tokens: torch.Tensor) -> float:
    """Touches every number, so that lazily mapped pages are really read."""
    return float(tokens.sum())


def main() -> None:
    options = arguments(__doc__, repeats=3, records=3000, reads=10_000, cold_reads=1000)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="store-benchmark-") as name:
        root = Path(name)
        store_folder, pickles, names = write_both(root, options.records)
        rng = np.random.default_rng(0)

        def reader(ids: np.ndarray, batch: int) -> tuple[Callable, Callable]:
            def ours() -> list[float]:
                store = FeatureStore.open(store_folder)
                batches = (ids[start : start + batch] for start in range(0, len(ids), batch))
                return [checksum(patches) for some in batches for patches in store.batch(some)[0]]

            def baseline() -> list[float]:
                sums = []
                for i in ids.tolist():
                    with legacy_file(pickles, names[i]).open("rb") as stream:
                        sums.append(checksum(pickle.load(stream)))
                return sums

            return ours, baseline

        def forget() -> None:
            drop_page_cache(store_folder)
            drop_page_cache(pickles)

        sizes = {
            "MB a record, store": size(store_folder) / options.records / 1e6,
            "MB a record, pickles": size(pickles) / options.records / 1e6,
            "bytes, store / pickles": size(store_folder) / size(pickles),
        }
        warm = rng.integers(0, options.records, options.reads)
        cold = rng.permutation(options.records)[: options.cold_reads]
        rows = [
            compare(
                f"{len(ids):,} random reads, {heat}, {each}",
                *reader(ids, batch),
                np.testing.assert_array_equal,
                options.repeats,
                prepare=forget if heat == "cold" else None,
                numbers=sizes if ids is warm and batch == 1 else None,
            )
            for ids, heat in ((warm, "warm"), (cold, "cold"))
            for batch, each in ((1, "one by one"), (BATCH, f"in batches of {BATCH}"))
        ]
        report("Feature store against one pickle an image", rows, options.json)


if __name__ == "__main__":
    main()
