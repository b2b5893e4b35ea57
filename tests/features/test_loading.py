"""Decode modes, the encoder's precision, image lists, and the extraction command's checks (spec §2, §6, §7)."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from lib.clip.load import load_clip
from lib.clip.tokens import encode_image, preprocess
from lib.data.images import ImageError
from lib.features.clip_features import clip_decode, clip_encoder, clip_manifest, mode_difference, verify_sample
from lib.features.extract import extract_features, main
from lib.features.image_lists import ImageListError, find_images, read_image_list
from lib.features.layout import FeatureStoreError
from lib.features.loading import decoding_workers
from lib.features.store import FeatureStore

TINY = "random:configs/clip/tiny-clip.json"


@pytest.fixture(scope="module")
def clip(request):
    return load_clip(f"random:{request.config.rootpath / 'configs/clip/tiny-clip.json'}")


def picture(size, mode="RGB", kind="JPEG", seed=0):
    """Bytes of a smooth random picture: noise would measure the resampling kernel, not the decoder."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.BICUBIC).convert(mode).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(640, 480), (300, 500), (90, 40), (128, 128)])
def test_fast_decode_is_a_few_grey_levels_off(clip, tmp_path, mode, size):
    data = picture(size, mode)
    (exact, exact_size), (fast, fast_size) = (clip_decode(clip, m)(data, tmp_path) for m in ("exact", "fast"))
    assert exact_size == fast_size == size and fast.shape == exact.shape == (3, 128, 128)
    grey_level = 1 / 255 / 0.26130258  # normalised
    assert (fast - exact).abs().max() <= 2.01 * grey_level and (fast - exact).abs().mean() < 0.25 * grey_level


def test_fast_decode_is_another_path(clip, tmp_path):
    """On a large photograph-like picture some pixel must differ, else `fast` would be PIL again."""
    data = picture((640, 480), seed=3)
    assert not torch.equal(clip_decode(clip, "fast")(data, tmp_path)[0], clip_decode(clip)(data, tmp_path)[0])


