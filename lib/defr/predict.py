"""Logits of many images on one or several processes, and their average precision (spec defr.md §9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Subset

from lib.defr.model import DefrClassifier
from lib.defr.pictures import RecognitionImages
from lib.defr.train import processes
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
    """Logits [N, C] float32 in the order of the images, on every process; each computes a disjoint share.

    images: without augmentation and without repeats.
    """
    rank, world = processes()
    mine = np.arange(len(images))[rank::world]
    loader = DataLoader(Subset(images, mine.tolist()), batch_size, num_workers=workers)
    model.eval().to(device)
    found = []
    with Progress("DEFR scores", len(mine)) as progress:
        for _, pixels, _ in loader:
            found.append(model(pixels.to(device), precision).float().cpu())
            progress.step(len(pixels))
    share = torch.cat(found).numpy() if found else np.zeros((0, images.labels.shape[1]), np.float32)
    if world == 1:
        return share
    shares: list[np.ndarray] = [share] * world
    dist.all_gather_object(shares, share)
    logits = np.zeros((len(images), share.shape[1]), np.float32)
    for owner, part in enumerate(shares):
        logits[owner::world] = part
    return logits


def recognition_scores(
    logits: np.ndarray, labels: np.ndarray, few: Mapping[str, Sequence[int]] | None = None
) -> dict[str, float]:
    """mAP_full, mAP_known_object and mAP_few_k in percent. few: of `labels.few_shot`."""
    logits = logits.astype(np.float64)
    known = recognition_ap(logits, labels, known_object=True)
    means = recognition_means(recognition_ap(logits, labels), known, few)
    return {name: 100 * value for name, value in means.items()}
