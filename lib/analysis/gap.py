"""Metrics of the vision-text modality gap, as pure functions (definitions: spec diffusion-bridge.md §1.2).

Sources: centroid gap and its vector, Liang et al. 2022 ("Mind the Gap"); relative modality gap (RMG) and the distances
L2M, L2I, Schrodi et al. 2024 ("Two Effects, One Trigger"); alignment and uniformity, Wang & Isola 2020; MMD, Gretton et
al. 2012; Frechet distance, Heusel et al. 2017, shrunk as by Ledoit & Wolf 2004; sliced Wasserstein, Bonneel et al.
2015; effective rank, Roy & Vetterli 2007; hubness, Radovanovic et al. 2010.

Every function takes L2-normalised rows. Names: v [N, D] vision, t [M, D] text; where rows are paired, t [N, D] holds
the class text of row i. `similarity` [N, K] is the cosine of each vision row to each class text and `truth` [N, K]
(bool) marks its ground-truth classes. Row-wise metrics return [N] (their mean is the metric, their rows feed the
bootstrap); set metrics return a float, NaN where a set is too small for them. The intervals: `gap_bootstrap`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.spatial.distance import cdist, pdist
from scipy.stats import skew, wasserstein_distance
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

BLOCK = 10_000_000  # similarities held in memory at once when neighbours are looked for

# ---------------------------------------------------------------- where the two clouds lie


def centroid_gap(v: np.ndarray, t: np.ndarray) -> float:
    """||mean v - mean t|| (L2M). About 0.8 for raw CLIP; near zero by construction once each mean is subtracted."""
    return float(np.linalg.norm(v.mean(0) - t.mean(0)))


def centroid_cosine(v: np.ndarray, t: np.ndarray) -> float:
    """Cosine of the two means; NaN where a mean is shorter than 0.1: once subtracted, what is left of it is noise."""
    mean_v, mean_t = v.mean(0), t.mean(0)
    lengths = np.linalg.norm(mean_v), np.linalg.norm(mean_t)
    return float(mean_v @ mean_t / (lengths[0] * lengths[1])) if min(lengths) >= 0.1 else float("nan")


def mean_angle(v: np.ndarray, t: np.ndarray) -> float:
    """Angle between the two means in degrees; NaN where `centroid_cosine` is."""
    return float(np.degrees(np.arccos(np.clip(centroid_cosine(v, t), -1, 1))))


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


def separability_rows(v: np.ndarray, t: np.ndarray, folds: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Held-out verdicts [N + M, 2] of a logistic regression that tells vision (0) from text (1), and the modality.

    Columns: 1.0 where the row is classified rightly; the share of the other modality's rows of the same fold that its
    score is on the right side of (ties count half), whose mean is the AUC. L2-regularised (C = 1), both modalities
    weigh the same, k-fold: no row is judged by a model that has seen it. NaN where a modality has fewer than two rows.
    """
    y = np.repeat([0, 1], [len(v), len(t)])
    found = np.full((len(y), 2), np.nan)
    folds = min(folds, len(v), len(t))
    if folds < 2:
        return found, y
    x = np.concatenate([v, t])
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, y):
        model = LogisticRegression(class_weight="balanced", max_iter=1000).fit(x[train], y[train])
        score = model.decision_function(x[test])
        sides = [score[y[test] == 0], score[y[test] == 1]]
        beats = (sides[1] > sides[0][:, None]) + 0.5 * (sides[1] == sides[0][:, None])  # (n_v, n_t)
        found[test, 0] = (score > 0) == y[test]
        found[test[y[test] == 0], 1], found[test[y[test] == 1], 1] = beats.mean(1), beats.mean(0)
    return found, y


