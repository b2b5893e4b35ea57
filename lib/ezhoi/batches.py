"""Images, proposals, CLIP memory and annotated rows as training and evaluation batches (spec ez-hoi.md §1.2).

Every image is squashed to the square CLIP frame with ImageNet statistics (quirk Q4, kept: adapters were trained so).
Proposals come from the detections table and follow the same flip and crop as the pixels (a documented deviation from
running DETR on the augmented image; clip-features-and-detr.md §11), or from a live detector, for which a sample then
carries a second view. Colour jitter acts on the R x R image, where it is cheap; on the whole image if there are two
views. A crop keeps the annotated rows of which both boxes are still there (the public program compares the wrong
corners and forgets the HOI ids, quirk Q9).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision.ops.boxes import box_area
from torchvision.transforms import functional as TF

from lib.data.hico_det import HoiDataset
from lib.data.images import read_image
from lib.detection.detr import IMAGENET_MEAN, IMAGENET_STD
from lib.detection.proposals import Proposals
from lib.ezhoi.classes import ScoredClasses
from lib.ezhoi.pairs import Instances, PairTargets
from lib.features.store import FeatureStore
from lib.settings import EzHoiSettings

KEPT_BYTES = 256 * 2**20  # decoded images stay in memory if all of them fit into this

View = Callable[[Image.Image, np.random.Generator | None], Tensor]  # image, random stream in training -> [3, h, w]


class Views(NamedTuple):
    """Images as a detector takes them: pixels [B, 3, h, w], zero-padded; valid [B, h, w] bool, False on padding."""

    pixels: Tensor
    valid: Tensor


class HoiSample(NamedTuple):
    """One image: image [3, R, R], memory [L, D], (boxes, scores, labels, n_human) of its proposals, (boxes_h, boxes_o,
    class, HOI) of its rows, and what a live detector looks at."""

    index: int
    image: Tensor
    memory: Tensor
    instances: tuple[Tensor, Tensor, Tensor, int]
    targets: tuple[Tensor, Tensor, Tensor, Tensor]
    view: Tensor | None = None


@dataclass
class HoiBatch:
    """index [B] into the data set; images [B, 3, R, R]; memory [B, L, D]; instances and targets in the R-frame.

    views: what a live detector looks at, None with cached detections.
    """

    index: Tensor
    images: Tensor
    memory: Tensor
    instances: Instances
    targets: PairTargets
    views: Views | None = None

    def to(self, device: torch.device | str) -> HoiBatch:
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> HoiBatch:
        """For the data loader: page-locked copies."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> HoiBatch:
        instances = {field.name: change(getattr(self.instances, field.name)) for field in fields(Instances)}
        views = None if self.views is None else Views(*map(change, self.views))
        return HoiBatch(
            self.index, change(self.images), change(self.memory), replace(self.instances, **instances),
            PairTargets(*map(change, self.targets)), views,
        )  # fmt: skip


