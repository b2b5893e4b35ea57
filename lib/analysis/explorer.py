"""A live view of the embeddings for JupyterLab: `GapExplorer(table).view()`.

Dropdowns choose projection, states and colouring; sliders and a button recompute t-SNE or UMAP; hovering names a point;
a click shows its image with both boxes. Every choice can also be made from code, as the tests do without a browser:
`explorer.colour_by.value = "object"`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import ipywidgets as w
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from IPython.display import display
from PIL import Image

from lib.analysis.embeddings import BOXES_H, BOXES_O, EmbeddingTable
from lib.analysis.interactive import layout, scatter_traces
from lib.analysis.palette import COLOUR_BY, STATE_LABEL
from lib.analysis.pictures import draw_pairs
from lib.analysis.projections import LABELS, METHODS, project

ImageLoader = Callable[[int], Image.Image]


class GapExplorer:
    """Controls, scatter and side panel over one embeddings table.

    table: with or without coordinates; a missing PCA is computed at once, t-SNE and UMAP on request.
    load_image: image index (the table's `image` column) -> PIL image; None leaves the pictures out.
    seed: of recomputed projections.
    """

    def __init__(self, table: EmbeddingTable, load_image: ImageLoader | None = None, seed: int = 0) -> None:
        table = table.with_centred_text()
        if not table.methods:
            table = project(table, ["pca"], seed=seed)
        self.table, self.load_image, self.seed = table, load_image, seed
        self.selected: pd.Series | None = None  # the row last clicked
        self._controls(table)
        self.figure = _figure_widget()
        self.figure_output = w.Output()
        self.details = w.HTML("<i>Click a point to see its pair.</i>")
        self.picture = w.Image(format="png", layout=w.Layout(max_width="100%", display="none"))
        for control in (self.method, self.states, self.colour_by):
            control.observe(lambda _: self.refresh(), names="value")
        self.method.observe(lambda _: self._show_parameters(), names="value")
        self.recompute.on_click(lambda _: self.recompute_projection())
        self._show_parameters()
        self.refresh()

    def _controls(self, table: EmbeddingTable) -> None:
        computed = [name for name in METHODS if name in table.methods]
        self.method = w.Dropdown(
            options=[(LABELS[name], name) for name in METHODS], value=computed[0], description="projection"
        )
        states = table.states
        self.states = w.SelectMultiple(
            options=[(STATE_LABEL[s], s) for s in states], value=states[-1:], rows=len(states), description="states"
        )
        self.colour_by = w.Dropdown(
            options=[("seen / unseen" if name == "split" else name, name) for name in COLOUR_BY],
            value="verb",
            description="colour by",
        )
        parameters = table.info.get("projections", {})
        largest = max(5, min(200, (len(table) - 1) // 3))
        perplexity = parameters.get("tsne", {}).get("perplexity", 30)
        neighbours = parameters.get("umap", {}).get("neighbours", 15)
        self.perplexity = w.IntSlider(min(int(perplexity), largest), 2, largest, description="perplexity")
        self.neighbours = w.IntSlider(min(int(neighbours), largest), 2, largest, description="n_neighbours")
        self.recompute = w.Button(description="recompute", icon="refresh", tooltip="fit again with these parameters")
        self.message = w.HTML()

    # ---------------------------------------------------------------- view

    def view(self) -> w.Widget:
        """The whole layout; the last expression of a cell shows it."""
        left = w.VBox([self.method, self.states, self.colour_by])
        right = w.VBox([self.perplexity, self.neighbours, self.recompute, self.message])
        scatter = self.figure if isinstance(self.figure, w.Widget) else self.figure_output
        side = w.VBox([self.details, self.picture], layout=w.Layout(width="32%", min_width="260px", padding="8px"))
        main = w.Box([scatter], layout=w.Layout(width="68%"))
        return w.VBox([w.HBox([left, right]), w.HBox([main, side])])

    def refresh(self) -> None:
        """Draw the chosen projection, states and colouring; says so where the projection is still to be computed."""
        method = self.method.value
        if method not in self.table.methods:
            self.message.value = f"{LABELS[method]} is not computed yet: press <b>recompute</b>."
            return
        self.message.value = ""
        traces = scatter_traces(self.table, method, self.states.value, self.colour_by.value)
        if isinstance(self.figure, w.Widget):
            with self.figure.batch_update():
                self.figure.data = []
                self.figure.add_traces(traces)
                self.figure.update_layout(layout(method))
            for trace in self.figure.data:
                trace.on_click(self._clicked)
        else:
            self.figure = go.Figure(traces, layout(method))
            self.figure_output.clear_output(wait=True)
            with self.figure_output:
                display(self.figure)

    def recompute_projection(self) -> None:
        """Fit the chosen projection again on all points with the sliders' parameters and the explorer's seed."""
        method = self.method.value
        self.recompute.disabled = True
        try:
            self.table = project(
                self.table,
                [method],
                seed=self.seed,
                perplexity=self.perplexity.value,
                neighbours=self.neighbours.value,
                progress=self._say,
            )
        finally:
            self.recompute.disabled = False
        self.refresh()

    def _say(self, line: str) -> None:
        self.message.value = f"computing {line} …"

    def _show_parameters(self) -> None:
        self.perplexity.layout.display = "" if self.method.value == "tsne" else "none"
        self.neighbours.layout.display = "" if self.method.value == "umap" else "none"

    # ---------------------------------------------------------------- one pair

    def _clicked(self, trace: go.Scattergl, points: object, _state: object) -> None:
        indices: Sequence[int] = getattr(points, "point_inds", [])
        if indices:
            self.select_row(int(trace.customdata[indices[0]][0]))

    def select_row(self, row: int) -> None:
        """Show one row of the table in the side panel: labels, score and, for a pair, its image with both boxes."""
        self.selected = found = self.table.frame.loc[row]
        split = "unseen" if found["unseen"] else "seen"
        lines = [f"<b>{found['hoi']}</b> ({split})", STATE_LABEL[found["state"]]]
        if found["modality"] == "vision":
            lines.append(f"score {found['score']:.3f}, {'correct' if found['correct'] else 'wrong'}")
            lines.append(f"image {found['image']}, point {found['point']}")
        self.details.value = "<br>".join(lines)
        self.picture.layout.display = "none"
        boxes = [found[list(names)].to_numpy(dtype=float) for names in (BOXES_H, BOXES_O)]
        if self.load_image is None or found["image"] < 0 or not np.isfinite(np.concatenate(boxes)).all():
            return
        self.picture.value = _crop(self.load_image(int(found["image"])), *boxes, found["hoi"])
        self.picture.layout.display = ""


def _crop(image: Image.Image, box_h: np.ndarray, box_o: np.ndarray, label: str, margin: float = 0.15) -> bytes:
    """PNG of the union of both boxes with a margin, the boxes drawn."""
    low, high = np.minimum(box_h[:2], box_o[:2]), np.maximum(box_h[2:], box_o[2:])
    pad = margin * (high - low).max()
    x1, y1 = np.floor(np.maximum(low - pad, 0)).astype(int).tolist()
    x2, y2 = np.ceil(np.minimum(high + pad, image.size)).astype(int).tolist()
    shift = np.array([x1, y1, x1, y1])
    figure = draw_pairs(image.crop((x1, y1, x2, y2)), [box_h - shift], [box_o - shift], [label])
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=70, bbox_inches="tight")
    return stream.getvalue()


def _figure_widget() -> go.Figure:
    """A FigureWidget, or a plain figure shown through an Output widget where plotly's widget support is missing."""
    try:
        return go.FigureWidget()
    except ImportError:
        return go.Figure()
