"""How good the tiny models are on a rendered world's test split (recorded in their training.json)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou

from lib.clip.load import ClipModel
from lib.clip.pretrain import zero_shot
from lib.data.hico_det import HoiImage, read_hico_det
from lib.data.images import read_image
from lib.detection.detr import Detr
from lib.detection.recall import box_recall
from lib.detection.table import detect_images
from lib.detection.truth import read_coco_boxes
from lib.ezhoi.frozen_clip import square_crop


def clip_quality(clip: ClipModel, world: Path, limit: int = 0) -> dict[str, float]:
    """Zero-shot accuracy over all HOI classes on the crops around the test split's true pairs, and the modality gap.

    A crop is the square around human and object (as the frozen-CLIP baseline cuts it); `stretched_accuracy` shows the
    bare union box squashed to a square. A class counts as right if the pair carries its label. limit: images (0 = all).
    """
    data = read_hico_det(world / "instances_test2015.json", world / "images/test2015", "test").subset(limit)
    square, stretched, labels = [], [], []
    for image in data.images:
        if not len(image.hoi):
            continue
        picture = read_image(image.path).convert("RGB")
        unions = np.concatenate(
            [np.minimum(image.boxes_h, image.boxes_o)[:, :2], np.maximum(image.boxes_h, image.boxes_o)[:, 2:]], axis=1
        )
        square += [clip.transform(square_crop(picture, union)) for union in unions]
        side = clip.spec.image_size
        stretched += [clip.transform(picture.crop(tuple(union)).resize((side, side))) for union in unions]
        labels.append(pair_labels(image, data.vocabulary.num_hois))
    sentences, truth = data.vocabulary.class_sentences(), torch.cat(labels)
    found = zero_shot(clip, torch.stack(square), sentences, truth)
    other = zero_shot(clip, torch.stack(stretched), sentences, truth)
    return found | {"stretched_accuracy": other["accuracy"], "crops": len(truth)}


def detr_quality(detr: Detr, world: Path, limit: int = 0) -> dict[str, Any]:
    """Recall at IoU 0.5 with the right class on the test split: of all queries, and of those with score >= 0.2."""
    truth, _ = read_coco_boxes(world / "instances_boxes_test2015.json")
    truth = truth[: limit or None]
    with tempfile.TemporaryDirectory() as folder:
        table = detect_images(detr, [world / "images/test2015" / true.name for true in truth], folder)
    strong = box_recall(table, truth, score=0.2)
    return (
        box_recall(table, truth)
        | {f"{name}_score_0.2": value for name, value in strong.items()}
        | {"images": len(truth)}
    )


def pair_labels(image: HoiImage, num_hois: int) -> Tensor:
    """[n, C] bool: the HOI labels of the physical pair behind each row (rows whose boxes both agree to IoU 0.5)."""
    boxes_h, boxes_o = torch.from_numpy(image.boxes_h), torch.from_numpy(image.boxes_o)
    same = (box_iou(boxes_h, boxes_h) >= 0.5) & (box_iou(boxes_o, boxes_o) >= 0.5)  # (n, n)
    own = torch.nn.functional.one_hot(torch.from_numpy(image.hoi), num_hois)
    return (same.long() @ own) > 0