@pytest.mark.parametrize(("mode", "kind"), [("CMYK", "JPEG"), ("RGB", "PNG"), ("P", "PNG"), ("RGBA", "PNG")])
def test_fast_decode_leaves_other_files_to_pil(clip, tmp_path, mode, kind):
    data = picture((200, 150), mode, kind)
    assert torch.equal(clip_decode(clip, "fast")(data, tmp_path)[0], clip_decode(clip)(data, tmp_path)[0])


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_damaged_files_are_errors_in_both_modes(clip, tmp_path, mode):
    whole = picture((640, 480))
    for data, found in (
        (whole[: len(whole) // 2], "truncated"),
        (b"\xff\xd8no", "no known image"),
        (b"GIF?", "no known"),
    ):
        with pytest.raises(ImageError, match=f"(?s)photo.jpg.*{found}"):
            clip_decode(clip, mode)(data, tmp_path / "photo.jpg")


def test_unknown_modes_are_refused(clip):
    with pytest.raises(ValueError, match="features.decode: found 'best', expected one of exact, fast"):
        clip_decode(clip, "best")
    with pytest.raises(ValueError, match="features.precision: found 'fp8', expected one of fp32, bf16"):
        clip_encoder(clip, "fp8")


def test_encoder_in_pieces_equals_one_batch(clip):
    images = torch.randn(23, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    for found, expected in zip(clip_encoder(clip)(images), encode_image(clip, images), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    cls, patches = clip_encoder(clip, "bf16")(images[:3])
    exact = encode_image(clip, images[:3])[1]
    error = (patches.float() - exact).norm() / exact.norm()
    assert 1e-4 < error < 2e-2  # bf16 was really used, and is about 1 % off
    alone = clip_encoder(clip, "bf16")(images[1:2])
    assert torch.equal(alone[1][0], patches[1])  # whatever else is in the batch


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_exact_features_use_no_tf32(clip, monkeypatch, precision):
    seen = []

    def encode(model, images):
        seen.append((torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32))
        return encode_image(model, images)

    monkeypatch.setattr("lib.features.clip_features.encode_image", encode)
    clip_encoder(clip, precision)(torch.zeros(1, 3, 128, 128))
    assert seen == [(True, precision == "bf16")]


def test_workers_follow_the_device():
    assert decoding_workers(3, torch.device("cpu")) == 3
    assert decoding_workers(-1, torch.device("cpu")) == 0
    assert 1 <= decoding_workers(-1, torch.device("cuda"), ranks=2) <= 16


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(6):
        (folder / f"{i:02d}.jpg").write_bytes(picture((150, 130), seed=i))
    return sorted(folder.iterdir())


def extract(clip, photos, folder, decode="exact", precision="fp32", **more):
    extract_features(
        clip_encoder(clip, precision), photos, [path.name for path in photos], folder,
        clip_manifest(clip, "test", decode, precision), preprocess=preprocess(clip), decode=clip_decode(clip, decode),
        shard_size=4, batch_size=4, **more,
    )  # fmt: skip
    return FeatureStore.open(folder)


def test_modes_have_stores_of_their_own(clip, photos, tmp_path):
    extract(clip, photos, tmp_path / "store")
    with pytest.raises(
        FeatureStoreError, match=r"found decode = 'exact', precision = 'fp32', expected decode = 'fast'"
    ):
        extract(clip, photos, tmp_path / "store", "fast", "bf16")
    difference = mode_difference(clip, photos, "fast", "bf16")
    assert 0 < difference["relative_error"] < 0.02 and 0.999 < difference["least_cosine"] < 1
    assert mode_difference(clip, photos, "exact", "fp32")["relative_error"] == 0


def test_order_of_the_list_does_not_matter(clip, photos, tmp_path):
    extract(clip, photos, tmp_path / "store", log=tmp_path / "log.jsonl")
    extract(clip, photos[::-1], tmp_path / "turned")
    for path in (tmp_path / "store").iterdir():
        assert path.read_bytes() == (tmp_path / "turned" / path.name).read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["shards_done"], line["shards"]) for line in lines] == [(1, 2), (2, 2)]
    assert lines[-1]["seconds_left"] == 0 and lines[0]["images_per_second"] > 0


@pytest.mark.parametrize("modes", [("exact", "fp32"), ("fast", "bf16")])
def test_verify_finds_a_changed_record_and_another_clip(clip, photos, tmp_path, modes):
    store, paths = extract(clip, photos, tmp_path / "store", *modes), {path.name: path for path in photos}
    assert verify_sample(store, clip, paths, 6) < 1e-2
    with pytest.raises(FeatureStoreError, match="differ by .* from tiny-clip-"):
        verify_sample(store, load_clip(TINY, seed=1), paths, 2)
    shard = np.load(tmp_path / "store" / "patches-00001.npy")
    shard[1, 5, 7] += 1
    np.save(tmp_path / "store" / "patches-00001.npy", shard)
    with pytest.raises(FeatureStoreError, match=r"05.jpg: found patch tokens that differ by 1"):
        verify_sample(FeatureStore.open(tmp_path / "store"), clip, paths, 6)


def test_the_command_names_what_is_wrong(photos, tmp_path, capsys):
    arguments = [str(tmp_path / "store" / "test"), "--clip", TINY, "--images"]
    main([*arguments, str(photos[0].parent), "--decode", "fast", "--verify", "2", "--shard-size", "4"])
    out = capsys.readouterr().out
    assert "6 images, [64, 128] each, 0 unreadable" in out and "fast decode, fp32:" in out and "2 images again" in out
    with pytest.raises(SystemExit, match="nowhere: found no folder"):
        main([*arguments, str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match="found decode = 'fast', expected decode = 'exact'"):
        main([*arguments, str(photos[0].parent), "--shard-size", "4"])
    photos[2].write_bytes(photos[2].read_bytes()[:500])
    with pytest.raises(SystemExit, match=r"(?s)02.jpg.*truncated"):
        main([str(tmp_path / "strict"), *arguments[1:], str(photos[0].parent)])


LISTS = {
    "trainval_hico.json": [{"file_name": "b.jpg", "img_id": 1}, {"file_name": "a.jpg"}],
    "instances_vcoco_test.json": {"annotations": [{"file_name": "b.jpg"}, {"file_name": "a.jpg"}], "images": [1, 2]},
    "instances_train2015.json": {"filenames": ["b.jpg", "a.jpg"], "annotation": [{}, {}]},
    "names.json": ["b.jpg", "a.jpg"],
}


def test_image_lists_of_both_data_sets(tmp_path):
    for name, content in LISTS.items():
        (tmp_path / name).write_text(json.dumps(content))
        assert read_image_list(tmp_path / name) == ["b.jpg", "a.jpg"]
    (tmp_path / "names.txt").write_text("b.jpg\n\na.jpg\n")
    assert read_image_list(tmp_path / "names.txt") == ["b.jpg", "a.jpg"]
    for content, found in (('{"x": 1}', "no list"), ("[1]", "1 entries without a file name"), ("[", "broken JSON")):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(ImageListError, match=f"bad.json: found {found}"):
            read_image_list(tmp_path / "bad.json")


def test_real_lists(shared):
    names = read_image_list(shared / "data" / "real" / "instances_vcoco_test_7.json")
    paths = find_images(shared / "data" / "real" / "images", names)  # found below val2014
    assert [path.name for path in paths] == names and len(names) == 7
    assert len(read_image_list(shared / "data" / "real" / "test_hico_200_rebuilt.json")) == 200
    with pytest.raises(ImageListError, match="none of 200 listed images"):
        find_images(
            shared / "data" / "real" / "images",
            read_image_list(shared / "data" / "real" / "instances_test2015_200.json"),
        )


def test_images_are_found_once(tmp_path):
    for folder, name in (("train2014", "a.jpg"), ("val2014", "b.JPG"), ("val2014", "note.txt")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).touch()
    assert [path.name for path in find_images(tmp_path)] == ["a.jpg", "b.JPG"]
    assert find_images(tmp_path, ["b.JPG"]) == [tmp_path / "val2014" / "b.JPG"]
    (tmp_path / "val2014" / "a.jpg").touch()
    with pytest.raises(ImageListError, match="found a.jpg in .*train2014 and in .*val2014"):
        find_images(tmp_path)
    assert find_images(tmp_path, ["train2014/a.jpg"]) == [tmp_path / "train2014" / "a.jpg"]
