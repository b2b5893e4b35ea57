"""What moves when vision is brought to text: along the gap vector, through the bridge by step, and class by class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from lib.analysis import gap
from lib.analysis import gap_bootstrap as boot
from lib.analysis.embeddings import EmbeddingTable, normalised
from lib.analysis.gap_sets import Sets, class_texts, own_state, state_sets, truth_of
from lib.analysis.projections import linear_coordinates

LOGIT_SCALE = 100.0  # CLIP's own, at which its contrastive loss is read
SHIFTS = np.linspace(-0.5, 1.5, 21)  # shares of the gap vector that are moved


# ---------------------------------------------------------------- along the gap vector


def landscape(
    table: EmbeddingTable, state: str = "", shifts: Sequence[float] = SHIFTS, resamples: int = 100, seed: int = 0
) -> pd.DataFrame:
    """Loss and accuracy while both modalities are moved towards each other along the gap vector.

    Vision moves by half of shift x (mean text - mean vision), text by the other half the opposite way, and both go back
    to the sphere (Liang et al. 2022, "Mind the Gap", §4 and Fig. 3). shift 0: as they are; 1: the means coincide.

    state: uncentred vision state; the detector's own by default. Returns a row a (split, shift): centroid_gap, loss
    (cross-entropy over all classes at CLIP's logit scale), recall@1, recall@5, gt_margin, with `<name>_low`, `_high` of
    the class-aware ones.
    """
    sets = state_sets(table, state or own_state(table))
    vector = sets.texts.mean(0) - sets.v.mean(0)
    splits = {"all": np.ones(len(sets.v), dtype=bool), "seen": ~sets.unseen, "unseen": sets.unseen}
    weights = {
        name: boot.image_weights(sets.images[rows], resamples, seed) for name, rows in splits.items() if rows.any()
    }
    found = []
    for shift in shifts:
        v, texts = normalised(sets.v + 0.5 * shift * vector), normalised(sets.texts - 0.5 * shift * vector)
        columns = _class_aware((v @ texts.T).astype(np.float64), sets.truth)
        for split, weight in weights.items():
            rows = splits[split]
            means = boot.weighted_means(np.stack([value[rows] for value in columns.values()], 1), weight)
            row = {"split": split, "shift": float(shift), "centroid_gap": gap.centroid_gap(v[rows], texts)}
            for (name, value), sampled in zip(columns.items(), means.T, strict=True):
                low, high = boot.interval(sampled)
                row |= {name: float(value[rows].mean()), f"{name}_low": low, f"{name}_high": high}
            found.append(row)
    return pd.DataFrame(found)


def _class_aware(similarity: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "loss": cross_entropy(similarity, truth),
        "recall@1": gap.recall_at(similarity, truth, 1),
        "recall@5": gap.recall_at(similarity, truth, 5),
        "gt_margin": gap.gt_margin(similarity, truth),
    }


def cross_entropy(similarity: np.ndarray, truth: np.ndarray, scale: float = LOGIT_SCALE) -> np.ndarray:
    """[N] -log of the probability that a softmax over scale x cosine gives the true classes of a row together."""
    logits = scale * (similarity - similarity.max(1, keepdims=True))
    return np.log(np.exp(logits).sum(1)) - np.log((np.exp(logits) * truth).sum(1).clip(1e-300))


# ---------------------------------------------------------------- through the bridge, step by step


def trajectory_frame(
    table: EmbeddingTable, centred: pd.DataFrame, timesteps: Sequence[int], path: np.ndarray
) -> pd.DataFrame:
    """One row a (point, step): the way of some pairs through the bridge.

    centred: their rows in the table. path: unit states [S + 1, n, D], the first where they enter, the last what the
    bridge gives out. Columns: point, step (0 .. S), timestep (-1: out), image, unseen, coordinates in the linear
    projections of the table, true_cosine, margin, recall@1, moved (1 - cosine to step 0), turned (to the step before).
    """
    ids, texts, _ = class_texts(table, "centred")
    known = centred["hoi_id"].isin(ids).to_numpy()
    centred, path = centred[known], path[:, known]
    truth, frames = truth_of(centred, ids), []
    linear = [method for method in ("gap", "pca") if method in table.methods]
    for step, (timestep, states) in enumerate(zip([*timesteps, -1], path, strict=True)):
        similarity = (states @ texts.T).astype(np.float64)
        places = {}
        for method in linear:
            places[f"{method}_x"], places[f"{method}_y"] = linear_coordinates(table, method, states).T
        frames.append(
            centred[["point", "image", "hoi_id", "unseen"]].assign(
                step=step,
                timestep=timestep,
                true_cosine=np.where(truth, similarity, -np.inf).max(1),
                margin=gap.gt_margin(similarity, truth),
                moved=1 - (states * path[0]).sum(1),
                turned=1 - (states * path[max(step - 1, 0)]).sum(1),
                **{"recall@1": gap.recall_at(similarity, truth, 1)},
                **places,
            )
        )
    return pd.concat(frames, ignore_index=True)


def trajectory_summary(frame: pd.DataFrame, resamples: int = 100, seed: int = 0) -> pd.DataFrame:
    """One row a (split, step) of a `trajectory_frame`: means of the class-aware columns with 95 % intervals."""
    names = ["true_cosine", "margin", "recall@1", "moved", "turned"]
    found = []
    for split, part in {"all": frame, "seen": frame[~frame["unseen"]], "unseen": frame[frame["unseen"]]}.items():
        for (step, timestep), rows in part.groupby(["step", "timestep"], sort=True):
            sampled = boot.weighted_means(
                rows[names].to_numpy(), boot.image_weights(rows["image"].to_numpy(), resamples, seed)
            )
            row = {"split": split, "step": step, "timestep": timestep, "pairs": len(rows)}
            for name, values in zip(names, sampled.T, strict=True):
                low, high = boot.interval(values)
                row |= {name: float(rows[name].mean()), f"{name}_low": low, f"{name}_high": high}
            found.append(row)
    return pd.DataFrame(found)


# ---------------------------------------------------------------- class by class


def class_changes(table: EmbeddingTable, before: str, after: str) -> pd.DataFrame:
    """Which classes a step helps and hurts: a row a class with a pair, largest gain of average precision first.

    Columns: hoi_id, hoi, verb, object, unseen, rare, pairs (that have it), ap_before, ap_after, ap_change, and the same
    of recall (`recall@1` of its pairs) and margin (mean of its pairs, in cosine). On the pairs that both states have.
    """
    old, new, frame = _both(table, before, after)
    names = frame.drop_duplicates("hoi_id").set_index("hoi_id")
    ids, pairs = class_texts(table, before)[0], old.truth.sum(0)
    columns = {"hoi_id": ids, "pairs": pairs}
    texts = table.texts_for(before).frame.drop_duplicates("hoi_id").set_index("hoi_id").loc[ids]
    columns |= {name: texts[name].to_numpy() for name in ("hoi", "verb", "object", "unseen")}
    columns["rare"] = texts["rare"].to_numpy() | names["rare"].reindex(ids, fill_value=False).to_numpy()
    share = old.truth / np.maximum(pairs, 1)  # (N, K)
    for end, sets in (("before", old), ("after", new)):
        columns[f"ap_{end}"] = gap.class_ap(sets.similarity, sets.truth)
        columns[f"recall_{end}"] = gap.recall_at(sets.similarity, sets.truth, 1) @ share
        columns[f"margin_{end}"] = gap.gt_margin(sets.similarity, sets.truth) @ share
    found = pd.DataFrame(columns)
    for name in ("ap", "recall", "margin"):
        found[f"{name}_change"] = found[f"{name}_after"] - found[f"{name}_before"]
    return found[found["pairs"] > 0].sort_values("ap_change", ascending=False, kind="stable").reset_index(drop=True)


def group_changes(classes: pd.DataFrame) -> pd.DataFrame:
    """`class_changes` by group: split, frequency, verb and object, a row a group.

    Columns: by, group, classes, pairs, gained and lost (classes whose average precision rose or fell), and the mean
    over the classes of ap_before, ap_after, ap_change, recall_change, margin_change.
    """
    kinds = {
        "split": np.where(classes["unseen"], "unseen", "seen"),
        "frequency": np.where(classes["rare"], "rare", "common"),
        "verb": classes["verb"],
        "object": classes["object"],
    }
    means = ["ap_before", "ap_after", "ap_change", "recall_change", "margin_change"]
    marked = classes.assign(gained=classes["ap_change"] > 1e-9, lost=classes["ap_change"] < -1e-9, classes=1)
    found = []
    for by, group in kinds.items():
        grouped = marked.groupby(np.asarray(group))
        counts = grouped[["classes", "pairs", "gained", "lost"]].sum()
        part = pd.concat([counts, grouped[means].mean()], axis=1).sort_values("ap_change", ascending=False)
        found.append(part.rename_axis("group").reset_index().assign(by=by))
    whole = pd.concat(found, ignore_index=True)
    return whole[["by", *whole.columns.drop("by")]]


def _both(table: EmbeddingTable, before: str, after: str) -> tuple[Sets, Sets, pd.DataFrame]:
    """Sets of two states on the points that both have, in one order, and the rows of the first."""
    points = [set(table.select(state).frame["point"]) for state in (before, after)]
    keep = (table.frame["modality"] == "text") | table.frame["point"].isin(points[0] & points[1])
    table = table.where(keep)
    return state_sets(table, before), state_sets(table, after), table.select(before).frame
