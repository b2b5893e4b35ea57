"""Repulsion on a spline grid against the sum over all pairs, and the map that it leads to against Barnes-Hut's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from openTSNE import TSNEEmbedding
from openTSNE.affinity import PerplexityBasedNN
from openTSNE.initialization import pca

from lib.analysis.tsne_gradient import SplineGradient

LAYOUTS = {
    "as a fit starts": lambda rng: 1e-4 * rng.standard_normal((700, 2)),
    "islands": lambda rng: rng.uniform(-60, 60, (25, 1, 2)).repeat(40, 0).reshape(-1, 2) + rng.normal(0, 2, (1000, 2)),
    "a line": lambda rng: np.stack([rng.uniform(-80, 80, 600), rng.normal(0, 1e-3, 600)], 1),
    "far from the origin": lambda rng: 3e3 + rng.normal(0, 15, (800, 2)),
}


def all_pairs(y: np.ndarray) -> tuple[np.ndarray, float]:
    """The two sums of `repulsion`, pair by pair in double precision."""
    away = y[:, None] - y[None]
    kernel = 1 / (1 + (away**2).sum(-1))
    return (away * kernel[..., None] ** 2).sum(1), kernel.sum() - len(y)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_repulsion_is_the_sum_over_all_pairs(layout):
    y = LAYOUTS[layout](np.random.default_rng(0))
    forces, total = SplineGradient().repulsion(torch.from_numpy(y.astype(np.float32)))
    expected, expected_total = all_pairs(y.astype(np.float32).astype(np.float64))
    scale = np.abs(expected).mean()
    assert np.abs(forces.numpy() - expected).mean() < 0.02 * scale
    assert total == pytest.approx(expected_total, rel=0.01)
    assert np.abs(forces.double().sum(0).numpy()).max() < 1e-3 * np.abs(expected).sum()  # action and reaction


def fitted(x: np.ndarray, method: object) -> TSNEEmbedding:
    """A map of x by openTSNE's usual two phases."""
    affinities = PerplexityBasedNN(x, perplexity=20, method="exact", random_state=0)
    told = {"negative_gradient_method": method, "random_state": 0, "n_jobs": torch.get_num_threads()}
    found = TSNEEmbedding(pca(x, random_state=0), affinities, **told)
    found.optimize(250, exaggeration=12, momentum=0.5, inplace=True)
    return found.optimize(500, momentum=0.8, inplace=True)


@pytest.fixture(scope="module")
def clouds() -> np.ndarray:
    rng = np.random.default_rng(1)
    return (rng.standard_normal((8, 1, 10)) * 3 + rng.standard_normal((8, 150, 10))).reshape(-1, 10)


def test_the_map_is_as_good_as_that_of_barnes_hut(clouds):
    ours, theirs = fitted(clouds, SplineGradient()), fitted(clouds, "bh")
    assert ours.kl_divergence == pytest.approx(theirs.kl_divergence, rel=0.03)
    assert np.array_equal(ours, fitted(clouds, SplineGradient()))


def test_new_points_are_placed_as_by_barnes_hut(clouds):
    ours, theirs = fitted(clouds, SplineGradient()), fitted(clouds, "bh")
    same_map = TSNEEmbedding(np.array(ours), theirs.affinities, negative_gradient_method="bh", random_state=0)
    new = clouds[:20] + 0.1
    expected = same_map.prepare_partial(new, perplexity=5).optimize(100)
    assert np.allclose(ours.prepare_partial(new, perplexity=5).optimize(100), expected)
