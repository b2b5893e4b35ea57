"""Metrics of the vision-text modality gap, as pure functions (definitions: spec diffusion-bridge.md §1.2).

Every function takes L2-normalised rows. Names: v [N, D] vision, t [M, D] text; where rows are paired, t [N, D] holds
the class text of row i. `similarity` [N, K] is the cosine of each vision row to each class text and `truth` [N, K]
(bool) marks its ground-truth classes. Row-wise metrics return [N] (their mean is the metric, their rows feed the
bootstrap); set metrics return a float, NaN where a set is too small for them.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist, pdist
from scipy.stats import skew
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold

# ---------------------------------------------------------------- where the two clouds lie


def centroid_gap(v: np.ndarray, t: np.ndarray) -> float:
    """||mean v - mean t|| (L2M). About 0.8 for raw CLIP; near zero by construction once each mean is subtracted."""
    return float(np.linalg.norm(v.mean(0) - t.mean(0)))


def centroid_cosine(v: np.ndarray, t: np.ndarray) -> float:
    """Cosine of the two means; NaN where a mean is shorter than 0.1: once subtracted, what is left of it is noise."""
    mean_v, mean_t = v.mean(0), t.mean(0)
    lengths = np.linalg.norm(mean_v), np.linalg.norm(mean_t)
    return float(mean_v @ mean_t / (lengths[0] * lengths[1])) if min(lengths) >= 0.1 else float("nan")


def mean_pairwise_cosine(x: np.ndarray) -> float:
    """mean over i != j of cos(x_i, x_j), in O(N D) through the sum vector; NaN for fewer than two rows."""
    n = len(x)
    if n < 2:
        return float("nan")
    x = x.astype(np.float64)
    total = x.sum(0)
    return float((total @ total - (x * x).sum()) / (n * (n - 1)))


def relative_modality_gap(v: np.ndarray, t: np.ndarray) -> float:
    """RMG = A / ((I_v + I_t) / 2 + A) of paired rows, with d = (1 - cos) / 2.

    A = mean_i d(v_i, t_i), I_x = mean_{i != j} d(x_i, x_j). 0: paired rows coincide; towards 1: the pairs are far apart
    compared with the spread inside each modality. Identical, fully collapsed sets give 0.
    """
    across = float((1 - (v.astype(np.float64) * t).sum(1)).mean() / 2)
    inside = ((1 - mean_pairwise_cosine(v)) / 2 + (1 - mean_pairwise_cosine(t)) / 2) / 2
    return across / (inside + across) if inside + across > 0 else 0.0


def linear_separability(v: np.ndarray, t: np.ndarray, folds: int = 5, seed: int = 0) -> tuple[float, float]:
    """(accuracy, AUC) of an L2-regularised logistic regression that tells vision from text, k-fold, held out.

    Both classes weigh the same and the accuracy is the balanced one, so 0.5 means closed however unequal the sets are.
    Both numbers are floored at 0.5: sets centred on their own rows fall below it (the held-out rows lie opposite the
    others), which is an artefact of the centring and nothing a detector could use.
    """
    folds = min(folds, len(v), len(t))
    if folds < 2:
        return float("nan"), float("nan")
    x = np.concatenate([v, t])
    y = np.repeat([0, 1], [len(v), len(t)])
    accuracy, auc = [], []
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, y):
        model = LogisticRegression(class_weight="balanced", max_iter=1000).fit(x[train], y[train])
        accuracy.append(balanced_accuracy_score(y[test], model.predict(x[test])))
        auc.append(roc_auc_score(y[test], model.decision_function(x[test])))
    return max(0.5, float(np.mean(accuracy))), max(0.5, float(np.mean(auc)))


def modality_purity(v: np.ndarray, t: np.ndarray, k: int = 10, seed: int = 0, draws: int = 10) -> float:
    """Mean share of a point's k nearest neighbours that are of its own modality.

    Drawn from equally large sets (the larger one is subsampled, averaged over `draws`), so that mixed sets give about
    0.5 and separate ones 1.0 whatever their sizes. k is cut to the size of the smaller set less one.
    """
    m = min(len(v), len(t))
    k = min(k, m - 1)
    if k < 1:
        return float("nan")
    rng = np.random.default_rng(seed)
    modality = np.repeat([0, 1], m)
    shares = []
    for _ in range(1 if len(v) == len(t) else draws):
        x = np.concatenate([side[rng.permutation(len(side))[:m]] for side in (v, t)])  # (2m, D)
        similarity = x @ x.T
        np.fill_diagonal(similarity, -np.inf)
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        shares.append((modality[nearest] == modality[:, None]).mean())
    return float(np.mean(shares))


# ---------------------------------------------------------------- distances between the two distributions


def median_bandwidth(v: np.ndarray, t: np.ndarray) -> float:
    """Median pairwise Euclidean distance of the pooled rows, the bandwidth of `mmd2`."""
    return float(np.median(pdist(np.concatenate([v, t]))))


def mmd2(v: np.ndarray, t: np.ndarray, bandwidth: float | None = None) -> float:
    """Unbiased squared maximum mean discrepancy, kernel exp(-||x - y||^2 / (2 h^2)).

    bandwidth: h; None takes `median_bandwidth`. Near 0, possibly below, for samples of one distribution.
    """
    if min(len(v), len(t)) < 2:
        return float("nan")
    scale = 2 * (median_bandwidth(v, t) if bandwidth is None else bandwidth) ** 2
    within = [np.exp(-pdist(x, "sqeuclidean") / scale).mean() for x in (v, t)]
    return float(sum(within) - 2 * np.exp(-cdist(v, t, "sqeuclidean") / scale).mean())


def frechet_distance(v: np.ndarray, t: np.ndarray, components: int | None = None) -> float:
    """||m1 - m2||^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2) with Ledoit-Wolf shrunk covariances.

    components: first project on that many principal axes of the pooled rows. With fewer rows than dimensions a
    covariance is singular; shrinkage keeps the number finite and comparable between states, the subspace honest.
    """
    if min(len(v), len(t)) < 2:
        return float("nan")
    v, t = v.astype(np.float64), t.astype(np.float64)
    if components is not None and components < v.shape[1]:
        pooled = np.concatenate([v, t])
        axes = np.linalg.svd(pooled - pooled.mean(0), full_matrices=False)[2][:components].T  # (D, components)
        v, t = v @ axes, t @ axes
    cov_v, cov_t = ledoit_wolf(v)[0], ledoit_wolf(t)[0]
    values, vectors = np.linalg.eigh(cov_v)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ cov_t @ root), 0, None)).sum()
    return float(((v.mean(0) - t.mean(0)) ** 2).sum() + np.trace(cov_v) + np.trace(cov_t) - 2 * cross)


# ---------------------------------------------------------------- shape of one cloud: collapse alarms


def uniformity(x: np.ndarray) -> float:
    """log mean_{i != j} exp(-2 ||x_i - x_j||^2); 0 when all points coincide, lower when they spread."""
    return float(np.log(np.exp(-2 * pdist(x, "sqeuclidean")).mean())) if len(x) > 1 else float("nan")


def effective_rank(x: np.ndarray) -> float:
    """exp(entropy of the normalised covariance eigenvalues), 1 .. min(N - 1, D); 1 also for a single spot."""
    variances = np.linalg.svd(x.astype(np.float64) - x.mean(0), compute_uv=False) ** 2
    total = variances.sum()
    if total < 1e-12 * max(len(x), 1):
        return 1.0
    share = variances[variances > 0] / total
    return float(np.exp(-(share * np.log(share)).sum()))


def intra_class_cosine(v: np.ndarray, labels: np.ndarray) -> float:
    """Mean pairwise cosine inside a class, averaged over the classes with at least two rows; 1 means snapped."""
    values = [mean_pairwise_cosine(v[labels == label]) for label in np.unique(labels)]
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


# ---------------------------------------------------------------- class-aware: what detection depends on


def paired_cosine(similarity: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[N] cosine to the ground-truth class text, averaged over the labels of a pair with several."""
    return (similarity * truth).sum(1) / truth.sum(1)


