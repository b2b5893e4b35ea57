"""HICO-DET detection average precision over flat arrays (spec data-and-evaluation.md §4.3, §5.1-§5.6).

Input is a table of predictions, one row a (pair, HOI), and the ground-truth pairs. Boxes of both are coordinates in
pixels of the original image, x1, y1, x2, y2, 0-based with exclusive right and bottom (a HICO-DET box after x1 - 1,
y1 - 1). The default protocol is the rule of UPT, ADA-CM, CMMP and EZ-HOI. Nothing is known here of a particular
vocabulary: the number of classes is an argument.

    python -m lib.evaluation.hico_det PREDICTIONS.parquet --annotations instances_test2015.json --json ap.json
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from lib.data.boxes import iou
from lib.evaluation.average_precision import Integration, average_precision
from lib.evaluation.errors import PredictionError
from lib.evaluation.matching import best_of_group, find_groups, first_claims

BOX_COLUMNS = ("x1h", "y1h", "x2h", "y2h", "x1o", "y1o", "x2o", "y2o")
PREDICTION_COLUMNS = ("image", *BOX_COLUMNS, "hoi", "score")


@dataclass(frozen=True)
class Protocol:
    """The rules in which public evaluators differ.

    strict: a match needs min(IoU_h, IoU_o) > 0.5 (UPT family), else >= 0.5 (official MATLAB, QPIC family).
    integration: see `average_precision`.
    include_empty_images: detections on images without any ground-truth pair count (as false positives).
    cap: only this many detections of highest score per image.
    inclusive_ends: predicted x2, y2 are taken to belong to the box, as scripts do that compare raw coordinates by the
        pixel rule (§5.3): the boxes grow by one pixel.
    """

    strict: bool = True
    integration: Integration = "11-point"
    include_empty_images: bool = False
    cap: int | None = None
    inclusive_ends: bool = False


ProtocolName = Literal["pocket", "official", "all-point", "arange", "qpic"]
PROTOCOLS: dict[ProtocolName, Protocol] = {
    "pocket": Protocol(),  # UPT, ADA-CM, CMMP, EZ-HOI: what their papers print
    "official": Protocol(strict=False, include_empty_images=True),  # the MATLAB program of HO-RCNN
    "all-point": Protocol(integration="all-point"),  # pocket's matching, area under the whole curve
    "arange": Protocol(integration="11-point-arange"),  # pocket's matching, numpy's recall thresholds
    "qpic": Protocol(False, "11-point-arange", True, 100, True),  # python scripts of QPIC, CDN, GEN-VLKT
}


@dataclass(frozen=True)
class ApResult:
    """Per-class outcome; C classes, M rows of the predictions table in their own order.

    ap, max_recall [C] float64 in 0..1; 0 for a class without detections, nan for a class without ground truth (no
    HICO-DET class lacks it; in a small test set such classes say nothing and are left out of all means, whereas UPT's
    meter would count them as 0).
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
    protocol: ProtocolName | Protocol = "pocket",
    known_object: np.ndarray | None = None,
) -> ApResult:
    """Average precision of every HOI class.

    A detection is compared only with its best ground-truth pair (first maximum of min(IoU_h, IoU_o) among the pairs of
    its image and class; no fallback to the second best). It is a true positive if that overlap passes one half and no
    detection of higher score claims the same pair. Equal scores rank in the order of the table's rows, here and under
    the cap.

    predictions: columns `image`, `hoi` (integers), `x1h .. y2h`, `x1o .. y2o` and `score` (higher is better); other
        columns are ignored.
    truth: `HoiDataset.truth()` or `read_annotation(path).truth`: image [N] (index into the same file list), boxes_h,
        boxes_o [N, 4], hoi [N]; one row a (human box, object box, HOI), repeated boxes of other labels stay rows.
    protocol: a name of `PROTOCOLS` or rules of your own.
    known_object: [C, images] bool from `HicoAnnotation.known_object`: detections elsewhere are left out.
    Raises PredictionError on a missing column, a non-finite number, an id out of range, a true box without area.
    """
    rule = _rule(protocol)
    _check_predictions(predictions, num_classes)
    truth_image, truth_hoi, truth_boxes = _checked_truth(truth, num_classes)
    image, hoi, score = (predictions[name].to_numpy() for name in ("image", "hoi", "score"))  # (M,)

    counted = np.ones(len(image), bool) if rule.include_empty_images else np.isin(image, truth_image)
    if known_object is not None:
        counted &= known_object[hoi, image]
    if rule.cap is not None:
        counted &= _within_cap(image, score, counted, rule.cap)
    rows = np.flatnonzero(counted)
    rows = rows[np.lexsort((-score[rows], hoi[rows]))]  # by class, then score descending, then row: lexsort is stable

    truth_key = truth_image * num_classes + truth_hoi
    by_key = np.argsort(truth_key, kind="stable")  # groups of one (image, HOI), annotation order kept within
    keys, first, count = np.unique(truth_key[by_key], return_index=True, return_counts=True)
    # only detections whose image has ground truth of their class can be right: the rest needs no IoU
    comparable, group = find_groups(image[rows].astype(np.int64) * num_classes + hoi[rows], keys)
    boxes = np.stack([predictions[name].to_numpy()[rows[comparable]] for name in BOX_COLUMNS], 1).astype(np.float64)
    if rule.inclusive_ends:
        boxes[:, [2, 3, 6, 7]] += 1
    truth_boxes = truth_boxes[by_key]
    best, overlap = best_of_group(first[group], count[group], lambda d, g: pair_overlap(boxes[d], truth_boxes[g]))
    # claims on one ground truth stem from one class, where rows come by score
    positive = np.zeros(len(rows), bool)
    positive[comparable] = first_claims(best, overlap > 0.5 if rule.strict else overlap >= 0.5)

    num_gt = np.bincount(truth_hoi, minlength=num_classes)
    num_det = np.bincount(hoi[rows], minlength=num_classes)
    ap, max_recall = np.full((2, num_classes), np.nan)
    ends = np.cumsum(num_det)
    for c in np.flatnonzero(num_gt):
        labels = positive[ends[c] - num_det[c] : ends[c]]
        ap[c], max_recall[c] = average_precision(labels, num_gt[c], rule.integration)
    true_positive = np.zeros(len(image), bool)
    true_positive[rows] = positive
    return ApResult(ap, max_recall, num_gt, num_det, counted, true_positive)


