"""Gap metrics against known answers: closed forms on Gaussians, brute force, and hand-computed cases."""

import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold

from lib.analysis import gap
from lib.analysis.embeddings import normalised


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_centroid_gap_and_cosine_by_hand():
    v, t = np.array([[1.0, 0], [0, 1]]), np.array([[1.0, 0], [1, 0]])
    assert gap.centroid_gap(v, t) == pytest.approx(np.sqrt(0.5))
    assert gap.centroid_cosine(v, t) == pytest.approx(np.sqrt(0.5))
    assert np.isnan(gap.centroid_cosine(np.array([[1.0, 0], [-1, 0]]), t))


def test_mean_pairwise_cosine_equals_brute_force(rng):
    x = normalised(rng.normal(size=(20, 7)))
    cosine = x @ x.T
    assert gap.mean_pairwise_cosine(x) == pytest.approx(cosine[~np.eye(20, dtype=bool)].mean(), abs=1e-6)


def test_rmg_of_identical_sets_is_zero_and_by_hand_otherwise(rng):
    x = normalised(rng.normal(size=(30, 8)))
    assert gap.relative_modality_gap(x, x) == pytest.approx(0, abs=1e-6)
    # v: two orthogonal rows, t: their opposites. A = 1, I_v = I_t = 1/2, RMG = 1 / (1/2 + 1)
    v = np.eye(2)
    assert gap.relative_modality_gap(v, -v) == pytest.approx(2 / 3)
    # A = 1/2 and no spread inside either side: all of the distance is the gap
    assert gap.relative_modality_gap(np.array([[1.0, 0]] * 3), np.array([[0, 1.0]] * 3)) == pytest.approx(1)


def test_separability_is_half_for_one_distribution_and_one_for_two(rng):
    one = normalised(rng.normal(size=(900, 6)))
    accuracy, auc = gap.linear_separability(one[:600], one[600:])
    assert accuracy == pytest.approx(0.5, abs=0.06) and auc == pytest.approx(0.5, abs=0.06)
    shifted = normalised(one + np.array([4.0, 0, 0, 0, 0, 0]))
    # far fewer rows on one side must not matter
    assert gap.linear_separability(one, shifted[:40])[0] > 0.95
    assert gap.linear_separability(-shifted, shifted) == (1.0, 1.0)
    assert np.isnan(gap.linear_separability(one, shifted[:1])[0])


def test_purity_is_half_when_mixed_and_one_when_apart(rng):
    one = normalised(rng.normal(size=(600, 6)))
    assert gap.modality_purity(one[:500], one[500:]) == pytest.approx(0.5, abs=0.04)
    apart = np.array([9.0, 0, 0, 0, 0, 0])
    assert gap.modality_purity(normalised(one - apart), normalised(one + apart)[:50]) == 1.0


def test_mmd_is_zero_for_one_distribution_and_equals_brute_force(rng):
    one = rng.normal(size=(800, 4))
    assert abs(gap.mmd2(one[:400], one[400:])) < 3e-3
    assert gap.mmd2(one[:400], one[400:] + 2) > 0.3
    v, t, h = one[:5], one[5:9], 0.7
    kernel = lambda a, b: np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * h * h))  # noqa: E731
    off = lambda k: k[~np.eye(len(k), dtype=bool)].mean()  # noqa: E731
    expected = off(kernel(v, v)) + off(kernel(t, t)) - 2 * kernel(v, t).mean()
    assert gap.mmd2(v, t, bandwidth=h) == pytest.approx(expected)


def test_frechet_of_gaussians_matches_the_closed_form(rng):
    z = rng.normal(size=(40_000, 3))
    v, t = z[:20_000] * [1.0, 2, 3], z[20_000:] * [2.0, 2, 1] + [1.0, 0, 2]
    # axis-aligned: |shift|^2 + sum (s1 - s2)^2
    assert gap.frechet_distance(v, t) == pytest.approx(5 + 1 + 0 + 4, rel=0.03)
    assert gap.frechet_distance(v, v) == pytest.approx(0, abs=1e-9)
    # a pure shift survives the projection on the pooled axes it dominates
    shift = np.array([30.0, 0, 0])
    assert gap.frechet_distance(v, v + shift, components=1) == pytest.approx(900, rel=0.01)


