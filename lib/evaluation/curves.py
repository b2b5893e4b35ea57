"""Precision over recall of every class on one grid, so that curves can be averaged over groups of classes."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lib.evaluation.hico_det import ApResult

RECALL = np.linspace(0, 1, 101)


def interpolated_precision(predictions: pd.DataFrame, result: ApResult) -> np.ndarray:
    """[C, 101] the best precision at each recall of `RECALL` or beyond, 0 where it is not reached, nan without truth.

    predictions: the table that `hico_det_ap` matched, with its `result`. The mean of a row is its AP by COCO's rule of
    101 points; a mean over classes is their mean curve.
    """
    curves = np.where(np.isnan(result.ap), np.nan, 0.0)[:, None] * np.ones(len(RECALL))
    hoi, score = (predictions[name].to_numpy() for name in ("hoi", "score"))
    rows = np.flatnonzero(result.counted)
    rows = rows[np.lexsort((-score[rows], hoi[rows]))]  # by class, then score descending: lexsort is stable
    ends = np.cumsum(np.bincount(hoi[rows], minlength=len(result.ap)))
    starts = np.concatenate([[0], ends[:-1]])
    for c in np.flatnonzero(result.num_gt):
        hit = np.flatnonzero(result.true_positive[rows[starts[c] : ends[c]]])  # rank of every hit
        true = np.arange(1, len(hit) + 1)
        envelope = np.maximum.accumulate((true / (hit + 1))[::-1])[::-1]
        reached = np.searchsorted(true / result.num_gt[c], RECALL)  # first hit with this recall
        curves[c] = np.append(envelope, 0.0)[reached]
    return curves
