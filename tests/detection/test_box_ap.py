"""Box AP by hand, instances of a HOI data set, the command; perfect recognition on given proposals."""

import json

import numpy as np
import pytest
import torch

from lib.data.hico_det import read_hico_det
from lib.detection.box_ap import box_ap, main
from lib.detection.ceiling import perfect_recognition
from lib.detection.detr import DetectorError
from lib.detection.oracle import oracle_detections
from lib.detection.proposals import Proposals
from lib.detection.table import box_rows, write_table
from lib.detection.truth import TrueBoxes, instance_boxes
from lib.evaluation.hico_det import hico_det_ap

NAMES = ("person", "dog", "kite")
A, B = [0, 0, 100, 100], [200, 0, 300, 100]


def table_of(folder, *rows, images=2):
    """Rows (image, box, score, label) of images 0.jpg, 1.jpg, ..."""
    image, boxes, scores, labels = zip(*rows, strict=True)
    names = np.array([f"{index}.jpg" for index in image], object)
    frame = box_rows(np.array(image), names, np.array(boxes), np.array(scores), np.array(labels))
    return write_table(folder, frame, images=images, labels=NAMES, detector={"kind": "test"})


def truth_of(*rows, images=2):
    """Rows (image, box, label)."""
    found = []
    for index in range(images):
        own = [(box, label) for image, box, label in rows if image == index]
        boxes = torch.tensor([box for box, _ in own], dtype=torch.float32).reshape(-1, 4)
        found.append(TrueBoxes(f"{index}.jpg", boxes, torch.tensor([label for _, label in own], dtype=torch.int64)))
    return found


def test_average_precision_by_hand(tmp_path):
    """People: right, wrong, right of 2. Dogs: a box of IoU 0.6 is right at 0.50, 0.55 and 0.60 of ten thresholds."""
    truth = truth_of((0, A, 0), (1, A, 0), (0, B, 1))
    found = table_of(
        tmp_path, (0, A, 0.9, 0), (0, B, 0.8, 0), (1, A, 0.7, 0), (0, [200, 0, 300, 60], 0.5, 1), (1, A, 0.9, 2)
    )
    table = box_ap(found, truth, NAMES).per_class.set_index("name")
    assert table.index.tolist() == ["person", "dog"]  # without a box of its own a class says nothing
    # recall 0 .. 0.5 (51 of 101 thresholds) at precision 1, above at 2 of 3
    assert table["AP50"]["person"] == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)
    assert table["AP"]["person"] == pytest.approx(table["AP50"]["person"]) and table["AR"]["person"] == 100
    assert table.loc["dog", ["AP", "AP50", "AP75", "AR"]].tolist() == pytest.approx([30, 100, 0, 30])
    means = box_ap(found, truth, NAMES).means
    assert means["AP50"] == pytest.approx((table["AP50"]["person"] + 100) / 2) and means["AP75"] < means["AP50"]
    assert table["boxes"].tolist() == [2, 1] and table["detections"].tolist() == [3, 1]


def test_the_upt_rule_removes_doubles_and_weak_boxes(tmp_path):
    truth = truth_of((0, A, 0), (0, B, 1))
    found = table_of(
        tmp_path, (0, B, 0.04, 0), (0, A, 0.9, 0), (0, [0, 0, 100, 90], 0.8, 0), (0, B, 0.5, 1), (0, A, 0.04, 1)
    )
    counts = {rule: box_ap(found, truth, NAMES, rule).per_class["detections"].tolist() for rule in ("coco", "upt")}
    assert counts == {"coco": [3, 2], "upt": [1, 1]}
    many = table_of(tmp_path, *((0, [10 * i, 0, 10 * i + 9, 9], 0.5, 0) for i in range(60)))
    assert box_ap(many, truth, NAMES, "upt").per_class["detections"].tolist() == [50, 0]
    with pytest.raises(ValueError, match="rule: found 'voc'"):
        box_ap(found, truth, NAMES, "voc")


def test_other_images_are_refused(tmp_path):
    found = table_of(tmp_path, (1, A, 0.9, 0))
    with pytest.raises(DetectorError, match="2 images, expected the 3 of the annotations"):
        box_ap(found, truth_of((0, A, 0), images=3), NAMES)
    renamed = [true._replace(name=f"x{true.name}") for true in truth_of((0, A, 0))]
    with pytest.raises(DetectorError, match=r"image 1: found 1\.jpg, expected x1\.jpg"):
        box_ap(found, renamed, NAMES)
    with pytest.raises(DetectorError, match="found no box"):
        box_ap(found, truth_of(), NAMES)


@pytest.fixture
def dataset(tmp_path):
    """A person drawn twice for two verbs of one dog, once more elsewhere; an image without a pair."""
    rows = {
        "boxes_h": [[1, 1, 50, 100], [2, 1, 50, 99], [1, 1, 50, 100]],
        "boxes_o": [[61, 41, 100, 80], [61, 41, 101, 80], [121, 1, 160, 90]],
        "hoi": [0, 1, 2], "object": [1, 1, 0], "verb": [0, 1, 0],
    }  # fmt: skip
    content = {
        "filenames": ["0.jpg", "1.jpg"], "size": [[200, 100], [200, 100]], "objects": ["person", "dog"],
        "verbs": ["hold", "pet"], "correspondence": [[0, 1, 0], [1, 1, 1], [2, 0, 0]], "empty": [1],
        "annotation": [rows, {key: [] for key in rows}],
    }  # fmt: skip
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return read_hico_det(tmp_path / "instances.json", tmp_path, "test")