def test_shape_metrics_see_a_collapse(rng):
    spread = normalised(rng.normal(size=(4000, 5)))
    spot = np.tile(spread[:1], (50, 1))
    assert gap.effective_rank(spread) == pytest.approx(5, abs=0.05)
    assert gap.effective_rank(spread * [1, 1, 0, 0, 0]) == pytest.approx(2, abs=0.05)
    assert gap.effective_rank(spot) == 1
    assert gap.uniformity(spot) == pytest.approx(0, abs=1e-6)
    # opposite points on an axis: half the pairs (of 4 points: 8 of 12) lie 2 apart
    two = np.array([[1.0, 0], [1, 0], [-1, 0], [-1, 0]])
    assert gap.uniformity(two) == pytest.approx(np.log((4 + 8 * np.exp(-8)) / 12))
    assert gap.intra_class_cosine(two, np.array([0, 0, 1, 1])) == pytest.approx(1)
    assert gap.intra_class_cosine(two, np.array([0, 1, 0, 1])) == pytest.approx(-1)
    assert np.isnan(gap.intra_class_cosine(two, np.arange(4)))


SIMILARITY = np.array([[0.9, 0.1, 0.2], [0.3, 0.2, 0.8], [0.5, 0.5, 0.1]])
TRUTH = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0]], dtype=bool)


def test_class_aware_metrics_by_hand():
    np.testing.assert_allclose(gap.paired_cosine(SIMILARITY, TRUTH), [0.9, 0.25, 0.5])
    np.testing.assert_allclose(gap.alignment(SIMILARITY, TRUTH), [0.2, 1.5, 1.0])
    np.testing.assert_allclose(gap.gt_margin(SIMILARITY, TRUTH), [0.7, 0.25 - 0.8, 0.0])
    np.testing.assert_array_equal(gap.recall_at(SIMILARITY, TRUTH, 1), [1, 0, 0])  # the tie of row 2 is a miss
    np.testing.assert_array_equal(gap.recall_at(SIMILARITY, TRUTH, 2), [1, 1, 1])
    np.testing.assert_allclose(gap.max_cosine(SIMILARITY), [0.9, 0.8, 0.5])
    # the texts of the other rows: row 0 sees (a + b)/2 and b, weights (1/4, 3/4, 0)
    assert gap.unpaired_margin(SIMILARITY, TRUTH)[0] == pytest.approx(0.9 - (0.25 * 0.9 + 0.75 * 0.1))
    # second-best label of row 1 is class b (0.2), below both others
    assert gap.second_label_rank(SIMILARITY, TRUTH) == 3
    assert np.isnan(gap.second_label_rank(SIMILARITY[:1], TRUTH[:1]))


def test_unpaired_margin_is_paired_minus_unpaired(rng):
    v, t = normalised(rng.normal(size=(12, 5))), normalised(rng.normal(size=(12, 5)))
    cosine = (v @ t.T).astype(float)
    expected = np.diag(cosine).mean() - cosine[~np.eye(12, dtype=bool)].mean()
    assert gap.unpaired_margin(cosine, np.eye(12, dtype=bool)).mean() == pytest.approx(expected)


def test_recall_is_one_for_perfect_alignment(rng):
    text = normalised(rng.normal(size=(20, 16)))
    similarity = (text @ text.T).astype(float)
    assert gap.recall_at(similarity, np.eye(20, dtype=bool), 1).mean() == 1


def test_hits_and_hubs():
    even = np.eye(8)
    assert gap.hit_entropy(even) == pytest.approx(1)
    one_text = np.tile([0.9] + [0.1] * 7, (30, 1))
    assert gap.hit_entropy(one_text) == 0
    assert gap.hubness(even, k=1) == 0 and gap.hubness(one_text, k=1) > 2


def test_angle_of_the_means_by_hand():
    v, t = np.array([[1.0, 0], [1, 0]]), np.array([[0.0, 1], [0, 0.5]])
    assert gap.mean_angle(v, t) == pytest.approx(90)
    assert gap.mean_angle(v, -v) == pytest.approx(180)
    assert np.isnan(gap.mean_angle(np.array([[1.0, 0], [-1, 0]]), t))


