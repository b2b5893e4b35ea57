"""The gap metrics of a whole embeddings table: every state, every split, with bootstrap intervals.

    measured = measure(table, settings, baselines)   # {(state, split): Measured}, computed once
    report = report_of(measured)                     # tidy: state, split, metric, value, low, high, n_vision, n_text
    changes = changes_of(measured, "centred", "bridged")             # paired differences with intervals
    run.record(**gap_metrics(report, changes))       # gap/<state>/<metric>, ..._seen, ..._unseen

Splits choose the vision rows. Class-aware metrics rank against *all* class texts in every split (the generalised
zero-shot setting); set metrics compare with the class texts of the split. Pairs of no class are left out throughout.
Baselines (`baselines.fit_baselines`) act on the detector's own features and stand beside the states as
`baseline:<name>`. What only depends on the class texts, which are held fixed, has no interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lib.analysis import gap_bootstrap as boot
from lib.analysis.baselines import Baseline
from lib.analysis.embeddings import VISION_STATES, EmbeddingTable
from lib.analysis.gap_measure import Measured, measure_sets
from lib.analysis.gap_sets import moved, of_split, own_state, state_sets
from lib.engine.progress import Progress
from lib.settings import AnalysisSettings

SPLITS = ("all", "seen", "unseen")
BASELINE = "baseline:"  # before the name of a baseline, in the column `state`
ADVISED = ("recall@1", "class_map", "gt_margin", "centroid_gap")  # of baselines, in the run's metrics


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
    "class_map": Metric("class mAP on true pairs", +1, "ranking the pairs by their cosine to each class text"),
    "paired_cosine": Metric("cosine to true class", +1, "vision row and its class text"),
    "unpaired_margin": Metric("paired - unpaired cosine", +1, "true class less an average class"),
    "centroid_gap": Metric("centroid gap (L2M)", -1, "about 0.8 raw CLIP; 0 by construction once centred"),
    "mean_angle": Metric("angle of the means", -1, "degrees; undefined once the means are subtracted"),
    "matched_distance": Metric("matched distance (L2I)", -1, "Euclidean, vision row to its class text"),
    "rmg": Metric("relative modality gap", -1, "pair distance relative to the spread inside the modalities"),
    "alignment": Metric("alignment", -1, "squared distance to the class text"),
    "separability": Metric("linear separability", -1, "held-out balanced accuracy; 0.5 closed, 1.0 open"),
    "separability_auc": Metric("linear separability (AUC)", -1, "0.5 closed, 1.0 open"),
    "modality_purity": Metric("kNN modality purity", -1, "0.5 mixed, 1.0 separate"),
    "sliced_wasserstein": Metric("sliced Wasserstein", -1, "W1 over random directions; 0 for one distribution"),
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
    "neighbour_preservation": Metric("neighbours kept", 0, "share of the detector's nearest pairs still nearest"),
    "intra_class_cosine": Metric("intra-class cosine", 0, "towards 1 with falling recall: snapped to texts"),
    "spread": Metric("visual intra-distance", 0, "mean pairwise 1 - cos of vision"),
    "hit_entropy": Metric("predicted-class entropy", 0, "0: everything becomes one text"),
    "hubness": Metric("hubness", 0, "high: a few texts attract everything"),
    "second_label_rank": Metric("rank of the second label", -1, "median, of pairs with several labels"),
    "max_cosine": Metric("mean max cosine", 0, "label-free: rises also when detection collapses"),
    "max_cosine_std": Metric("max cosine, std", 0, "spread of the above over the pairs"),
    "text_distance": Metric("distance to the nearest text", 0, "1 - mean max cosine: label-free as well"),
    "vision_norm": Metric("vision norm", 0, "before normalisation"),
    "vision_norm_std": Metric("vision norm, std", 0, "spread over the pairs"),
    "text_norm": Metric("text norm", 0, "before normalisation"),
}


def measure(
    table: EmbeddingTable, settings: AnalysisSettings | None = None, baselines: Mapping[str, Baseline] | None = None
) -> dict[tuple[str, str], Measured]:
    """Every metric of every (state, split) of a table of one source; a split without vision rows is left out.

    At most `metric_pairs` pairs, the same in every state. baselines: applied to the detector's own features and its
    texts; measured as states `baseline:<name>`.
    """
    settings = settings or AnalysisSettings()
    table = table.sample(settings.metric_pairs, settings.seed)
    everything = {state: state_sets(table, state) for state in table.states}
    own = everything[own_state(table)] if baselines else None
    for name, baseline in (baselines or {}).items():
        everything[f"{BASELINE}{name}"] = moved(own, *baseline(own.v, own.texts))
    measured = {}
    with Progress("gap metrics", len(everything) * len(SPLITS)) as progress:
        for state, sets in everything.items():
            for split in SPLITS:
                part = of_split(sets, split)
                if len(part.v):
                    measured[state, split] = measure_sets(part, settings)
                progress.step()
    if not measured:
        raise ValueError("embeddings table: found no vision row whose class has a text; check `hoi_id` of both sides")
    return measured


def report_of(measured: Mapping[tuple[str, str], Measured]) -> pd.DataFrame:
    """Tidy frame: state, split, metric, value, low, high (95 % interval, NaN where none), n_vision, n_text."""
    rows = []
    for (state, split), found in measured.items():
        for metric in METRICS:
            value = found.values.get(metric, float("nan"))
            low, high = boot.interval(found.samples.get(metric, np.zeros(0)), value)
            rows.append(
                {"state": state, "split": split, "metric": metric, "value": value, "low": low, "high": high}
                | {"n_vision": found.n_vision, "n_text": found.n_text}
            )
    return pd.DataFrame(rows)


def changes_of(measured: Mapping[tuple[str, str], Measured], before: str, after: str) -> pd.DataFrame:
    """What a step (raw -> adapted, centred -> bridged) does to the very same pairs.

    Returns split, metric, before, after, change, low, high. The interval is that of the paired difference (both states
    see the same draws), far narrower than what two separate intervals suggest.
    """
    rows = []
    for split in SPLITS:
        if (before, split) not in measured or (after, split) not in measured:
            continue
        old, new = (measured[state, split] for state in (before, after))
        if old.n_vision != new.n_vision:
            raise ValueError(f"{before} -> {after}: found {old.n_vision} and {new.n_vision} pairs, expected the same")
        for metric in METRICS:
            values = [found.values.get(metric, float("nan")) for found in (old, new)]
            change = values[1] - values[0]
            drawn = [found.samples.get(metric, np.zeros(0)) for found in (old, new)]
            count = min(map(len, drawn))
            difference = drawn[1][:count] - drawn[0][:count]
            low, high = boot.interval(difference, change, signed=True)
            rows.append(
                {"split": split, "metric": metric, "before": values[0], "after": values[1]}
                | {"change": change, "low": low, "high": high}
            )
    return pd.DataFrame(rows)


def gap_report(table: EmbeddingTable, settings: AnalysisSettings | None = None) -> pd.DataFrame:
    """`report_of` every state of a table."""
    return report_of(measure(table, settings))


def gap_changes(
    table: EmbeddingTable, before: str, after: str, settings: AnalysisSettings | None = None
) -> pd.DataFrame:
    """`changes_of` two states of a table, on the points that both have."""
    points = [set(table.select(state).frame["point"]) for state in (before, after)]
    texts = {table.text_state(state) for state in (before, after)} | {"text"}
    shared = table.frame["point"].isin(points[0] & points[1]) & table.frame["state"].isin([before, after])
    return changes_of(measure(table.where(shared | table.frame["state"].isin(texts)), settings), before, after)


def gap_table(report: pd.DataFrame, split: str = "all", with_baselines: bool = False) -> pd.DataFrame:
    """The report of one split as metric x state, with a reading beside each row."""
    chosen = report[report["split"] == split]
    wide = chosen.pivot(index="metric", columns="state", values="value")
    states = [state for state in VISION_STATES if state in wide]
    baselines = [state for state in chosen["state"].unique() if state.startswith(BASELINE)]
    wide = wide.reindex(index=list(METRICS), columns=states + baselines * with_baselines)
    return wide.assign(reading=[METRICS[name].reading for name in wide.index])


def gap_metrics(report: pd.DataFrame, *changes: pd.DataFrame) -> dict[str, float]:
    """Flat names for metrics.json: `gap/<state>/<metric>` and `..._seen`, `..._unseen`; `gap/pairs`, `gap/texts`.

    Metrics that cannot be computed (NaN) are left out; of baselines only what ADVISED names. `changes` (of centred ->
    bridged) adds `gap/change/<metric>` with `_low` and `_high`, which verdict and advice read.
    """
    kept = report[~report["state"].str.startswith(BASELINE) | report["metric"].isin(ADVISED)]
    suffix = kept["split"].map(lambda split: "" if split == "all" else f"_{split}")
    flat = dict(zip("gap/" + kept["state"] + "/" + kept["metric"] + suffix, kept["value"].astype(float), strict=True))
    for change in changes:
        suffix = change["split"].map(lambda split: "" if split == "all" else f"_{split}")
        for column, end in (("change", ""), ("low", "_low"), ("high", "_high")):
            flat |= dict(
                zip("gap/change/" + change["metric"] + suffix + end, change[column].astype(float), strict=True)
            )
    everything = report[report["split"] == "all"].iloc[0]
    flat |= {"gap/pairs": float(everything["n_vision"]), "gap/texts": float(everything["n_text"])}
    return {name: value for name, value in flat.items() if np.isfinite(value)}
