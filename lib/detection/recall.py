"""Recall of a detections table against COCO-format boxes: is everything there that pairs can be built from?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from lib.detection.table import DetectionTable


class TrueBoxes(NamedTuple):
    """Annotated boxes of one image: name, boxes [n, 4] xyxy 0-based pixels, labels [n] (category positions)."""

    name: str
    boxes: Tensor
    labels: Tensor


def read_coco_boxes(path: Path | str) -> tuple[list[TrueBoxes], tuple[str, ...]]:
    """Images in file order and category names by ascending id, from a COCO instances JSON (crowd boxes left out)."""
    content = json.loads(Path(path).read_text())
    categories = sorted(content["categories"], key=lambda category: category["id"])
    position = {category["id"]: index for index, category in enumerate(categories)}
    rows: dict[int, list[tuple[list[float], int]]] = {image["id"]: [] for image in content["images"]}
    for entry in content["annotations"]:
        if not entry.get("iscrowd"):
            x, y, width, height = entry["bbox"]
            rows[entry["image_id"]].append(([x, y, x + width, y + height], position[entry["category_id"]]))
    images = [
        TrueBoxes(
            image["file_name"],
            torch.tensor([box for box, _ in rows[image["id"]]], dtype=torch.float32).reshape(-1, 4),
            torch.tensor([label for _, label in rows[image["id"]]], dtype=torch.int64),
        )
        for image in content["images"]
    ]
    return images, tuple(category["name"] for category in categories)


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
