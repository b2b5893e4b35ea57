"""DETR host: post-processing, size rule, loading (spec clip-features-and-detr.md §8-§10, §15.5)."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_convert
from transformers import DetrForObjectDetection, DetrImageProcessorPil

from lib.detection.detr import DetectorError, best_class, detect, load_detr, preprocess, resized_size
from lib.detection.proposals import propose
from lib.detection.train import tiny_config

NAMES = ("person", "dog", "kite")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untrained tiny DETR in a folder; norms and buffers are shaken so that a swap would show."""
    folder = tmp_path_factory.mktemp("detr")
    torch.manual_seed(0)
    model = DetrForObjectDetection(tiny_config(NAMES, queries=6))
    for name, value in model.state_dict().items():
        if value.ndim == 1:
            value += 0.1 * torch.rand_like(value)
        assert torch.isfinite(value).all(), name
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"size": {"shortest_edge": 128, "longest_edge": 160}, "resample": 2})
    )
    model.eval()
    return folder, model


def picture(width=160, height=128, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_background_is_dropped_before_the_maximum():
    logits = torch.tensor([[[2.0, 1.0, 9.0], [0.0, 3.0, 0.0]]])  # the last column is background
    scores, labels = best_class(logits)
    assert labels.tolist() == [[0, 1]]  # a query that background dominates still names a class
    expected = torch.softmax(logits, -1)[0, [0, 1], [0, 1]]
    torch.testing.assert_close(scores[0], expected)
    assert scores[0, 0] < 0.01  # and the softmax still counts background


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (1066, 800)),  # 1066.67 is truncated
        ((480, 640), (800, 1066)),
        ((800, 600), (1066, 800)),
        ((1000, 400), (1332, 533)),  # the cap binds: short = round(533.2), long = trunc(533 * 2.5)
        ((400, 1000), (533, 1332)),
        ((800, 800), (800, 800)),
        ((1200, 800), (1200, 800)),  # short side is right already
        ((1061, 427), (1331, 536)),  # the cap binds: short = round(536.47), so the long side ends below it
    ],
)
def test_size_rule(size, expected):
    assert resized_size(*size) == expected


def exact_size(width, height):
    """The rule of spec §9 in exact arithmetic."""
    short, long = min(width, height), max(width, height)
    side = 800 if Fraction(800 * long, short) <= 1333 else round(Fraction(1333 * short, long))
    if short == side:
        return width, height
    other = side * long // short
    return (side, other) if width <= height else (other, side)


def test_ten_thousand_sizes():
    rng = np.random.default_rng(0)
    sizes = [*rng.integers(20, 3000, (9000, 2)).tolist(), *rng.integers(400, 1000, (1000, 2)).tolist()]
    assert [resized_size(*size) for size in sizes] == [exact_size(*size) for size in sizes]
    assert max(max(resized_size(*size)) for size in sizes) > 1333  # the cap may be passed by rounding


def test_every_query_is_kept(folder):
    """transformers' helper keeps scores above a threshold, strictly; ours leaves thresholds to the proposal rule."""
    path, model = folder
    detr = load_detr(path)
    pixels = preprocess(detr, picture())[None]
    scores, labels, boxes = detect(detr, pixels)
    with torch.no_grad():
        output = model(pixels)
    helper = DetrImageProcessorPil().post_process_object_detection
    (everything,) = helper(output, threshold=0.0, target_sizes=[(128, 160)])
    torch.testing.assert_close(everything["scores"], scores[0], atol=1e-6, rtol=0)
    assert torch.equal(everything["labels"], labels[0])
    pixels_xyxy = box_convert(boxes[0], "cxcywh", "xyxy") * torch.tensor([160, 128, 160, 128])
    torch.testing.assert_close(everything["boxes"], pixels_xyxy, atol=1e-3, rtol=0)
    edge = float(everything["scores"].sort().values[2])
    (strict,) = helper(output, threshold=edge, target_sizes=[(128, 160)])
    assert len(strict["scores"]) == 3  # the one at the threshold is gone
    ours = propose(
        pixels_xyxy, everything["scores"], everything["labels"], nms_iou=1.1, score_threshold=edge, min_instances=0
    )
    assert len(ours.scores) == 4  # and stays in ours


def test_folder_gives_the_same_outputs(folder):
    path, model = folder
    detr = load_detr(path)
    assert detr.labels == NAMES and (detr.short_side, detr.long_side, detr.resample) == (128, 160, "bilinear")
    pixels = torch.stack([preprocess(detr, picture(seed=seed)) for seed in range(3)])
    with torch.no_grad():
        expected = model(pixels)
    scores, labels, boxes = detect(detr, pixels)
    torch.testing.assert_close(boxes, expected.pred_boxes, atol=1e-5, rtol=0)
    torch.testing.assert_close(scores, expected.logits.softmax(-1)[..., :-1].amax(-1), atol=1e-5, rtol=0)
    assert scores.shape == labels.shape == (3, 6) and boxes.shape == (3, 6, 4)
    one = detect(detr, pixels[1:2])
    torch.testing.assert_close(one[2][0], boxes[1], atol=1e-5, rtol=0)  # batched = single at one size


def test_preprocess(folder):
    detr = load_detr(folder[0])
    image = picture()
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    expected = (np.asarray(image, np.float32) / 255 - mean) / std  # the size is right: no resampling
    np.testing.assert_allclose(preprocess(detr, image).permute(1, 2, 0).numpy(), expected, atol=1e-6)
    wide = picture(500, 200)
    assert preprocess(detr, wide).shape == (3, 64, 160)
    bicubic = load_detr(folder[0], resample="bicubic")
    for detector, kind in ((detr, Image.BILINEAR), (bicubic, Image.BICUBIC)):
        expected = (np.asarray(wide.resize((160, 64), kind), np.float32) / 255 - mean) / std
        np.testing.assert_allclose(preprocess(detector, wide).permute(1, 2, 0).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_missing_file_is_named(folder, tmp_path, name):
    for file in folder[0].iterdir():
        if file.name != name:
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(DetectorError, match=f"(?s){name}: found no file.*mend"):
        load_detr(tmp_path)


def test_unfit_weights_and_auxiliary_loss_are_refused(folder, tmp_path):
    for file in folder[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"auxiliary_loss": True}))
    with pytest.raises(DetectorError, match="found auxiliary_loss true"):
        load_detr(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"decoder_layers": 4}))
    with pytest.raises(DetectorError, match="(?s)do not fit.*decoder.layers.3"):
        load_detr(tmp_path)
    with pytest.raises(DetectorError, match="resample 'nearest'"):
        load_detr(folder[0], resample="nearest")
