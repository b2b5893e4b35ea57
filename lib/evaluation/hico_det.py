"""HICO-DET detection average precision over flat arrays (spec data-and-evaluation.md §4.3, §5.1-§5.5).

Input is a table of predictions, one row a (pair, HOI), and the ground-truth pairs. Boxes of both are
coordinates in pixels of the original image, x1, y1, x2, y2, 0-based with exclusive right and bottom (a
HICO-DET box after x1 - 1, y1 - 1). The default is the rule of UPT, ADA-CM, CMMP and EZ-HOI: min(IoU_h, IoU_o)
> 0.5, 11-point AP on the MATLAB / torch grid, images without any ground-truth pair skipped, no cap. Nothing
is known here of a particular vocabulary: the number of classes is an argument.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

BOX_COLUMNS = ("x1h", "y1h", "x2h", "y2h", "x1o", "y1o", "x2o", "y2o")
PREDICTION_COLUMNS = ("image", *BOX_COLUMNS, "hoi", "score")

# Recall thresholds k / 10 as doubles. MATLAB 0:0.1:1 and torch.linspace(0, 1, 11) round only the fourth one
# up, numpy.arange also the seventh and eighth: a recall of exactly 3/10 (6/10, 7/10) misses its own
# threshold.
RECALL_GRIDS = {
    "matlab": np.array([0.0, 0.1, 0.2, 0.1 * 3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
    "numpy": np.arange(11) * 0.1,
}

_OVERLAPS_AT_ONCE = 200_000  # (detection, ground truth) combinations held in memory together: about 50 MB


@dataclass(frozen=True)
class ApResult:
    """Per-class outcome; C classes, M rows of the predictions table in their own order.

    ap, max_recall [C] float64 in 0..1; 0 for a class without detections, nan for a class without ground truth
    (no HICO-DET class lacks it; in a small test set such classes say nothing and are left out of all means,
    whereas UPT's meter would count them as 0).
    num_gt, num_det [C] int64.
    counted [M] bool: the row took part (not on a skipped image, not beyond the cap).
    true_positive [M] bool.
    """

    ap: np.ndarray
    max_recall: np.ndarray
    num_gt: np.ndarray
    num_det: np.ndarray
    counted: np.ndarray
    true_positive: np.ndarray


def hico_det_ap(
    predictions: pd.DataFrame,
    truth: Mapping[str, np.ndarray],
    num_classes: int,
    *,
    threshold_strict: bool = True,
    grid: Literal["matlab", "numpy"] = "matlab",
    include_empty_images: bool = False,
    cap: int | None = None,
) -> ApResult:
    """Average precision of every HOI class.

    A detection is compared only with its best ground-truth pair (first maximum of min(IoU_h, IoU_o) among the
    pairs of its image and class; no fallback to the second best). It is a true positive if that overlap
    passes 0.5 and no detection of higher score claims the same pair. Equal scores rank in the order of the
    table's rows, here and under the cap.

    predictions: columns `image`, `hoi` (integers), `x1h .. y2h`, `x1o .. y2o` and `score` (higher is better);
    other columns are ignored.
    truth: `HoiDataset.truth()`: image [N] (index into the same file list), boxes_h, boxes_o [N, 4], hoi [N];
    one row a (human box, object box, HOI), repeated boxes of other labels stay separate rows.
    threshold_strict: overlap > 0.5 (UPT family) or >= 0.5 (official MATLAB, QPIC family).
    grid: recall thresholds; "numpy" reproduces PPDM / QPIC / CDN / GEN-VLKT.
    include_empty_images: count detections on images without any ground-truth pair (as false positives).
    cap: keep only this many detections of highest score per image.
    Raises ValueError on a missing column, a non-finite number, an HOI id outside 0..num_classes - 1, or a
    ground-truth box without area.
    """
    _check_predictions(predictions, num_classes)
    truth_image, truth_hoi, truth_boxes = _checked_truth(truth, num_classes)
    image, hoi, score = (predictions[name].to_numpy() for name in ("image", "hoi", "score"))  # (M,)

    counted = np.ones(len(image), bool) if include_empty_images else np.isin(image, truth_image)
    if cap is not None:
        counted &= _within_cap(image, score, counted, cap)
    rows = np.flatnonzero(counted)
    # By class, then score descending, then row: lexsort is stable.
    rows = rows[np.lexsort((-score[rows], hoi[rows]))]

    truth_key = truth_image * num_classes + truth_hoi
    key = image[rows].astype(np.int64) * num_classes + hoi[rows]
    boxes = [predictions[name].to_numpy() for name in BOX_COLUMNS]
    positive = _true_positives(boxes, rows, key, truth_boxes, truth_key, threshold_strict)  # order of `rows`
    true_positive = np.zeros(len(image), bool)
    true_positive[rows] = positive

    num_gt = np.bincount(truth_hoi, minlength=num_classes)
    num_det = np.bincount(hoi[rows], minlength=num_classes)
    ap, max_recall = np.full((2, num_classes), np.nan)
    ends = np.cumsum(num_det)
    for c in np.flatnonzero(num_gt):
        ap[c], max_recall[c] = eleven_point_ap(positive[ends[c] - num_det[c] : ends[c]], num_gt[c], grid)
    return ApResult(ap, max_recall, num_gt, num_det, counted, true_positive)


def eleven_point_ap(
    positive: np.ndarray, num_gt: int, grid: Literal["matlab", "numpy"] = "matlab"
) -> tuple[float, float]:
    """(11-point AP, maximum recall) of labels [K] bool sorted by descending score; num_gt > 0 (spec §5.2).

    AP = 1/11 sum over t in grid of max{precision_k : recall_k >= t}, 0 where no recall reaches t.
    """
    if not len(positive):
        return 0.0, 0.0
    hits = np.cumsum(positive, dtype=np.float64)
    recall = hits / num_gt
    precision = hits / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]  # best precision at this rank or any later one
    reached = np.searchsorted(recall, RECALL_GRIDS[grid])  # first rank with recall >= t; K if none
    return float(np.append(envelope, 0.0)[reached].sum() / 11), float(recall[-1])


def summarise(
    result: ApResult, *, unseen: Collection[int] | None = None, rare: Collection[int] | None = None
) -> dict[str, float]:
    """Means in percent (0..100, as papers print them) under flat names (spec §4.3).

    Each is an unweighted mean over the classes with ground truth of its group, so that
    full = (|U| unseen + |S| seen) / (|U| + |S|).
    unseen, rare: class ids of the group; the complement is seen / non-rare. None: no such grouping, both
    means are nan. An empty group is nan, and so is the harmonic mean 2 unseen seen / (unseen + seen) without
    both.
    """
    ap = 100 * result.ap
    mean_unseen, mean_seen = _group_means(ap, unseen, "unseen")
    mean_rare, mean_non_rare = _group_means(ap, rare, "rare")
    total = mean_unseen + mean_seen
    return {
        "mAP_full": _mean(ap),
        "mAP_unseen": mean_unseen,
        "mAP_seen": mean_seen,
        "mAP_rare": mean_rare,
        "mAP_non_rare": mean_non_rare,
        "harmonic_mean": 2 * mean_unseen * mean_seen / total if total else total,
    }


def per_class_table(result: ApResult, *, unseen: Collection[int] = (), rare: Collection[int] = ()) -> pd.DataFrame:
    """One row a class: hoi, ap and max_recall (percent), num_gt, num_det, seen, rare (bool)."""
    num_classes = len(result.ap)
    return pd.DataFrame(
        {
            "hoi": np.arange(num_classes),
            "ap": 100 * result.ap,
            "max_recall": 100 * result.max_recall,
            "num_gt": result.num_gt,
            "num_det": result.num_det,
            "seen": ~_members(unseen, num_classes, "unseen"),
            "rare": _members(rare, num_classes, "rare"),
        }
    )


def _true_positives(
    columns: list[np.ndarray],
    rows: np.ndarray,
    key: np.ndarray,
    truth_boxes: np.ndarray,
    truth_key: np.ndarray,
    strict: bool,
) -> np.ndarray:
    """Labels [K] bool of the detections in `rows` [K], given by descending score within each class.

    columns: 8 box columns of the whole table; key [K], truth_key [N]: one number a (image, hoi);
    truth_boxes [N, 8].
    """
    positive = np.zeros(len(rows), bool)
    if not len(rows) or not len(truth_key):
        return positive
    by_key = np.argsort(truth_key, kind="stable")  # groups of one (image, hoi), annotation order kept within
    keys, first, count = np.unique(truth_key[by_key], return_index=True, return_counts=True)
    group = np.searchsorted(keys, key).clip(max=len(keys) - 1)
    has_truth = np.flatnonzero(keys[group] == key)  # only these can be right: the rest needs no IoU
    group = group[has_truth]
    best, overlap = _best_truth(columns, rows[has_truth], truth_boxes[by_key], first[group], count[group])
    candidate = overlap > 0.5 if strict else overlap >= 0.5
    # All claims on one ground truth stem from one class, where rows come by score: its first claim wins.
    winners = np.unique(best[candidate], return_index=True)[1]
    positive[has_truth[candidate][winners]] = True
    return positive


def _best_truth(
    columns: list[np.ndarray], rows: np.ndarray, truth_boxes: np.ndarray, first: np.ndarray, count: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Best ground truth of each detection among truth_boxes[first : first + count], with its overlap.

    columns: 8 box columns of the whole table; rows [K]; truth_boxes [N, 8]; first, count [K] with count >= 1.
    Returns (index [K] into truth_boxes, the first one at equal overlap; overlap [K] float64).
    """
    best, overlap = np.empty(len(rows), np.int64), np.empty(len(rows))
    ends = np.cumsum(count)
    start = 0
    while start < len(rows):
        done = ends[start] - count[start]
        stop = max(start + 1, int(np.searchsorted(ends, done + _OVERLAPS_AT_ONCE, side="right")))
        part = slice(start, stop)
        detection = np.repeat(np.arange(stop - start), count[part])  # (T,) owner of each combination
        offset = ends[part] - count[part] - done  # (K',) where each detection's combinations begin
        combination = np.arange(len(detection))
        candidate = first[part][detection] + combination - offset[detection]  # (T,) its ground truth
        boxes = np.stack([column[rows[part]] for column in columns], 1).astype(np.float64)  # (K', 8)
        m = pair_overlap(boxes[detection], truth_boxes[candidate])  # (T,)
        overlap[part] = np.maximum.reduceat(m, offset)
        is_best = m == overlap[part][detection]
        best[part] = candidate[np.minimum.reduceat(np.where(is_best, combination, len(m)), offset)]
        start = stop
    return best, overlap


def pair_overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """min(IoU_h, IoU_o) [T] of pairs a, b [T, 8] (human box, object box; coordinates)."""
    return np.minimum(_iou(a[:, :4], b[:, :4]), _iou(a[:, 4:], b[:, 4:]))


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    sides = (np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])).clip(min=0)  # (T, 2)
    shared = sides[:, 0] * sides[:, 1]
    area_a = ((a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])).clip(min=0)  # a predicted box may be inverted
    area_b = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    return shared / (area_a + area_b - shared)


