"""The extraction command: any number of processes, a kill and a resume give the same bytes (spec §5, §15.3)."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time

import pytest
import torch

from lib.data.stick_world import render_world
from lib.features.extract import main
from lib.features.store import FeatureStore
from lib.settings import WorldSettings

FORK = multiprocessing.get_context("fork")
IMAGES, SHARD = 200, 16


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """200 rendered images, one of them cut in half."""
    folder = tmp_path_factory.mktemp("world")
    render_world(folder, WorldSettings(train_images=IMAGES, test_images=1))
    images = folder / "images" / "train2015"
    broken = sorted(images.iterdir())[77]
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    return images


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """The store that one undisturbed process writes, name -> bytes."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    run(start(world, folder))
    return folder


def command(images, store, rank, world):
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world))
    torch.set_num_threads(1)  # a forked process must not wait for its parent's thread pool
    options = "--clip random:configs/clip/tiny-clip.json --batch-size 8 --skip-broken --workers 0 --device cpu"
    main([str(store), "--images", str(images), "--shard-size", str(SHARD), *options.split()])


def start(images, store, rank=0, world=1):
    process = FORK.Process(target=command, args=(images, store, rank, world))
    process.start()
    return process


def run(*processes):
    for process in processes:
        process.join(120)
        assert process.exitcode == 0


def store_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_one_process_writes_a_whole_store(world, whole):
    store = FeatureStore.open(whole)
    assert len(store) == IMAGES and store.index["name"].tolist() == sorted(path.name for path in world.iterdir())
    assert [(error["id"], "truncated" in error["reason"]) for error in store.errors] == [(77, True)]
    patches, _ = store.batch(range(IMAGES))
    assert patches.flatten(1).any(1).sum() == IMAGES - 1 and not patches[77].any()
    assert len(list(whole.glob("patches-*.npy"))) == 13
    assert json.loads((whole / "manifest.json").read_text())["libraries"]["torch"]


@pytest.mark.parametrize("ranks", [2, 3])
def test_more_processes_write_the_same_bytes(world, whole, tmp_path, ranks):
    run(*(start(world, tmp_path / "store", rank, ranks) for rank in range(ranks)))
    assert store_bytes(tmp_path / "store") == store_bytes(whole)


def test_kill_and_resume_write_the_same_bytes(world, whole, tmp_path):
    store = tmp_path / "store"
    process = start(world, store)
    deadline = time.monotonic() + 60
    while not (store / "patches-00002.npy").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL and not (store / "index.parquet").exists()
    done = {path: path.stat().st_mtime_ns for path in store.glob("patches-*.npy")}
    assert 3 <= len(done) < 13
    run(*(start(world, store, rank, 2) for rank in range(2)))  # with another number of processes
    assert store_bytes(store) == store_bytes(whole)
    assert all(path.stat().st_mtime_ns == written for path, written in done.items())
