"""Pictures of notebook 04: how sure each difference is, what other settings would do, what happens to second labels."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lib.analysis.figures import METHOD_LABEL
from lib.analysis.palette import FAINT, INK, REST, SPLIT_COLOUR, STATE_COLOUR, drawing, headline

GROUPS = ("full", "unseen", "seen", "rare", "non_rare")
LOSS_LABEL = {"fit_loss": "loss of the blended score", "alone_loss": "loss of the cosine alone"}
VERDICT_COLOUR = {"helps": "#009E73", "hurts": "#D55E00", "no difference": REST}


def interval_figure(intervals: pd.DataFrame, title: str = "") -> Figure:
    """Difference of every variant to the detector, a panel a group of classes: point and 95 % interval over images.

    intervals: the table of `bridge_study.intervals`. Grey where the interval holds 0.
    """
    compared = intervals[intervals["variant"] != "ezhoi"]
    names = list(dict.fromkeys(compared["variant"]))
    groups = [group for group in GROUPS if group in set(compared["group"])]
    with drawing((2.2 + 2.1 * len(groups), 0.36 * len(names) + 1.5)) as fig:
        axes = np.atleast_1d(fig.subplots(1, len(groups), sharey=True))
        for ax, group in zip(axes, groups, strict=True):
            part = compared[compared["group"] == group].set_index("variant").loc[names]
            ax.axvline(0, color=INK, linewidth=0.8)
            for y, (low, high, middle, verdict) in enumerate(
                part[["difference_low", "difference_high", "difference", "verdict"]].itertuples(index=False)
            ):
                colour = VERDICT_COLOUR[verdict]
                ax.plot([low, high], [y, y], color=colour, linewidth=2.4, solid_capstyle="round")
                ax.plot(middle, y, "o", color=colour if verdict != "no difference" else FAINT, markersize=5)
            ax.set_title(f"{group.replace('_', '-')} ({part['classes'].iloc[0]})")
            ax.grid(axis="x")
            ax.tick_params(axis="y", length=0)
        axes[0].set_yticks(range(len(names)), [METHOD_LABEL.get(name, name) for name in names])
        axes[0].invert_yaxis()
        fig.supxlabel("mAP points against EZ-HOI alone, 95 % interval over test images", fontsize=10)
        headline(fig, title or _interval_finding(compared))
    return fig


def _interval_finding(compared: pd.DataFrame) -> str:
    full = compared[compared["group"] == "full"].set_index("variant")["verdict"]
    verdict = full.get("bridge", "no difference")
    if verdict == "no difference":
        return "The bridge makes no difference that these images could show"
    return f"On all classes the bridge {verdict}"


def grid_figure(grid: pd.DataFrame, value: str = "alone_loss", title: str = "") -> Figure:
    """Validation loss over entry step and evaluations: a panel a (radius, centring), one colour scale, least is best.

    grid: the table of `bridge_study.validation_grid`. value: `fit_loss` (blended) or `alone_loss`. The row below each
    panel's name is the same centring without a bridge.
    """
    walked = grid[grid["num_steps"] > 0]
    centers, scales = (list(dict.fromkeys(walked[name])) for name in ("center", "scale"))
    low, high = grid[value].min(), grid[value].max()
    with drawing((2.6 * len(centers) + 1.6, 2.1 * len(scales) + 1.3)) as fig:
        axes = fig.subplots(len(scales), len(centers), squeeze=False)
        for ax, (scale, center) in zip(axes.flat, [(s, c) for s in scales for c in centers], strict=True):
            part = walked[(walked["scale"] == scale) & (walked["center"] == center)]
            table = part.pivot_table(index="entry_step", columns="num_steps", values=value)
            image = ax.imshow(table, vmin=low, vmax=high, cmap="viridis_r", aspect="auto")
            for (i, j), loss in np.ndenumerate(table.to_numpy()):
                if np.isfinite(loss):
                    light = (loss - low) > 0.45 * (high - low)
                    ax.text(j, i, f"{loss:.4f}", ha="center", va="center", fontsize=7, color="white" if light else INK)
            without = grid[(grid["num_steps"] == 0) & (grid["center"] == center)][value].iloc[0]
            ax.set_title(f"mean off vision: {center}, radius x {scale:g}\nwithout bridge {without:.4f}", fontsize=9)
            ax.set_xticks(range(len(table.columns)), table.columns)
            ax.set_yticks(range(len(table.index)), table.index)
            ax.tick_params(length=0)
        fig.supxlabel("evaluations", fontsize=10)
        fig.supylabel("entry step", fontsize=10)
        fig.colorbar(image, ax=axes, shrink=0.7, label=f"{LOSS_LABEL[value]} on validation pairs; light is good")
        headline(fig, title or grid_finding(grid, value))
    return fig


def grid_finding(grid: pd.DataFrame, value: str = "fit_loss") -> str:
    """In one sentence: does any bridge of the grid beat leaving it out, with the centring that suits either best?"""
    without, walked = grid[grid["num_steps"] == 0], grid[grid["num_steps"] > 0]
    best, plain = walked.loc[walked[value].idxmin()], without.loc[without[value].idxmin()]
    name = "no centring" if plain["center"] == "none" else f"centring with the {plain['center']} mean"
    found = f"{best[value]:.4f} against {plain[value]:.4f}"
    return f"{'A' if best[value] < plain[value] else 'No'} bridge of the grid beats {name}: {found}"


def second_label_figure(table: pd.DataFrame, title: str = "") -> Figure:
    """Pairs with two true classes by entry step: share with both on top, and the median rank of the second.

    table: of `bridge_study.second_labels`; entry step 0 is centring alone.
    """
    looks = {"trained": (STATE_COLOUR["bridged"], "o"), "closed form": (SPLIT_COLOUR["full"], "s")}
    with drawing((8.6, 3.4)) as fig:
        axes = fig.subplots(1, 2)
        panels = (("both_on_top", "both true classes on top (share)"), ("second_rank", "rank of the second true class"))
        for ax, (column, label) in zip(axes, panels, strict=True):
            for name, part in table.groupby("denoiser", sort=False):
                colour, marker = looks[name]
                ax.plot(range(len(part)), part[column], color=colour, marker=marker, label=name)
            steps = part["entry_step"].tolist()
            ax.set_xticks(range(len(steps)), ["no bridge" if step == 0 else step for step in steps])
            ax.set_title(label)
            ax.set_ylim(bottom=0)
            ax.grid(axis="y")
            ax.set_xlabel("entry step")
        axes[1].legend(title="denoiser")
        headline(fig, title or second_label_finding(table))
    return fig


def second_label_finding(table: pd.DataFrame) -> str:
    """In one sentence: what the trained bridge does to second labels at its worst depth."""
    own = table[table["denoiser"] == "trained"].set_index("entry_step")
    before, after = own.loc[0], own.drop(index=0)["second_rank"].max()
    pairs = int(before["pairs"])
    if not pairs:
        return "No test pair has two true classes: nothing can be said about second labels"
    if after > 1.25 * before["second_rank"]:
        return f"The bridge pushes the second label of {pairs} pairs from rank {before['second_rank']:g} to {after:g}"
    return f"Second labels of {pairs} pairs keep their rank ({before['second_rank']:g}, at worst {after:g})"
