"""Logits of many images on one or several processes, and their average precision (spec defr.md §9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader

from lib.defr.model import DefrClassifier
from lib.defr.pictures import RecognitionImages
from lib.engine.distributed import gathered_in_turn, share
from lib.engine.progress import Progress
from lib.evaluation.recognition import recognition_ap, recognition_means


@torch.inference_mode()
def predict_logits(
    model: DefrClassifier,
    images: RecognitionImages,
    *,
    batch_size: int,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    workers: int = 0,
) -> np.ndarray:
    """Logits [N, C] float32 in the order of the images, on every process.

    Each process computes every world-th batch; the batches are those of a single process, and so are the numbers.
    images: without augmentation and without repeats.
    """
    batches = share([batch.tolist() for batch in torch.arange(len(images)).split(batch_size)])
    loader = DataLoader(images, batch_sampler=batches, num_workers=workers)
    model.eval().to(device)
    found = []
    with Progress("DEFR scores", sum(map(len, batches))) as progress:
        for _, pixels, _ in loader:
            found.append(model(pixels.to(device), precision).float().cpu().numpy())
            progress.step(len(pixels))
    return np.concatenate([np.zeros((0, images.labels.shape[1]), np.float32), *gathered_in_turn(found)])


def recognition_scores(
    logits: np.ndarray, labels: np.ndarray, few: Mapping[str, Sequence[int]] | None = None
) -> dict[str, float]:
    """mAP_full, mAP_known_object and mAP_few_k in percent. few: of `labels.few_shot`."""
    logits = logits.astype(np.float64)
    known = recognition_ap(logits, labels, known_object=True)
    means = recognition_means(recognition_ap(logits, labels), known, few)
    return {name: 100 * value for name, value in means.items()}
