"""Resampled average precision against the plain rule on copies of the images."""

import numpy as np
import pandas as pd
import pytest

from lib.evaluation.bootstrap import group_means, image_draws, interval, resampled_ap
from lib.evaluation.hico_det import BOX_COLUMNS, Protocol, hico_det_ap

CLASSES, IMAGES = 4, 12


@pytest.fixture
def scored():
    """Pairs on a grid of boxes: predictions partly on, partly beside the ground truth; unequal scores."""
    rng = np.random.default_rng(0)
    count = 60
    truth = {"image": rng.integers(0, IMAGES, 25), "hoi": rng.integers(0, CLASSES - 1, 25)}  # class 3 has no truth
    corner = rng.integers(0, 5, (25, 2)) * 20.0
    truth["boxes_h"] = np.concatenate([corner, corner + 18], 1)
    truth["boxes_o"] = truth["boxes_h"] + 3
    source = rng.integers(0, 25, count)
    boxes = np.concatenate([truth["boxes_h"][source], truth["boxes_o"][source]], 1)
    boxes += 12 * (rng.random((count, 1)) < 0.4)
    table = pd.DataFrame(boxes, columns=list(BOX_COLUMNS))
    table["image"], table["hoi"] = truth["image"][source], truth["hoi"][source]
    table["score"] = rng.permutation(count) / count
    return table, truth


def copied(table: pd.DataFrame, truth: dict, draw: np.ndarray) -> tuple[pd.DataFrame, dict]:
    """The data set of a draw written out: an image drawn twice is there twice."""
    tables, truths, new = [], [], 0
    for image, times in enumerate(draw.astype(int)):
        for _ in range(times):
            tables.append(table[table["image"] == image].assign(image=new))
            rows = truth["image"] == image
            truths.append({name: value[rows] for name, value in truth.items()} | {"image": np.full(rows.sum(), new)})
            new += 1
    return pd.concat(tables, ignore_index=True), {name: np.concatenate([t[name] for t in truths]) for name in truth}


@pytest.mark.parametrize("integration", ["11-point", "11-point-arange", "all-point"])
def test_every_image_once_is_the_plain_rule(scored, integration):
    table, truth = scored
    result = hico_det_ap(table, truth, CLASSES, protocol=Protocol(integration=integration))
    ap = resampled_ap(table, result, truth, np.ones((2, IMAGES)), integration)
    np.testing.assert_allclose(ap, [result.ap, result.ap], atol=1e-12)
    assert np.isnan(ap[:, 3]).all() and 0 < np.nanmean(ap) < 1


def test_a_draw_equals_a_data_set_with_copies_of_its_images(scored, monkeypatch):
    monkeypatch.setattr("lib.evaluation.bootstrap.ENTRIES_AT_ONCE", 40)  # several chunks
    table, truth = scored
    draws = image_draws(IMAGES, 5, seed=1)
    assert (draws.sum(1) == IMAGES).all() and (draws[0] != draws[1]).any()
    found = resampled_ap(table, hico_det_ap(table, truth, CLASSES), truth, draws)
    for ap, draw in zip(found, draws, strict=True):
        # copies of one detection share a score: the copy ranks directly behind it, as in the weighted sum at its end
        expected = hico_det_ap(*copied(table, truth, draw), CLASSES).ap
        np.testing.assert_allclose(ap, expected, atol=1e-12)


def test_means_skip_classes_that_a_draw_lacks():
    ap = np.array([[0.5, np.nan, 1.0], [0.5, 0.1, 0.3]])
    means = group_means(ap, {"full": np.array([True, True, True]), "rare": np.array([False, True, False])})
    np.testing.assert_allclose(means["full"], [75, 30])
    np.testing.assert_allclose(means["rare"], [np.nan, 10])


def test_the_interval_leaves_a_fortieth_on_either_side_and_follows_a_bias():
    draws = np.append(np.arange(1001) / 10, np.nan)
    assert interval(draws, 50.0) == pytest.approx((2.5, 97.5))
    assert interval(draws, 30.0) == pytest.approx((-17.5, 77.5))  # draws 20 too high: both ends move down
    assert np.isnan(interval(np.array([np.nan]), 1.0)).all()


def test_the_corrected_interval_covers_the_truth_of_a_biased_estimate():
    """Standard deviation with divisor n: draws sit low; the corrected interval covers the true value more often."""
    rng, hits = np.random.default_rng(0), np.zeros(2)
    for _ in range(300):
        x = rng.normal(size=15)
        draws = np.array([x[rng.integers(0, 15, 15)].std() for _ in range(200)])
        plain, corrected = np.quantile(draws, [0.025, 0.975]), interval(draws, x.std())
        hits += [plain[0] < 1 < plain[1], corrected[0] < 1 < corrected[1]]
    assert hits[1] > hits[0] and hits[1] / 300 > 0.8


def test_a_rule_without_grid_is_refused(scored):
    table, truth = scored
    with pytest.raises(ValueError, match="int.*expected one of"):
        resampled_ap(table, hico_det_ap(table, truth, CLASSES), truth, np.ones((1, IMAGES)), "int")
