"""Figures of what notebook 05 measures beside the states: ways through the gap, classes that gain or lose."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lib.analysis.palette import FAINT, SPLIT_COLOUR, drawing, headline, spread_labels

WAYS = {
    "recall@1": "own sentence nearest",
    "margin": "margin to best wrong class",
    "true_cosine": "cosine to own sentence",
}
SHIFTS = {"recall@1": "own sentence nearest", "gt_margin": "margin to best wrong class", "centroid_gap": "centroid gap"}


def way_figure(landscape: pd.DataFrame, trajectory: pd.DataFrame) -> Figure:
    """Above: the detector's features moved along the gap vector; below: along the bridge's own steps.

    landscape, trajectory: of `lib.analysis.movement`, a row a (split, shift) or (split, step). Bands: 95 % intervals.
    """
    with drawing((11.5, 6.4)) as fig:
        axes = fig.subplots(2, 3)
        for row, frame, x, shown in ((0, landscape, "shift", SHIFTS), (1, trajectory, "step", WAYS)):
            for ax, (name, label) in zip(axes[row], shown.items(), strict=True):
                for split, part in frame.groupby("split"):
                    _line(ax, part.sort_values(x), x, name, split)
                ax.set_title(label, fontsize=10)
                ax.set_xlabel("shift along the gap vector" if x == "shift" else "step of the bridge")
                ax.xaxis.set_major_locator(MaxNLocator(6, integer=x == "step"))
                ax.grid(axis="y")
            if x == "shift":
                for ax, (at, text) in ((ax, mark) for ax in axes[0] for mark in ((0, "as is"), (1, "means meet"))):
                    ax.axvline(at, color=FAINT, lw=0.8, ls=":")
                    ax.annotate(text, (at, 1), (3, -3), xycoords=("data", "axes fraction"), va="top", fontsize=7,
                                textcoords="offset points", color=FAINT)  # fmt: skip
        fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", title="classes")
        headline(
            fig,
            _best_shift(landscape),
            "Bands: 95 % intervals over images. Above: nothing is trained, means are moved.",
        )
    return fig


def _line(ax: Axes, part: pd.DataFrame, x: str, name: str, split: str) -> None:
    colour = SPLIT_COLOUR["full" if split == "all" else split]
    ax.plot(part[x], part[name], color=colour, lw=1.8, label=split)
    if f"{name}_low" in part:
        ax.fill_between(part[x], part[f"{name}_low"], part[f"{name}_high"], color=colour, alpha=0.12, lw=0)


def _best_shift(landscape: pd.DataFrame) -> str:
    every = landscape[landscape["split"] == "all"].set_index("shift")["recall@1"]
    best = every.idxmax()
    return (
        f"Moving means alone: own sentence nearest for {every.loc[0.0]:.1%} as is, at best {every[best]:.1%} "
        f"(shift {best:+.1f})"
    )


def class_figure(classes: pd.DataFrame, count: int = 12) -> Figure:
    """The classes whose average precision gains and loses most from centred to bridged, with their number of pairs.

    classes: `movement.class_changes`. A class of few pairs moves easily: read the number beside its name.
    """
    ranked = classes.dropna(subset="ap_change").sort_values("ap_change", kind="stable")
    half = min(count, len(ranked) // 2 or len(ranked))
    parts = {"lose most": ranked.head(half), "gain most": ranked.tail(half).iloc[::-1]}
    with drawing((11.5, 0.27 * half + 1.6)) as fig:
        for ax, (title, part) in zip(fig.subplots(1, 2), parts.items(), strict=True):
            at = np.arange(len(part))
            colours = [SPLIT_COLOUR["unseen" if unseen else "seen"] for unseen in part["unseen"]]
            ax.barh(at, 100 * part["ap_change"], color=colours, height=0.7)
            names = spread_labels([str(name).replace("_", " ") for name in part["hoi"]], 26)
            rare = np.where(part["rare"], ", rare", "")
            ax.set_yticks(
                at, [f"{n} ({c}{r})" for n, c, r in zip(names, part["pairs"], rare, strict=True)], fontsize=8.5
            )
            ax.invert_yaxis()
            ax.axvline(0, color=FAINT, lw=0.8)
            ax.tick_params(axis="y", length=0)
            ax.set_title(title, fontsize=10)
            ax.set_xlabel("change of class AP, points (pairs of the class in brackets)")
            ax.grid(axis="x")
        handles = [ax.barh([0], [0], color=SPLIT_COLOUR[name]) for name in ("seen", "unseen")]
        fig.legend(handles, ["seen", "unseen"], loc="outside right upper", title="classes")
        rises = int((ranked["ap_change"] > 0).sum())
        falls = int((ranked["ap_change"] < 0).sum())
        headline(fig, f"Centred → bridged: class AP rises for {rises} classes and falls for {falls}")
    return fig
