"""From labels in score order to one number: the ways in which public evaluators integrate precision over recall.

Of a class with P > 0 positives: recall_k = TP_k / P and precision_k = TP_k / (TP_k + FP_k) after k detections; the
envelope at k is the best precision at k or later (spec data-and-evaluation.md §5.2, §5.4, §5.7).
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

Integration = Literal["11-point", "11-point-arange", "all-point", "int", "auc"]
INTEGRATIONS: tuple[Integration, ...] = get_args(Integration)

# Recall thresholds k / 10 as doubles. MATLAB 0:0.1:1 and torch.linspace(0, 1, 11) round only the fourth one up,
# numpy.arange also the seventh and eighth: a recall of exactly 3/10 (6/10, 7/10) misses its own threshold.
RECALL_GRIDS = {
    "11-point": np.array([0.0, 0.1, 0.2, 0.1 * 3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
    "11-point-arange": np.arange(11) * 0.1,
}


def average_precision(
    positive: np.ndarray,
    num_positives: int,
    integration: Integration = "11-point",
    dropped: np.ndarray | None = None,
) -> tuple[float, float]:
    """(average precision, maximum recall) of one class, both 0..1.

    11-point: 1/11 sum over thresholds t of the envelope where recall first reaches t, 0 where it never does. The
        rule of the official MATLAB program and of pocket's '11P'.
    11-point-arange: the same on numpy's grid (PPDM, QPIC, CDN, GEN-VLKT).
    all-point: area under the envelope (VOC 2010 and V-COCO).
    int, auc: pocket's diagnostic meters, which leave out the last step of recall, so that one positive found by one
        detection scores 0; int takes the envelope, auc the trapezoids of the raw curve. Never use them for HOI mAP.

    positive: [K] bool by descending score. num_positives: P > 0.
    dropped: [K] bool, entries that count neither right nor wrong (positive must be False there).
    """
    hit = np.flatnonzero(positive)
    if not len(hit):
        return 0.0, 0.0
    true = np.arange(1, len(hit) + 1)  # TP at each hit; between hits recall stands still and precision falls
    ranked = hit + 1 if dropped is None else hit + 1 - np.cumsum(dropped)[hit]
    precision = true / ranked
    recall = true / num_positives
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if integration in RECALL_GRIDS:
        reached = np.searchsorted(recall, RECALL_GRIDS[integration])  # first hit with recall >= t; len(hit) if none
        total = np.append(envelope, 0.0)[reached].sum() / 11
    elif integration == "all-point":
        total = envelope.sum() / num_positives
    elif integration == "int":
        total = envelope[:-1].sum() / num_positives
    elif integration == "auc":
        before = (true - 1) / np.maximum(ranked - 1, 1)  # precision one rank earlier
        first = hit == 0
        total = np.where(first, precision, (precision + before) / 2)[:-1].sum() / num_positives
    else:
        raise ValueError(f"integration {integration!r}: expected one of {list(INTEGRATIONS)}")
    return float(total), float(recall[-1])
