"""Every gap metric of one state and split with its samples (definitions: `gap`, resampling: `gap_bootstrap`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lib.analysis import gap
from lib.analysis import gap_bootstrap as boot
from lib.analysis.embeddings import normalised
from lib.analysis.gap_sets import Sets
from lib.settings import AnalysisSettings

Add = Callable[[str, float, np.ndarray], None]  # name, value, bootstrap samples [b]


@dataclass
class Measured:
    """Metrics of one state and split: values, bootstrap samples [b] of those that vary, numbers of rows."""

    values: dict[str, float]
    samples: dict[str, np.ndarray]
    n_vision: int
    n_text: int


def _row_metrics(sets: Sets, settings: AnalysisSettings) -> dict[str, np.ndarray]:
    s, truth = sets.similarity, sets.truth
    return {
        "gt_margin": gap.gt_margin(s, truth),
        "recall@1": gap.recall_at(s, truth, 1),
        "recall@5": gap.recall_at(s, truth, 5),
        "paired_cosine": gap.paired_cosine(s, truth),
        "unpaired_margin": gap.unpaired_margin(s, truth),
        "matched_distance": gap.matched_distance(s, truth),
        "alignment": gap.alignment(s, truth),
        "neighbour_preservation": gap.neighbour_preservation(sets.reference, sets.v, settings.knn),
        "max_cosine": gap.max_cosine(s),
        "text_distance": 1 - gap.max_cosine(s),
        "vision_norm": sets.norms,
    }


def measure_sets(sets: Sets, settings: AnalysisSettings) -> Measured:
    """Every metric of one state and split, and its bootstrap samples."""
    v, t, s, truth = sets.v, sets.split_texts, sets.similarity, sets.truth
    weights = boot.image_weights(sets.images, settings.bootstrap, settings.seed)  # (B, N)
    by_row = _row_metrics(sets, settings)
    means = boot.weighted_means(np.stack([*by_row.values()], axis=1), weights)  # (B, rows)
    values = {name: float(value.mean()) for name, value in by_row.items()}
    samples = dict(zip(by_row, means.T, strict=True))
    values |= {f"{name}_std": float(by_row[name].std()) for name in ("max_cosine", "vision_norm")}
    values |= {"text_norm": sets.text_norm, "effective_rank_text": gap.effective_rank(t) if len(t) else float("nan")}
    values |= {"uniformity_text": gap.uniformity(t)}

    def add(name: str, value: float, sampled: np.ndarray) -> None:
        values[name], samples[name] = value, sampled

    add("class_map", float(np.nanmean(gap.class_ap(s, truth))), boot.class_map_samples(s, truth, weights))
    several = truth.sum(1) > 1
    if several.any():
        ranks = gap.second_label_ranks(s, truth)
        add("second_label_rank", float(np.median(ranks)), boot.median_samples(ranks, weights[:, several]))
    add("hit_entropy", gap.hit_entropy(s), boot.entropy_samples(s, weights))
    add("hubness", gap.hubness(s), boot.hubness_samples(s, weights))
    add("intra_class_cosine", gap.intra_class_cosine(v, sets.labels), boot.class_cosines(v, sets.labels, weights))
    _add_pairwise(sets, weights, add)
    cost = float(len(v) * v.shape[1] ** 2 + 10 * v.shape[1] ** 3)
    add("effective_rank", gap.effective_rank(v), boot.redrawn(gap.effective_rank, v, weights, cost))
    if len(t):
        _add_two_sets(v, t, settings, weights, cost, add)
    return Measured(values, samples, len(v), len(t))


def _add_pairwise(sets: Sets, weights: np.ndarray, add: Add) -> None:
    """What is a mean over pairs of vision rows: spread, uniformity, relative modality gap."""
    gram = sets.v @ sets.v.T  # (N, N)
    inside = boot.pairwise_means(gram, weights)
    add("spread", 1 - gap.mean_pairwise_cosine(sets.v), 1 - inside)
    uniform = np.log(boot.pairwise_means(np.exp(4 * gram - 4), weights))  # -2 |x - y|^2 = 4 cos - 4
    add("uniformity_vision", gap.uniformity(sets.v), uniform)
    own = normalised(sets.truth.astype(np.float32) @ sets.texts)  # (N, D) the text of each row
    across = (1 - boot.weighted_means((sets.v * own).sum(1, dtype=np.float64), weights)) / 2
    inside = ((1 - inside) / 2 + (1 - boot.pairwise_means(own @ own.T, weights)) / 2) / 2
    add("rmg", gap.relative_modality_gap(sets.v, own), across / np.maximum(inside + across, 1e-12))


def _add_two_sets(
    v: np.ndarray, t: np.ndarray, settings: AnalysisSettings, weights: np.ndarray, cost: float, add: Add
) -> None:
    """What compares the cloud of vision with that of the texts."""
    means, centre = boot.weighted_means(v.astype(np.float64), weights), t.mean(0)
    add("centroid_gap", gap.centroid_gap(v, t), np.linalg.norm(means - centre, axis=1))
    lengths = np.linalg.norm(means, axis=1) * np.linalg.norm(centre)
    angle = gap.mean_angle(v, t)
    turned = np.degrees(np.arccos(np.clip(means @ centre / np.maximum(lengths, 1e-12), -1, 1)))
    add("mean_angle", angle, turned if np.isfinite(angle) else turned[:0])
    rows, modality = gap.separability_rows(v, t, settings.folds, settings.seed)
    verdicts = boot.separability_samples(rows, modality, weights)
    unweighted = boot.separability_samples(rows, modality, np.ones((1, len(v))))[0]
    for name, value, sampled in zip(("separability", "separability_auc"), unweighted, verdicts.T, strict=True):
        add(name, float(value), sampled)
    purity = gap.modality_purity(v, t, settings.knn, settings.seed)
    add("modality_purity", purity, boot.purity_samples(v, t, settings.knn, settings.seed, weights))
    sliced = gap.sliced_wasserstein(v, t, settings.slices, settings.seed)
    add("sliced_wasserstein", sliced, boot.sliced_samples(v, t, settings.slices, settings.seed, weights))
    bandwidth = gap.median_bandwidth(v, t) if len(v) + len(t) > 1 else float("nan")
    add("mmd_bandwidth", bandwidth, np.zeros(0))
    for name, factor in (("mmd2", 1.0), ("mmd2_half", 0.5), ("mmd2_double", 2.0)):
        add(name, gap.mmd2(v, t, factor * bandwidth), boot.mmd_samples(v, t, factor * bandwidth, weights))
    for name, components in (("frechet", None), ("frechet_pca64", 64)):
        distance = gap.frechet_to(v, t, components)
        add(name, distance(v), boot.redrawn(distance, v, weights, 2 * cost))
