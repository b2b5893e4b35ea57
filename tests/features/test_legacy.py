"""EZ-HOI's pickles in and out (spec clip-features-and-detr.md §4, §15.3-4)."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from lib.clip.load import load_clip
from lib.clip.tokens import encode_image, preprocess
from lib.data.restricted_pickle import PickleError
from lib.features.image_lists import ImageListError, legacy_folder
from lib.features.layout import FeatureStoreError
from lib.features.legacy import SUFFIX, export_legacy, import_legacy, legacy_file, main, read_legacy
from lib.features.store import FeatureStore

NAMES = [f"HICO_test2015_{i:08d}.jpg" for i in range(7)]
L, D = 6, 8
MANIFEST = {"clip": "ViT-B-16-quickgelu-12345678", "split": "test", "L": L, "D": D}
TINY = "random:configs/clip/tiny-clip.json"


def tokens(i):
    """[1 + L, D], class token first, numbers that half precision holds."""
    return torch.randn(1 + L, D, generator=torch.Generator().manual_seed(i)).half().float()


def save(value, path):
    with path.open("wb") as stream:
        pickle.dump(value, stream)


@pytest.fixture
def pickles(tmp_path):
    """What the old extraction leaves: a view of each image's tokens behind its class token."""
    folder = tmp_path / "pickles"
    folder.mkdir()
    for i, name in enumerate(NAMES):
        save(tokens(i)[None].squeeze(0)[1:], legacy_file(folder, name))
    return folder


def test_import_recovers_patches_and_class_tokens(pickles, tmp_path):
    found = import_legacy(pickles, tmp_path / "store", NAMES[::-1], MANIFEST, shard_size=3)
    assert found == {"images": 7, "failed": 0, "without_class_token": 0}
    store = FeatureStore.open(tmp_path / "store", MANIFEST)
    assert store.index["name"].tolist() == NAMES
    for i in range(7):
        patches, cls = store[i]
        assert torch.equal(patches, tokens(i)[1:]) and torch.equal(cls, tokens(i)[0])


def test_export_and_import_are_inverse(pickles, tmp_path):
    import_legacy(pickles, tmp_path / "store", NAMES, MANIFEST, shard_size=3)
    store = FeatureStore.open(tmp_path / "store")
    assert export_legacy(store, tmp_path / "exported") == 7
    for i, name in enumerate(NAMES):
        with legacy_file(tmp_path / "exported", name).open("rb") as stream:
            value = pickle.load(stream)  # as the original program does
        assert type(value) is torch.Tensor and value.dtype == torch.float32 and value.device.type == "cpu"
        assert torch.equal(value, tokens(i)[1:])
        assert value.untyped_storage().nbytes() == 4 * L * D  # the class token stays out
        assert legacy_file(tmp_path / "exported", name).stat().st_size < legacy_file(pickles, name).stat().st_size
    found = import_legacy(tmp_path / "exported", tmp_path / "again", NAMES, MANIFEST, shard_size=3)
    assert found["without_class_token"] == 7
    for path in (tmp_path / "store").glob("patches-*.npy"):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
    assert not FeatureStore.open(tmp_path / "again").batch(range(7))[1].any()


def test_file_size_of_the_published_shape(tmp_path):
    """ViT-B/16: 401,408 bytes of payload exported, 403,872 bytes with the class token (spec §4)."""
    for rows, size in ((196, 401_408), (197, 403_456)):
        save(torch.zeros(rows, 512), tmp_path / "size.pkl")
        assert 0 < (tmp_path / "size.pkl").stat().st_size - size < 600
    save(torch.zeros(197, 512)[1:], tmp_path / "view.pkl")
    assert (tmp_path / "view.pkl").stat().st_size == pytest.approx(403_872, abs=100)