def alignment(similarity: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[N] ||v_i - t_i||^2 = 2 - 2 cos."""
    return 2 - 2 * paired_cosine(similarity, truth)


def unpaired_margin(similarity: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[N] cosine to the own class text minus the mean cosine to the class texts of the other rows.

    Its mean is `paired - unpaired` of the spec, up to O(1/N): the other rows weigh the classes by their frequency.
    """
    n = len(similarity)
    share = truth / truth.sum(1, keepdims=True)  # (N, K): the class texts of a row
    others = (share.sum(0) - share) / max(n - 1, 1)  # (N, K): those of all other rows
    return paired_cosine(similarity, truth) - (similarity * others).sum(1)


def gt_margin(similarity: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[N] cosine to the ground-truth class less that to the best wrong class: the metric that tracks detection."""
    return paired_cosine(similarity, truth) - np.where(truth, -np.inf, similarity).max(1)


def recall_at(similarity: np.ndarray, truth: np.ndarray, k: int) -> np.ndarray:
    """[N] 1.0 where a ground-truth class is among the k most similar; ties count against it."""
    best = np.where(truth, similarity, -np.inf).max(1, keepdims=True)
    return ((np.where(truth, -np.inf, similarity) >= best).sum(1) < k).astype(np.float64)


def max_cosine(similarity: np.ndarray) -> np.ndarray:
    """[N] cosine to the most similar class, right or wrong.

    Label-free and therefore no evidence of anything by itself: it rises whenever points snap onto texts, also onto the
    wrong ones (spec §1.4: it rose in every setting, including those where mAP collapsed). Read beside `gt_margin` only.
    """
    return similarity.max(1)


def hit_entropy(similarity: np.ndarray) -> float:
    """Entropy of the predicted-class histogram over log K: 0 when every point becomes one text, 1 when even."""
    classes = similarity.shape[1]
    if classes < 2:
        return float("nan")
    share = np.bincount(similarity.argmax(1), minlength=classes) / len(similarity)
    share = share[share > 0]
    return float(-(share * np.log(share)).sum() / np.log(classes) + 0.0)


def hubness(similarity: np.ndarray, k: int = 5) -> float:
    """Skewness of how often a text is among the k nearest of a vision row; large when a few attract everything."""
    k = min(k, similarity.shape[1])
    nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
    counts = np.bincount(nearest.ravel(), minlength=similarity.shape[1])
    return float(skew(counts)) if counts.std() > 0 else 0.0


def second_label_rank(similarity: np.ndarray, truth: np.ndarray) -> float:
    """Median rank (1 = best) of the second-best ground-truth class, over pairs with several labels; NaN without any."""
    several = truth.sum(1) > 1
    if not several.any():
        return float("nan")
    similarity, truth = similarity[several], truth[several]
    second = np.sort(np.where(truth, similarity, -np.inf), axis=1)[:, -2]  # (n,)
    return float(np.median(1 + (similarity > second[:, None]).sum(1)))


# ---------------------------------------------------------------- intervals


def bootstrap_means(values: np.ndarray, groups: np.ndarray, resamples: int, seed: int = 0) -> np.ndarray:
    """Means of `values` [N, ...] in `resamples` bootstrap samples of whole groups -> [resamples, ...].

    groups: [N] ids (the image of each pair): pairs of one image are not independent, so images are resampled.
    """
    _, group = np.unique(groups, return_inverse=True)
    n_groups = int(group.max()) + 1
    flat = values.reshape(len(values), -1).astype(np.float64)
    sums = np.zeros((n_groups, flat.shape[1]))
    np.add.at(sums, group, flat)
    weight = np.random.default_rng(seed).multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=resamples)
    means = (weight @ sums) / (weight @ np.bincount(group))[:, None]
    return means.reshape(resamples, *values.shape[1:])


def interval(samples: np.ndarray) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of bootstrap samples [B]; NaN for none."""
    if not len(samples):
        return float("nan"), float("nan")
    low, high = np.quantile(samples, [0.025, 0.975])
    return float(low), float(high)
