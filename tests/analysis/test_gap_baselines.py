"""Closed-form baselines: each does exactly what its formula says, fitted on training pairs only."""

import numpy as np
import pytest

from lib.analysis import gap
from lib.analysis.baselines import fit_baselines
from lib.analysis.embeddings import normalised
from lib.analysis.gap_report import BASELINE, gap_metrics, gap_table, measure, report_of
from lib.settings import AnalysisSettings

NAMES = ["identity", "shared_centring", "modality_centring", "mean_shift", "whitening", "orthogonal", "ridge"]


@pytest.fixture
def world():
    """Vision = a fixed turn of the text of its class plus noise, both cones moved apart; training and test rows."""
    rng = np.random.default_rng(0)
    texts = normalised(rng.normal(size=(20, 12)))
    turn = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    labels = rng.integers(0, 20, 900)
    vision = texts[labels] @ turn + 0.03 * rng.normal(size=(900, 12)) + 0.8 * np.eye(12)[0]
    return vision, texts + 0.8 * np.eye(12)[1], np.eye(20, dtype=bool)[labels]


def recall(vision, texts, truth):
    return gap.recall_at((vision @ texts.T).astype(float), truth, 1).mean()


def test_every_baseline_is_there_and_gives_unit_rows(world):
    vision, texts, truth = world
    found = fit_baselines(vision, texts, truth)
    assert list(found) == NAMES
    for apply in found.values():
        for rows in apply(vision[:7], texts):
            np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)


def test_the_simple_ones_by_formula(world):
    vision, texts, truth = world
    found = fit_baselines(vision, texts, truth)
    v, t = normalised(vision), normalised(texts)
    np.testing.assert_allclose(found["identity"](vision, texts)[0], v, atol=1e-6)
    moved, kept = found["mean_shift"](vision, texts)
    np.testing.assert_allclose(moved, normalised(v + t.mean(0) - v.mean(0)), atol=1e-5)
    np.testing.assert_allclose(kept, t, atol=1e-6)
    both = (v.mean(0) + t.mean(0)) / 2
    np.testing.assert_allclose(found["shared_centring"](vision, texts)[1], normalised(t - both), atol=1e-5)
    own = found["modality_centring"](vision, texts)
    assert gap.centroid_gap(*own) < 0.1 < gap.centroid_gap(*found["shared_centring"](vision, texts))


def test_maps_fitted_on_training_pairs_find_a_turn_on_test_pairs(world):
    vision, texts, truth = world
    train, test = slice(0, 600), slice(600, 900)
    found = fit_baselines(vision[train], texts, truth[train])
    scores = {name: recall(*apply(vision[test], texts), truth[test]) for name, apply in found.items()}
    assert scores["orthogonal"] > 0.9 and scores["ridge"] > 0.9
    assert max(scores[name] for name in NAMES[:4]) < 0.3


def test_whitened_training_rows_have_a_round_covariance(world):
    vision, texts, truth = world
    rng = np.random.default_rng(1)
    stretched = vision * np.linspace(0.2, 3, 12) + 0.1 * rng.normal(size=vision.shape)
    white = fit_baselines(stretched, texts, truth)["whitening"](stretched, texts)[0]
    values = np.linalg.eigvalsh(np.cov(white.T))
    assert values.max() / values.min() < 4 < np.ptp(np.linalg.eigvalsh(np.cov(normalised(stretched).T))) * 1e3
    assert gap.effective_rank(white) > gap.effective_rank(normalised(stretched)) + 2


def test_unlabelled_training_pairs_are_refused(world):
    vision, texts, truth = world
    with pytest.raises(ValueError, match="3 of them without a class"):
        fit_baselines(vision, texts, np.concatenate([np.zeros((3, 20), dtype=bool), truth[3:]]))


def test_baselines_stand_in_the_same_report(make_table):
    table, settings = make_table(80), AnalysisSettings(bootstrap=10)
    raw, text = table.select("raw"), table.select("text")
    truth = np.eye(len(text), dtype=bool)[raw.frame["hoi_id"]]
    report = report_of(measure(table, settings, fit_baselines(raw.vectors, text.vectors, truth)))
    wide = gap_table(report, with_baselines=True)
    assert [name for name in wide if name.startswith(BASELINE)] == [BASELINE + name for name in NAMES]
    # nothing is done: the state itself
    same = wide.drop(columns="reading").astype(float)
    np.testing.assert_allclose(same[f"{BASELINE}identity"], same["raw"], rtol=1e-5, equal_nan=True)
    flat = gap_metrics(report)
    assert f"gap/{BASELINE}ridge/recall@1_unseen" in flat and f"gap/{BASELINE}ridge/mmd2" not in flat
    assert flat["gap/pairs"] == 80 and flat["gap/texts"] == 24