def linear_separability(v: np.ndarray, t: np.ndarray, folds: int = 5, seed: int = 0) -> tuple[float, float]:
    """(balanced accuracy, AUC) of `separability_rows`: 0.5 means closed however unequal the sets are, 1.0 open.

    Both are floored at 0.5: sets centred on their own rows fall below it (the held-out rows lie opposite the others),
    which is an artefact of the centring and nothing a detector could use.
    """
    rows, y = separability_rows(v, t, folds, seed)
    accuracy, auc = (rows[y == 0].mean(0) + rows[y == 1].mean(0)) / 2
    return tuple(float(np.maximum(value, 0.5)) for value in (accuracy, auc))


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
    """Median pairwise Euclidean distance of the pooled rows, the bandwidth of `mmd2`; 1e-6 where most coincide."""
    return max(float(np.median(pdist(np.concatenate([v, t])))), 1e-6)


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
    return frechet_to(v, t, components)(v)


def frechet_to(v: np.ndarray, t: np.ndarray, components: int | None = None) -> Callable[[np.ndarray], float]:
    """`frechet_distance` to t as a function of other rows than v (resamples of it, say); the axes are those of v, t."""
    if min(len(v), len(t)) < 2:
        return lambda _: float("nan")
    axes = np.eye(v.shape[1])
    if components is not None and components < v.shape[1]:
        pooled = np.concatenate([v, t]).astype(np.float64)
        axes = np.linalg.eigh(np.cov(pooled.T))[1][:, -components:]  # (D, components)
    text = t @ axes
    mean, cov = text.mean(0), ledoit_wolf(text)[0]
    values, vectors = np.linalg.eigh(cov)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T

    def distance(x: np.ndarray) -> float:
        x = x @ axes
        own = ledoit_wolf(x)[0]
        cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ own @ root), 0, None)).sum()
        return float(((x.mean(0) - mean) ** 2).sum() + np.trace(own) + np.trace(cov) - 2 * cross)

    return distance


def directions(dim: int, slices: int, seed: int = 0) -> np.ndarray:
    """[D, slices] directions drawn evenly from the unit sphere."""
    drawn = np.random.default_rng(seed).normal(size=(dim, slices))
    return drawn / np.linalg.norm(drawn, axis=0)


def sliced_wasserstein(v: np.ndarray, t: np.ndarray, slices: int = 64, seed: int = 0) -> float:
    """Mean over directions of the 1-Wasserstein distance between the two sets' projections, exact for unequal sizes.

    A pure shift by m in D dimensions gives |m| Gamma(D/2) / (sqrt(pi) Gamma((D+1)/2)), about 0.8 |m| / sqrt(D).
    """
    axes = directions(v.shape[1], slices, seed)
    pairs = zip((v @ axes).T, (t @ axes).T, strict=True)
    return float(np.mean([wasserstein_distance(a, b) for a, b in pairs])) if min(len(v), len(t)) else float("nan")


# ---------------------------------------------------------------- shape of one cloud: collapse alarms


def uniformity(x: np.ndarray) -> float:
    """log mean_{i != j} exp(-2 ||x_i - x_j||^2); 0 when all points coincide, lower when they spread."""
    return float(np.log(np.exp(-2 * pdist(x, "sqeuclidean")).mean())) if len(x) > 1 else float("nan")


def effective_rank(x: np.ndarray) -> float:
    """exp(entropy of the normalised covariance eigenvalues), 1 .. min(N - 1, D); 1 also for a single spot."""
    x = x.astype(np.float64) - x.mean(0)
    # the smaller of covariance and Gram matrix: the same eigenvalues but for zeros
    variances = np.clip(np.linalg.eigvalsh(x.T @ x if x.shape[1] < len(x) else x @ x.T), 0, None)
    total = variances.sum()
    if total < 1e-12 * max(len(x), 1):
        return 1.0
    share = variances[variances > 0] / total
    return float(np.exp(-(share * np.log(share)).sum()))


