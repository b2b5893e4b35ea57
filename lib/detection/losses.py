"""DETR's set loss: Hungarian matching, classes, boxes; and a dense loss for encoder tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou_loss

BOX_WEIGHT, GIOU_WEIGHT, BACKGROUND_WEIGHT = 5.0, 2.0, 0.1  # DETR's weights, the class weight is 1


@dataclass(frozen=True)
class Boxes:
    """Targets of N images, padded to M boxes: boxes [N, M, 4] cxcywh in [0, 1], labels [N, M] with -1 for padding."""

    boxes: Tensor
    labels: Tensor

    def __getitem__(self, index: Tensor | slice) -> Boxes:
        return Boxes(self.boxes[index], self.labels[index])

    def repeat(self, times: int) -> Boxes:
        """The whole batch several times in a row."""
        return Boxes(self.boxes.repeat(times, 1, 1), self.labels.repeat(times, 1))


@torch.no_grad()
def match(logits: Tensor, boxes: Tensor, targets: Boxes) -> tuple[Tensor, Tensor, Tensor]:
    """Hungarian matching: (image, query, target) index triples of all matched pairs of a batch [B, Q, ...]."""
    count = targets.labels.shape[1]
    labels = targets.labels.clamp(min=0)
    probability = logits.softmax(-1).gather(2, labels[:, None].expand(-1, logits.shape[1], -1))  # (B, Q, M)
    distance = torch.cdist(boxes, targets.boxes, p=1)
    corners, target_corners = (box_convert(b, "cxcywh", "xyxy") for b in (boxes, targets.boxes))
    giou_loss = generalized_box_iou_loss(
        corners[:, :, None].expand(-1, -1, count, -1), target_corners[:, None].expand(-1, boxes.shape[1], -1, -1)
    )
    cost = (BOX_WEIGHT * distance + GIOU_WEIGHT * giou_loss - probability).cpu().numpy()
    sizes = (targets.labels >= 0).sum(1).tolist()
    triples = []
    for image, size in enumerate(sizes):
        query, target = linear_sum_assignment(cost[image, :, :size])
        triples.append(torch.stack([torch.full((len(query),), image), torch.as_tensor(query), torch.as_tensor(target)]))
    image, query, target = torch.cat(triples, dim=1).to(logits.device)
    return image, query, target


def set_loss(
    logits: Tensor,
    boxes: Tensor,
    matched: tuple[Tensor, Tensor, Tensor],
    targets: Boxes,
    layers: int = 1,
    background_weight: float = BACKGROUND_WEIGHT,
) -> dict[str, Tensor]:
    """DETR's loss given the matching, summed over decoder layers that were stacked along the batch."""
    image, query, target = matched
    background = logits.shape[-1] - 1
    wanted = torch.full(logits.shape[:2], background, device=logits.device)
    wanted[image, query] = targets.labels[image, target]
    weight = torch.ones(background + 1, device=logits.device)
    weight[background] = background_weight
    count = max(len(image), 1) / layers
    found, true = boxes[image, query], targets.boxes[image, target]
    giou = generalized_box_iou_loss(
        box_convert(found, "cxcywh", "xyxy"), box_convert(true, "cxcywh", "xyxy"), reduction="sum"
    )
    return {
        "class": layers * F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), weight),
        "box": BOX_WEIGHT * (found - true).abs().sum() / count,
        "giou": GIOU_WEIGHT * giou / count,
    }


def dense_loss(logits: Tensor, boxes: Tensor, targets: Boxes, rows: int, columns: int) -> dict[str, Tensor]:
    """Losses of encoder tokens [B, rows*columns, ...]: a token's target is the smallest box that covers its centre."""
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
    x, y = x.reshape(1, -1, 1), y.reshape(1, -1, 1)  # (1, T, 1)
    x1, y1, x2, y2 = box_convert(targets.boxes, "cxcywh", "xyxy")[:, None].unbind(-1)  # each (B, 1, M)
    covered = (x > x1) & (x < x2) & (y > y1) & (y < y2) & (targets.labels >= 0)[:, None]  # (B, T, M)
    area = ((x2 - x1) * (y2 - y1)).expand_as(covered).masked_fill(~covered, math.inf)
    smallest = area.argmin(-1)  # (B, T)
    positive = covered.any(-1)
    labels = targets.labels.gather(1, smallest).masked_fill(~positive, logits.shape[-1] - 1)
    true = targets.boxes.gather(1, smallest[..., None].expand(-1, -1, 4))[positive]
    found = boxes[positive]
    giou = generalized_box_iou_loss(
        box_convert(found, "cxcywh", "xyxy"), box_convert(true, "cxcywh", "xyxy"), reduction="mean"
    )
    return {
        "class": F.cross_entropy(logits.flatten(0, 1), labels.flatten()),
        "box": BOX_WEIGHT * (found - true).abs().sum(-1).mean(),
        "giou": GIOU_WEIGHT * giou,
    }
