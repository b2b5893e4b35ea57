"""Static scatter figures of the projections (matplotlib; no browser needed)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.analysis.embeddings import EmbeddingTable, normalised
from lib.analysis.palette import (
    FAINT,
    STATE_COLOUR,
    STATE_LABEL,
    Category,
    categories,
    colour_values,
    drawing,
    headline,
    spread_labels,
)
from lib.analysis.projections import LABELS, caveat


def projection_panels(
    table: EmbeddingTable, method: str, colour_by: str = "verb", links: int = 12, title: str = ""
) -> Figure:
    """One panel a vision state: its points, the texts of its space as stars, a few points joined to their class text.

    table: projected (`projections.project`); all panels share one pair of axes since the fit was joint. The share of
    pairs whose nearest text is the right one is measured in the original space: the picture cannot overstate it.
    links: how many pairs, the same in every panel, are joined to their class text (0: none).
    """
    if method not in table.methods:
        raise ValueError(
            f"projection: found {table.methods}, expected {method!r}; compute it with project(table, ['{method}'])"
        )
    states = table.states
    looks = categories(colour_values(table.select(modality="vision").frame, colour_by))
    hits = {state: _nearest_text_hits(table, state) for state in states}
    limits = [_limits(table.frame[f"{method}_{axis}"]) for axis in "xy"]
    with drawing((4.3 * len(states) + 1.9, 5.3)) as fig:
        axes = fig.subplots(1, len(states), squeeze=False)[0]
        for ax, state in zip(axes, states, strict=True):
            _projection_panel(ax, table, state, method, colour_by, looks, links)
            ax.set(xlim=limits[0], ylim=limits[1], xticks=[], yticks=[], aspect="auto")
            ax.spines[["top", "right"]].set_visible(True)
            ax.set_xlabel(f"nearest text is the right one: {hits[state]:.0%}", loc="left", fontsize=9)
        handles, labels = axes[0].get_legend_handles_labels()
        fig.legend(
            handles, spread_labels(labels), loc="outside right upper", title=colour_by, markerscale=1.4, fontsize=9
        )
        points = len(table.select(states[0]))
        detail = f"{points} pairs, fitted once on all states and texts; shares of the original space. {caveat(method)}"
        shares = " → ".join(f"{hits[state]:.0%}" for state in states)
        finding = f"{LABELS[method]}: {shares} of the pairs have their own text as the nearest one"
        headline(fig, title or finding, detail)
    return fig


def _projection_panel(
    ax: Axes, table: EmbeddingTable, state: str, method: str, colour_by: str, looks: Sequence[Category], links: int
) -> None:
    x, y = f"{method}_x", f"{method}_y"
    vision, text = table.select(state).frame, table.texts_for(state).frame
    if links:
        target = text.drop_duplicates("hoi_id").set_index("hoi_id")[[x, y]]
        linked = vision.sort_values("point").drop_duplicates("hoi_id").head(links)
        linked = linked[linked["hoi_id"].isin(target.index)]
        ends = target.loc[linked["hoi_id"]]
        ax.plot(
            np.stack([linked[x], ends[x]]), np.stack([linked[y], ends[y]]), color=FAINT, lw=0.7, alpha=0.7, zorder=1
        )
    shown = colour_values(vision, colour_by)
    known = {look.value for look in looks}
    shown = shown.where(shown.isin(known), "other")
    for look in looks:
        part = vision[shown == look.value]
        ax.scatter(
            part[x], part[y], s=16, c=look.colour, marker=look.marker, alpha=0.75, lw=0, label=look.value, zorder=2
        )
    ax.scatter(
        text[x],
        text[y],
        s=85,
        marker="*",
        c=STATE_COLOUR["text"],
        edgecolors="white",
        lw=0.6,
        label="class text",
        zorder=3,
    )
    ax.set_title(f"{STATE_LABEL[state]}  vs  {STATE_LABEL['text' if state == 'raw' else 'text_centred']}")


def state_panel(table: EmbeddingTable, method: str, arrows: int = 40, title: str = "") -> Figure:
    """All states in one panel: text, vision before and after, arrows from some centred points to their bridged ones."""
    x, y = f"{method}_x", f"{method}_y"
    with drawing((8.6, 6.0)) as fig:
        ax = fig.subplots()
        if arrows and {"centred", "bridged"} <= set(table.states):
            before, after = (table.select(s).frame.set_index("point")[[x, y]] for s in ("centred", "bridged"))
            shared = before.index.intersection(after.index)[:arrows]
            start, move = before.loc[shared], after.loc[shared] - before.loc[shared]
            ax.quiver(
                start[x], start[y], move[x], move[y], angles="xy", scale_units="xy", scale=1,
                color=FAINT, alpha=0.55, width=0.0018, headwidth=5, zorder=1,
            )  # fmt: skip
        for state in table.states:
            part = table.select(state).frame
            ax.scatter(
                part[x], part[y], s=14, c=STATE_COLOUR[state], alpha=0.6, lw=0, label=STATE_LABEL[state], zorder=2
            )
        for state, face in (("text", "none"), ("text_centred", STATE_COLOUR["text"])):
            part = table.with_centred_text().select(state).frame
            edge = STATE_COLOUR["text"] if face == "none" else "white"
            ax.scatter(
                part[x], part[y], s=95, marker="*", facecolors=face, edgecolors=edge, lw=0.8,
                label=STATE_LABEL[state], zorder=3,
            )  # fmt: skip
        ax.set(xticks=[], yticks=[])
        ax.spines[["top", "right"]].set_visible(True)
        fig.legend(*ax.get_legend_handles_labels(), loc="outside right upper", markerscale=1.3)
        headline(
            fig,
            title or f"{LABELS[method]}: where the bridge moves the pairs",
            f"Arrows: centred to bridged. {caveat(method)}",
        )
    return fig


def _nearest_text_hits(table: EmbeddingTable, state: str) -> float:
    """Share of the labelled pairs whose most similar class text, in the original space, is their own."""
    vision, text = table.select(state), table.texts_for(state)
    labels, classes = vision.frame["hoi_id"].to_numpy(), text.frame["hoi_id"].to_numpy()
    nearest = classes[(normalised(vision.vectors) @ normalised(text.vectors).T).argmax(1)]
    known = np.isin(labels, classes)
    return float((nearest == labels)[known].mean()) if known.any() else float("nan")


def _limits(values: pd.Series) -> tuple[float, float]:
    low, high = np.nanmin(values), np.nanmax(values)
    margin = 0.05 * max(high - low, 1e-6)
    return low - margin, high + margin
