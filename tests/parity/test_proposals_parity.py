"""Region proposals from stored detector outputs: which queries, in which order (parity README §3, proposals)."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_convert

from lib.detection.detr import best_class
from lib.detection.proposals import propose
from lib.detection.released import head_of_81

from .recipe import arrays, close, needs

pytestmark = needs("proposals.npz")

FRAME = 224


def assert_kept(boxes: Tensor, scores: Tensor, labels: Tensor, keep: Tensor, name: str) -> None:
    """The proposals are exactly the rows `keep`, in this order, humans counted right."""
    found = propose(boxes, scores, labels)
    rows = torch.cat([boxes, scores[:, None], labels[:, None]], dim=1)  # (N, 6) tells rows apart
    proposed = torch.cat([found.boxes, found.scores[:, None], found.labels[:, None]], dim=1)
    indices = [next((i for i, row in enumerate(rows) if torch.equal(row, want)), -1) for want in proposed]
    assert torch.equal(proposed, rows[keep]), f"{name}: kept {indices}, expected {keep.tolist()}"
    assert found.n_human == int((labels[keep] == 0).sum())


def test_detector_outputs() -> None:
    data = arrays("proposals")
    scores, labels = best_class(data["in_logits"].float())  # (n, 100)
    boxes = box_convert(data["in_boxes"].float(), "cxcywh", "xyxy") * FRAME
    keeps = data["out_keep"].long().split(data["out_keep_count"].tolist())
    for image, (name, keep) in enumerate(zip(data["in_kind"], keeps, strict=True)):
        assert_kept(boxes[image], scores[image], labels[image], keep, str(name))


def test_decisions_on_the_thresholds() -> None:
    data = arrays("proposals")
    counts = data["in_manual_count"].tolist()
    detections = zip(*(data[f"in_manual_{part}"].split(counts) for part in ("boxes", "scores", "labels")), strict=True)
    keeps = data["out_manual_keep"].long().split(data["out_manual_keep_count"].tolist())
    for name, (boxes, scores, labels), keep in zip(data["in_manual_name"], detections, keeps, strict=True):
        assert_kept(boxes, scores, labels.long(), keep, str(name))


def test_head_of_92_outputs() -> None:
    data = arrays("proposals")
    logits = data["in_coco92_logits"].float()  # (100, 92)
    reduced = head_of_81({"class_embed.weight": logits.T})["class_embed.weight"].T  # (100, 81), as the converter cuts
    scores, labels = best_class(reduced)
    close("proposals", "scores of a 92-way head", scores, data["out_coco92_scores"], 2e-5)
    assert torch.equal(labels, data["out_coco92_labels"].long())