def intra_class_cosine(v: np.ndarray, labels: np.ndarray) -> float:
    """Mean pairwise cosine inside a class, averaged over the classes with at least two rows; 1 means snapped."""
    values = [mean_pairwise_cosine(v[labels == label]) for label in np.unique(labels)]
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def nearest(x: np.ndarray, k: int, others: np.ndarray | None = None) -> np.ndarray:
    """[N, k] indices of the most similar rows, best first: among the other rows of x, or among `others` [M, D].

    k is cut to the number of candidates. Rows are taken in blocks, so that many of them fit into memory.
    """
    candidates = x if others is None else others
    k = min(k, len(candidates) - (others is None))
    if k < 1:
        return np.zeros((len(x), 0), dtype=np.int64)
    found, step = [], max(1, BLOCK // len(candidates))
    for start in range(0, len(x), step):
        similarity = x[start : start + step] @ candidates.T
        if others is None:
            rows = np.arange(len(similarity))
            similarity[rows, start + rows] = -np.inf
        best = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(similarity, best, 1), axis=1, kind="stable")
        found.append(np.take_along_axis(best, order, 1))
    return np.concatenate(found) if found else np.zeros((0, k), dtype=np.int64)


def neighbour_preservation(before: np.ndarray, after: np.ndarray, k: int = 10) -> np.ndarray:
    """[N] share of a row's k nearest rows in `before` that are still among its k nearest in `after` (the same points).

    1: the order of the neighbourhood is kept; about k / N: points were shuffled.
    """
    old, new = nearest(before, k), nearest(after, k)
    if not old.shape[1]:
        return np.full(len(before), np.nan)
    return (old[:, :, None] == new[:, None, :]).any(2).mean(1)


# ---------------------------------------------------------------- class-aware: what detection depends on


def paired_cosine(similarity: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[N] cosine to the ground-truth class text, averaged over the labels of a pair with several."""
    return (similarity * truth).sum(1) / truth.sum(1)


def alignment(similarity: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[N] ||v_i - t_i||^2 = 2 - 2 cos."""
    return 2 - 2 * paired_cosine(similarity, truth)


def matched_distance(similarity: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[N] ||v_i - t_i|| (L2I), the Euclidean distance to the class text; averaged over several labels."""
    distance = np.sqrt(np.clip(2 - 2 * similarity, 0, None))
    return (distance * truth).sum(1) / truth.sum(1)


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


def class_ap(similarity: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Average precision [K] of ranking the rows by their cosine to each class text; NaN for a class without a pair.

    On ground-truth pairs: what a perfect detector would leave to the text. weights: [B, N] how often each row counts,
    then [B, K]; equal rows form one place of the ranking.
    """
    found = np.full((1 if weights is None else len(weights), truth.shape[1]), np.nan)
    for k in np.flatnonzero(truth.any(0)):
        order = np.argsort(-similarity[:, k], kind="stable")
        hits = np.flatnonzero(truth[order, k])
        if weights is None:
            found[0, k] = (np.arange(1, len(hits) + 1) / (hits + 1)).mean()
            continue
        ranked = weights[:, order]
        mine = ranked[:, hits]
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = mine.cumsum(1) / ranked.cumsum(1)[:, hits]
            found[:, k] = np.where(mine > 0, precision * mine, 0).sum(1) / mine.sum(1)
    return found[0] if weights is None else found


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


def second_label_ranks(similarity: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Rank (1 = best) of the second-best ground-truth class of every pair with several -> [n], possibly empty."""
    several = truth.sum(1) > 1
    similarity, truth = similarity[several], truth[several]
    if not several.any():
        return np.zeros(0)
    second = np.sort(np.where(truth, similarity, -np.inf), axis=1)[:, -2]  # (n,)
    return 1.0 + (similarity > second[:, None]).sum(1)


def second_label_rank(similarity: np.ndarray, truth: np.ndarray) -> float:
    """Median of `second_label_ranks`; NaN where no pair has several labels."""
    ranks = second_label_ranks(similarity, truth)
    return float(np.median(ranks)) if len(ranks) else float("nan")