def _within_cap(image: np.ndarray, score: np.ndarray, counted: np.ndarray, cap: int) -> np.ndarray:
    """Rows [M] bool among the `cap` of highest score of their image."""
    rows = np.flatnonzero(counted)
    rows = rows[np.lexsort((-score[rows], image[rows]))]
    _, first, count = np.unique(image[rows], return_index=True, return_counts=True)
    kept = np.zeros(len(image), bool)
    kept[rows[np.arange(len(rows)) - np.repeat(first, count) < cap]] = True
    return kept


def _check_predictions(predictions: pd.DataFrame, num_classes: int) -> None:
    missing = [name for name in PREDICTION_COLUMNS if name not in predictions]
    if missing:
        raise ValueError(
            f"predictions: columns {missing} are missing; found {list(predictions.columns)}, "
            f"expected {list(PREDICTION_COLUMNS)}: write one row a (pair, HOI)"
        )
    for name in ("image", "hoi"):
        if not pd.api.types.is_integer_dtype(predictions[name]):
            raise ValueError(
                f"predictions: column {name} is {predictions[name].dtype}, expected integers: cast it before"
            )
    for name in (*BOX_COLUMNS, "score"):
        bad = np.flatnonzero(~np.isfinite(predictions[name].to_numpy()))
        if len(bad):
            value = predictions[name].iloc[bad[0]]
            raise ValueError(
                f"predictions: {name} of row {bad[0]} is {value}, expected a finite number "
                f"({len(bad)} such rows): the model diverged or the table is damaged; predict again"
            )
    if len(predictions) and not (predictions["hoi"].min() >= 0 and predictions["hoi"].max() < num_classes):
        raise ValueError(
            f"predictions: hoi ids {predictions['hoi'].min()}..{predictions['hoi'].max()}, "
            f"expected 0..{num_classes - 1}: the table was made with another vocabulary"
        )


