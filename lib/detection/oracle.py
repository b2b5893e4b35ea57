"""Detections read off the annotations: what a perfect detector, or one that only draws badly, would give.

Scores computed with them beside those with a real detector say how much the detector costs. They see the test
annotations: never report them as results.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lib.data.hico_det import HoiDataset
from lib.detection.detr import DetectorError
from lib.detection.table import DetectionTable, box_rows, write_table
from lib.detection.truth import MERGE_IOU, flat, instance_boxes
from lib.runs import file_sha256


def oracle_detections(dataset: HoiDataset, folder: Path | str, jitter: float = 0.0, seed: int = 0) -> DetectionTable:
    """A table of the annotated people and objects, each instance once (`instance_boxes`), score 1.

    jitter: every edge moves by an independent uniform draw from -jitter..jitter of the box's width or height, and stays
        inside the image. 0.1 leaves a mean IoU of about 0.82 with the annotated box. Rows are drawn in file order, so
        the first images of a longer data set get the same boxes.
    """
    if not 0 <= jitter < 0.5:
        raise DetectorError("detector.jitter", str(jitter), "0 or more, below 0.5 of a side", "set a smaller value")
    truth = instance_boxes(dataset)
    images, boxes, labels = (part.numpy() for part in flat(truth))
    sizes = np.array([image.size for image in dataset.images], np.float32).reshape(-1, 2)[images]  # (N, 2) w, h
    draws = np.random.default_rng(seed).uniform(-jitter, jitter, boxes.shape)
    moved = boxes + draws * np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    moved = np.clip(moved, 0, np.tile(sizes, 2)) if jitter else boxes
    names = np.array([true.name for true in truth], object)[images]
    detector = {"kind": "oracle", "annotations_sha256": file_sha256(dataset.source), "merge_iou": MERGE_IOU}
    return write_table(
        folder,
        box_rows(images, names, moved, np.ones(len(boxes)), labels),
        images=len(dataset),
        labels=dataset.vocabulary.objects,
        detector=detector | ({"jitter": jitter, "seed": seed} if jitter else {}),
    )
