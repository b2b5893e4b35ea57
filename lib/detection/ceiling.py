"""The best that any recogniser could reach with given proposals: the mAP that the detector leaves within reach."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchvision.ops import box_iou

from lib.data.hico_det import HoiDataset, HoiImage
from lib.detection.proposals import Proposals


def perfect_recognition(dataset: HoiDataset, proposals: Sequence[Proposals]) -> pd.DataFrame:
    """Predictions (x1h .. y2o, image, hoi, score) that name every annotated row with its best proposed pair, no other.

    A row is named if a pair of its object's class overlaps it by more than one half in both boxes, and the score is
    that overlap. Precision is thus as good as it gets, and recall is what the detector allows.
    """
    columns = [f"{side}{who}" for who in "ho" for side in ("x1", "y1", "x2", "y2")]
    frames = [pd.DataFrame(np.zeros((0, 8), np.float32), columns=columns).assign(image=0, hoi=0, score=0.0)]
    for index, (image, found) in enumerate(zip(dataset.images, proposals, strict=True)):
        overlap, human, thing = _best_pairs(image, found)
        named = overlap > 0.5
        boxes = torch.cat([found.boxes[human[named]], found.boxes[thing[named]]], dim=1)
        pixels = boxes.numpy() * np.tile(np.array(image.size, np.float32), 4)
        frame = pd.DataFrame(pixels, columns=columns)
        frames.append(frame.assign(image=index, hoi=image.hoi[named.numpy()], score=overlap[named].numpy()))
    return pd.concat(frames, ignore_index=True).astype({"image": np.int64, "hoi": np.int64})


def _best_pairs(image: HoiImage, found: Proposals) -> tuple[Tensor, Tensor, Tensor]:
    """Of every row the best pair: overlap [n], human [n], object [n] (positions among the proposals)."""
    rows, people, count = len(image.hoi), found.n_human, len(found.boxes)
    if not (rows and people and count > 1):
        return torch.zeros(rows), torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, dtype=torch.int64)
    frame = torch.tensor([*image.size, *image.size], dtype=torch.float32)
    human = box_iou(torch.from_numpy(image.boxes_h) / frame, found.boxes[:people])  # (n, h)
    thing = box_iou(torch.from_numpy(image.boxes_o) / frame, found.boxes)  # (n, p)
    thing = thing * (torch.from_numpy(image.object)[:, None] == found.labels)
    both = torch.minimum(human[:, :, None], thing[:, None])  # (n, h, p)
    both[:, torch.arange(people), torch.arange(people)] = 0  # nobody interacts with himself
    best, place = both.flatten(1).max(1)
    return best, place // count, place % count