def _checked_truth(truth: Mapping[str, np.ndarray], num_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """image [N], hoi [N] int64 and boxes [N, 8] float64 (human, object)."""
    image, hoi = (np.asarray(truth[name], np.int64) for name in ("image", "hoi"))
    sides = [np.asarray(truth[name], np.float64).reshape(-1, 4) for name in ("boxes_h", "boxes_o")]
    if len({len(image), len(hoi), *map(len, sides)}) > 1:
        lengths = {name: len(truth[name]) for name in ("image", "boxes_h", "boxes_o", "hoi")}
        raise ValueError(f"ground truth: columns of unequal length {lengths}, expected one entry a pair in each")
    if len(hoi) and not (hoi.min() >= 0 and hoi.max() < num_classes):
        raise ValueError(f"ground truth: hoi ids {hoi.min()}..{hoi.max()}, expected 0..{num_classes - 1}")
    for name, boxes in zip(("boxes_h", "boxes_o"), sides, strict=True):
        bad = np.flatnonzero(~(boxes[:, 2:] > boxes[:, :2]).all(1))
        if len(bad):
            raise ValueError(
                f"ground truth: {name}[{bad[0]}] = {boxes[bad[0]].tolist()} (image {image[bad[0]]}) has no "
                f"area ({len(bad)} such rows), expected x1 < x2 and y1 < y2: correct the annotation file"
            )
    return image, hoi, np.concatenate(sides, 1)


def _group_means(ap: np.ndarray, group: Collection[int] | None, name: str) -> tuple[float, float]:
    if group is None:
        return np.nan, np.nan
    inside = _members(group, len(ap), name)
    return _mean(ap[inside]), _mean(ap[~inside])


def _mean(ap: np.ndarray) -> float:
    known = ap[~np.isnan(ap)]
    return float(known.mean()) if len(known) else np.nan


def _members(group: Collection[int], num_classes: int, name: str) -> np.ndarray:
    ids = np.asarray(list(group), np.int64)
    if len(ids) and not (ids.min() >= 0 and ids.max() < num_classes):
        raise ValueError(f"{name} class ids {ids.min()}..{ids.max()}, expected 0..{num_classes - 1}")
    members = np.zeros(num_classes, bool)
    members[ids] = True
    return members