class HoiSamples(Dataset):
    """Samples of a HoiDataset. Item i of epoch e is a pure function of (seed, e, i), whatever the worker count.

    proposals: one an image of `dataset`, boxes as fractions of width and height; None where a live detector finds them.
    store: patch tokens, found by file name. classes: what gets a logit. augment: None in evaluation. detector_view:
    makes the tensor of a live detector.
    """

    def __init__(
        self,
        dataset: HoiDataset,
        proposals: Sequence[Proposals] | None,
        store: FeatureStore,
        size: int,
        classes: ScoredClasses,
        augment: EzHoiSettings | None = None,
        seed: int = 0,
        detector_view: View | None = None,
    ) -> None:
        if proposals is None and detector_view is None:
            raise ValueError("found neither proposals nor a detector_view, expected one of them")
        if proposals is not None and len(proposals) != len(dataset):
            raise ValueError(f"found {len(proposals)} proposals, expected one an image of {len(dataset)}")
        self.dataset, self.proposals, self.store = dataset, proposals, store
        self.rows = store.ids([image.name for image in dataset.images])
        self.class_of_hoi = torch.from_numpy(classes.of_hoi)
        self.size, self.augment, self.seed, self.epoch = size, augment, seed, 0
        self.detector_view = detector_view
        keep = sum(3 * image.size[0] * image.size[1] for image in dataset.images) <= KEPT_BYTES
        self._decoded: dict[int, Image.Image] | None = {} if keep else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, indices: Sequence[int]) -> list[HoiSample]:
        """Items of a batch, as a DataLoader asks for them: the disk reads their features while images are decoded."""
        self.store.prefetch(self.rows[list(indices)])
        return [self[index] for index in indices]

    def __getitem__(self, index: int) -> HoiSample:
        record, augment = self.dataset[index], self.augment
        proposals = NO_PROPOSALS if self.proposals is None else self.proposals[index]
        boxes_h, boxes_o = (as_fractions(boxes, record.size) for boxes in (record.boxes_h, record.boxes_o))
        hoi = torch.from_numpy(record.hoi)
        image, rng = self._image(index), None
        if augment is not None:
            rng = np.random.default_rng([self.seed, self.epoch, index])
            if rng.random() < augment.flip:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                boxes_h, boxes_o = mirror(boxes_h), mirror(boxes_o)
                proposals = proposals._replace(boxes=mirror(proposals.boxes))
            if rng.random() < augment.crop:
                window = crop_window(record.size, rng)  # (4,) fractions
                image = image.crop(tuple((window * torch.tensor(record.size * 2)).round().int().tolist()))
                boxes_h, boxes_o = clip_to(boxes_h, window), clip_to(boxes_o, window)
                kept = (box_area(boxes_h) > 0) & (box_area(boxes_o) > 0)
                boxes_h, boxes_o, hoi = boxes_h[kept], boxes_o[kept], hoi[kept]
                proposals = crop_proposals(proposals, window)
        if self.detector_view is None:
            view, image = None, self._jittered(squashed(image, self.size), rng)  # fewer pixels to jitter
        else:
            image = self._jittered(image, rng)
            view, image = self.detector_view(image, rng), squashed(image, self.size)
        memory = F.normalize(self.store[self.rows[index]][0], dim=-1)
        instances = (proposals.boxes * self.size, proposals.scores, proposals.labels, proposals.n_human)
        targets = (boxes_h * self.size, boxes_o * self.size, self.class_of_hoi[hoi], hoi)
        return HoiSample(index, as_pixels(image), memory, instances, targets, view)

    def _image(self, index: int) -> Image.Image:
        if self._decoded is None:
            return read_image(self.dataset[index].path).convert("RGB")
        if index not in self._decoded:
            self._decoded[index] = read_image(self.dataset[index].path).convert("RGB")
        return self._decoded[index]

    def _jittered(self, image: Image.Image, rng: np.random.Generator | None) -> Image.Image:
        if rng is None or not self.augment.jitter:
            return image
        return jitter(image, self.augment.jitter, rng)


def squashed(image: Image.Image, size: int) -> Image.Image:
    """An RGB image in the square CLIP frame: bicubic, aspect ratio given up (spec §1.2)."""
    return image.resize((size, size), Image.Resampling.BICUBIC)


NO_PROPOSALS = Proposals(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long), 0)


def collate(samples: list[HoiSample]) -> HoiBatch:
    """Stack images and memory, pad instances and detector views, concatenate targets."""
    index, images, memory, instances, targets, views = zip(*samples, strict=True)
    boxes_h, boxes_o, labels, hois = zip(*targets, strict=True)
    owner = torch.repeat_interleave(torch.arange(len(hois)), torch.tensor([len(ids) for ids in hois]))
    return HoiBatch(
        torch.tensor(index), torch.stack(images), torch.stack(memory), Instances.collate(list(instances)),
        PairTargets(owner, *map(torch.cat, (boxes_h, boxes_o, labels, hois))),
        None if views[0] is None else pad_views(views),
    )  # fmt: skip


def pad_views(views: Sequence[Tensor]) -> Views:
    """Images [3, h, w] of any sizes -> one zero-padded batch with its mask."""
    height, width = (max(view.shape[axis] for view in views) for axis in (1, 2))
    pixels = torch.zeros(len(views), 3, height, width)
    valid = torch.zeros(len(views), height, width, dtype=torch.bool)
    for slot, view in enumerate(views):
        pixels[slot, :, : view.shape[1], : view.shape[2]] = view
        valid[slot, : view.shape[1], : view.shape[2]] = True
    return Views(pixels, valid)


_MEAN, _STD = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)


def as_pixels(image: Image.Image) -> Tensor:
    """[3, H, W] of an RGB image with ImageNet mean and std; in place, so half the time of torchvision's two steps."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
    return pixels.float().div_(255).sub_(_MEAN).div_(_STD)


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


def jitter(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast and saturation by factors in 1 +- strength, in random order."""
    changes = [TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation]
    for which in rng.permutation(3):
        image = changes[which](image, float(rng.uniform(1 - strength, 1 + strength)))
    return image
