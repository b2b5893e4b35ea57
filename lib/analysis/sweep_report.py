"""The end of a sweep: summary over the seeds, paired differences, one figure, and a page that holds all of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from lib.analysis.page import name_cell, page, picture, quiet, section, table, text_cell
from lib.analysis.palette import FAINT, SPLIT_COLOUR, drawing, save_figure
from lib.analysis.seeds import summarise_seeds
from lib.runs import write_text

DRAWN = ("mAP_full", "mAP_unseen", "mAP_seen", "mAP_rare", "mAP_non_rare")


def write_sweep_report(
    root: Path, name: str, points: pd.DataFrame, differences: Callable[[pd.DataFrame], pd.DataFrame] | None = None
) -> pd.DataFrame:
    """Write summary.csv, differences.csv (where asked for), sweep.png and sweep.html into the sweep's folder.

    points: one row a point and method: what identifies it, `seed`, scores. Returns the differences, else the summary.
    """
    summary = summarise_seeds(points)
    write_text(root / "summary.csv", summary.to_csv(index=False, float_format="%.2f"))
    seeds = points["seed"].nunique()
    figure = save_figure(sweep_figure(points), root / "sweep.png")
    parts = [
        f"<h1>{name}</h1>" + quiet(f"{len(summary)} settings, {seeds} seed{'s' * (seeds > 1)} each."),
        section("At a glance", picture(figure, "A dot is one run; the bar is the mean over the seeds.")),
        section("Mean and spread", _summary_table(summary)),
    ]
    found = summary
    if differences is not None:
        found = differences(points)
        write_text(root / "differences.csv", found.to_csv(index=False, float_format="%.2f"))
        parts.append(section("Differences", _difference_table(found)))
    write_text(root / "sweep.html", page(name, *parts))
    return found


def sweep_figure(points: pd.DataFrame) -> Figure:
    """A row a setting, a panel a score: every run a dot, the mean a bar; the best mean is dark."""
    border = list(points).index("seed")
    scores = [name for name in DRAWN if name in points and points[name].notna().any()][:3]
    scores = scores or list(points)[border + 1 :][:3]
    labels = points.iloc[:, :border]
    labels = labels[[name for name in labels if labels[name].nunique() > 1] or [labels.columns[0]]]
    rows = labels.astype(str).agg(" · ".join, axis=1)
    order = list(dict.fromkeys(rows))
    place = rows.map({label: len(order) - 1 - i for i, label in enumerate(order)})
    with drawing((3.2 + 2.6 * len(scores), 1.1 + 0.32 * len(order))) as figure:
        axes = figure.subplots(1, len(scores), sharey=True, squeeze=False)[0]
        for axis, score in zip(axes, scores, strict=True):
            means = points.groupby(place)[score].mean()
            colour = SPLIT_COLOUR.get(score.removeprefix("mAP_"), SPLIT_COLOUR["full"])
            for y, mean in means.items():
                axis.plot(
                    [mean, mean], [y - 0.32, y + 0.32], color=colour, lw=3, alpha=1 if mean == means.max() else 0.45
                )
            axis.scatter(points[score], place, s=22, facecolor="white", edgecolor=colour, linewidth=1.2, zorder=3)
            axis.set_title(score.removeprefix("mAP_").replace("_", " "))
            axis.set_xlabel("mAP, %" if score.startswith("mAP_") else "", color=FAINT)
            axis.grid(axis="x")
            axis.tick_params(axis="y", length=0)
            axis.set_ylim(-0.6, len(order) - 0.4)
            axis.margins(x=0.12)
        axes[0].set_yticks(range(len(order)), order[::-1])
    return figure


def _summary_table(summary: pd.DataFrame) -> str:
    scores = [name.removesuffix("_mean") for name in summary if name.endswith("_mean")]
    scores = [name for name in scores if summary[f"{name}_mean"].notna().any()]
    by = list(summary)[: list(summary).index(next(n for n in summary if n.endswith("_mean")))]
    best = {name: summary[f"{name}_mean"].max() for name in scores}
    rows = []
    for row in summary.to_dict("records"):
        cells = [name_cell(str(row[by[0]])), *(text_cell(str(row[name])) for name in by[1:])]
        for name in scores:
            mean, spread = row[f"{name}_mean"], row[f"{name}_std"]
            text = f"{mean:.2f}" + (f" ± {spread:.2f}" if math.isfinite(spread) else "")
            shown = "–" if not math.isfinite(mean) else f"<b>{text}</b>" if mean == best[name] else text
            cells.append(f"<td>{shown}</td>")
        rows.append(cells)
    head = [*by, *(name.removeprefix("mAP_").replace("_", " ") for name in scores)]
    note = quiet("mAP in percent, mean ± sample standard deviation over the seeds. Bold: best mean of a column.")
    return table(head, rows, prose=by) + note


def _difference_table(found: pd.DataFrame) -> str:
    by = [name for name in found if name not in ("difference", "low", "high", "seeds", "verdict")]
    rows = []
    for row in found.to_dict("records"):
        interval = f"[{row['low']:+.2f}, {row['high']:+.2f}]" if math.isfinite(row["low"]) else "–"
        cells = [name_cell(str(row[by[0]])), *(text_cell(str(row[name])) for name in by[1:])]
        cells += [
            f"<td>{row['difference']:+.2f}</td>",
            f"<td>{interval}</td>",
            text_cell(row["verdict"], row["verdict"]),
        ]
        rows.append(cells)
    note = quiet("95 % interval over the seeds (Student). One seed gives none; three give a wide one.")
    return table([*by, "difference", "95 % interval", "verdict"], rows, prose=[*by, "verdict"]) + note
