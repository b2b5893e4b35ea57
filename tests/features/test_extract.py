"""Extraction: the same store for any number of ranks, sessions and workers; unreadable images are recorded."""

from __future__ import annotations

import hashlib
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from lib.data.images import ImageError, read_image
from lib.features.extract import extract_features
from lib.features.store import FeatureStore

MANIFEST = {"model": "mean colour", "L": 4, "D": 3}


def preprocess(image):
    """Any PIL mode and size -> [3, 8, 8] in 0..1."""
    pixels = np.asarray(image.resize((8, 8)).convert("RGB"), np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)


def encode(images):
    """Mean colour of four quadrants as patches, of the whole image as class token."""
    patches = torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(2).mT  # (B, 4, 3)
    return patches.mean(1), patches


@pytest.fixture
def photos(tmp_path):
    """Ten JPEG files; names are the file names."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(10):
        pixels = rng.integers(0, 256, (20 + i, 40, 3)).astype(np.uint8)
        Image.fromarray(pixels).convert("L" if i == 3 else "RGB").save(folder / f"{i:02d}.jpg")
    return sorted(folder.iterdir())


def extract(photos, folder, **settings):
    settings = {"batch_size": 2, "shard_size": 3} | settings
    names = [path.name for path in photos]
    return extract_features(encode, photos, names, folder, MANIFEST, preprocess=preprocess, **settings)


def store_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_features_and_index(photos, tmp_path):
    seen = []
    assert extract(photos, tmp_path / "store", progress=lambda done, total: seen.append((done, total))) == []
    store = FeatureStore.open(tmp_path / "store", MANIFEST)
    for i, path in enumerate(photos):
        cls, patches = encode(preprocess(read_image(path))[None])
        torch.testing.assert_close(store[i][0], patches[0], rtol=2**-11, atol=0)
        torch.testing.assert_close(store[i][1], cls[0], rtol=2**-11, atol=0)
    index = store.index.set_index("name")
    assert index.loc["04.jpg", ["width", "height"]].tolist() == [40, 24]
    assert index.loc["04.jpg", "sha1"] == hashlib.sha1(photos[4].read_bytes()).hexdigest()
    assert seen == [(2, 10), (3, 10), (5, 10), (6, 10), (8, 10), (9, 10), (10, 10)]


def test_ranks_and_workers_give_identical_stores(photos, tmp_path):
    photos[5].write_bytes(photos[5].read_bytes()[:-300])
    extract(photos, tmp_path / "one")
    for world in (2, 3):
        for rank in range(world):
            extract(photos, tmp_path / f"of{world}", rank=rank, world=world)
        assert store_bytes(tmp_path / f"of{world}") == store_bytes(tmp_path / "one")
    extract(photos, tmp_path / "workers", workers=2)
    assert store_bytes(tmp_path / "workers") == store_bytes(tmp_path / "one")


def test_interrupted_and_resumed_equals_uninterrupted(photos, tmp_path):
    extract(photos, tmp_path / "whole")
    calls = []

    def dies_in_the_third_shard(images):
        calls.append(len(images))
        if len(calls) > 6:
            raise KeyboardInterrupt
        return encode(images)

    names = [path.name for path in photos]
    with pytest.raises(KeyboardInterrupt):
        extract_features(
            dies_in_the_third_shard,
            photos,
            names,
            tmp_path / "cut",
            MANIFEST,
            preprocess=preprocess,
            batch_size=2,
            shard_size=3,
        )
    assert sorted(path.name for path in (tmp_path / "cut").glob("patches*")) == [
        "patches-00000.npy",
        "patches-00001.npy",
    ]
    seen = []
    extract(photos, tmp_path / "cut", progress=lambda done, total: seen.append(total))
    assert set(seen) == {4}  # only the two missing shards
    assert store_bytes(tmp_path / "cut") == store_bytes(tmp_path / "whole")
    extract(photos, tmp_path / "cut", progress=lambda done, total: pytest.fail("nothing is left to do"))


def test_unreadable_images_are_recorded(photos, tmp_path):
    """A truncated JPEG, a missing file, a text file and an empty one; shard 3 holds no readable image at all."""
    photos[1].write_bytes(photos[1].read_bytes()[:-300])
    photos[4].unlink()
    photos[7].write_text("<html>404</html>")
    photos[9].write_bytes(b"")
    failures = extract(photos, tmp_path / "store")
    assert [failure["name"] for failure in failures] == ["01.jpg", "04.jpg", "07.jpg", "09.jpg"]
    for failure, reason in zip(failures, ("truncated", "no such file", "no known image format", "empty"), strict=True):
        assert reason in failure["reason"]
    store = FeatureStore.open(tmp_path / "store")
    assert store.errors == failures
    patches, cls = store.batch([1, 4, 7, 9])
    assert not patches.any() and not cls.any()
    whole, _ = store.batch([0, 2, 3, 5, 6, 8])
    assert (whole.flatten(1) != 0).all()
    assert store.index["error"].ne("").sum() == 4
    assert extract(photos, tmp_path / "store") == failures  # a later session still reports them


def test_strict_extraction_stops(photos, tmp_path):
    photos[4].write_bytes(photos[4].read_bytes()[:-300])
    with pytest.raises(ImageError, match=r"(?s)04.jpg: found .*truncated.*, expected .*\n  mend: "):
        extract(photos, tmp_path / "strict", strict=True)
    extract(photos, tmp_path / "lax")
    with pytest.raises(ImageError, match=r"(?s)04.jpg: found recorded as unreadable.*rm .*patches-00001.npy"):
        extract(photos, tmp_path / "lax", strict=True)


def test_overflow_and_wrong_shapes_are_refused(photos, tmp_path):
    names = [path.name for path in photos]
    cases = {
        "overflow": (lambda x: (encode(x)[0], encode(x)[1] * 1e6), "patches of 00.jpg .* float16"),
        "wrong L": (lambda x: (encode(x)[0], encode(x)[1][:, :3]), r"expected \(2, 3\) and \(2, 4, 3\)"),
        "no tokens": (lambda x: (encode(x)[0], encode(x)[0]), r"gave cls \(2, 3\) and patches \(2, 3\) for 2 images"),
    }
    for name, (encoder, message) in cases.items():
        with pytest.raises(ValueError, match=message):
            extract_features(
                encoder, photos, names, tmp_path / name, MANIFEST, preprocess=preprocess, batch_size=2, shard_size=3
            )
    with pytest.raises(ValueError, match="9 image paths for 10 names"):
        extract_features(encode, photos[1:], names, tmp_path / "lengths", MANIFEST, preprocess=preprocess)


def test_image_error_names_everything_and_travels_between_processes(tmp_path):
    with pytest.raises(ImageError) as caught:
        read_image(tmp_path / "absent.jpg")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value)
    assert copy.where == tmp_path / "absent.jpg" and copy.found == "no such file" and "data.root" in copy.mend


def test_images_keep_their_own_mode(tmp_path):
    for mode, suffix in (("L", "jpg"), ("CMYK", "jpg"), ("P", "png"), ("1", "png"), ("RGBA", "png")):
        Image.new(mode, (5, 7)).save(tmp_path / f"{mode}.{suffix}")
        image = read_image(tmp_path / f"{mode}.{suffix}")
        assert image.mode == mode and image.size == (5, 7)
