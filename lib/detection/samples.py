"""Images with true boxes as a DETR trains on them: flipped, resized, cropped (spec clip-features-and-detr.md §9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from torchvision.ops import box_convert
from torchvision.transforms import InterpolationMode

from lib.data.images import read_image
from lib.detection.detr import IMAGENET_MEAN, IMAGENET_STD, resized_size
from lib.detection.losses import Boxes
from lib.detection.truth import TrueBoxes

AUGMENTATIONS = ("none", "flip", "detr")
# DETR's sizes as shares of the test size of 800: short sides 480..800; before a crop 400, 500 or 600; crop 384..600
SCALES, CROP_SCALES, CROP_SIDES = np.arange(15, 26) / 25, np.array([0.5, 0.625, 0.75]), (0.48, 0.75)


class BoxBatch(NamedTuple):
    """pixels [B, 3, H, W] zero-padded, mask [B, H, W] (1 on pixels), targets, index [B] of the samples."""

    pixels: Tensor
    mask: Tensor
    targets: Boxes
    index: Tensor

    def to(self, device: torch.device | str) -> Self:
        targets = Boxes(self.targets.boxes.to(device), self.targets.labels.to(device))
        return type(self)(self.pixels.to(device), self.mask.to(device), targets, self.index)


@dataclass
class BoxSamples(Dataset):
    """One sample an image; its random draws depend on (seed, epoch, index) alone, whichever process loads it.

    short_side, long_side, resample: the detector's test size in pixels and PIL filter. augment: `none` | `flip` |
    `detr` (flips, short sides from 0.6 to 1 of the test size, half of the time of a random crop).
    """

    paths: Sequence[Path]
    truth: Sequence[TrueBoxes]
    short_side: int
    long_side: int
    resample: str
    augment: str = "detr"
    seed: int = 0
    epoch: int = 0

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, int]:
        """Pixels [3, h, w], boxes [n, 4] cxcywh as fractions, labels [n], index."""
        image = read_image(self.paths[index]).convert("RGB")
        boxes, labels = self.truth[index].boxes.numpy(), self.truth[index].labels
        rng = np.random.default_rng([self.seed, self.epoch, index])
        short = self.short_side
        if self.augment != "none" and rng.random() < 0.5:
            image, boxes = flipped(image, boxes)
        if self.augment == "detr":
            if rng.random() < 0.5:
                image, boxes, kept = self._cropped(image, boxes, rng)
                labels = labels[torch.from_numpy(kept)]
            short = round(short * rng.choice(SCALES))
        image, boxes = self._resized(image, boxes, resized_size(*image.size, short, self.long_side))
        pixels = TF.normalize(TF.to_tensor(image), IMAGENET_MEAN, IMAGENET_STD)
        fractions = torch.from_numpy(boxes).float() / torch.tensor([*image.size, *image.size])
        return pixels, box_convert(fractions, "xyxy", "cxcywh"), labels, index

    def _resized(self, image: Image.Image, boxes: np.ndarray, size: tuple[int, int]) -> tuple[Image.Image, np.ndarray]:
        scale = np.tile(np.array(size) / np.array(image.size), 2)
        return TF.resize(image, [size[1], size[0]], InterpolationMode(self.resample)), boxes * scale

    def _cropped(
        self, image: Image.Image, boxes: np.ndarray, rng: np.random.Generator
    ) -> tuple[Image.Image, np.ndarray, np.ndarray]:
        """A window of the image at a smaller scale, the boxes in it, and which boxes those are [n] bool."""
        short = round(self.short_side * rng.choice(CROP_SCALES))
        scaled = resized_size(*image.size, short, short * max(image.size))  # this first resize has no limit
        image, boxes = self._resized(image, boxes, scaled)
        low, high = (round(self.short_side * share) for share in CROP_SIDES)
        size = np.array([rng.integers(min(low, side), min(side, high) + 1) for side in image.size])
        left, top = (int(rng.integers(0, side - part + 1)) for side, part in zip(image.size, size, strict=True))
        boxes = (boxes - np.tile([left, top], 2)).clip(0, np.tile(size, 2))
        kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
        return image.crop((left, top, left + int(size[0]), top + int(size[1]))), boxes[kept], kept


def flipped(image: Image.Image, boxes: np.ndarray) -> tuple[Image.Image, np.ndarray]:
    """Left-right mirror of an image and its boxes [n, 4] xyxy in pixels."""
    x1, y1, x2, y2 = boxes.T
    return TF.hflip(image), np.stack([image.width - x2, y1, image.width - x1, y2], axis=1)


def collate(samples: Sequence[tuple[Tensor, Tensor, Tensor, int]]) -> BoxBatch:
    """Samples of any size, zero-padded to the largest."""
    images, boxes, labels, index = zip(*samples, strict=True)
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    pixels = torch.zeros(len(images), 3, height, width)
    mask = torch.zeros(len(images), height, width, dtype=torch.long)
    for slot, image in enumerate(images):
        pixels[slot, :, : image.shape[1], : image.shape[2]] = image
        mask[slot, : image.shape[1], : image.shape[2]] = 1
    targets = Boxes(pad_sequence(boxes, batch_first=True), pad_sequence(labels, batch_first=True, padding_value=-1))
    return BoxBatch(pixels, mask, targets, torch.tensor(index))
