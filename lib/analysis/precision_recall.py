"""Precision over recall: the mean of every group of classes, and single classes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.analysis.palette import CLASSES, REST, SPLIT_COLOUR, drawing, headline, spread_labels
from lib.evaluation.curves import RECALL, interpolated_precision
from lib.evaluation.hico_det import ApResult, class_groups

GROUP_COLOUR = SPLIT_COLOUR | {"rare": "#CC79A7", "non_rare": "#009E73"}
GROUP_LABEL = {"full": "all classes", "non_rare": "non-rare"}


def precision_recall_figure(
    predictions: pd.DataFrame,
    result: ApResult,
    names: Sequence[str],
    *,
    unseen: Collection[int] | None = None,
    rare: Collection[int] | None = None,
    classes: Sequence[int] = (),
    title: str = "",
) -> Figure:
    """Left: mean curve of every group over the pale curves of its classes. Right: a few classes by name.

    result: of `hico_det_ap` on these predictions. names: one a class. classes: HOI ids drawn on the right; without any,
    the best, the quartiles and the worst by AP of the classes with at least five pairs.
    """
    curves = interpolated_precision(predictions, result)
    groups = {name: members for name, members in class_groups(result, unseen, rare).items() if members.any()}
    if not groups:
        raise ValueError("precision-recall figure: found no class with ground truth, expected at least one")
    chosen = list(classes) or _spread(result)
    with drawing((11.6, 4.4)) as fig:
        left, right = fig.subplots(1, 2, sharey=True)
        left.plot(RECALL, curves[groups["full"]].T, color=REST, lw=0.5, alpha=_alpha(groups["full"].sum()))
        for name, members in reversed(groups.items()):
            label = f"{GROUP_LABEL.get(name, name)} ({members.sum()}): mAP {100 * result.ap[members].mean():.1f}"
            left.plot(RECALL, curves[members].mean(0), color=GROUP_COLOUR[name], lw=2.4, label=label)
        handles, labels = left.get_legend_handles_labels()  # all classes were drawn last, to lie on top
        _finish(left, "Mean over classes")
        left.legend(handles[::-1], labels[::-1], loc="upper right", fontsize=8.5, frameon=True, edgecolor=REST)
        for place, hoi in enumerate(chosen):
            (name,) = spread_labels([names[hoi].replace("_", " ")], 26)
            label = f"{name}\nAP {100 * result.ap[hoi]:.1f}, {result.num_gt[hoi]} pairs"
            right.plot(RECALL, curves[hoi], color=CLASSES[place % len(CLASSES)], lw=1.8, label=label)
        _finish(right, "Single classes" if classes else "From the best class to the worst")
        right.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8.5, labelspacing=1.1)
        left.set_ylabel("precision")
        headline(
            fig, title or _finding(curves, groups),
            "Best precision at this recall or beyond; a class that does not reach a recall counts as 0 there."
            " Pale: every class.",
        )  # fmt: skip
    return fig


def _finish(ax: Axes, title: str) -> None:
    ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall")
    ax.set_title(title, fontsize=10)
    ax.grid(True)


def _alpha(count: int) -> float:
    return float(np.clip(18 / count, 0.08, 0.6))


def _spread(result: ApResult, count: int = 5) -> list[int]:
    """Classes at even steps of the ranking by AP; those with few pairs only where there are no others."""
    known = np.flatnonzero((result.num_gt >= 5) & ~np.isnan(result.ap))
    known = known if len(known) >= count else np.flatnonzero(~np.isnan(result.ap))
    ranked = known[np.argsort(-result.ap[known], kind="stable")]
    return ranked[np.unique(np.linspace(0, len(ranked) - 1, count).round().astype(int))].tolist()


def _finding(curves: np.ndarray, groups: dict[str, np.ndarray]) -> str:
    """How precise the group means still are when half of the pairs are found."""
    half = {name: 100 * curves[members, 50].mean() for name, members in groups.items()}
    parts = [f"{value:.0f} % on {GROUP_LABEL.get(name, name)}" for name, value in half.items() if name != "full"]
    told = f"At half of the pairs found, precision is {half['full']:.0f} %"
    return f"{told}: {', '.join(parts[:2])}" if parts else told