def summarise(
    result: ApResult, *, unseen: Collection[int] | None = None, rare: Collection[int] | None = None
) -> dict[str, float]:
    """Means in percent (0..100, as papers print them) under flat names (spec §4.3).

    Each is an unweighted mean over the classes with ground truth of its group, so that
    full = (|U| unseen + |S| seen) / (|U| + |S|).
    unseen, rare: class ids of the group; the complement is seen / non-rare. None: no such grouping, both means are nan.
    An empty group is nan, and so is the harmonic mean 2 unseen seen / (unseen + seen) without both.
    """
    ap = 100 * result.ap
    means = {f"mAP_{name}": _mean(ap[members]) for name, members in class_groups(result, unseen, rare).items()}
    total = means["mAP_unseen"] + means["mAP_seen"]
    return means | {"harmonic_mean": 2 * means["mAP_unseen"] * means["mAP_seen"] / total if total else total}


def class_groups(
    result: ApResult, unseen: Collection[int] | None = None, rare: Collection[int] | None = None
) -> dict[str, np.ndarray]:
    """[C] bool of the classes with ground truth in full, unseen, seen, rare, non_rare; all False for an unset pair."""
    known = ~np.isnan(result.ap)
    groups = {"full": known}
    for inside, outside, ids in (("unseen", "seen", unseen), ("rare", "non_rare", rare)):
        members = _members(ids or (), len(known), inside)
        groups[inside] = known & members
        groups[outside] = known & ~members & (ids is not None)
    return groups


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


def precision_recall(predictions: pd.DataFrame, result: ApResult, hoi: int) -> pd.DataFrame:
    """The curve of one class, a row a detection by descending score: score, recall, precision (0..1)."""
    rows = np.flatnonzero(result.counted & (predictions["hoi"].to_numpy() == hoi))
    score = predictions["score"].to_numpy()[rows]
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(result.true_positive[rows[order]])
    ranks = np.arange(1, len(rows) + 1)
    return pd.DataFrame({"score": score[order], "recall": hits / result.num_gt[hoi], "precision": hits / ranks})


def pair_overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """min(IoU_h, IoU_o) [T] of pairs a, b [T, 8] (human box, object box; coordinates)."""
    return np.minimum(iou(a[:, :4], b[:, :4]), iou(a[:, 4:], b[:, 4:]))


