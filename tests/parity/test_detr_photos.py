"""A real DETR checkpoint on seven photographs: is anything sane found? (spec clip-features-and-detr.md §15.8)

Opt-in: HOI_DETR_CHECKPOINT=detr-r50-hicodet.pth (or facebookresearch's file) pytest tests/parity/test_detr_photos.py
"""

import os

import pytest

from lib.detection.detr import load_detr
from lib.detection.recall import box_recall
from lib.detection.released import convert_detr
from lib.detection.table import detect_images
from lib.detection.truth import read_coco_boxes

CHECKPOINT = os.environ.get("HOI_DETR_CHECKPOINT", "")
pytestmark = pytest.mark.skipif(not CHECKPOINT, reason="HOI_DETR_CHECKPOINT names no released DETR checkpoint")


def test_people_are_found_in_every_photo_that_has_them(shared, tmp_path):
    truth, names = read_coco_boxes(shared / "data/real/instances_coco_7.json")
    files = {path.name: path for path in (shared / "data/real/images").rglob("*.jpg")}
    detr = load_detr(convert_detr(CHECKPOINT, tmp_path / "detr"))
    paths = [files[true.name] for true in truth]
    table = detect_images(detr, paths, tmp_path / "detections", batch_size=1).in_label_space(names)
    person = names.index("person")
    for image, true in enumerate(truth):
        found = table.of(image)
        if (true.labels == person).any():
            assert (found.scores[found.labels == person] > 0.7).any(), true.name
    assert box_recall(table, truth, person)["people"] > 0.8