def test_sliced_wasserstein_of_shifted_gaussians_matches_the_closed_form(rng):
    dim, shift = 12, np.zeros(12)
    shift[3] = 2.5
    v = rng.normal(size=(3000, dim))
    factor = math.gamma(dim / 2) / (math.sqrt(math.pi) * math.gamma((dim + 1) / 2))
    assert gap.sliced_wasserstein(v[:300], v[:300] + shift, slices=10_000) == pytest.approx(2.5 * factor, rel=0.03)
    assert gap.sliced_wasserstein(v[:1500], v[1500:], slices=50) < 0.06
    # in one dimension every direction is +-1: the mean shift of the sorted values, also for unequal sizes
    line = np.array([[0.0], [1.0]])
    assert gap.sliced_wasserstein(line, np.array([[2.0], [2.0], [4.0], [4.0]])) == pytest.approx(2.5)


def test_separability_matches_plain_cross_validation(rng):
    v, t = normalised(rng.normal(size=(60, 5))), normalised(rng.normal(size=(30, 5)) + [0.8, 0, 0, 0, 0])
    rows, y = gap.separability_rows(v, t, folds=3, seed=4)
    x = np.concatenate([v, t])
    rights, aucs = np.zeros(90), []
    for train, test in StratifiedKFold(3, shuffle=True, random_state=4).split(x, y):
        model = LogisticRegression(class_weight="balanced", max_iter=1000).fit(x[train], y[train])
        rights[test] = model.predict(x[test]) == y[test]
        aucs.append(roc_auc_score(y[test], model.decision_function(x[test])))
    np.testing.assert_array_equal(rows[:, 0], rights)
    accuracy, auc = gap.linear_separability(v, t, folds=3, seed=4)
    assert accuracy == pytest.approx((rights[:60].mean() + rights[60:].mean()) / 2)
    assert auc == pytest.approx(np.mean(aucs))


def test_neighbours_kept_by_brute_force(rng):
    x, y = normalised(rng.normal(size=(25, 6))), normalised(rng.normal(size=(25, 6)))
    turned = np.linalg.qr(rng.normal(size=(6, 6)))[0].astype(np.float32)
    np.testing.assert_array_equal(gap.neighbour_preservation(x, x @ turned, 4), 1)
    near = lambda rows, i: set(sorted(set(range(25)) - {i}, key=lambda j: -rows[i] @ rows[j])[:4])  # noqa: E731
    expected = [len(near(x, i) & near(y, i)) / 4 for i in range(25)]
    np.testing.assert_allclose(gap.neighbour_preservation(x, y, 4), expected)


def test_nearest_is_in_order_and_leaves_the_row_itself_out(rng):
    x, others = normalised(rng.normal(size=(9, 4))), normalised(rng.normal(size=(5, 4)))
    np.testing.assert_array_equal(gap.nearest(x, 3, others), np.argsort(-(x @ others.T), axis=1)[:, :3])
    alone = x @ x.T - 9 * np.eye(9)
    np.testing.assert_array_equal(gap.nearest(x, 8), np.argsort(-alone, axis=1)[:, :8])
    assert gap.nearest(x[:1], 3).shape == (1, 0)


def test_nearest_in_blocks_is_nearest_at_once(rng, monkeypatch):
    x = normalised(rng.normal(size=(23, 4)))
    whole = gap.nearest(x, 5)
    monkeypatch.setattr(gap, "BLOCK", 23 * 4)
    np.testing.assert_array_equal(gap.nearest(x, 5), whole)


def test_class_ap_matches_scikit_learn(rng):
    similarity, truth = rng.normal(size=(40, 6)), rng.random((40, 6)) < 0.2
    truth[:, 5] = False
    found = gap.class_ap(similarity, truth)
    expected = [average_precision_score(truth[:, k], similarity[:, k]) for k in range(5)]
    np.testing.assert_allclose(found[:5], expected)
    assert np.isnan(found[5])


def test_matched_distance_by_hand():
    expected = [np.sqrt(0.2), (np.sqrt(1.4) + np.sqrt(1.6)) / 2, 1.0]
    np.testing.assert_allclose(gap.matched_distance(SIMILARITY, TRUTH), expected)