class OnGpu:
    """A location tag as CUDA tensors have it, so that a file looks as if it came from a GPU."""

    def __enter__(self):
        self.location_tag = torch.serialization.location_tag
        torch.serialization.location_tag = lambda storage: "cuda:0"

    def __exit__(self, *_):
        torch.serialization.location_tag = self.location_tag


def test_cuda_pickles_come_to_the_cpu(tmp_path):
    with OnGpu():
        save(tokens(3)[1:], tmp_path / "gpu.pkl")
    assert b"cuda:0" in (tmp_path / "gpu.pkl").read_bytes()
    patches, cls = read_legacy(tmp_path / "gpu.pkl", L)
    assert patches.device.type == "cpu" and torch.equal(patches, tokens(3)[1:]) and torch.equal(cls, tokens(3)[0])


def test_every_layout_of_the_class_token(tmp_path):
    """A view of one image, images of one batch, the demo's 1 + L rows, half precision, and none at all."""
    batch = torch.stack([tokens(0), tokens(1), tokens(2)])
    cases = {
        "view": (tokens(2)[1:], True),
        "first of a batch": (batch[:, 1:, :][0], True),
        "last of a batch": (batch[:, 1:, :][2], True),
        "demo": (tokens(2), True),
        "half": (tokens(2).half()[1:], True),
        "copy": (tokens(2)[1:].clone(), False),
    }
    for name, (value, inside) in cases.items():
        save(value, tmp_path / "one.pkl")
        patches, cls = read_legacy(tmp_path / "one.pkl", L)
        image = 0 if name.startswith("first") else 2
        assert patches.dtype == torch.float32 and torch.equal(patches, tokens(image)[1:]), name
        assert torch.equal(cls, tokens(image)[0]) if inside else cls is None, name


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_nothing_of_a_pickle_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(Malicious(), tmp_path / "evil.pkl")
    with pytest.raises(PickleError, match=r"(?s)evil.pkl: found a pickle that calls .*mkdir.*nothing of it was run"):
        read_legacy(tmp_path / "evil.pkl")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b""), r"an empty file \(0 bytes\)"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "no whole pickle"),
        (lambda path: path.unlink(), "no file"),
        (lambda path: save(torch.zeros(L + 3, D), path), "9 tokens, expected 6"),
        (lambda path: save([tokens(0)], path), "found list, expected one tensor"),
        (lambda path: save(torch.zeros(L, D, dtype=torch.int64), path), "torch.int64, expected one tensor"),
    ],
)
def test_a_bad_pickle_stops_or_is_recorded(pickles, tmp_path, damage, message):
    damage(legacy_file(pickles, NAMES[4]))
    with pytest.raises(ValueError, match=f"{NAMES[4][:-4]}{SUFFIX}: found .*{message}|{NAMES[4][:-4]}.*{message}"):
        import_legacy(pickles, tmp_path / "strict", NAMES, MANIFEST, shard_size=3)
    found = import_legacy(pickles, tmp_path / "lax", NAMES, MANIFEST, shard_size=3, strict=False)
    assert found["failed"] == 1
    store = FeatureStore.open(tmp_path / "lax")
    assert [error["name"] for error in store.errors] == [NAMES[4]] and not store[4][0].any()
    assert torch.equal(store[3][0], tokens(3)[1:]) and torch.equal(store[5][0], tokens(5)[1:])
    assert export_legacy(store, tmp_path / "out") == 6


def test_an_import_goes_on_where_it_stopped(pickles, tmp_path):
    import_legacy(pickles, tmp_path / "whole", NAMES, MANIFEST, shard_size=3)
    moved = legacy_file(pickles, NAMES[5]).rename(tmp_path / "aside.pkl")
    with pytest.raises(PickleError, match="no file"):
        import_legacy(pickles, tmp_path / "store", NAMES, MANIFEST, shard_size=3)
    moved.rename(legacy_file(pickles, NAMES[5]))
    import_legacy(pickles, tmp_path / "store", NAMES, MANIFEST, shard_size=3)
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "store" / path.name).read_bytes()


