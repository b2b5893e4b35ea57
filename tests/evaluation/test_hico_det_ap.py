"""HICO-DET AP against hand-computed cases, the real test annotation, and a slow literal reference."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lib.evaluation.average_precision import average_precision
from lib.evaluation.hico_det import (
    BOX_COLUMNS,
    Protocol,
    hico_det_ap,
    per_class_table,
    summarise,
)

REAL = Path(__file__).parents[3] / "shared/data/real/instances_test2015.json.gz"
FACTS = Path(__file__).parents[3] / "shared/facts"

BOX = (0, 0, 10, 10)
HALF = (0, 0, 10, 5)  # IoU with BOX is exactly 50 / 100
FAR = (50, 50, 60, 60)


def make_truth(*rows):
    """Rows (image, hoi, human box, object box)."""
    image, hoi, human, thing = zip(*rows, strict=True)
    return {
        "image": np.array(image),
        "hoi": np.array(hoi),
        "boxes_h": np.array(human, float),
        "boxes_o": np.array(thing, float),
    }


def make_predictions(*rows):
    """Rows (image, hoi, score, human box, object box)."""
    table = pd.DataFrame([(*human, *thing) for *_, human, thing in rows], columns=BOX_COLUMNS, dtype=np.float32)
    table["image"] = np.array([row[0] for row in rows], np.int32)
    table["hoi"] = np.array([row[1] for row in rows], np.int16)
    table["score"] = np.array([row[2] for row in rows], np.float32)
    return table


@pytest.mark.parametrize(
    ("hits", "matlab", "numpy"),
    [(3, 3, 3), (6, 7, 6), (7, 8, 7), (5, 6, 6), (10, 11, 11), (0, 0, 0)],
)
def test_recall_grid_is_a_grid_of_doubles(hits, matlab, numpy):
    """P = 10, hits first: precision is 1 up to recall hits / 10 (data-and-evaluation.md §9 item 5)."""
    positive = np.arange(10) < hits
    assert average_precision(positive, 10)[0] == pytest.approx(matlab / 11, abs=1e-12)
    assert average_precision(positive, 10, "11-point-arange")[0] == pytest.approx(numpy / 11, abs=1e-12)
    assert average_precision(positive, 10)[1] == hits / 10


def test_envelope_takes_the_best_later_precision():
    """Labels 0 1 1 0 1 of 4: precision at the hits 1/2, 2/3, 3/5; recall 1/4, 2/4, 3/4."""
    ap, recall = average_precision(np.array([False, True, True, False, True]), 4)
    # thresholds 0 .. 0.5: 2/3 (best from the second hit on); 0.6, 0.7: 3/5; above: nothing
    assert ap == pytest.approx((6 * 2 / 3 + 2 * 3 / 5) / 11, abs=1e-12)
    assert recall == 0.75


def test_exact_half_overlap():
    truth = make_truth((0, 0, BOX, BOX))
    predictions = make_predictions((0, 0, 0.9, HALF, BOX))
    assert hico_det_ap(predictions, truth, 1).ap[0] == 0
    assert hico_det_ap(predictions, truth, 1, protocol=Protocol(strict=False)).ap[0] == 1


def test_both_boxes_must_overlap():
    truth = make_truth((0, 0, BOX, BOX))
    for human, thing in ((FAR, BOX), (BOX, FAR)):
        assert hico_det_ap(make_predictions((0, 0, 1, human, thing)), truth, 1).ap[0] == 0


def test_duplicate_with_worse_box_but_better_score_wins():
    truth = make_truth((0, 0, BOX, BOX))
    predictions = make_predictions((0, 0, 0.5, BOX, BOX), (0, 0, 0.6, (0, 0, 10, 9), BOX))
    result = hico_det_ap(predictions, truth, 1)
    assert result.true_positive.tolist() == [False, True]
    assert result.ap[0] == 1


def test_no_fallback_to_the_second_best():
    """Both detections prefer the first pair; the second passes 0.5 with the other one too: a duplicate."""
    near = (0, 0, 10, 8)
    truth = make_truth((0, 0, BOX, BOX), (0, 0, near, BOX))
    predictions = make_predictions((0, 0, 0.9, BOX, BOX), (0, 0, 0.8, (0, 0, 10, 9.5), BOX))
    result = hico_det_ap(predictions, truth, 1)
    assert result.true_positive.tolist() == [True, False]
    assert result.max_recall[0] == 0.5


def test_equal_overlap_goes_to_the_first_pair():
    truth = make_truth((0, 0, BOX, BOX), (0, 0, BOX, BOX))
    predictions = make_predictions((0, 0, 0.9, BOX, BOX), (0, 0, 0.8, BOX, BOX))
    assert hico_det_ap(predictions, truth, 1).true_positive.tolist() == [True, False]


def test_equal_scores_rank_in_table_order():
    truth = make_truth((0, 0, BOX, BOX))
    wrong, right = (0, 0, 0.5, FAR, BOX), (0, 0, 0.5, BOX, BOX)
    assert hico_det_ap(make_predictions(right, wrong), truth, 1).ap[0] == 1
    assert hico_det_ap(make_predictions(wrong, right), truth, 1).ap[0] == 0.5


def test_images_without_ground_truth_and_cap():
    truth = make_truth((0, 0, BOX, BOX), (0, 1, BOX, BOX))
    predictions = make_predictions((5, 0, 0.9, BOX, BOX), (0, 1, 0.8, BOX, BOX), (0, 0, 0.7, BOX, BOX))
    skipped = hico_det_ap(predictions, truth, 2)
    assert skipped.ap.tolist() == [1, 1] and skipped.num_det.tolist() == [1, 1]
    assert hico_det_ap(predictions, truth, 2, protocol=Protocol(include_empty_images=True)).ap.tolist() == [0.5, 1]
    capped = hico_det_ap(predictions, truth, 2, protocol=Protocol(cap=1))
    assert capped.ap.tolist() == [0, 1] and capped.counted.tolist() == [False, True, False]


def test_class_without_detections_and_class_without_ground_truth():
    truth = make_truth((0, 0, BOX, BOX), (0, 1, BOX, BOX))
    result = hico_det_ap(make_predictions((0, 0, 0.5, BOX, BOX), (0, 2, 0.5, BOX, BOX)), truth, 3)
    assert result.ap[:2].tolist() == [1, 0] and np.isnan(result.ap[2])
    assert summarise(result)["mAP_full"] == 50
    empty = hico_det_ap(make_predictions((0, 0, 0.5, BOX, BOX)).iloc[:0], truth, 3)
    assert empty.ap[:2].tolist() == [0, 0]


def test_inverted_predicted_box_is_a_false_positive():
    truth = make_truth((0, 0, BOX, BOX))
    predictions = make_predictions((0, 0, 0.9, (10, 0, 0, 10), BOX), (0, 0, 0.8, BOX, BOX))
    assert hico_det_ap(predictions, truth, 1).true_positive.tolist() == [False, True]


def test_means():
    truth = make_truth(*((0, c, BOX, BOX) for c in range(4)))
    predictions = make_predictions((0, 0, 1, BOX, BOX), (0, 1, 1, FAR, BOX), (0, 1, 0.5, BOX, BOX))
    result = hico_det_ap(predictions, truth, 4)  # AP 1, 1/2, 0, 0
    means = summarise(result, unseen=[0], rare=[1, 2])
    assert means["mAP_full"] == pytest.approx(37.5)
    assert means["mAP_unseen"] == pytest.approx(100)
    assert means["mAP_seen"] == pytest.approx(50 / 3)
    assert means["mAP_rare"] == pytest.approx(25) and means["mAP_non_rare"] == pytest.approx(50)
    assert means["harmonic_mean"] == pytest.approx(2 * 100 * (50 / 3) / (100 + 50 / 3))
    assert (means["mAP_unseen"] + 3 * means["mAP_seen"]) / 4 == pytest.approx(means["mAP_full"])
    assert (2 * means["mAP_rare"] + 2 * means["mAP_non_rare"]) / 4 == pytest.approx(means["mAP_full"])
    supervised = summarise(result, unseen=[])
    assert np.isnan(supervised["mAP_unseen"]) and supervised["mAP_seen"] == supervised["mAP_full"]
    assert np.isnan(supervised["mAP_rare"]) and np.isnan(supervised["harmonic_mean"])

    table = per_class_table(result, unseen=[0], rare=[1, 2])
    assert table["ap"].tolist() == [100, 50, 0, 0]
    assert table["num_gt"].tolist() == [1, 1, 1, 1]
    assert table["seen"].tolist() == [False, True, True, True]
    assert table["rare"].tolist() == [False, True, True, False]


def _overlap(a, b):
    def iou(p, q):
        w = min(p[2], q[2]) - max(p[0], q[0])
        h = min(p[3], q[3]) - max(p[1], q[1])
        shared = max(w, 0) * max(h, 0)
        return shared / ((p[2] - p[0]) * (p[3] - p[1]) + (q[2] - q[0]) * (q[3] - q[1]) - shared)

    return min(iou(a[:4], b[:4]), iou(a[4:], b[4:]))


def literal_ap(predictions, truth, num_classes, *, strict, numpy_grid, include_empty, cap):
    """The rule of §5.1-§5.2 detection by detection, with a `taken` flag in global score order."""
    kept = predictions.reset_index(drop=True)
    if not include_empty:
        kept = kept[kept["image"].isin(set(truth["image"].tolist()))]
    if cap is not None:
        by_score = kept.sort_values("score", ascending=False, kind="stable")
        kept = by_score.groupby("image", sort=False).head(cap).sort_index()
    grid = [k * 0.1 if numpy_grid or k == 3 else k / 10 for k in range(11)]
    aps = []
    for c in range(num_classes):
        pairs = [
            (image, (*human, *thing))
            for image, hoi, human, thing in zip(
                truth["image"], truth["hoi"], truth["boxes_h"], truth["boxes_o"], strict=True
            )
            if hoi == c
        ]
        if not pairs:
            aps.append(np.nan)
            continue
        ranked = kept[kept["hoi"] == c].sort_values("score", ascending=False, kind="stable")
        taken, labels = set(), []
        for image, *box in ranked[["image", *BOX_COLUMNS]].itertuples(index=False):
            rivals = [(_overlap(box, pair), -g) for g, (owner, pair) in enumerate(pairs) if owner == image]
            m, g = max(rivals, default=(0, 0))
            labels.append((m > 0.5 if strict else m >= 0.5) and g not in taken)
            if labels[-1]:
                taken.add(g)
        total = 0.0
        for t in grid:
            best, hits = 0.0, 0
            for k, label in enumerate(labels, 1):
                hits += label
                if hits / len(pairs) >= t:
                    best = max(best, hits / k)
            total += best
        aps.append(total / 11)
    return np.array(aps)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("strict", "numpy_grid", "include_empty", "cap"),
    [(True, False, False, None), (False, True, True, 6)],
)
def test_equals_the_literal_rule(seed, strict, numpy_grid, include_empty, cap, monkeypatch):
    """Coarse boxes and scores: ties and overlaps of exactly one half are frequent; slices cut mid-image."""
    monkeypatch.setattr("lib.evaluation.matching.COMBINATIONS_AT_ONCE", 7)
    rng = np.random.default_rng(seed)
    num_classes, num_images = 5, 8

    def boxes(n):
        corner = rng.integers(0, 3, (n, 2))
        return np.concatenate((corner, corner + rng.integers(1, 4, (n, 2))), 1).astype(float)

    n_gt, n_det = 60, 300
    truth = {
        "image": rng.integers(0, num_images - 2, n_gt),  # the last two images have no pair
        "hoi": rng.integers(0, num_classes - 1, n_gt),  # nor has the last class
        "boxes_h": boxes(n_gt),
        "boxes_o": boxes(n_gt),
    }
    near = rng.integers(0, n_gt, n_det)
    follow = rng.random((n_det, 1)) < 0.6
    predictions = pd.DataFrame(
        np.concatenate([np.where(follow, truth[name][near], boxes(n_det)) for name in ("boxes_h", "boxes_o")], 1),
        columns=BOX_COLUMNS,
        dtype=np.float32,
    )
    predictions["image"] = np.where(follow[:, 0], truth["image"][near], rng.integers(0, num_images, n_det))
    predictions["hoi"] = np.where(follow[:, 0], truth["hoi"][near], rng.integers(0, num_classes, n_det))
    predictions["score"] = (rng.integers(0, 12, n_det) / 12).astype(np.float32)
    predictions.index = rng.permutation(n_det)  # labels of the index must not matter

    fast = hico_det_ap(
        predictions,
        truth,
        num_classes,
        protocol=Protocol(strict, "11-point-arange" if numpy_grid else "11-point", include_empty, cap),
    )
    slow = literal_ap(
        predictions,
        truth,
        num_classes,
        strict=strict,
        numpy_grid=numpy_grid,
        include_empty=include_empty,
        cap=cap,
    )
    np.testing.assert_allclose(fast.ap, slow, rtol=0, atol=1e-12)
    assert 0 < np.nanmean(fast.ap) < 1


@pytest.fixture(scope="module")
def real_truth():
    if not REAL.is_file():
        pytest.skip("the complete HICO-DET test annotation (shared/data/real) is not here")
    with gzip.open(REAL) as stream:
        annotation = json.load(stream)["annotation"]
    counts = [len(rows["hoi"]) for rows in annotation]
    shift = np.array([1, 1, 0, 0])
    truth = {
        name: np.concatenate([np.asarray(rows[name], float).reshape(-1, 4) for rows in annotation]) - shift
        for name in ("boxes_h", "boxes_o")
    }
    truth["image"] = np.repeat(np.arange(len(annotation)), counts)
    truth["hoi"] = np.concatenate([np.asarray(rows["hoi"], np.int64) for rows in annotation])
    return truth


def as_predictions(truth, score):
    table = pd.DataFrame(
        np.concatenate((truth["boxes_h"], truth["boxes_o"]), 1).astype(np.float32), columns=BOX_COLUMNS
    )
    return table.assign(image=truth["image"], hoi=truth["hoi"], score=score)


def test_ground_truth_fed_back_scores_one(real_truth):
    result = hico_det_ap(as_predictions(real_truth, np.float32(1)), real_truth, 600)
    assert (result.ap == 1).all() and (result.max_recall == 1).all()
    assert result.true_positive.all() and result.num_gt.sum() == 33_405


def test_full_is_the_weighted_mean_of_the_groups(real_truth):
    """Jittered ground truth; |U| unseen + |S| seen = 600 full for every public split, likewise 138 / 462."""
    if not FACTS.is_dir():
        pytest.skip("the fact files (shared/facts) are not here")
    rng = np.random.default_rng(0)
    predictions = as_predictions(real_truth, rng.random(33_405).astype(np.float32))
    predictions[list(BOX_COLUMNS)] += rng.normal(0, 25, (33_405, 8))
    result = hico_det_ap(predictions, real_truth, 600)
    rare = json.loads((FACTS / "hico_rare.json").read_text())["rare"]
    assert len(rare) == 138
    splits = json.loads((FACTS / "hico_zero_shot.json").read_text())["settings"]
    for name, split in splits.items():
        unseen = split["unseen_hoi"]
        means = summarise(result, unseen=unseen, rare=rare)
        assert 5 < means["mAP_full"] < 95
        mixed = (138 * means["mAP_rare"] + 462 * means["mAP_non_rare"]) / 600
        assert mixed == pytest.approx(means["mAP_full"], abs=1e-9)
        mixed = (np.nan_to_num(means["mAP_unseen"]) * len(unseen) + (600 - len(unseen)) * means["mAP_seen"]) / 600
        assert mixed == pytest.approx(means["mAP_full"], abs=1e-9), name


def test_impossible_input_is_refused():
    truth = make_truth((0, 0, BOX, BOX))
    good = make_predictions((0, 0, 0.5, BOX, BOX))
    with pytest.raises(ValueError, match="columns .*score.* are missing"):
        hico_det_ap(good.drop(columns="score"), truth, 1)
    with pytest.raises(ValueError, match="score of row 0 is nan"):
        hico_det_ap(good.assign(score=np.float32("nan")), truth, 1)
    with pytest.raises(ValueError, match="another vocabulary"):
        hico_det_ap(good.assign(hoi=3), truth, 1)
    with pytest.raises(ValueError, match="expected integers"):
        hico_det_ap(good.assign(hoi=0.0), truth, 1)
    with pytest.raises(ValueError, match=r"boxes_h\[0\].*no area"):
        hico_det_ap(good, make_truth((0, 0, (5, 5, 5, 9), BOX)), 1)
    with pytest.raises(ValueError, match="unseen class ids"):
        summarise(hico_det_ap(good, truth, 1), unseen=[4])
