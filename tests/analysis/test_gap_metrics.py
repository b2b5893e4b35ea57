"""Gap metrics against known answers: closed forms on Gaussians, brute force, and hand-computed cases."""

import numpy as np
import pytest

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


def test_bootstrap_resamples_whole_groups(rng):
    values = rng.normal(size=4000) + 1
    low, high = gap.interval(gap.bootstrap_means(values, np.arange(4000), 500))
    assert (high - low) == pytest.approx(2 * 1.96 / np.sqrt(4000), rel=0.15) and low < 1 < high
    # 40 groups of 100 equal rows carry the information of 40 rows
    grouped = np.repeat(rng.normal(size=40), 100)
    low, high = gap.interval(gap.bootstrap_means(grouped, np.repeat(np.arange(40), 100), 500))
    assert (high - low) == pytest.approx(2 * 1.96 * grouped.std() / np.sqrt(40), rel=0.2)
    assert np.isnan(gap.interval(gap.bootstrap_means(values, np.arange(4000), 0))).all()
    table = gap.bootstrap_means(np.stack([values, 2 * values], axis=1), np.arange(4000), 20, seed=1)
    np.testing.assert_allclose(table[:, 1], 2 * table[:, 0])
