"""From detected instances to pairs: batches, prior tokens, ROI features, prior fusion (spec ez-hoi.md §1.5-§1.8, §3).

Everything works on a batch of images at once: instances are padded to [B, n], pairs are one flat list over the batch.
Boxes live in the square CLIP frame (R x R pixels).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou, roi_align


@dataclass
class Instances:
    """Proposals of B images, padded to n slots; humans come first.

    boxes [B, n, 4] xyxy in the R-frame, scores [B, n], labels [B, n] object ids, count [B], n_human [B].
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    count: Tensor
    n_human: Tensor

    @property
    def padding(self) -> Tensor:
        """[B, n] True in empty slots; slot 0 of an image without instances stays open so that attention is defined."""
        slots = torch.arange(self.boxes.shape[1], device=self.count.device)
        return slots[None] >= self.count.clamp(min=1)[:, None]

    def to(self, device: torch.device | str) -> Instances:
        return replace(self, **{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})

    @classmethod
    def collate(cls, items: list[tuple[Tensor, Tensor, Tensor, int]]) -> Instances:
        """Pad per-image (boxes [n,4], scores [n], labels [n], n_human) to one batch."""
        pad = torch.nn.utils.rnn.pad_sequence
        boxes, scores, labels, n_human = zip(*items, strict=True)
        count = torch.tensor([len(b) for b in boxes])
        if count.max() == 0:  # a batch without any instance keeps one empty slot
            boxes, scores, labels = [b.new_zeros(1, 4) for b in boxes], [s.new_zeros(1) for s in scores], [
                l.new_zeros(1) for l in labels
            ]  # fmt: skip
        return cls(
            pad(list(boxes), batch_first=True), pad(list(scores), batch_first=True),
            pad(list(labels), batch_first=True), count, torch.tensor(n_human),
        )  # fmt: skip


class Pairs(NamedTuple):
    """P pairs of a batch in order of image, human, object: indices [P] into the batch and its instance slots."""

    image: Tensor
    human: Tensor
    object: Tensor


def enumerate_pairs(instances: Instances) -> Pairs:
    """All (i, j), i a human, j any other instance (humans too), j != i: P = n_h (n - 1) an image, row-major."""
    n = instances.boxes.shape[1]
    slot = torch.arange(n, device=instances.count.device)
    is_human = slot[None] < instances.n_human[:, None]  # (B, n)
    exists = slot[None] < instances.count[:, None]  # (B, n)
    grid = is_human[:, :, None] & exists[:, None, :] & (slot[:, None] != slot[None, :])  # (B, n, n)
    return Pairs(*grid.nonzero(as_tuple=True))


def prior_tokens(instances: Instances, object_text: Tensor, size: int, parts: str = "cbe") -> Tensor:
    """[B, n, D+5] instance tokens: confidence, box / R, CLIP text feature of the label (spec §1.6, `prior_type`).

    object_text: [objects + 1, D] un-normalised features of `a photo of a <object>`. parts: which of c, b, e to keep.
    Empty slots are zero.
    """
    available = {
        "c": lambda: instances.scores[..., None],
        "b": lambda: instances.boxes / size,
        "e": lambda: object_text[instances.labels],
    }
    tokens = torch.cat([available[part]() for part in parts], dim=-1)  # (B, n, up to 1 + 4 + D)
    slots = torch.arange(tokens.shape[1], device=tokens.device)
    return tokens * (slots[None] < instances.count[:, None])[..., None]


def roi_features(patch_map: Tensor, boxes: Tensor, image: Tensor, size: int, dropout: float, training: bool) -> Tensor:
    """Mean over a 7 x 7 RoIAlign of the patch map, after element-wise dropout (spec §3 steps 1-2).

    patch_map [B, D, G, G]; boxes [N, 4] in the R-frame; image [N] batch index; returns [N, D].
    """
    rois = torch.cat([image[:, None].to(boxes.dtype), boxes], dim=1)  # (N, 5)
    pooled = roi_align(patch_map, rois, 7, spatial_scale=patch_map.shape[-1] / size, aligned=True)  # (N, D, 7, 7)
    return F.dropout(pooled, dropout, training).mean(dim=(2, 3))


def union_boxes(instances: Instances, pairs: Pairs) -> Tensor:
    """[P, 4] smallest box around human and object of each pair."""
    human, obj = instances.boxes[pairs.image, pairs.human], instances.boxes[pairs.image, pairs.object]
    return torch.cat([torch.minimum(human, obj)[:, :2], torch.maximum(human, obj)[:, 2:]], dim=1)


def pair_prior(instances: Instances, pairs: Pairs, valid: Tensor, power: float) -> Tensor:
    """[P, C] (s_h s_o)^power on the classes valid for the detected object, 0 elsewhere (spec §1.8).

    valid: [objects, C] bool; seen classes only in zero-shot training, the full table in evaluation.
    power: 1.0 in training, 2.8 in evaluation.
    """
    image, human, obj = pairs
    strength = (instances.scores[image, human] * instances.scores[image, obj]) ** power  # (P,)
    return strength[:, None] * valid[instances.labels[image, obj]]


class PairTargets(NamedTuple):
    """Annotated rows of a batch, flat: image [N] batch index, boxes [N, 4] in the R-frame, scored class and HOI [N]."""

    image: Tensor
    boxes_h: Tensor
    boxes_o: Tensor
    label: Tensor
    hoi: Tensor


def assign_labels(instances: Instances, pairs: Pairs, targets: PairTargets, num_classes: int) -> Tensor:
    """[P, C] multi-hot labels: pair p carries the class of g iff min(IoU_h, IoU_o) >= 0.5 in its image (spec §5.1)."""
    image, human, obj = pairs
    iou_h = box_iou(instances.boxes[image, human], targets.boxes_h)  # (P, N)
    iou_o = box_iou(instances.boxes[image, obj], targets.boxes_o)
    match = (torch.minimum(iou_h, iou_o) >= 0.5) & (image[:, None] == targets.image[None])  # (P, N)
    return (match.to(torch.float32) @ F.one_hot(targets.label, num_classes).float()).clamp(max=1.0)


def pad_pairs(features: Tensor, pairs: Pairs, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Flat [P, D] -> padded [B, Pmax, D], padding [B, Pmax], and the slot [P] of each pair inside its image."""
    counts = torch.bincount(pairs.image, minlength=batch)  # (B,)
    starts = counts.cumsum(0) - counts
    slot = torch.arange(len(pairs.image), device=counts.device) - starts[pairs.image]
    longest = max(int(counts.max()), 1)
    padded = features.new_zeros(batch, longest, features.shape[1]).index_put((pairs.image, slot), features)
    padding = torch.arange(longest, device=counts.device)[None] >= counts.clamp(min=1)[:, None]
    return padded, padding, slot
