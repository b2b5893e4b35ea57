"""Interactive scatter of a projection as plotly traces: for a stand-alone HTML file and for the live explorer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from lib.analysis.embeddings import MODALITY, EmbeddingTable
from lib.analysis.palette import FAINT, INK, STATE_COLOUR, STATE_LABEL, categories, colour_values
from lib.analysis.projections import LABELS, caveat
from lib.runs import write_text

# a vision state is told by its marker's fill, so that the colour stays free for the class
OPACITY = {"raw": 0.45, "centred": 0.65, "bridged": 0.95}
HOVER = "<b>%{customdata[1]}</b><br>%{customdata[2]}<br>%{customdata[3]}<extra></extra>"


def scatter_traces(table: EmbeddingTable, method: str, states: Sequence[str], colour_by: str) -> list[go.Scattergl]:
    """One trace a (vision state, colour value), then the texts of the states' spaces as stars.

    `customdata` of a point: row in the table's frame, HOI, state and split, score; a click reads the row from it.
    Points without coordinates (a state added after the projection) are left out.
    """
    x, y = f"{method}_x", f"{method}_y"
    vision = table.frame[table.frame["modality"] == "vision"]
    # looks come from all states, so a class keeps its colour while states are switched on and off
    looks = {look.value: look for look in categories(colour_values(vision, colour_by))} if len(vision) else {}
    traces: list[go.Scattergl] = []
    plain = sum(MODALITY[state] == "vision" for state in states) == 1  # then a name need not say its state
    for state in states:
        if MODALITY[state] != "vision":
            continue
        frame = table.frame[(table.frame["state"] == state) & table.frame[x].notna()]
        shown = colour_values(frame, colour_by)
        shown = shown.where(shown.isin(looks), "other")
        for value, look in looks.items():
            part = frame[shown == value]
            if len(part):
                colour = STATE_COLOUR[state] if colour_by == "modality" else look.colour
                marker = {"size": 7, "color": colour, "symbol": look.symbol, "opacity": OPACITY[state]}
                name = STATE_LABEL[state] if colour_by == "modality" else value if plain else f"{value} ({state})"
                traces.append(_trace(part, x, y, name, marker, legendgroup=value))
    wanted = {"text" if state in ("raw", "text") else "text_centred" for state in states}
    for state in sorted(wanted):
        part = table.frame[(table.frame["state"] == state) & table.frame[x].notna()]
        if len(part):
            symbol = "star-open" if state == "text" and len(wanted) > 1 else "star"
            marker = {
                "size": 12,
                "color": STATE_COLOUR[state],
                "symbol": symbol,
                "line": {"width": 0.8, "color": "white"},
            }
            traces.append(_trace(part, x, y, STATE_LABEL[state], marker))
    return traces


def _trace(part: pd.DataFrame, x: str, y: str, name: str, marker: dict, **more: str) -> go.Scattergl:
    split = np.where(part["unseen"], "unseen", "seen")
    state = part["state"].map(STATE_LABEL) + " · " + split
    score = [
        "" if np.isnan(s) else f"score {s:.2f} · {'correct' if c else 'wrong'}"
        for s, c in zip(part["score"], part["correct"], strict=True)
    ]
    return go.Scattergl(
        x=part[x].to_numpy(),
        y=part[y].to_numpy(),
        mode="markers",
        name=name,
        marker=marker,
        customdata=np.stack([part.index.to_numpy(dtype=object), part["hoi"], state, score], axis=1),
        hovertemplate=HOVER,
        **more,
    )


def layout(method: str, title: str = "") -> dict:
    """The figure's layout; the axes carry no ticks since their numbers mean nothing."""
    axis = {"showticklabels": False, "showgrid": False, "zeroline": False, "mirror": True, "linecolor": "#d1d5db"}
    note = {
        "text": caveat(method), "showarrow": False, "xref": "paper", "yref": "paper",
        "x": 0, "y": -0.01, "yanchor": "top", "xanchor": "left", "font": {"color": FAINT, "size": 12},
    }  # fmt: skip
    return {
        "template": "plotly_white",
        "height": 620,
        "title": {"text": title or LABELS[method], "x": 0.01, "font": {"size": 18, "color": INK}},
        "font": {"family": "system-ui, sans-serif", "color": INK},
        "margin": {"l": 10, "r": 10, "t": 50, "b": 36},
        "legend": {"itemsizing": "constant", "font": {"size": 11}},
        "hoverlabel": {"align": "left"},
        "xaxis": axis,
        "yaxis": axis,
        "annotations": [note],
    }


def interactive_html(
    table: EmbeddingTable, path: Path | str, method: str = "tsne", colour_by: str = "verb", title: str = ""
) -> Path:
    """A self-contained HTML file (about 5 MB, it carries plotly.js) of all states; buttons show one state at a time."""
    states = table.states
    per_state = {state: scatter_traces(table, method, [state], colour_by) for state in states}
    figure = go.Figure([trace for traces in per_state.values() for trace in traces], layout(method, title))
    owner = [state for state, traces in per_state.items() for _ in traces]
    last = states[-1]
    for trace, state in zip(figure.data, owner, strict=True):
        trace.visible = state == last
    buttons = [
        {"label": STATE_LABEL[state], "method": "update", "args": [{"visible": [state == other for other in owner]}]}
        for state in states
    ]
    # one pair of axes for all states, so switching shows movement and not a new scale
    for axis in "xy":
        values = table.frame[f"{method}_{axis}"]
        margin = 0.05 * (values.max() - values.min())
        figure.layout[f"{axis}axis"].range = [float(values.min() - margin), float(values.max() + margin)]
    figure.update_layout(
        updatemenus=[
            {"type": "buttons", "direction": "right", "x": 0.5, "xanchor": "center", "y": 1.02, "yanchor": "bottom",
             "active": len(states) - 1, "buttons": buttons}
        ]
    )  # fmt: skip
    path = Path(path)
    write_text(path, figure.to_html(include_plotlyjs=True, full_html=True))
    return path
