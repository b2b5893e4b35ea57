"""DETR inside the training step, on the augmented image, as the public program runs it (spec ez-hoi.md §1.2-§1.4).

`DetectorView` makes the DETR tensor of a sample (in the loading process); `LiveDetector` turns a padded batch of them
into instances (on the training device, without gradient).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from lib.detection.detr import Detr, best_class, class_positions, resized_size
from lib.detection.proposals import propose
from lib.ezhoi.batches import as_pixels
from lib.ezhoi.pairs import Instances

TRAINING_SCALES = np.arange(480, 801, 32) / 800  # short sides in training, relative to the test size of the detector


@dataclass(frozen=True)
class DetectorView:
    """Resize rule and statistics of a detector, without its weights: workers get a copy.

    short_side, long_side: test size in pixels. resample: bilinear | bicubic.
    """

    short_side: int
    long_side: int
    resample: str

    @classmethod
    def of(cls, detr: Detr) -> DetectorView:
        return cls(detr.short_side, detr.long_side, detr.resample)

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> Tensor:
        """[3, h, w] of an RGB image: test size, or with `rng` one of the training sizes."""
        short = self.short_side if rng is None else round(self.short_side * rng.choice(TRAINING_SCALES))
        width, height = resized_size(*image.size, short, self.long_side)
        resized = TF.resize(image, [height, width], InterpolationMode(self.resample))
        return as_pixels(resized)


@dataclass(frozen=True, eq=False)
class LiveDetector:
    """A frozen detector with the proposal rule.

    positions: [detector classes] place of each detector class among the annotations' objects, -1 for none. size: R.
    human: place of people. rule: settings of `propose`. dropout: as in the public program, whose train mode reaches the
    detector (quirk Q8); padding changes a DETR's results as well, so live proposals vary with the batch.
    """

    detr: Detr
    positions: Tensor
    size: int
    human: int
    rule: Mapping[str, float]
    dropout: bool = False

    @torch.no_grad()
    def __call__(self, views: Tensor, valid: Tensor) -> Instances:
        """Instances in the R-frame. views [B, 3, h, w] zero-padded; valid [B, h, w] bool, False on padding."""
        model = self.detr.model.train(self.dropout)
        output = model(pixel_values=views.to(self.detr.device), pixel_mask=valid.to(self.detr.device).long())
        model.eval()
        scores, labels = best_class(output.logits)  # (B, Q)
        labels = self.positions.to(labels.device)[labels]
        boxes = box_convert(output.pred_boxes, "cxcywh", "xyxy")  # (B, Q, 4) fractions of the unpadded image
        found = []
        for image_boxes, image_scores, image_labels in zip(boxes, scores, labels, strict=True):
            known = image_labels >= 0
            chosen = propose(
                image_boxes[known], image_scores[known], image_labels[known], human=self.human, **self.rule
            )
            found.append((chosen.boxes.clamp(0, 1) * self.size, chosen.scores, chosen.labels, chosen.n_human))
        return Instances.collate(found).to(self.detr.device)


def build_live_detector(
    detr: Detr, objects: Sequence[str], *, size: int, human: int, rule: Mapping[str, float], dropout: bool = False
) -> LiveDetector:
    """Match the detector's classes with the annotations' `objects` by name. Raises ValueError if none matches."""
    positions = torch.tensor(class_positions(detr.labels, objects))
    if not (positions >= 0).any():
        raise ValueError(
            f"live detections: found detector classes {list(detr.labels)}, expected some of {list(objects)}"
            "\n  mend: use a detector whose classes are those of the annotations (detector.source)"
        )
    return LiveDetector(detr, positions, size, human, dict(rule), dropout)