def test_names_that_share_a_pickle_are_refused(tmp_path):
    with pytest.raises(FeatureStoreError, match=r"one file for a.1.jpg and a.2.jpg"):
        import_legacy(tmp_path, tmp_path / "store", ["a.1.jpg", "a.2.jpg"], MANIFEST)


@pytest.fixture
def extracted(tmp_path, monkeypatch):
    """Three photographs and their pickles by the loop of the old program, with the tiny CLIP."""
    clip, images, pickles = load_clip(TINY), tmp_path / "images", tmp_path / "clipbase_img_vcoco_val"
    images.mkdir()
    pickles.mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (140, 170, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(images / f"COCO_val2014_{i:012d}.jpg")
    for path in images.iterdir():
        cls, patches = encode_image(clip, preprocess(clip)(Image.open(path))[None])
        save(torch.cat([cls[:, None], patches], 1).squeeze(0)[1:], legacy_file(pickles, path.name))
    return tmp_path


def test_commands(extracted, capsys):
    pickles, images = str(extracted / "clipbase_img_vcoco_val"), str(extracted / "images")
    store = str(extracted / "features" / "test")
    main(["import", pickles, store, "--clip", TINY, "--images", images, "--verify", "3", "--split", "test"])
    out = capsys.readouterr().out
    assert "3 images, 0 failed, 0 without class token" in out and "computed 3 images" in out
    assert FeatureStore.open(store).index[["width", "height"]].to_numpy().tolist() == [[170, 140]] * 3
    main(["export", store, str(extracted / "out")])
    assert len(list((extracted / "out").iterdir())) == 3
    with pytest.raises(SystemExit, match="mend: name the folder itself"):  # the old programs know no tiny CLIP
        main(["export", store, str(extracted), "--data", "vcoco"])
    main(["import", pickles, str(extracted / "unchecked"), "--clip", TINY])
    assert "not checked against the CLIP" in capsys.readouterr().out


def test_pickles_of_another_clip_are_found_out(extracted):
    swapped = [legacy_file(extracted / "clipbase_img_vcoco_val", f"COCO_val2014_{i:012d}") for i in range(2)]
    first, second = (path.read_bytes() for path in swapped)
    swapped[0].write_bytes(second)
    swapped[1].write_bytes(first)
    arguments = [swapped[0].parent, extracted / "store", "--clip", TINY, "--images", extracted / "images"]
    with pytest.raises(SystemExit, match=r"(?s)COCO_val2014_.*found patch tokens that differ by .*mend: use the CLIP"):
        main(["import", *map(str, arguments), "--verify", "3"])


def test_old_folder_names_follow_the_data_set(tmp_path):
    """V-COCO's test split is `val` in the old layout (spec §7)."""
    names = [f"COCO_val2014_{i:012d}.jpg" for i in range(2)]
    old = tmp_path / "pickles" / "clip336_img_vcoco_val"
    old.mkdir(parents=True)
    for i, name in enumerate(names):
        save(tokens(i)[1:], legacy_file(old, name))
    manifest = MANIFEST | {"clip": "ViT-L-14-336-quickgelu-12345678"}
    import_legacy(old, tmp_path / "store", names, manifest)
    main(["export", str(tmp_path / "store"), str(tmp_path / "out"), "--data", "vcoco"])
    assert sorted(path.name for path in (tmp_path / "out" / "clip336_img_vcoco_val").iterdir()) == [
        legacy_file(old, name).name for name in names
    ]
    main(["export", str(tmp_path / "store"), str(tmp_path / "out"), "--data", "hicodet"])
    assert (tmp_path / "out" / "clip336_img_hicodet_test").is_dir()
    with pytest.raises(ImageListError, match="a CLIP among ViT-B-16, ViT-L-14-336"):
        legacy_folder("tiny-clip", "vcoco", "test")
