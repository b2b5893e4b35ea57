"""Static figures of metrics, similarities, training and results (matplotlib; no browser needed).

Titles state the finding, computed from the numbers drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.analysis.embeddings import VISION_STATES
from lib.analysis.gap_report import METRICS
from lib.analysis.palette import (
    FAINT,
    INK,
    REST,
    SPLIT_COLOUR,
    STATE_COLOUR,
    STATE_LABEL,
    drawing,
    headline,
    spread_labels,
)
from lib.analysis.scene import Scene
from lib.analysis.similarity import class_matrix, own_share

# ---------------------------------------------------------------- metrics

BARS = (
    *("gt_margin", "recall@1", "paired_cosine", "max_cosine"),
    *("centroid_gap", "rmg", "separability", "modality_purity"),
    *("mmd2", "frechet", "intra_class_cosine", "effective_rank"),
)
CLOSED = {"separability": 0.5, "separability_auc": 0.5, "modality_purity": 0.5}  # the value of a closed gap, if not 0
DIRECTION = {1: "↑ better", -1: "↓ better", 0: "not a goal"}


def metric_bars(report: pd.DataFrame, metrics: Sequence[str] = BARS, split: str = "all", title: str = "") -> Figure:
    """Small multiples: a metric a panel, a bar a state, 95 % intervals; each panel says which way is better."""
    chosen = report[report["split"] == split]
    states = [state for state in VISION_STATES if state in set(chosen["state"])]
    columns = 4
    rows = -(-len(metrics) // columns)
    with drawing((3.1 * columns, 2.2 * rows + 0.5)) as fig:
        axes = fig.subplots(rows, columns, squeeze=False).ravel()
        for ax, metric in zip(axes, metrics, strict=False):
            _metric_panel(ax, chosen[chosen["metric"] == metric].set_index("state").reindex(states), metric)
        for ax in axes[len(metrics) :]:
            ax.set_visible(False)
        count = chosen.iloc[0]
        detail = (
            f"{count.n_vision} pairs, {count.n_text} class texts ({split}). Every state against the text of its own "
            "space: cosines compare along a row only between centred and bridged. Whiskers: 95 % bootstrap over images."
        )
        headline(fig, title or _gap_finding(chosen), detail)
    return fig


def _metric_panel(ax: Axes, part: pd.DataFrame, metric: str) -> None:
    value, low, high = (part[name].to_numpy(dtype=float) for name in ("value", "low", "high"))
    ax.bar(range(len(part)), np.nan_to_num(value), color=[STATE_COLOUR[state] for state in part.index], width=0.66)
    has = np.isfinite(low)
    whiskers = np.maximum(np.stack([value - low, high - value])[:, has], 0)
    ax.errorbar(np.flatnonzero(has), value[has], yerr=whiskers, fmt="none", ecolor=INK, capsize=3, lw=1.1)
    for i, (height, top) in enumerate(zip(value, np.where(has, high, value), strict=True)):
        digits = 2 if abs(height) < 10 else 1
        text = f"{height:.{digits}f}" if np.isfinite(height) else "n/a"
        below = np.nan_to_num(height) < 0
        at = np.nan_to_num(low[i] if has[i] else height) if below else max(np.nan_to_num(top), 0)
        ax.annotate(
            text, (i, at), (0, -3 if below else 3), textcoords="offset points", ha="center", fontsize=9,
            va="top" if below else "bottom",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.6},
        )  # fmt: skip
    if metric in CLOSED:
        ax.axhline(CLOSED[metric], color=FAINT, lw=1, ls="--")
        ax.annotate("closed", (1, CLOSED[metric]), (-2, 2), xycoords=("axes fraction", "data"),
                    textcoords="offset points", fontsize=8, color=FAINT, ha="right")  # fmt: skip
        ax.set_xlim(-0.5, len(part) + 0.2)
    ax.set_title(METRICS[metric].label, fontsize=10)
    ax.text(
        1,
        0.99,
        DIRECTION[METRICS[metric].better],
        transform=ax.transAxes,
        ha="right",
        va="top",
        fontsize=8,
        color=FAINT,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.6},
    )
    ax.set_xticks(range(len(part)), part.index, fontsize=9 if len(part) < 4 else 8)
    ax.axhline(0, color=REST, lw=0.8)
    ax.margins(y=0.24)
    if np.nan_to_num(value).max() <= 0:  # bars that hang from the top leave no room for the direction
        lowest = ax.get_ylim()[0]
        ax.set_ylim(lowest, -0.12 * lowest)
    ax.grid(axis="y")


def _gap_finding(chosen: pd.DataFrame) -> str:
    value = chosen.set_index(["state", "metric"])["value"]
    states = [state for state in VISION_STATES if state in set(chosen["state"])]
    before, after = (states[-2], states[-1]) if len(states) > 1 else (states[0], states[0])
    recall = [value[s, "recall@1"] for s in (before, after)]
    margin = [value[s, "gt_margin"] for s in (before, after)]
    return (
        f"{before} → {after}: recall@1 {recall[0]:.2f} → {recall[1]:.2f}, "
        f"margin to the best wrong class {margin[0]:+.2f} → {margin[1]:+.2f}"
    )


def similarity_figure(scene: Scene, state: str, classes: int = 40, title: str = "") -> Figure:
    """`similarity.class_matrix` of all pairs: class means of vision (rows) against class texts (columns).

    A bright diagonal that stands out is what a detector needs; bright columns are texts that attract everything.
    """
    matrix = class_matrix(scene, state, limit=classes)
    known = scene.classes.assign(name=scene.classes["hoi"].str.replace("_", " ")).set_index("name").loc[matrix.index]
    side = 0.2 * len(matrix) + 3.2
    size = 8 if len(matrix) <= 45 else 6
    with drawing((side + 1.4, side)) as fig:
        ax = fig.subplots()
        image = ax.imshow(matrix, cmap="cividis", aspect="equal")
        ax.set_xticks(range(matrix.shape[1]), spread_labels(matrix.columns, 26), rotation=90, fontsize=size)
        ax.set_yticks(range(len(matrix)), spread_labels(matrix.index, 26), fontsize=size)
        for label, unseen in zip(ax.get_yticklabels(), known["unseen"], strict=True):
            label.set_color(SPLIT_COLOUR["unseen"] if unseen else INK)
        ax.set(ylabel="pairs of a class, mean direction (unseen classes in vermillion)", xlabel="class sentence")
        edges = np.flatnonzero(known["verb"].to_numpy()[1:] != known["verb"].to_numpy()[:-1]) + 0.5
        ax.hlines(edges, -0.5, matrix.shape[1] - 0.5, color="white", lw=0.5)
        ax.spines[:].set_visible(False)
        fig.colorbar(image, ax=ax, shrink=0.5, label="cosine").outline.set_visible(False)
        found = f"{own_share(matrix):.0%} of the classes lie nearest to their own sentence"
        headline(fig, title or f"{STATE_LABEL[state]}: {found}")
    return fig


# ---------------------------------------------------------------- training and results


def loss_curve(history: pd.DataFrame | Sequence[Mapping[str, float]], title: str = "", x: str = "step") -> Figure:
    """Small multiples of what a training logged: a panel a column, the raw values pale, a running mean on top.

    history: rows with `x` and one column a named term; text columns and columns without numbers are left out.
    """
    frame = pd.DataFrame(list(history) if not isinstance(history, pd.DataFrame) else history)
    if x not in frame:
        frame[x] = np.arange(len(frame))
    names = [c for c in frame.select_dtypes("number").columns if c != x and frame[c].notna().any()]
    if not names:
        raise ValueError(f"loss curve: found columns {list(frame.columns)}, expected {x!r} and at least one number")
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    with drawing((max(6.5, 4.2 * columns), 2.5 * rows + 0.7)) as fig:
        axes = fig.subplots(rows, columns, squeeze=False, sharex=True).ravel()
        for ax, name in zip(axes, names, strict=False):
            part = frame[[x, name]].dropna()
            smooth = part[name].rolling(max(1, len(part) // 20), min_periods=1, center=True).mean()
            ax.plot(part[x], part[name], color=STATE_COLOUR["centred"], lw=0.8, alpha=0.6)
            ax.plot(part[x], smooth, color=STATE_COLOUR["raw"], lw=1.8)
            positive = part[name][part[name] > 0]
            if len(positive) == len(part) and positive.max() > 50 * positive.min():
                ax.set_yscale("log")
            ax.set_title(f"{name}: {_short(smooth.iloc[0])} → {_short(smooth.iloc[-1])}", fontsize=10)
            ax.grid(True)
            ax.set_xlabel(x)
        for ax in axes[len(names) :]:
            ax.set_visible(False)
        headline(fig, title or "Training")
    return fig


def _short(value: float) -> str:
    return f"{value:.3g}"


METHOD_LABEL = {
    "frozen_clip": "frozen CLIP",
    "clip_crops": "frozen CLIP, a crop a pair",
    "ezhoi": "EZ-HOI",
    "centred": "EZ-HOI + centring",
    "bridge": "EZ-HOI + bridge",
    "ensemble": "EZ-HOI + bridge, fixed ensemble",
    "bridge_raw": "EZ-HOI + bridge, raw text",
    "wrong_order": "EZ-HOI + wrong-order bridge",
    "wrong_mean": "EZ-HOI + bridge, text mean off vision",
    "prototype": "EZ-HOI + closed-form bridge",
    "vision_control": "EZ-HOI + bridge of vision (control)",
}
SPLIT_KEYS = {"full": "mAP_full", "unseen": "mAP_unseen", "seen": "mAP_seen"}


def results_from_metrics(metrics: Mapping[str, float]) -> pd.DataFrame:
    """Rows: methods with a `<method>/mAP_...` key, the known ones first; columns full, unseen, seen (NaN if absent)."""
    suffixes = {f"/{name}" for name in SPLIT_KEYS.values()}
    found = {key.rsplit("/", 1)[0] for key in metrics if any(key.endswith(s) for s in suffixes)}
    order = [name for name in METHOD_LABEL if name in found] + sorted(found - set(METHOD_LABEL))
    rows = {name: {split: metrics.get(f"{name}/{key}", np.nan) for split, key in SPLIT_KEYS.items()} for name in order}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(SPLIT_KEYS), dtype=float)


def results_table_figure(results: pd.DataFrame | Mapping[str, float], title: str = "") -> Figure:
    """Full / Unseen / Seen mAP of each method as grouped horizontal bars with their numbers.

    results: the frame of `results_from_metrics`, or the flat metrics themselves.
    """
    frame = results if isinstance(results, pd.DataFrame) else results_from_metrics(results)
    if frame.empty:
        raise ValueError(
            "results figure: found no `<method>/mAP_full` key, expected at least one; run notebook 04 first"
        )
    height = 0.24
    with drawing((9.0, 0.95 * len(frame) + 1.4)) as fig:
        ax = fig.subplots()
        for j, split in enumerate(SPLIT_KEYS):
            at = np.arange(len(frame)) + (j - 1) * (height + 0.02)
            value = frame[split].to_numpy(dtype=float)
            ax.barh(at, np.nan_to_num(value), height=height, color=SPLIT_COLOUR[split], label=split)
            for y, v in zip(at, value, strict=True):
                text = f"{v:.2f}" if np.isfinite(v) else "not measured"
                ax.annotate(text, (np.nan_to_num(v), y), (4, 0), textcoords="offset points", va="center", fontsize=9)
        ax.set_yticks(range(len(frame)), [METHOD_LABEL.get(name, name) for name in frame.index])
        ax.invert_yaxis()
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x")
        ax.margins(x=0.1)
        ax.set_xlabel("mAP")
        fig.legend(*ax.get_legend_handles_labels(), loc="outside right upper", title="classes")
        headline(fig, title or _results_finding(frame))
    return fig


def _results_finding(frame: pd.DataFrame) -> str:
    best = {split: frame[split].idxmax() for split in SPLIT_KEYS if frame[split].notna().any()}
    if len(set(best.values())) == 1:
        return f"{METHOD_LABEL.get(next(iter(best.values())), '')} is best on every split"
    return "Best: " + ", ".join(f"{METHOD_LABEL.get(name, name)} ({split})" for split, name in best.items())
