"""The rest of spec clip-features-and-detr.md §15: bits of the transform, no network, real archives where present."""

from __future__ import annotations

import os
import pickle
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lib.clip.load import load_clip
from lib.clip.released import convert_openai
from lib.clip.text import encode_text
from lib.clip.tokens import encode_image, preprocess
from lib.features.extract import main
from lib.features.legacy import main as legacy
from lib.features.store import FeatureStore

TINY = "random:configs/clip/tiny-clip.json"
ARCHIVES = Path(os.environ.get("HOI_CLIP_ARCHIVES", "absent"))  # folder with OpenAI's ViT-*.pt


def reference_transform(image, n):
    """Spec §2 in so many words: resize in the file's own mode, crop, RGB, normalise in float32."""
    (width, height), short = image.size, min(image.size)
    long = int(n * max(image.size) / short)
    resized = image.resize((n, long) if width <= height else (long, n), Image.BICUBIC)
    left, top = (round((side - n) / 2) for side in resized.size)
    pixels = torch.from_numpy(np.array(resized.crop((left, top, left + n, top + n)).convert("RGB")))
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    return ((pixels.float() / 255 - mean) / std).permute(2, 0, 1)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA", "CMYK"])
@pytest.mark.parametrize("size", [(100, 300), (301, 97), (60, 50), (128, 128), (640, 427)])
def test_transform_bit_for_bit(mode, size):
    """Tall, wide, smaller than n, exactly n, a photograph's."""
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    assert torch.equal(preprocess(load_clip(TINY))(image), reference_transform(image, 128))


def test_the_orientation_tag_is_not_applied(tmp_path):
    """Annotations and published features ignore it (spec §2.4)."""
    pixels = np.random.default_rng(2).integers(0, 256, (90, 150, 3), dtype=np.uint8)
    tag = Image.Exif()
    tag[0x0112] = 6  # turned by a quarter
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "turned.jpg", exif=tag, quality=95)
    for decode in ("exact", "fast"):
        store = tmp_path / decode
        main([str(store), "--clip", TINY, "--images", str(tmp_path / "images"), "--decode", decode])
        assert FeatureStore.open(store).index.loc[0, ["width", "height"]].tolist() == [150, 90]


def test_no_network_is_needed(tmp_path, monkeypatch):
    """Build, text, extraction, pickles out and in, with every way to a socket closed."""

    def closed(*_, **__):
        raise AssertionError("something asked for the network")

    for name in ("connect", "connect_ex", "sendto", "bind"):
        monkeypatch.setattr(socket.socket, name, closed)
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, closed)
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (150, 140), "red").save(images / "a.jpg")
    assert encode_text(load_clip(TINY), ["a dog"]).isfinite().all()
    load_clip("random:ViT-B-32-quickgelu")
    main([str(tmp_path / "store"), "--clip", TINY, "--images", str(images)])
    legacy(["export", str(tmp_path / "store"), str(tmp_path / "pickles")])
    legacy(["import", str(tmp_path / "pickles"), str(tmp_path / "again"), "--clip", TINY, "--images", str(images)])
    with (tmp_path / "pickles" / "a_clip.pkl").open("rb") as stream:
        assert torch.equal(pickle.load(stream), FeatureStore.open(tmp_path / "again")[0][0])


@pytest.mark.skipif(not list(ARCHIVES.glob("ViT-*.pt")), reason="HOI_CLIP_ARCHIVES names no folder with ViT-*.pt")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="OpenAI's archives have the device cuda written into them")
@pytest.mark.parametrize("archive", sorted(ARCHIVES.glob("ViT-*.pt")) or [ARCHIVES], ids=lambda path: path.name)
def test_converted_archive_equals_its_own_program(archive, tmp_path):
    """Class features of OpenAI's TorchScript in half precision against the converted folder: 2e-3 of the largest."""
    convert_openai(archive, tmp_path)
    clip = load_clip(f"local-dir:{tmp_path}", "cuda")
    images = torch.randn(2, 3, clip.spec.image_size, clip.spec.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = torch.jit.load(archive, map_location="cuda").encode_image(images.cuda()).float()
    assert (encode_image(clip, images)[0] - expected).abs().max() <= 2e-3 * expected.abs().max()
