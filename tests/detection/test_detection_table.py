"""The detections table: round trip, ids, label spaces, errors; recall against COCO boxes."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import DetrForObjectDetection

from lib.detection.detr import DetectorError, detect, load_detr, preprocess
from lib.detection.recall import box_recall
from lib.detection.table import DetectionTable, detect_images, write_table
from lib.detection.train import tiny_config
from lib.detection.truth import TrueBoxes, read_coco_boxes


def rows(*entries):
    names = ["image", "x1", "y1", "x2", "y2", "score", "label"]
    frame = pd.DataFrame([dict(zip(names, entry, strict=True)) for entry in entries], columns=names)
    return frame.astype({name: np.float32 for name in names[1:6]}).assign(name="a.jpg")


@pytest.fixture
def table(tmp_path):
    content = rows((2, 0, 0, 8, 8, 0.9, 0), (0, 1, 2, 3, 4, 0.5, 1), (2, 5, 5, 9, 9, 0.1, 2))
    return write_table(tmp_path, content, images=4, labels=["person", "sports ball", "kite"], detector={"kind": "test"})


@pytest.fixture
def detr(tmp_path):
    torch.manual_seed(0)
    folder = tmp_path / "detr"
    DetrForObjectDetection(tiny_config(("person", "dog"), queries=5)).save_pretrained(folder)
    size = {"shortest_edge": 64, "longest_edge": 128}
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": size, "resample": 2}))
    return load_detr(folder)


def test_round_trip_and_ids(table, tmp_path):
    again = DetectionTable.open(tmp_path)
    assert again.num_images == 4 and again.labels == ("person", "sports ball", "kite")
    assert again.of(0).boxes.tolist() == [[1, 2, 3, 4]]
    assert again.of(2).labels.tolist() == [0, 2] and again.of(2).scores[0] == np.float32(0.9)
    assert again.of(1).boxes.shape == again.of(3).boxes.shape == (0, 4)  # images without boxes
    assert again.of(2).boxes.dtype == torch.float32 and again.of(2).labels.dtype == torch.int64
    for image in (-1, 4):
        with pytest.raises(IndexError, match=r"expected 0\.\.3"):
            again.of(image)


def test_label_space_is_matched_by_name(table):
    mapped = table.in_label_space(["kite", "person", "sports_ball"])
    assert mapped.of(2).labels.tolist() == [1, 0] and mapped.of(0).labels.tolist() == [2]
    fewer = table.in_label_space(["person"])  # other classes are left out
    assert fewer.of(2).labels.tolist() == [0] and len(fewer.of(0).boxes) == 0
    with pytest.raises(ValueError, match="(?s)found classes.*mend"):
        table.in_label_space(["zebra"])


def test_missing_and_changed_files_are_named(table, tmp_path):
    (tmp_path / "detections.parquet").write_bytes(b"other")
    with pytest.raises(DetectorError, match=r"(?s)detections\.parquet: found rows .*mend"):
        DetectionTable.open(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(DetectorError, match=r"manifest\.json: found no file"):
        DetectionTable.open(tmp_path)


def test_detect_images_equals_single_images(detr, tmp_path):
    """Sizes alternate; ids stay positions, boxes are pixels of each original."""
    sizes, paths = [(160, 128), (90, 90), (160, 128), (300, 100), (90, 90)], []
    for index, size in enumerate(sizes):
        pixels = np.random.default_rng(index).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(pixels).save(paths[-1])
    table = detect_images(detr, paths, tmp_path / "table", batch_size=2)
    assert table.rows.groupby("image")["name"].first().tolist() == [path.name for path in paths]
    assert table.manifest["detector"]["weights_sha256"] == detr.fingerprint
    for index, (path, (width, height)) in enumerate(zip(paths, sizes, strict=True)):
        scores, labels, boxes = detect(detr, preprocess(detr, Image.open(path))[None])
        found = table.of(index)
        centre, side = boxes[0, :, :2], boxes[0, :, 2:]
        corners = torch.cat([centre - side / 2, centre + side / 2], 1) * torch.tensor([width, height, width, height])
        torch.testing.assert_close(found.boxes, corners, atol=1e-2, rtol=0)
        torch.testing.assert_close(found.scores, scores[0], atol=1e-5, rtol=0)
        assert torch.equal(found.labels, labels[0])


def test_recall_of_hand_made_boxes(table, tmp_path):
    truth = [
        TrueBoxes("a", torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([2])),  # right place, wrong class
        TrueBoxes("b", torch.tensor([[0.0, 0, 5, 5]]), torch.tensor([0])),  # nothing found
        TrueBoxes("c", torch.tensor([[0.0, 0, 8, 7], [5, 5, 9, 9]]), torch.tensor([0, 2])),
        TrueBoxes("d", torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
    ]
    found = box_recall(table, truth)
    assert (found["people"], found["objects"], found["class_mean"]) == (0.5, 0.5, 0.5)
    assert box_recall(table, truth, score=0.2)["objects"] == 0.0
    assert box_recall(table, truth, iou=0.9)["people"] == 0.0


def test_coco_boxes(tmp_path):
    content = {
        "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 3, "file_name": "b.jpg"}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}],
        "annotations": [
            {"image_id": 7, "category_id": 18, "bbox": [1, 2, 3, 4]},
            {"image_id": 7, "category_id": 1, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        ],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    images, names = read_coco_boxes(tmp_path / "boxes.json")
    assert names == ("person", "dog") and [image.name for image in images] == ["a.jpg", "b.jpg"]
    assert images[0].boxes.tolist() == [[1, 2, 4, 6]] and images[0].labels.tolist() == [1]
    assert images[1].boxes.shape == (0, 4)
