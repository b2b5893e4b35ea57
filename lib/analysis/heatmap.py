"""The live picture of `similarity.class_matrix`: which sentence is each class of pairs near?"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import plotly.graph_objects as go

from lib.analysis.palette import INK


class HeatMap:
    """The matrix as a live plotly widget; a click calls back with the name of the row's class.

    It is made with its first matrix: what changes before the browser has loaded plotly would be lost.
    """

    def __init__(self, matrix: pd.DataFrame, title: str, clicked: Callable[[str], None]) -> None:
        axis = {"tickfont": {"size": 9}, "showgrid": False, "ticks": "", "automargin": True}
        trace = go.Heatmap(
            **_cells(matrix), colorscale="Cividis", colorbar={"title": "cosine", "thickness": 12},
            hovertemplate="pairs of <b>%{y}</b><br>sentence <b>%{x}</b><br>cosine %{z:.2f}<extra></extra>",
        )  # fmt: skip
        look = {
            "template": "plotly_white", "height": _height(matrix), "margin": {"l": 10, "r": 10, "t": 44, "b": 10},
            "font": {"family": "system-ui, sans-serif", "color": INK}, "title": {"text": title, "font": {"size": 14}},
            "xaxis": axis, "yaxis": axis | {"autorange": "reversed"},
        }  # fmt: skip
        self.widget = go.FigureWidget([trace], look)
        self.widget.data[0].on_click(lambda _trace, points, _state: [clicked(name) for name in points.ys[:1]])

    def show(self, matrix: pd.DataFrame, title: str) -> None:
        """Draw another matrix."""
        with self.widget.batch_update():
            self.widget.data[0].update(_cells(matrix))
            self.widget.layout.title.text, self.widget.layout.height = title, _height(matrix)


def _cells(matrix: pd.DataFrame) -> dict[str, object]:
    return {"z": matrix.to_numpy().round(3), "x": [*matrix.columns], "y": [*matrix.index]}


def _height(matrix: pd.DataFrame) -> int:
    return 240 + 11 * max(len(matrix), 12)