def _rule(protocol: ProtocolName | Protocol) -> Protocol:
    if isinstance(protocol, Protocol):
        return protocol
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r}: expected one of {list(PROTOCOLS)} or a Protocol")
    return PROTOCOLS[protocol]


def _within_cap(image: np.ndarray, score: np.ndarray, counted: np.ndarray, cap: int) -> np.ndarray:
    """Rows [M] bool among the `cap` of highest score of their image."""
    rows = np.flatnonzero(counted)
    rows = rows[np.lexsort((-score[rows], image[rows]))]
    _, first, count = np.unique(image[rows], return_index=True, return_counts=True)
    kept = np.zeros(len(image), bool)
    kept[rows[np.arange(len(rows)) - np.repeat(first, count) < cap]] = True
    return kept


def _check_predictions(predictions: pd.DataFrame, num_classes: int) -> None:
    source = predictions.attrs.get("source", "predictions")  # the file, for tables that come from one
    missing = [name for name in PREDICTION_COLUMNS if name not in predictions]
    if missing:
        raise PredictionError(
            source, f"columns {list(predictions.columns)}, {missing} are missing", f"{list(PREDICTION_COLUMNS)}",
            "write one row a (pair, HOI)",
        )  # fmt: skip
    for name in ("image", "hoi"):
        if not pd.api.types.is_integer_dtype(predictions[name]):
            raise PredictionError(source, f"{predictions[name].dtype} in {name}", "integers", "cast it before")
    for name in (*BOX_COLUMNS, "score"):
        bad = np.flatnonzero(~np.isfinite(predictions[name].to_numpy()))
        if len(bad):
            raise PredictionError(
                source, f"{name} of row {bad[0]} is {predictions[name].iloc[bad[0]]} ({len(bad)} such rows)",
                "finite numbers", "the model diverged or the table is damaged; predict again",
            )  # fmt: skip
    low, high = predictions["hoi"].min(), predictions["hoi"].max()
    if len(predictions) and not 0 <= low <= high < num_classes:
        raise PredictionError(
            source, f"hoi ids {low}..{high}", f"0..{num_classes - 1}",
            "the table was made with another vocabulary: give its annotations",
        )  # fmt: skip


def _checked_truth(truth: Mapping[str, np.ndarray], num_classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """image [N], hoi [N] int64 and boxes [N, 8] float64 (human, object)."""
    image, hoi = (np.asarray(truth[name], np.int64) for name in ("image", "hoi"))
    sides = [np.asarray(truth[name], np.float64).reshape(-1, 4) for name in ("boxes_h", "boxes_o")]
    if len({len(image), len(hoi), *map(len, sides)}) > 1:
        lengths = {name: len(truth[name]) for name in ("image", "boxes_h", "boxes_o", "hoi")}
        found = f"columns of unequal length {lengths}"
        raise PredictionError("ground truth", found, "one entry a pair in each", "correct the annotation file")
    if len(hoi) and not (hoi.min() >= 0 and hoi.max() < num_classes):
        found, mend = f"hoi ids {hoi.min()}..{hoi.max()}", "correct the annotation file"
        raise PredictionError("ground truth", found, f"0..{num_classes - 1}", mend)
    for name, boxes in zip(("boxes_h", "boxes_o"), sides, strict=True):
        bad = np.flatnonzero(~(boxes[:, 2:] > boxes[:, :2]).all(1))
        if len(bad):
            found = f"{name}[{bad[0]}] = {boxes[bad[0]].tolist()} of image {image[bad[0]]}, no area ({len(bad)} such)"
            raise PredictionError("ground truth", found, "x1 < x2 and y1 < y2", "correct the annotation file")
    return image, hoi, np.concatenate(sides, 1)


def _mean(ap: np.ndarray) -> float:
    return float(ap.mean()) if len(ap) else np.nan


def _members(group: Collection[int], num_classes: int, name: str) -> np.ndarray:
    ids = np.asarray(list(group), np.int64)
    if len(ids) and not (ids.min() >= 0 and ids.max() < num_classes):
        raise ValueError(f"{name} class ids {ids.min()}..{ids.max()}, expected 0..{num_classes - 1}")
    members = np.zeros(num_classes, bool)
    members[ids] = True
    return members


if __name__ == "__main__":
    from lib.evaluation.hico_det_command import main

    raise SystemExit(main())
