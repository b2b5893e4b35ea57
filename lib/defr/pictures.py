"""Images as DEFR sees them (spec defr.md §6): squashed to a square, augmented in training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode

from lib.data.images import read_image
from lib.defr.towers import Tower
from lib.settings import DefrSettings


class Frame(NamedTuple):
    """What a tower expects: side of the square in pixels, mean and std a channel."""

    size: int
    mean: Sequence[float]
    std: Sequence[float]


def frame_of(tower: Tower) -> Frame:
    """The frame of a tower."""
    return Frame(tower.image_size, tower.mean, tower.std)


def evaluation_view(frame: Frame) -> Callable[[Image.Image], Tensor]:
    """Squash to the square (bicubic), RGB, [0, 1], normalise; PIL image -> [3, n, n]."""
    return T.Compose([_squash(frame), *_pixels(frame)])


def training_view(frame: Frame, *, flip: float, jitter: float, crop: float) -> Callable[[Image.Image], Tensor]:
    """Flip, squash, brightness, contrast, random resized crop (area from `crop`, bilinear), pixels; torch's stream.

    RGB comes late, as published, but for palettes and other modes whose brightness PIL cannot change.
    """
    steps = [T.Lambda(_brightenable), T.RandomHorizontalFlip(flip), _squash(frame)]
    if jitter:
        steps += [T.ColorJitter(brightness=jitter), T.ColorJitter(contrast=jitter)]
    if crop < 1:
        steps.append(T.RandomResizedCrop(frame.size, scale=(crop, 1.0), ratio=(0.7, 1.3)))
    return T.Compose([*steps, *_pixels(frame)])


class RecognitionImages(Dataset):
    """Images with their labels: item i -> (image index, pixels [3, n, n], labels [C] int8).

    paths, labels [N, C]: of all images. order: image indices of an epoch (`oversampled`); None = every image once.
    augment: settings of the training view; its random numbers depend on (seed, epoch, i) alone. Set `epoch` before
    workers start.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: np.ndarray,
        frame: Frame,
        *,
        order: np.ndarray | None = None,
        augment: DefrSettings | None = None,
        seed: int = 0,
    ) -> None:
        if len(paths) != len(labels):
            raise ValueError(
                f"found {len(paths)} images and labels {labels.shape}, expected one row of labels an image"
            )
        self.paths, self.labels = list(paths), torch.from_numpy(np.asarray(labels, np.int8))
        self.order = np.arange(len(paths)) if order is None else np.asarray(order)
        self.seed, self.epoch, self.random = seed, 0, augment is not None
        self.view = (
            evaluation_view(frame)
            if augment is None
            else training_view(frame, flip=augment.flip, jitter=augment.jitter, crop=augment.crop)
        )

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> tuple[int, Tensor, Tensor]:
        index = int(self.order[position])
        image = read_image(self.paths[index])
        if not self.random:
            return index, self.view(image), self.labels[index]
        stream = np.random.SeedSequence([self.seed, self.epoch, position]).generate_state(1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(stream[0]))
            return index, self.view(image), self.labels[index]


def _squash(frame: Frame) -> Callable[[Image.Image], Image.Image]:
    return T.Resize((frame.size, frame.size), InterpolationMode.BICUBIC)


def _pixels(frame: Frame) -> list[Callable]:
    return [T.Lambda(_rgb), T.ToTensor(), T.Normalize(frame.mean, frame.std)]


def _rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def _brightenable(image: Image.Image) -> Image.Image:
    return image if image.mode in ("RGB", "L", "CMYK") else _rgb(image)
