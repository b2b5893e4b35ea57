"""The gap metrics of a whole embeddings table: every state, every split, with bootstrap intervals.

    report = gap_report(table, settings)             # tidy: state, split, metric, value, low, high, n_vision, n_text
    changes = gap_changes(table, "centred", "bridged", settings)     # paired differences with intervals
    run.record(**gap_metrics(report, changes))       # gap/<state>/<metric>, ..._seen, ..._unseen

Splits choose the vision rows. Class-aware metrics rank against *all* class texts in every split (the generalised
zero-shot setting); set metrics compare with the class texts of the split. Pairs of no class are left out throughout.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from lib.analysis import gap
from lib.analysis.embeddings import EmbeddingTable, normalised
from lib.settings import AnalysisSettings

SPLITS = ("all", "seen", "unseen")


@dataclass(frozen=True)
class Metric:
    """How a metric is named and read. better: +1 higher, -1 lower, 0 neither (an alarm or a description)."""

    label: str
    better: int
    reading: str


METRICS: dict[str, Metric] = {
    "gt_margin": Metric("margin to best wrong class", +1, "true class less best wrong class; tracks detection"),
    "recall@1": Metric("recall@1", +1, "true class is the nearest text"),
    "recall@5": Metric("recall@5", +1, "true class among the five nearest texts"),
    "paired_cosine": Metric("cosine to true class", +1, "vision row and its class text"),
    "unpaired_margin": Metric("paired - unpaired cosine", +1, "true class less an average class"),
    "centroid_gap": Metric("centroid gap (L2M)", -1, "about 0.8 raw CLIP; 0 by construction once centred"),
    "centroid_cosine": Metric("centroid cosine", +1, "undefined once the means are subtracted"),
    "rmg": Metric("relative modality gap", -1, "pair distance relative to the spread inside the modalities"),
    "alignment": Metric("alignment", -1, "squared distance to the class text"),
    "separability": Metric("linear separability", -1, "balanced accuracy; 0.5 closed, 1.0 open"),
    "separability_auc": Metric("linear separability (AUC)", -1, "0.5 closed, 1.0 open"),
    "modality_purity": Metric("kNN modality purity", -1, "0.5 mixed, 1.0 separate"),
    "mmd2": Metric("MMD$^2$ (RBF, median h)", -1, "unbiased; 0 for one distribution"),
    "mmd2_half": Metric("MMD$^2$ (h x 0.5)", -1, "same kernel, half the bandwidth"),
    "mmd2_double": Metric("MMD$^2$ (h x 2)", -1, "same kernel, twice the bandwidth"),
    "mmd_bandwidth": Metric("MMD bandwidth h", 0, "median pairwise distance of the pooled rows"),
    "frechet": Metric("Fréchet distance", -1, "Ledoit-Wolf shrunk covariances"),
    "frechet_pca64": Metric("Fréchet distance (PCA-64)", -1, "on 64 pooled principal axes"),
    "uniformity_vision": Metric("uniformity, vision", 0, "0 collapsed; lower is more spread"),
    "uniformity_text": Metric("uniformity, text", 0, "0 collapsed; lower is more spread"),
    "effective_rank": Metric("effective rank, vision", 0, "a sudden fall is a collapse"),
    "effective_rank_text": Metric("effective rank, text", 0, "what vision could at most resemble"),
    "intra_class_cosine": Metric("intra-class cosine", 0, "towards 1 with falling recall: snapped to texts"),
    "spread": Metric("visual intra-distance", 0, "mean pairwise 1 - cos of vision"),
    "hit_entropy": Metric("predicted-class entropy", 0, "0: everything becomes one text"),
    "hubness": Metric("hubness", 0, "high: a few texts attract everything"),
    "second_label_rank": Metric("rank of the second label", -1, "median, of pairs with several labels"),
    "max_cosine": Metric("mean max cosine", 0, "label-free: rises also when detection collapses"),
    "vision_norm": Metric("vision norm", 0, "before normalisation"),
    "text_norm": Metric("text norm", 0, "before normalisation"),
}


@dataclass
class _Sets:
    """One state and split, ready for the metrics."""

    v: np.ndarray  # [N, D]
    texts: np.ndarray  # [K, D], one row a class, all classes
    split_texts: np.ndarray  # [M, D], the class texts of the split
    similarity: np.ndarray  # [N, K]
    truth: np.ndarray  # [N, K] bool
    labels: np.ndarray  # [N]
    images: np.ndarray  # [N] groups of the bootstrap
    norms: tuple[float, float]


def _sets(table: EmbeddingTable, state: str, split: str) -> _Sets:
    text = table.texts_for(state)
    if not len(text):
        raise ValueError("embeddings table: found no row of state 'text', expected one a class; add the class texts")
    ids, first, row_class = np.unique(text.frame["hoi_id"], return_index=True, return_inverse=True)
    texts = np.zeros((len(ids), text.vectors.shape[1]), dtype=np.float32)
    np.add.at(texts, row_class, normalised(text.vectors))  # several texts of a class: their mean direction
    texts = normalised(texts)

    vision = table.select(state)
    vision = vision.where(vision.frame["hoi_id"].isin(ids))
    if split != "all":
        vision = vision.where(vision.frame["unseen"] == (split == "unseen"))
    text_unseen = text.frame["unseen"].to_numpy(dtype=bool)[first]
    frame = vision.frame
    truth = np.zeros((len(vision), len(ids)), dtype=bool)
    truth[np.arange(len(vision)), np.searchsorted(ids, frame["hoi_id"])] = True
    if "hoi_ids" in frame:
        several = frame["hoi_ids"].explode().dropna().astype(int)
        several = several[several.isin(ids)]
        truth[several.index, np.searchsorted(ids, several)] = True
    # pairs of no known image are their own group
    images = np.where(frame["image"] >= 0, frame["image"], -1 - np.arange(len(frame)))
    v = normalised(vision.vectors)
    return _Sets(
        v=v,
        texts=texts,
        split_texts=texts if split == "all" else texts[text_unseen == (split == "unseen")],
        similarity=(v @ texts.T).astype(np.float64),
        truth=truth,
        labels=frame["hoi_id"].to_numpy(),
        images=images,
        norms=tuple(
            float(np.linalg.norm(part.vectors, axis=1).mean()) if len(part) else float("nan") for part in (vision, text)
        ),
    )


def _row_metrics(sets: _Sets) -> dict[str, np.ndarray]:
    s, truth = sets.similarity, sets.truth
    return {
        "gt_margin": gap.gt_margin(s, truth),
        "recall@1": gap.recall_at(s, truth, 1),
        "recall@5": gap.recall_at(s, truth, 5),
        "paired_cosine": gap.paired_cosine(s, truth),
        "unpaired_margin": gap.unpaired_margin(s, truth),
        "alignment": gap.alignment(s, truth),
        "max_cosine": gap.max_cosine(s),
    }


def _set_metrics(sets: _Sets, settings: AnalysisSettings) -> dict[str, float]:
    v, t = sets.v, sets.split_texts
    paired = normalised(sets.truth.astype(np.float32) @ sets.texts)  # (N, D)
    accuracy, auc = gap.linear_separability(v, t, settings.folds, settings.seed)
    bandwidth = gap.median_bandwidth(v, t) if len(v) + len(t) > 1 else float("nan")
    return {
        "centroid_gap": gap.centroid_gap(v, t) if len(t) else float("nan"),
        "centroid_cosine": gap.centroid_cosine(v, t) if len(t) else float("nan"),
        "rmg": gap.relative_modality_gap(v, paired),
        "separability": accuracy,
        "separability_auc": auc,
        "modality_purity": gap.modality_purity(v, t, settings.knn, settings.seed),
        "mmd2": gap.mmd2(v, t, bandwidth),
        "mmd2_half": gap.mmd2(v, t, bandwidth / 2),
        "mmd2_double": gap.mmd2(v, t, bandwidth * 2),
        "mmd_bandwidth": bandwidth,
        "frechet": gap.frechet_distance(v, t),
        "frechet_pca64": gap.frechet_distance(v, t, components=64),
        "uniformity_vision": gap.uniformity(v),
        "uniformity_text": gap.uniformity(t),
        "effective_rank": gap.effective_rank(v),
        "effective_rank_text": gap.effective_rank(t) if len(t) else float("nan"),
        "intra_class_cosine": gap.intra_class_cosine(v, sets.labels),
        "spread": 1 - gap.mean_pairwise_cosine(v),
        "hit_entropy": gap.hit_entropy(sets.similarity),
        "hubness": gap.hubness(sets.similarity),
        "second_label_rank": gap.second_label_rank(sets.similarity, sets.truth),
        "vision_norm": sets.norms[0],
        "text_norm": sets.norms[1],
    }


def gap_report(table: EmbeddingTable, settings: AnalysisSettings | None = None) -> pd.DataFrame:
    """Every metric for every vision state and split.

    Returns a tidy frame: state, split, metric, value, low, high (95 % interval, NaN where none is computed), n_vision,
    n_text. Intervals resample images and hold the class texts fixed. A split without vision rows is left out.
    """
    settings = settings or AnalysisSettings()
    table = table.sample(settings.max_pairs, settings.seed)
    rows = []
    for state in table.states:
        for split in SPLITS:
            sets = _sets(table, state, split)
            if not len(sets.v):
                continue
            count = {"n_vision": len(sets.v), "n_text": len(sets.split_texts)}
            by_row = _row_metrics(sets)
            values = {name: float(value.mean()) for name, value in by_row.items()} | _set_metrics(sets, settings)
            samples = gap.bootstrap_means(
                np.stack([*by_row.values()], axis=1), sets.images, settings.bootstrap, settings.seed
            )
            limits = {name: gap.interval(samples[:, i]) for i, name in enumerate(by_row)}
            if len(sets.split_texts):
                means = gap.bootstrap_means(sets.v, sets.images, settings.bootstrap, settings.seed)
                limits["centroid_gap"] = gap.interval(np.linalg.norm(means - sets.split_texts.mean(0), axis=1))
            for metric in METRICS:
                low, high = limits.get(metric, (float("nan"), float("nan")))
                rows.append(
                    {"state": state, "split": split, "metric": metric, "value": values[metric]}
                    | {"low": low, "high": high, **count}
                )
    if not rows:
        raise ValueError("embeddings table: found no vision row whose class has a text; check `hoi_id` of both sides")
    return pd.DataFrame(rows)


def gap_changes(
    table: EmbeddingTable, before: str, after: str, settings: AnalysisSettings | None = None
) -> pd.DataFrame:
    """What a step (raw -> centred, centred -> bridged) does to the very same pairs.

    Returns split, metric, before, after, change, low, high for the row-wise metrics. The interval is that of the paired
    difference, far narrower than what two separate intervals suggest.
    """
    settings = settings or AnalysisSettings()
    table = table.sample(settings.max_pairs, settings.seed)
    points = [set(table.select(state).frame["point"]) for state in (before, after)]
    table = table.where((table.frame["modality"] == "text") | table.frame["point"].isin(points[0] & points[1]))
    order = table.frame.sort_values("point", kind="stable").index
    table = EmbeddingTable(table.frame.loc[order], table.vectors[order])
    rows = []
    for split in SPLITS:
        old, new = (_sets(table, state, split) for state in (before, after))
        if not len(old.v):
            continue
        rows_old, rows_new = _row_metrics(old), _row_metrics(new)
        for metric, value in rows_old.items():
            change = rows_new[metric] - value
            low, high = gap.interval(gap.bootstrap_means(change, old.images, settings.bootstrap, settings.seed))
            rows.append(
                {"split": split, "metric": metric, "before": value.mean(), "after": rows_new[metric].mean()}
                | {"change": change.mean(), "low": low, "high": high}
            )
    return pd.DataFrame(rows)


def gap_table(report: pd.DataFrame, split: str = "all") -> pd.DataFrame:
    """The report of one split as metric x state, with a reading beside each row."""
    chosen = report[report["split"] == split]
    wide = chosen.pivot(index="metric", columns="state", values="value")
    wide = wide.reindex(index=list(METRICS), columns=[s for s in ("raw", "centred", "bridged") if s in wide])
    return wide.assign(reading=[METRICS[name].reading for name in wide.index])


def gap_metrics(report: pd.DataFrame, *changes: pd.DataFrame) -> dict[str, float]:
    """Flat names for metrics.json: `gap/<state>/<metric>` and `..._seen`, `..._unseen`.

    Metrics that cannot be computed (NaN) are left out. `changes` (of centred -> bridged) adds
    `gap/change/<metric>` with `_low` and `_high`, which the verdict of the report reads.
    """
    flat = {}
    for row in report.itertuples():
        suffix = "" if row.split == "all" else f"_{row.split}"
        flat[f"gap/{row.state}/{row.metric}{suffix}"] = float(row.value)
    for row in (row for frame in changes for row in frame.itertuples()):
        suffix = "" if row.split == "all" else f"_{row.split}"
        name = f"gap/change/{row.metric}{suffix}"
        flat |= {name: float(row.change), f"{name}_low": float(row.low), f"{name}_high": float(row.high)}
    return {name: value for name, value in flat.items() if np.isfinite(value)}
