"""Images, proposals, CLIP memory and annotated rows as training and evaluation batches (spec ez-hoi.md §1.2).

Every image is squashed to the square CLIP frame with ImageNet statistics (quirk Q4, kept: adapters were trained so).
Proposals come from the detections table, so they follow the same flip and crop as the pixels (a documented deviation
from running DETR on the augmented image; clip-features-and-detr.md §11). Colour jitter acts on the R x R image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.ops.boxes import box_area
from torchvision.transforms import functional as TF

from lib.config import EzHoiSettings
from lib.data.hico_det import HoiDataset
from lib.data.images import read_image
from lib.detection.detr import IMAGENET_MEAN, IMAGENET_STD
from lib.detection.proposals import Proposals
from lib.ezhoi.classes import ScoredClasses
from lib.ezhoi.pairs import Instances, PairTargets
from lib.features.store import FeatureStore


@dataclass
class HoiBatch:
    """index [B] into the data set; images [B, 3, R, R]; memory [B, L, D]; instances and targets in the R-frame."""

    index: Tensor
    images: Tensor
    memory: Tensor
    instances: Instances
    targets: PairTargets

    def to(self, device: torch.device | str) -> HoiBatch:
        move = lambda tensor: tensor.to(device, non_blocking=True)  # noqa: E731
        return HoiBatch(
            self.index, move(self.images), move(self.memory), self.instances.to(device),
            PairTargets(*map(move, self.targets)),
        )  # fmt: skip


class HoiSamples(Dataset):
    """Samples of a HoiDataset. Item i of epoch e is a pure function of (seed, e, i), whatever the worker count.

    proposals: one an image of `dataset`, boxes as fractions of width and height. store: patch tokens, found by file
    name. classes: what gets a logit. augment: None in evaluation.
    """

    def __init__(
        self,
        dataset: HoiDataset,
        proposals: Sequence[Proposals],
        store: FeatureStore,
        size: int,
        classes: ScoredClasses,
        augment: EzHoiSettings | None = None,
        seed: int = 0,
    ) -> None:
        if len(proposals) != len(dataset):
            raise ValueError(f"found {len(proposals)} proposals, expected one an image of {len(dataset)}")
        self.dataset, self.proposals, self.store = dataset, proposals, store
        self.rows = store.ids([image.name for image in dataset.images])
        self.class_of_hoi = torch.from_numpy(classes.of_hoi)
        self.size, self.augment, self.seed, self.epoch = size, augment, seed, 0

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple:
        record, proposals = self.dataset[index], self.proposals[index]
        boxes_h, boxes_o = (as_fractions(boxes, record.size) for boxes in (record.boxes_h, record.boxes_o))
        hoi = torch.from_numpy(record.hoi)
        image = read_image(record.path)
        if self.augment is not None:
            rng = np.random.default_rng([self.seed, self.epoch, index])
            if rng.random() < self.augment.flip:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                boxes_h, boxes_o = mirror(boxes_h), mirror(boxes_o)
                proposals = proposals._replace(boxes=mirror(proposals.boxes))
            if rng.random() < self.augment.crop:
                window = crop_window(record.size, rng)  # (4,) fractions
                image = image.crop(tuple((window * torch.tensor(record.size * 2)).round().int().tolist()))
                boxes_h, boxes_o = clip_to(boxes_h, window), clip_to(boxes_o, window)
                kept = (box_area(boxes_h) > 0) & (box_area(boxes_o) > 0)
                boxes_h, boxes_o, hoi = boxes_h[kept], boxes_o[kept], hoi[kept]
                proposals = crop_proposals(proposals, window)
        image = image.convert("RGB").resize((self.size, self.size), Image.Resampling.BICUBIC)
        if self.augment is not None and self.augment.jitter:
            image = _jitter(image, self.augment.jitter, rng)
        pixels = TF.normalize(TF.to_tensor(image), IMAGENET_MEAN, IMAGENET_STD)
        memory = torch.nn.functional.normalize(self.store[self.rows[index]][0], dim=-1)
        instances = (proposals.boxes * self.size, proposals.scores, proposals.labels, proposals.n_human)
        targets = (boxes_h * self.size, boxes_o * self.size, self.class_of_hoi[hoi], hoi)
        return index, pixels, memory, instances, targets


def collate(samples: list[tuple]) -> HoiBatch:
    """Stack images and memory, pad instances, concatenate targets."""
    index, pixels, memory, instances, targets = zip(*samples, strict=True)
    boxes_h, boxes_o, labels, hois = zip(*targets, strict=True)
    owner = torch.repeat_interleave(torch.arange(len(hois)), torch.tensor([len(ids) for ids in hois]))
    return HoiBatch(
        torch.tensor(index), torch.stack(pixels), torch.stack(memory), Instances.collate(list(instances)),
        PairTargets(owner, *map(torch.cat, (boxes_h, boxes_o, labels, hois))),
    )  # fmt: skip


def as_fractions(boxes: np.ndarray | Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes [n, 4] in pixels of an image of (width, height) -> fractions of it, float32."""
    return torch.as_tensor(boxes, dtype=torch.float32) / torch.tensor(size * 2)


def mirror(boxes: Tensor) -> Tensor:
    """Left-right flip of boxes [n, 4] in fractions."""
    return torch.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], dim=1)


def crop_window(size: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """Random crop [4] as fractions: short side to 400, 500 or 600, then each side uniform in [384, min(side, 600)]."""
    resized = np.array(size) * rng.choice([400, 500, 600]) / min(size)
    extent = np.array([rng.uniform(384, min(side, 600)) for side in resized]) / resized
    corner = rng.random(2) * (1 - extent)
    return torch.from_numpy(np.concatenate([corner, corner + extent])).float()


def clip_to(boxes: Tensor, window: Tensor) -> Tensor:
    """Boxes [n, 4] as fractions of the window [4], cut at its border."""
    return ((boxes - window[:2].repeat(2)) / (window[2:] - window[:2]).repeat(2)).clamp(0, 1)


def crop_proposals(proposals: Proposals, window: Tensor) -> Proposals:
    """Cut proposals at the window and drop those that keep less than 10 % of their area."""
    boxes = clip_to(proposals.boxes, window)
    share = box_area(boxes) * box_area(window[None]) / box_area(proposals.boxes).clamp(min=1e-9)
    kept = share >= 0.1
    n_human = int(kept[: proposals.n_human].sum())
    return Proposals(boxes[kept], proposals.scores[kept], proposals.labels[kept], n_human)


def _jitter(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation by factors in 1 +- strength, in random order."""
    changes = [TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation]
    for which in rng.permutation(3):
        image = changes[which](image, float(rng.uniform(1 - strength, 1 + strength)))
    return image
