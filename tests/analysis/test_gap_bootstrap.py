"""Bootstrap samples: weights of one give the metric itself, whole weights give the metric of repeated rows."""

import numpy as np
import pytest

from lib.analysis import gap
from lib.analysis import gap_bootstrap as boot
from lib.analysis.embeddings import normalised
from lib.analysis.gap_measure import measure_sets
from lib.analysis.gap_sets import of_split, state_sets
from lib.settings import AnalysisSettings


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_resamples_are_of_whole_groups(rng):
    values = rng.normal(size=4000) + 1
    weights = boot.image_weights(np.arange(4000), 500)
    assert (weights.sum(1) == 4000).all()
    low, high = boot.interval(boot.weighted_means(values, weights))
    assert (high - low) == pytest.approx(2 * 1.96 / np.sqrt(4000), rel=0.15) and low < 1 < high
    # 40 groups of 100 equal rows carry the information of 40 rows
    grouped = np.repeat(rng.normal(size=40), 100)
    low, high = boot.interval(boot.weighted_means(grouped, boot.image_weights(np.repeat(np.arange(40), 100), 500)))
    assert (high - low) == pytest.approx(2 * 1.96 * grouped.std() / np.sqrt(40), rel=0.2)
    assert np.isnan(boot.interval(np.zeros(0))).all()
    table = boot.weighted_means(np.stack([values, 2 * values], axis=1), weights)
    np.testing.assert_allclose(table[:, 1], 2 * table[:, 0])


def test_an_interval_is_shifted_to_its_value_and_keeps_its_sign():
    samples = np.linspace(0, 1, 101)
    assert boot.interval(samples) == pytest.approx((0.025, 0.975))
    assert boot.interval(samples, 0.7) == pytest.approx((0.225, 1.175))
    assert boot.interval(samples, 0.2) == pytest.approx((0.0, 0.675))
    assert boot.interval(samples, 0.2, signed=True) == pytest.approx((-0.275, 0.675))


def test_costly_metrics_get_fewer_resamples_but_never_too_few():
    assert boot.affordable(300, 1.0) == 300
    assert boot.affordable(300, boot.BUDGET / 50) == 50
    assert boot.affordable(300, 1e15) == boot.FEWEST and boot.affordable(5, 1e15) == 5


@pytest.mark.parametrize("split", ["all", "unseen"])
def test_weights_of_one_give_every_metric_itself(make_table, monkeypatch, split):
    monkeypatch.setattr(boot, "image_weights", lambda groups, resamples, seed: np.ones((1, len(groups))))
    sets = of_split(state_sets(make_table(60), "centred"), split)
    found = measure_sets(sets, AnalysisSettings())
    drawn = {name: float(sample[0]) for name, sample in found.samples.items() if len(sample)}
    constant = {"effective_rank_text", "uniformity_text", "text_norm", "max_cosine_std", "vision_norm_std"}
    undefined = {name for name, value in found.values.items() if np.isnan(value)}
    assert set(found.values) - set(drawn) - undefined == constant | {"mmd_bandwidth"}
    for name, sample in drawn.items():
        if name != "modality_purity":  # one draw of the larger side instead of ten
            assert sample == pytest.approx(found.values[name], rel=1e-4, abs=1e-5), name


def test_whole_weights_are_repeated_rows(rng):
    similarity = rng.normal(size=(30, 5))
    v, t = normalised(rng.normal(size=(30, 5))), normalised(rng.normal(size=(9, 5)))
    count = rng.integers(0, 3, 30)
    weights = count[None].astype(float)
    again = lambda x: np.repeat(x, count, axis=0)  # noqa: E731
    check = lambda sample, value: np.testing.assert_allclose(sample, [value], rtol=1e-4)  # noqa: E731
    check(boot.entropy_samples(similarity, weights), gap.hit_entropy(again(similarity)))
    check(boot.hubness_samples(similarity, weights, 2), gap.hubness(again(similarity), 2))
    check(boot.sliced_samples(v, t, 8, 0, weights), gap.sliced_wasserstein(again(v), t, 8, 0))
    values = similarity[:, 0]
    check(boot.median_samples(values, weights), np.median(again(values)))
    check(boot.redrawn(gap.effective_rank, v, weights, 1.0), gap.effective_rank(again(v)))


def test_a_row_is_no_partner_of_itself_however_often_it_is_drawn(rng):
    v = normalised(rng.normal(size=(12, 4))).astype(np.float64)
    kernel, weights = v @ v.T, rng.integers(0, 4, (3, 12)).astype(float)
    for w, found in zip(weights, boot.pairwise_means(kernel, weights), strict=True):
        pairs = [(w[i] * w[j], kernel[i, j]) for i in range(12) for j in range(12) if i != j]
        assert found == pytest.approx(sum(a * b for a, b in pairs) / sum(a for a, _ in pairs))
    labels = np.arange(12) % 3
    within = [boot.pairwise_means(kernel[np.ix_(labels == k, labels == k)], weights[:, labels == k]) for k in range(3)]
    np.testing.assert_allclose(boot.class_cosines(v, labels, weights), np.nanmean(within, axis=0))


def test_weighted_class_ap_takes_equal_rows_as_one_place():
    # two hits at ranks 1 and 3; the miss between them counts three times, the second hit twice
    similarity, truth = np.array([[0.9], [0.5], [0.1]]), np.array([[True], [False], [True]])
    found = gap.class_ap(similarity, truth, np.array([[1.0, 3.0, 2.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]))
    assert found[0, 0] == pytest.approx((1 * 1 + 2 * (3 / 6)) / 3)
    assert found[1, 0] == pytest.approx((1 + 2 / 3) / 2) and np.isnan(found[2, 0])
