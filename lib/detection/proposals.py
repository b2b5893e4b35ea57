"""Region proposals of UPT and EZ-HOI: class-wise NMS, then a bounded number of humans and of objects.

Spec clip-features-and-detr.md §10.4, ez-hoi.md §1.4. The rule is a consumer's choice: detections are stored whole.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms


class Proposals(NamedTuple):
    """Kept boxes of one image, humans first, each group by falling score."""

    boxes: Tensor  # [n, 4] in the frame of the input
    scores: Tensor  # [n]
    labels: Tensor  # [n]
    n_human: int


def propose(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    *,
    human: int = 0,
    nms_iou: float = 0.5,
    score_threshold: float = 0.2,
    min_instances: int = 3,
    max_instances: int = 15,
) -> Proposals:
    """Select the proposals of one image.

    boxes: [N, 4] xyxy in any frame (IoU does not depend on the scale of an axis); scores, labels: [N].
    human: label of people. After NMS, people and non-people each keep the boxes with score >= `score_threshold`, but at
    least `min_instances` (the best ones, threshold waived, as far as there are any) and at most `max_instances`.
    """
    kept = batched_nms(boxes, scores, labels, nms_iou)  # by falling score
    boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
    groups = torch.stack([labels == human, labels != human])  # (2, n)
    strong = (groups & (scores >= score_threshold)).sum(1)  # (2,)
    # Boxes are sorted, so "the strong ones, but 3 at least and 15 at most" is a prefix of each group.
    prefix = strong.clamp(min_instances, max_instances)  # (2,)
    chosen = groups & (groups.cumsum(1) <= prefix[:, None])  # (2, n)
    order = torch.cat([chosen[0].nonzero(), chosen[1].nonzero()]).squeeze(1)
    return Proposals(boxes[order], scores[order], labels[order], int(chosen[0].sum()))
