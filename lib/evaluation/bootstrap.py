"""How sure is an mAP? Average precision under resampled test images.

The images of a test set are drawn again with replacement; a detection and a ground-truth pair then count as often as
their image was drawn. Two methods see the same draws, so that the interval of their difference leaves out what makes
both better or worse (Efron & Tibshirani, An Introduction to the Bootstrap, 1993). The interval speaks for other
images of the same kind, not for other training seeds: those need several runs (`make sweep`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from lib.evaluation.average_precision import RECALL_GRIDS, Integration
from lib.evaluation.hico_det import ApResult

ENTRIES_AT_ONCE = 10_000_000  # (draw, detection) entries held in memory together: 80 MB an array


def image_draws(num_images: int, draws: int, seed: int) -> np.ndarray:
    """[B, I] float64: how often image i is part of draw b; every row sums to I."""
    return np.random.default_rng(seed).multinomial(num_images, [1 / num_images] * num_images, draws).astype(float)


def resampled_ap(
    predictions: pd.DataFrame,
    result: ApResult,
    truth: Mapping[str, np.ndarray],
    draws: np.ndarray,
    integration: Integration = "11-point",
) -> np.ndarray:
    """Average precision [B, C] (0..1) of every class in every draw; nan where a draw has no ground truth of the class.

    predictions: the table that `hico_det_ap` matched, with its `result`. truth: as there. draws: from `image_draws`.
    integration: a grid of `average_precision` or all-point. A draw of every image once gives `result.ap`.
    """
    if integration not in (*RECALL_GRIDS, "all-point"):
        raise ValueError(f"integration {integration!r}: expected one of {[*RECALL_GRIDS, 'all-point']}")
    num_classes = len(result.ap)
    image, hoi, score = (predictions[name].to_numpy() for name in ("image", "hoi", "score"))
    rows = np.flatnonzero(result.counted)
    rows = rows[np.lexsort((-score[rows], hoi[rows]))]  # by class, then score: the order that was matched
    ends = np.cumsum(np.bincount(hoi[rows], minlength=num_classes))
    truth_image, truth_hoi = (np.asarray(truth[name]) for name in ("image", "hoi"))
    ap = np.full((len(draws), num_classes), np.nan)
    for c in np.flatnonzero(result.num_gt):
        members = rows[ends[c - 1] if c else 0 : ends[c]]
        positives = draws[:, truth_image[truth_hoi == c]].sum(1)  # (B,)
        step = max(1, ENTRIES_AT_ONCE // max(len(members), 1))
        for start in range(0, len(draws), step):
            part = slice(start, start + step)
            ap[part, c] = _weighted_ap(
                draws[part][:, image[members]], result.true_positive[members], positives[part], integration
            )
    return ap


def _weighted_ap(weights: np.ndarray, positive: np.ndarray, positives: np.ndarray, integration: str) -> np.ndarray:
    """AP [B] of detections in score order: weights [B, K], positive [K] bool, positives [B] weight of ground truth."""
    hit = np.flatnonzero(positive)
    with np.errstate(invalid="ignore", divide="ignore"):
        true = weights[:, hit].cumsum(1)  # (B, H)
        precision = np.nan_to_num(true / weights.cumsum(1)[:, hit])  # 0/0 before the first detection that was drawn
        recall = true / positives[:, None]
    envelope = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    if integration == "all-point":
        total = (envelope * weights[:, hit]).sum(1) / np.where(positives > 0, positives, np.nan)
    else:
        padded = np.pad(envelope, ((0, 0), (0, 1)))  # a recall that is never reached counts 0
        reached = np.stack([(recall < t).sum(1) for t in RECALL_GRIDS[integration]], 1)  # (B, 11)
        total = np.take_along_axis(padded, reached, 1).sum(1) / 11
    return np.where(positives > 0, total, np.nan)


def group_means(ap: np.ndarray, groups: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Mean of ap [B, C] over the classes [C] bool of each group -> [B] in percent; a draw may lack classes."""
    with np.errstate(invalid="ignore"):
        known = ~np.isnan(ap)
        return {
            name: 100 * np.where(known, ap, 0)[:, members].sum(1) / known[:, members].sum(1)
            for name, members in groups.items()
        }


def interval(values: np.ndarray, estimate: float, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of an estimate from its draws [B], less their bias; (nan, nan) where none is finite.

    AP of a draw is too high on average, since copies of one image agree with each other. The percentiles would inherit
    that; here they are moved by the bootstrap's own estimate of it, mean(draws) - estimate (ibid. §10.3).
    """
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2]) - (values.mean() - estimate)
    return float(low), float(high)
