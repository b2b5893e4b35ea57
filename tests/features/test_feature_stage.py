"""The stage: settings reach the store, stores made elsewhere are used, processes share the work."""

from __future__ import annotations

import json

import pytest

from lib.config import load_config
from lib.data.stick_world import render_world
from lib.features.layout import FeatureStoreError
from lib.runs import Run
from lib.settings import WorldSettings
from lib.stages import inputs

CLIP = "clip.source=random:configs/clip/tiny-clip.json"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    render_world(folder, WorldSettings(train_images=12, test_images=10))
    return folder


def opened(world, run, *overrides):
    cfg = load_config(
        None, [f"data.root={world}", "data.images=images/{split}2015", CLIP, "features.shard_size=4", *overrides]
    )
    return cfg, Run(run, cfg)


def shards(store):
    return {path.name: path.read_bytes() for path in store.folder.glob("*.npy")}


def test_modes_are_recorded_and_compared(world, tmp_path):
    plain, run = opened(world, tmp_path / "plain")
    info = inputs.features(plain, run, "test").info
    assert info == {"images": 10, "tokens": 64, "dim": 128, "failed": 0}
    settings = json.loads((tmp_path / "plain/features/test/artifact.json").read_text())["settings"]
    assert settings.keys() == {"clip", "split", "shard_size", "images"}  # as before the modes existed
    lines = (tmp_path / "plain/log/features_test.jsonl").read_text().splitlines()
    assert [json.loads(line)["shards_done"] for line in lines] == [1, 2, 3]
    fast, run = opened(world, tmp_path / "fast", "features.decode=fast", "features.precision=bf16")
    info = inputs.features(fast, run, "test").info
    assert 1e-4 < info["relative_error"] < 0.03 and info["least_cosine"] > 0.99
    assert inputs.feature_store(fast, run, "test").manifest["settings"]["precision"] == "bf16"


def test_a_store_made_elsewhere_is_used(world, tmp_path):
    cfg, run = opened(world, tmp_path / "first")
    inputs.features(cfg, run, "test")
    made = inputs.feature_store(cfg, run, "test")
    source = f"features.source={tmp_path / 'first' / 'features'}"
    cfg, run = opened(world, tmp_path / "second", source, "features.preload=true")
    inputs.features(cfg, run, "test")
    assert not list((tmp_path / "second/features/test").glob("*.npy"))
    used = inputs.feature_store(cfg, run, "test")
    assert used.fingerprint == made.fingerprint and used.batch([3])[0].equal(made.batch([3])[0])
    other, run = opened(world, tmp_path / "third", source, "seed=1")  # other random weights
    with pytest.raises(FeatureStoreError, match="(?s)found clip = 'tiny-clip-.*, expected clip = 'tiny-clip-"):
        inputs.features(other, run, "test")
    with pytest.raises(FeatureStoreError, match=r"train/manifest.json: found no such folder"):
        inputs.features(cfg, run, "train")


def test_two_processes_make_the_same_store(world, tmp_path):
    one, run = opened(world, tmp_path / "one")
    inputs.features(one, run, "train")
    two, runs = opened(world, tmp_path / "two", "launch.processes=2")
    inputs.features(two, runs, "train")
    assert shards(inputs.feature_store(two, runs, "train")) == shards(inputs.feature_store(one, run, "train"))
