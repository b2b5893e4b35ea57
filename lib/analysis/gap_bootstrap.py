"""Bootstrap samples of the gap metrics: every metric again for many weightings of the same rows.

Images are drawn with replacement (pairs of one image are not independent) and the class texts are held fixed; a drawn
image gives its pairs a weight, so that a whole resample is a few matrix products over arrays that exist already. Two
states of the same pairs see the same draws: the difference of their samples is that of a paired bootstrap. (Efron &
Tibshirani 1993, ch. 13; a row is never its own neighbour or partner, however often it was drawn.)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.stats import skew

from lib.analysis import gap
from lib.evaluation.bootstrap import image_draws

FEWEST = 20  # resamples of a metric that is too costly for all of them
BUDGET = 2e9  # multiplications spent on the resamples of one costly metric, state and split


def image_weights(groups: np.ndarray, resamples: int, seed: int = 0) -> np.ndarray:
    """[B, N]: how often each row counts in each resample of whole groups (the image of each pair)."""
    _, group = np.unique(groups, return_inverse=True)
    return image_draws(int(group.max()) + 1, resamples, seed)[:, group]


def weighted_means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Means of `values` [N, ...] under weights [B, N] -> [B, ...]; NaN where a resample holds no row."""
    flat = values.reshape(len(values), -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = (weights @ flat) / weights.sum(1, keepdims=True)
    return means.reshape(len(weights), *values.shape[1:])


def interval(samples: np.ndarray, value: float | None = None, signed: bool = False) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of bootstrap samples [B]; NaN for none.

    value: of the metric on all rows. The samples are then shifted to have it as their mean, for metrics that are biased
    under resampling (a norm grows, a rank shrinks); a quantity that is never negative keeps its sign, unless it is a
    difference (`signed`).
    """
    samples = samples[np.isfinite(samples)]
    if not len(samples):
        return float("nan"), float("nan")
    shift = 0.0 if value is None else value - samples.mean()
    low, high = np.quantile(samples, [0.025, 0.975]) + shift
    return float(low if signed or samples.min() < 0 else max(low, 0.0)), float(high)


def affordable(resamples: int, cost: float) -> int:
    """How many of the resamples are made of a metric that takes `cost` multiplications each: at least FEWEST."""
    return min(resamples, max(FEWEST, int(BUDGET / max(cost, 1.0))))


# ---------------------------------------------------------------- weighted forms of the set metrics


def pairwise_means(kernel: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of kernel [N, N] over pairs of different rows under weights [B, N] -> [B]."""
    w = weights.astype(kernel.dtype)
    own = w * w
    total = ((w @ kernel) * w).sum(1) - own @ np.diagonal(kernel)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (total / (w.sum(1) ** 2 - own.sum(1))).astype(np.float64)


def class_cosines(v: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`gap.intra_class_cosine` under weights [B, N] -> [B]."""
    found = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            continue
        w, x = weights[:, rows], v[rows].astype(np.float64)
        own = w * w
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append((((w @ x) ** 2).sum(1) - own @ (x * x).sum(1)) / (w.sum(1) ** 2 - own.sum(1)))
    return _nan_mean(np.stack(found, 1)) if found else np.full(len(weights), np.nan)


def sliced_samples(v: np.ndarray, t: np.ndarray, slices: int, seed: int, weights: np.ndarray) -> np.ndarray:
    """`gap.sliced_wasserstein` under weights [B, N] of the vision rows -> [B]: the area between the two CDFs."""
    axes = gap.directions(v.shape[1], slices, seed)
    both = np.concatenate([v, t]) @ axes  # (N + M, slices)
    share = weights / weights.sum(1, keepdims=True)
    signed = np.concatenate([share, np.full((len(weights), len(t)), -1 / len(t))], axis=1)  # (B, N + M)
    total = np.zeros(len(weights))
    for column in both.T:
        order = np.argsort(column)
        total += np.abs(signed[:, order].cumsum(1)[:, :-1]) @ np.diff(column[order])
    return total / slices


def mmd_samples(v: np.ndarray, t: np.ndarray, bandwidth: float, weights: np.ndarray) -> np.ndarray:
    """`gap.mmd2` at a fixed bandwidth under weights [B, N] -> [B]."""
    if min(len(v), len(t)) < 2:
        return np.full(len(weights), np.nan)
    # unit rows: |a - b|^2 = 2 - 2 cos
    kernel = lambda a, b: np.exp(np.minimum(a @ b.T - 1, 0) / bandwidth**2)  # noqa: E731
    text = float(pairwise_means(kernel(t, t), np.ones((1, len(t))))[0])
    return pairwise_means(kernel(v, v), weights) + text - 2 * weighted_means(kernel(v, t).mean(1), weights)


def purity_samples(v: np.ndarray, t: np.ndarray, k: int, seed: int, weights: np.ndarray) -> np.ndarray:
    """`gap.modality_purity`, one draw of equally many rows from each affordable resample -> [b]."""
    cost = (2.0 * min(len(v), len(t))) ** 2 * (v.shape[1] + 20)
    counts = weights[: affordable(len(weights), cost)]
    return np.array([gap.modality_purity(v[count > 0], t, k, seed + i, draws=1) for i, count in enumerate(counts)])


def entropy_samples(similarity: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`gap.hit_entropy` under weights [B, N] -> [B]."""
    classes = similarity.shape[1]
    if classes < 2:
        return np.full(len(weights), np.nan)
    share = weighted_means(np.eye(classes)[similarity.argmax(1)], weights)  # (B, K)
    return -(share * np.log(np.where(share > 0, share, 1))).sum(1) / np.log(classes)


def hubness_samples(similarity: np.ndarray, weights: np.ndarray, k: int = 5) -> np.ndarray:
    """`gap.hubness` under weights [B, N] -> [B]."""
    k = min(k, similarity.shape[1])
    member = np.zeros_like(similarity)
    np.put_along_axis(member, np.argpartition(-similarity, k - 1, axis=1)[:, :k], 1, axis=1)
    counts = weights @ member  # (B, K)
    return np.where(counts.std(1) > 0, skew(counts + 0.0, axis=1), 0.0)


def median_samples(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted medians of `values` [n] under weights [B, n] -> [B]; NaN where a resample holds none."""
    order = np.argsort(values)
    cumulated = weights[:, order].cumsum(1)
    half = cumulated[:, -1:] / 2
    upper, lower = (cumulated > half).argmax(1), (cumulated >= half).argmax(1)
    medians = (values[order][upper] + values[order][lower]) / 2
    return np.where(half[:, 0] > 0, medians, np.nan)


def separability_samples(rows: np.ndarray, modality: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Balanced accuracy and AUC [B, 2] of `gap.separability_rows` under weights [B, N] of vision; without refit."""
    return np.maximum((weighted_means(rows[modality == 0], weights) + rows[modality == 1].mean(0)) / 2, 0.5)


def redrawn(metric: Callable[[np.ndarray], float], v: np.ndarray, weights: np.ndarray, cost: float) -> np.ndarray:
    """A metric of the rows v, computed anew on each resample that is affordable -> [b]."""
    counts = weights[: affordable(len(weights), cost)].astype(int)
    return np.array([metric(np.repeat(v, count, axis=0)) for count in counts])


def _nan_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis without NaN; NaN where all are."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known, values, 0).sum(-1) / known.sum(-1)


def class_map_samples(similarity: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of `gap.class_ap` over classes under weights [B, N] -> [b]; classes that a resample lacks are left out."""
    cost = 4.0 * len(similarity) * truth.any(0).sum()
    return _nan_mean(gap.class_ap(similarity, truth, weights[: affordable(len(weights), cost)]))
