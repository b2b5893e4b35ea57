"""Annotated boxes to judge or to train a detector with: of a COCO file, or of a HOI data set, one an instance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from lib.data.annotation_file import read_json
from lib.data.hico_det import HoiDataset, HoiImage

MERGE_IOU = 0.7  # boxes of one class that overlap more are one instance (spec clip-features-and-detr.md §11)


class TrueBoxes(NamedTuple):
    """Annotated boxes of one image: name, boxes [n, 4] xyxy 0-based pixels, labels [n] (category positions)."""

    name: str
    boxes: Tensor
    labels: Tensor


def read_coco_boxes(path: Path | str) -> tuple[list[TrueBoxes], tuple[str, ...]]:
    """Images in file order and category names by ascending id, from a COCO instances JSON (crowd boxes left out)."""
    content = read_json(path, "COCO instances")
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


def instance_boxes(dataset: HoiDataset, merge_iou: float = MERGE_IOU) -> list[TrueBoxes]:
    """The people and objects of every image, labels as positions in the vocabulary's objects.

    HICO-DET draws a thing again for every interaction it takes part in, never quite equally: of the boxes of one class
    that overlap by more than `merge_iou`, the first one stays (people before objects, in the order of the rows).
    """
    return [_instances(image, dataset.vocabulary.person, merge_iou) for image in dataset.images]


def _instances(image: HoiImage, person: int, merge_iou: float) -> TrueBoxes:
    boxes = torch.from_numpy(np.concatenate([image.boxes_h, image.boxes_o])).float()
    labels = torch.from_numpy(np.concatenate([np.full(len(image.hoi), person), image.object])).long()
    kept = batched_nms(boxes, torch.ones(len(boxes)), labels, merge_iou).sort().values  # equal scores: first box wins
    return TrueBoxes(image.name, boxes[kept], labels[kept])


def flat(truth: Sequence[TrueBoxes]) -> tuple[Tensor, Tensor, Tensor]:
    """Image index [N], boxes [N, 4] and labels [N] of all images one after another."""
    counts = torch.tensor([len(true.labels) for true in truth], dtype=torch.int64)
    boxes = torch.cat([torch.zeros(0, 4), *(true.boxes for true in truth)])
    labels = torch.cat([torch.zeros(0, dtype=torch.int64), *(true.labels for true in truth)])
    return torch.arange(len(truth)).repeat_interleave(counts), boxes, labels
