"""Labels that a teacher writes for unlabelled images, so that DEFR trains without ground truth (spec defr.md §14).

Our reading of the abstract of "Zero-Shot HOI Classification by Bridging Generative and Contrastive Image-Language
Models" (Jin et al., ICIP 2023), whose program was never published: a generative captioner scores every class sentence
on several regions of an image; what it is sure of becomes a positive, what it is unsure of leaves the loss, the rest
is negative; a contrastive student (DEFR with LSE-Sign) learns from that. Regions, the aggregation and the filter below
are ours where the abstract is silent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lib.defr.labels import ABSENT, AMBIGUOUS, POSITIVE, RecognitionLabels
from lib.detection.proposals import Proposals

Teacher = Callable[[Sequence[Image.Image]], Tensor]  # R regions -> scores [R, C], higher is likelier, any scale


def regions_of(image: Image.Image, unions: np.ndarray) -> list[Image.Image]:
    """The image, its four quadrants, and the boxes [U, 4] (x1, y1, x2, y2 in pixels) around detected pairs."""
    w, h = image.size
    boxes = [(0, 0, w, h), *((x, y, x + w / 2, y + h / 2) for y in (0, h / 2) for x in (0, w / 2)), *unions.tolist()]
    rounded = [(int(x1), int(y1), max(int(np.ceil(x2)), int(x1) + 1), max(int(np.ceil(y2)), int(y1) + 1))
               for x1, y1, x2, y2 in boxes]  # fmt: skip
    return [image.crop(box) for box in rounded]


def pair_unions(found: Proposals, count: int) -> np.ndarray:
    """Boxes [U, 4] around the `count` surest pairs of a human and anything else, by the product of their scores."""
    h, o = np.meshgrid(np.arange(found.n_human), np.arange(len(found.boxes)), indexing="ij")
    h, o = h[h != o], o[h != o]
    surest = np.argsort(-(found.scores[h] * found.scores[o]).numpy(), kind="stable")[:count]
    boxes = found.boxes.numpy()
    a, b = boxes[h[surest]], boxes[o[surest]]
    return np.concatenate([np.minimum(a[:, :2], b[:, :2]), np.maximum(a[:, 2:], b[:, 2:])], axis=1)


def teacher_scores(
    images: Iterable[tuple[Image.Image, np.ndarray]],
    teacher: Teacher,
    temperature: float,
    step: Callable[[], object] = lambda: None,
) -> Tensor:
    """Probability [N, C] of every class in every image: softmax over classes on each region, maximum over regions.

    images: (picture, boxes around its detected pairs). temperature: of the softmax. step: called after every image.
    """
    found = []
    for image, unions in images:
        scores = teacher(regions_of(image, unions))  # (R, C)
        found.append((scores.float() / temperature).softmax(dim=1).amax(dim=0).cpu())
        step()
    return torch.stack(found)


def pseudo_labels(
    files: Sequence[str], scores: Tensor, *, quantile: float = 0.95, band: float = 0.85, top: int = 3
) -> RecognitionLabels:
    """Labels from a teacher's probabilities [N, C]: per class its surest images, per image its surest classes.

    Positive: at or above the class's `quantile` over images, and among the image's `top` classes. Ambiguous (outside
    the loss with defr.ignore_ambiguous): at or above the class's `band` quantile without being positive. Else absent.
    """
    if not 0 <= band <= quantile <= 1 or top < 1:
        raise ValueError(
            f"pseudo-labels: found quantile {quantile}, band {band}, top {top}; expected 0 <= band <= quantile <= 1 and"
            " top >= 1; mend: defr.teacher_quantile, defr.teacher_band, defr.teacher_top"
        )
    values = np.full(scores.shape, ABSENT, np.int8)
    among = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, scores.topk(min(top, scores.shape[1])).indices, True)
    values[(scores >= scores.quantile(band, dim=0)).numpy()] = AMBIGUOUS
    values[((scores >= scores.quantile(quantile, dim=0)) & among).numpy()] = POSITIVE
    return RecognitionLabels(tuple(files), values)


def agreement(pseudo: RecognitionLabels, truth: RecognitionLabels) -> dict[str, float]:
    """How right the teacher was, where the truth is known: precision and recall of its positives, share left out.

    Pairs that the truth does not verify or finds ambiguous are not counted. Nothing of this reaches the training.
    """
    known, positive = truth.known_object, pseudo.positive
    right = (positive & truth.positive & known).sum()
    return {
        "positives an image": float(positive.sum(1).mean()),
        "precision": float(right / max((positive & known).sum(), 1)),
        "recall": float(right / max(truth.positive.sum(), 1)),
        "left out": float((pseudo.values == AMBIGUOUS).mean()),
        "classes without a positive": float((positive.sum(0) == 0).mean()),
    }
