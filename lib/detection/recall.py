"""Recall of a detections table against annotated boxes: is everything there that pairs can be built from?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torchvision.ops import box_iou

from lib.detection.table import DetectionTable
from lib.detection.truth import TrueBoxes


def box_recall(
    table: DetectionTable, truth: Sequence[TrueBoxes], person: int = 0, iou: float = 0.5, score: float = 0.0
) -> dict[str, float]:
    """Share of true boxes with a detection of their class at IoU >= `iou` and score >= `score`.

    truth: one entry an image id of the table, labels in the table's label space. Returns `people`, `objects` (all other
    boxes) and `class_mean` (mean over the classes that occur).
    """
    hits = []
    for image, true in enumerate(truth):
        found = table.of(image)
        fits = (
            (box_iou(true.boxes, found.boxes) >= iou) & (true.labels[:, None] == found.labels) & (found.scores >= score)
        )
        hits.append(fits.any(1))
    hit, labels = torch.cat(hits).float(), torch.cat([true.labels for true in truth])
    people = labels == person
    per_class = [hit[labels == label].mean().item() for label in labels.unique()]
    return {
        "people": hit[people].mean().item(),
        "objects": hit[~people].mean().item(),
        "class_mean": float(np.mean(per_class)),
    }
