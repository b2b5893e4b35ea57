"""The live picture of `similarity.class_matrix`: which sentence is each class of pairs near?"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import plotly.graph_objects as go

from lib.analysis.palette import INK


class HeatMap:
    """The matrix as a live plotly widget; a click calls back with the name of the row's class."""

    def __init__(self, clicked: Callable[[str], None]) -> None:
        trace = go.Heatmap(colorscale="Cividis", colorbar={"title": "cosine", "thickness": 12}, hoverongaps=False)
        trace.hovertemplate = "pairs of <b>%{y}</b><br>sentence <b>%{x}</b><br>cosine %{z:.2f}<extra></extra>"
        axis = {"tickfont": {"size": 9}, "showgrid": False, "ticks": ""}
        self.widget = go.FigureWidget(
            [trace],
            {
                "template": "plotly_white", "height": 560, "margin": {"l": 10, "r": 10, "t": 44, "b": 10},
                "font": {"family": "system-ui, sans-serif", "color": INK}, "xaxis": axis | {"automargin": True},
                "yaxis": axis | {"autorange": "reversed", "automargin": True}, "title": {"font": {"size": 14}},
            },
        )  # fmt: skip
        self.widget.data[0].on_click(lambda _trace, points, _state: [clicked(name) for name in points.ys[:1]])

    def show(self, matrix: pd.DataFrame, title: str) -> None:
        """Draw a matrix of `class_matrix`."""
        with self.widget.batch_update():
            trace = self.widget.data[0]
            trace.z, trace.x, trace.y = matrix.to_numpy().round(3), [*matrix.columns], [*matrix.index]
            self.widget.layout.title.text = title
            self.widget.layout.height = 240 + 11 * max(len(matrix), 12)