def test_a_thing_drawn_again_is_one_instance(dataset):
    first, empty = instance_boxes(dataset)
    assert first.labels.tolist() == [0, 1, 0]
    assert first.boxes.tolist() == [[0, 0, 50, 100], [60, 40, 100, 80], [120, 0, 160, 90]]
    assert len(empty.boxes) == 0
    assert len(instance_boxes(dataset, merge_iou=0.99)[0].boxes) == 5  # the dog of IoU 40/41 and the person stay apart


def test_oracles(dataset, tmp_path):
    table = oracle_detections(dataset, tmp_path / "exact")
    result = box_ap(table, instance_boxes(dataset), dataset.vocabulary.objects)
    assert result.means == {"AP": 100, "AP50": 100, "AP75": 100, "AR": 100}
    assert table.num_images == 2 and (table.rows["score"] == 1).all()

    moved = oracle_detections(dataset, tmp_path / "moved", jitter=0.1, seed=3)
    boxes, exact = (found.of(0).boxes for found in (moved, table))
    width, height = (exact[:, 2:] - exact[:, :2]).T
    share = (boxes - exact).abs() / torch.stack([width, height, width, height], dim=1)
    assert share.max() <= 0.1 + 1e-6 and share.mean() > 0.01
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 200 and boxes[:, 3].max() <= 100
    again = oracle_detections(dataset, tmp_path / "again", jitter=0.1, seed=3)
    other = oracle_detections(dataset, tmp_path / "other", jitter=0.1, seed=4)
    assert torch.equal(again.of(0).boxes, boxes) and not torch.equal(other.of(0).boxes, boxes)
    assert torch.equal(oracle_detections(dataset.subset(1), tmp_path / "one", 0.1, 3).of(0).boxes, boxes)
    with pytest.raises(DetectorError, match=r"detector\.jitter: found 0\.5"):
        oracle_detections(dataset, tmp_path / "wide", jitter=0.5)


def proposals_of(*boxes, people):
    """Proposals in fractions of a 200 x 100 image from pixel boxes; those after the people are dogs."""
    scaled = torch.tensor(boxes, dtype=torch.float32) / torch.tensor([200, 100, 200, 100])
    labels = torch.tensor([0] * people + [1] * (len(boxes) - people))
    return Proposals(scaled, torch.ones(len(boxes)), labels, people)


NONE = Proposals(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0)
PERSON, OTHER, DOG = [0, 0, 50, 100], [120, 0, 160, 90], [60, 40, 100, 80]


@pytest.mark.parametrize(
    ("found", "ap"),
    [
        (proposals_of(PERSON, OTHER, DOG, people=2), [1, 1, 1]),
        (proposals_of(PERSON, DOG, people=1), [1, 1, 0]),  # the person as object is missed
        (proposals_of(PERSON, OTHER, DOG, people=3), [0, 0, 1]),  # the dog was called a person
        (proposals_of(PERSON, people=1), [0, 0, 0]),  # one box makes no pair
        (proposals_of(OTHER, DOG, people=1), [0, 0, 0]),
        (NONE, [0, 0, 0]),
    ],
)
def test_perfect_recognition_reaches_what_is_proposed(dataset, found, ap):
    predictions = perfect_recognition(dataset, [found, NONE])
    assert hico_det_ap(predictions, dataset.truth(), 3).ap.tolist() == ap
    assert len(predictions) == sum(ap) and (predictions["image"] == 0).all()


def test_command(dataset, tmp_path, capsys):
    oracle_detections(dataset, tmp_path / "table", jitter=0.1)
    files = [str(tmp_path / "table"), "--annotations", str(dataset.source)]
    assert main([*files, "--json", str(tmp_path / "out.json")]) == 0
    printed, stored = capsys.readouterr().out, json.loads((tmp_path / "out.json").read_text())
    assert "2 classes, 3 boxes" in printed and f"AP50 {stored['AP50']:.1f}" in printed
    assert {row["name"]: row["boxes"] for row in stored["classes"]} == {"person": 2, "dog": 1}
    coco = {
        "images": [{"id": 5, "file_name": "0.jpg"}, {"id": 7, "file_name": "1.jpg"}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [{"image_id": 5, "category_id": 1, "bbox": [0, 0, 50, 100]}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    assert main([files[0], "--annotations", str(tmp_path / "coco.json")]) == 0
    assert "1 classes, 1 boxes" in capsys.readouterr().out
    assert main([str(tmp_path), "--annotations", str(dataset.source)]) == 1
    assert "manifest.json: found no file" in capsys.readouterr().err
    assert main([files[0], "--annotations", str(tmp_path / "absent.json")]) == 1
    assert "found no file" in capsys.readouterr().err
