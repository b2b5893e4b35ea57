"""The feature store: exact round trips, resuming, ranks, and refusals that say how to mend."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from concurrent.futures import ProcessPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lib.features.layout import FeatureStoreError, images_per_shard
from lib.features.store import FeatureStore, _ShardFile
from lib.features.writer import FeatureWriter, ImageRecord

NAMES = [f"HICO_test2015_{i:08d}.jpg" for i in range(11)]
MANIFEST = {"model": "tiny-clip", "weights": "ab12", "normalise": (0.5, 0.5), "split": "test"}
SIZES = np.stack((np.arange(11) + 100, np.arange(11) + 200), 1)
L, D = 6, 8


def features(i):
    """Deterministic record i: patches [L, D], cls [D]."""
    rng = np.random.default_rng(i)
    patches = rng.normal(size=(L, D)).astype(np.float32)
    patches[:, 0] *= 30  # CLIP tokens have outlier channels
    return patches, rng.normal(size=D).astype(np.float32)


def fill(writer, shards):
    for k in shards:
        patches, cls = map(np.stack, zip(*map(features, writer.shard_ids(k)), strict=True))
        writer.write_shard(k, patches, cls)


@pytest.fixture
def folder(tmp_path):
    """A finished store of 11 images in shards of 4."""
    writer = FeatureWriter(tmp_path / "store", MANIFEST, NAMES, SIZES, shard_size=4)
    fill(writer, writer.missing_shards())
    writer.finish()
    return tmp_path / "store"


def test_round_trip_within_half_precision(folder):
    store = FeatureStore.open(folder, MANIFEST)
    assert len(store) == 11 and store.shape == (L, D)
    for i in range(11):
        patches, cls = features(i)
        got_patches, got_cls = store[i]
        assert got_patches.dtype == got_cls.dtype == torch.float32
        np.testing.assert_allclose(got_patches, patches, rtol=2**-11, atol=1e-7)  # half an ulp of float16
        np.testing.assert_array_equal(got_cls, cls.astype(np.float16).astype(np.float32))
    index = store.index
    assert index["name"].tolist() == NAMES and index["id"].tolist() == list(range(11))
    assert index["height"].tolist() == list(range(200, 211)) and set(index["split"]) == {"test"}
    assert store.errors == []


def test_batch_equals_single_reads_in_any_order(folder):
    store = FeatureStore.open(folder)
    ids = store.ids([NAMES[9], NAMES[0], NAMES[5], NAMES[9], NAMES[1]])
    assert ids.tolist() == [9, 0, 5, 9, 1]
    patches, cls = store.batch(ids)
    assert patches.shape == (5, L, D) and cls.shape == (5, D)
    for row, i in enumerate(ids):
        assert torch.equal(patches[row], store[int(i)][0]) and torch.equal(cls[row], store[int(i)][1])
    assert store.batch([])[0].shape == (0, L, D)


def read_one(store, i):
    return store[i][0].numpy()


def test_reads_from_other_processes(folder):
    store = FeatureStore.open(folder)
    here = store[7][0]
    assert pickle.loads(pickle.dumps(store))._files == {}
    with ProcessPoolExecutor(1) as pool:
        np.testing.assert_array_equal(pool.submit(read_one, store, 7).result(), here)


def test_normalised_tokens(folder):
    store = FeatureStore.open(folder)
    patches, cls = store.batch([3, 8], normalize=True)
    plain, plain_cls = store.batch([3, 8])
    torch.testing.assert_close(patches, plain / plain.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(cls, plain_cls / plain_cls.norm(dim=-1, keepdim=True))


def test_preloaded_store_gives_the_same_and_needs_no_file(folder, monkeypatch):
    plain, ids = FeatureStore.open(folder), [9, 0, 5, 9]
    wanted = plain.batch(ids)
    store = FeatureStore.open(folder, preload=True)
    for path in folder.glob("*.npy"):
        path.unlink()
    for found, expected in zip(store.batch(ids), wanted, strict=True):
        assert torch.equal(found, expected)
    with ProcessPoolExecutor(1) as pool:  # the copy for another process shares the memory
        np.testing.assert_array_equal(pool.submit(read_one, store, 7).result(), store[7][0])
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(FeatureStoreError, match=r"(?s)GB free in .*shm.*features.preload=false"):
        store.preload()


def test_shards_of_about_200_megabytes():
    assert images_per_shard(14 * 14, 512) == 1024  # ViT-B/16
    assert images_per_shard(24 * 24, 768) == 256  # ViT-L/14@336px
    assert images_per_shard(24 * 24, 768, "float32") == 128
    assert images_per_shard(1, 1) == 1024 and images_per_shard(10**5, 10**4) == 1


def test_float32_store_is_exact(tmp_path):
    writer = FeatureWriter(tmp_path, MANIFEST, NAMES, shard_size=4, dtype="float32")
    fill(writer, writer.missing_shards())
    writer.finish()
    np.testing.assert_array_equal(FeatureStore.open(tmp_path, {"dtype": "float32"})[3][0], features(3)[0])


def store_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("world", [1, 2, 3])
def test_any_number_of_ranks_writes_the_same_bytes(folder, tmp_path, world):
    owned = []
    for rank in reversed(range(world)):
        writer = FeatureWriter(tmp_path / "ranks", MANIFEST, NAMES, SIZES, shard_size=4)
        owned += writer.missing_shards(rank, world)
        fill(writer, writer.missing_shards(rank, world))
    assert sorted(owned) == [0, 1, 2]
    writer.finish()
    assert store_bytes(tmp_path / "ranks") == store_bytes(folder)


def write_and_die(folder):
    """Shard 0 whole; SIGKILL in the middle of the patches of shard 1."""
    save = np.save

    def torn_save(stream, values, **settings):
        if values.ndim == 2:
            return save(stream, values, **settings)
        stream.write(b"\x93NUMPY half")
        stream.flush()
        return os.kill(os.getpid(), signal.SIGKILL)

    writer = FeatureWriter(folder, MANIFEST, NAMES, SIZES, shard_size=4)
    fill(writer, [0])
    np.save = torn_save  # in this child only
    fill(writer, [1])


def test_resume_after_a_kill(folder, tmp_path):
    half = tmp_path / "half"
    child = multiprocessing.get_context("fork").Process(target=write_and_die, args=(half,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert (half / "cls-00001.npy").exists() and len(list(half.glob(".patches-00001.npy.*.tmp"))) == 1

    with pytest.raises(FeatureStoreError, match=r"unfinished extraction \(1 of 3 shards\)"):
        FeatureStore.open(half)
    writer = FeatureWriter(half, MANIFEST, NAMES, SIZES, shard_size=4)
    assert writer.missing_shards() == [1, 2]
    untouched = (half / "patches-00000.npy").stat().st_mtime_ns
    with pytest.raises(FeatureStoreError, match=r"shards \[1, 2\] of 3 missing"):
        writer.finish()
    fill(writer, writer.missing_shards())
    writer.finish()
    assert (half / "patches-00000.npy").stat().st_mtime_ns == untouched
    assert store_bytes(half) == store_bytes(folder)  # and no temporary file is left


def test_a_truncated_shard_is_named_and_then_rewritten(folder):
    path = folder / "patches-00001.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    store = FeatureStore.open(folder)
    store[0]
    with pytest.raises(
        FeatureStoreError, match=r"(?s)patches-00001.*truncated or damaged.*mend: rm -f .*patches-00001"
    ):
        store[4]
    writer = FeatureWriter(folder, MANIFEST, NAMES, shard_size=4)
    assert writer.missing_shards() == [1]
    fill(writer, [1])
    assert path.read_bytes() == whole


def test_a_missing_shard_and_a_missing_folder_are_named(folder, tmp_path):
    (folder / "cls-00002.npy").unlink()
    with pytest.raises(FeatureStoreError, match=r"(?s)cls-00002.npy: found no file.*mend: .*01_feature_extraction"):
        FeatureStore.open(folder)[10]
    with pytest.raises(FeatureStoreError, match=r"(?s)nowhere.*found no such folder.*mend: .*01_feature_extraction"):
        FeatureStore.open(tmp_path / "nowhere")


@pytest.mark.parametrize("shape", [(4, L + 1, D), (4, L, D - 1), (3, L, D)])
def test_a_shard_of_wrong_shape_is_named(folder, shape):
    np.save(folder / "patches-00001.npy", np.zeros(shape, np.float16))
    with pytest.raises(FeatureStoreError, match=r"(?s)patches-00001.*found shape \(\d, \d, \d\).*\(4, 6, 8\)"):
        FeatureStore.open(folder)[5]


def test_another_manifest_is_refused_with_both_sides(folder):
    for other, found, wanted in (
        ({"weights": "cd34"}, "weights = 'ab12'", "weights = 'cd34'"),
        ({"L": 196, "D": 8}, "L = 6", "L = 196"),
        ({"resize": "bicubic"}, r"resize = '\(absent\)'", "resize = 'bicubic'"),
    ):
        with pytest.raises(FeatureStoreError, match=f"(?s)found {found}, expected {wanted}\n  mend"):
            FeatureStore.open(folder, MANIFEST | other)
    before = store_bytes(folder)
    with pytest.raises(FeatureStoreError, match=r"(?s)weights = 'ab12'.*weights = 'cd34'.*mend: .*rm -r"):
        FeatureWriter(folder, MANIFEST | {"weights": "cd34"}, NAMES, shard_size=4)
    with pytest.raises(FeatureStoreError, match=r"found shard_size = 4, expected shard_size = 5"):
        FeatureWriter(folder, MANIFEST, NAMES, shard_size=5)
    with pytest.raises(FeatureStoreError, match="names_sha256"):
        FeatureWriter(folder, MANIFEST, NAMES[::-1], shard_size=4)
    assert store_bytes(folder) == before


def test_writer_refuses_what_it_cannot_hold(tmp_path):
    writer = FeatureWriter(tmp_path, MANIFEST | {"L": L, "D": D}, NAMES, shard_size=4)
    good = np.zeros((4, L, D)), np.zeros((4, D))
    with pytest.raises(ValueError, match=r"found shapes .*\(4, 7, 8\).*expected .*\(4, 6, 8\)"):
        writer.write_shard(0, np.zeros((4, L + 1, D)), good[1])
    for bad in (np.nan, np.inf, 6.1e4):
        patches = good[0].copy()
        patches[2, 1, 3] = bad
        with pytest.raises(ValueError, match=rf"patches of {NAMES[6]} \(1 images of shard 1\).*float32"):
            writer.write_shard(1, patches, good[1])
    with pytest.raises(ValueError, match="expected unique names"):
        FeatureWriter(tmp_path / "twice", MANIFEST, [*NAMES, NAMES[0]])
    with pytest.raises(ValueError, match=r"manifest keys \['dtype'\]"):
        FeatureWriter(tmp_path / "reserved", {"dtype": "float16"}, NAMES)


def test_unknown_names_and_ids(folder):
    store = FeatureStore.open(folder)
    with pytest.raises(FeatureStoreError, match=r"no record of 1 images, e.g. \['cat.jpg'\]"):
        store.ids([NAMES[0], "cat.jpg"])
    for i in (-1, 11):
        with pytest.raises(IndexError, match=r"expected 0\.\.10"):
            store[i]


def test_failed_images_are_listed(tmp_path):
    writer = FeatureWriter(tmp_path, {}, NAMES[:3], shard_size=2)
    writer.write_shard(0, np.ones((2, L, D)), np.ones((2, D)), [ImageRecord(4, 5, "aa"), ImageRecord(error="torn")])
    writer.write_shard(1, np.ones((1, L, D)), np.ones((1, D)), [ImageRecord(6, 7, "bb")])
    assert writer.failures(rank=1, world=2) == []
    writer.finish()
    store = FeatureStore.open(tmp_path)
    assert store.errors == writer.failures() == [{"id": 1, "name": NAMES[1], "reason": "torn"}]
    assert store.index["sha1"].tolist() == ["aa", "", "bb"]


def test_the_disk_is_asked_for_a_whole_batch_before_the_first_read(folder, monkeypatch):
    asked = []

    def told(name):
        own = getattr(_ShardFile, name)

        def run(file, row, *rest):
            asked.append((name, file.path.name, row))
            return own(file, row, *rest)

        monkeypatch.setattr(_ShardFile, name, run)

    told("prefetch")
    told("read")
    store = FeatureStore.open(folder)
    patches, _ = store.batch([9, 2, 5])
    assert asked[:3] == [("prefetch", f"patches-{k:05d}.npy", row) for k, row in ((2, 1), (0, 2), (1, 1))]
    assert {name for name, *_ in asked[3:]} == {"read"}
    np.testing.assert_allclose(patches[0], features(9)[0], rtol=2**-11, atol=1e-7)
    store.preload()
    asked.clear()
    store.batch([9, 2, 5])
    assert not asked  # nothing is left on the disk
