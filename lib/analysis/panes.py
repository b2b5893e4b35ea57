"""Live scatter panes (jupyter-scatter): one row a point in every pane, so selecting, hovering and moving are shared."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ipywidgets as w
import jscatter
import numpy as np
import pandas as pd

from lib.analysis.colouring import Colouring
from lib.analysis.palette import FAINT, INK
from lib.analysis.scene import Scene
from lib.analysis.thumbnails import Thumbnails

GLIDE_MS = 900  # of the movement from one state to the next
TOOLTIP = ["interaction", "split", "point"]


class Pane:
    """One scatter of a scene.

    look: picture of the hover card. coordinates: [N, 2], limits: [2, 2] of both axes, changed by `move`.
    """

    def __init__(self, scene: Scene, look: Thumbnails, coordinates: np.ndarray, limits: np.ndarray) -> None:
        self.scene = scene
        self.frame = pd.DataFrame(coordinates, columns=["x", "y"])
        text = np.arange(len(self.frame)) >= scene.pairs
        self.frame["kind"] = pd.Categorical(np.where(text, "text", "pair"), categories=["pair", "text"])
        self.frame["interaction"] = scene.frame["hoi"].str.replace("_", " ")
        self.frame["split"] = np.where(scene.frame["unseen"], "unseen", "seen")
        self.frame["point"] = np.where(text, "class sentence", scene.frame["point"])
        self.frame["picture"] = ""  # filled when asked for
        self.scatter = jscatter.Scatter(
            data=self.frame, x="x", y="y", x_scale=tuple(limits[0]), y_scale=tuple(limits[1]),
            background_color="white", axes=False, legend=False, lasso_initiator=False, lasso_on_long_press=True,
            color_selected=INK, color_hover=INK, size_by="kind", size_map=[_size(scene.pairs), 9],
            opacity=0.85, opacity_unselected=0.25, transition_points=True, transition_points_duration=GLIDE_MS,
            zoom_animation=600, zoom_padding=0.6, tooltip=True, tooltip_properties=TOOLTIP, tooltip_size="medium",
            tooltip_histograms=False, tooltip_preview="picture", tooltip_preview_type="image",
            tooltip_preview_image_size="contain", tooltip_preview_image_height=140,
        )  # fmt: skip
        self.look, self.limits = look, limits
        self.widget = self.scatter.widget
        self.widget.toolbar_buttons = ["pan_zoom", "lasso", "lasso_type", "reset"]
        self.widget.observe(lambda change: self._picture(_row(change["new"])), names="hovering")

    def _picture(self, row: int | None) -> None:
        """Draw the picture of the hover card, which is asked for a moment later: 50,000 of them would not fit."""
        if row is not None:
            self.frame.at[row, "picture"] = self.look.uri(row, 200)

    def move(self, coordinates: np.ndarray, limits: np.ndarray, glide: bool = True) -> None:
        """Go to coordinates [N, 2] inside limits [2, 2]; points without any (NaN) are hidden."""
        known = np.isfinite(coordinates).all(axis=1)
        self.frame[["x", "y"]] = np.where(known[:, None], coordinates, self.frame[["x", "y"]])
        self.limits = limits
        self.scatter.xy("x", "y", tuple(limits[0]), tuple(limits[1]), animate=glide)
        self.scatter.filter(None if known.all() else np.flatnonzero(known))

    def paint(self, name: str, found: Colouring) -> None:
        """Colour by a colouring; `name` tells it from every other one (a column is kept for each)."""
        column = f"by {name}"
        if column not in self.frame:
            self.frame[column] = pd.Categorical.from_codes(found.code, [look.value for look in found.looks])
        self.scatter.color(by=column, map=[look.colour for look in found.looks])

    def arrows(self, start: np.ndarray, end: np.ndarray) -> None:
        """Draw arrows [n, 2] -> [n, 2] in data coordinates; none clears them."""
        low, span = self.limits[:, 0], np.diff(self.limits, axis=1)[:, 0]
        # heads are shaped in the coordinates of the picture: the data's axes may be of very different length
        ends = ((np.stack([start, end], axis=1) - low) / span).tolist()
        lines = [np.array(_arrow(*map(np.array, both))) * span + low for both in ends]
        shaped = [jscatter.Line(list(map(tuple, line.tolist())), line_color=FAINT, line_width=1) for line in lines]
        self.scatter.annotations(shaped or None)

    def select(self, rows: np.ndarray) -> None:
        """Mark rows as selected; linked panes follow."""
        # a pane that was opened with a selection takes the next one for its own echo and drops it: say it twice
        self.scatter.selection(rows[:-1] if len(rows) else [0])
        self.scatter.selection(rows)

    def zoom(self, rows: np.ndarray) -> None:
        """Fly to some rows; to everything with none."""
        self.scatter.zoom(to=rows if len(rows) else None)


def linked(panes: Sequence[Pane], titles: Sequence[w.Widget], height: int) -> w.Widget:
    """The panes in a grid under their titles, with one camera, one hover and one selection."""
    scatters = [pane.scatter for pane in panes]
    jscatter.compose(scatters, sync_view=True, sync_selection=True, sync_hover=True, row_height=height)
    cells = [w.VBox([title, pane.widget]) for title, pane in zip(titles, panes, strict=True)]
    columns = "1fr" if len(panes) == 1 else "1fr 1fr"  # narrower panes would cut the square of the picture
    return w.GridBox(cells, layout=w.Layout(width="100%", grid_template_columns=columns, grid_gap="4px"))


def watch(pane: Pane, selected: Callable[[np.ndarray], None], hovered: Callable[[int | None], None]) -> None:
    """Call back with the selected rows and with the hovered row of a pane (linked panes follow it)."""
    pane.widget.observe(lambda change: selected(_rows(change["new"])), names="selection")
    pane.widget.observe(lambda change: hovered(_row(change["new"])), names="hovering")


def _rows(value: np.ndarray | None) -> np.ndarray:
    return np.zeros(0, dtype=int) if value is None else np.asarray(value, dtype=int)


def _row(value: int | None) -> int | None:
    return None if value is None or value < 0 else int(value)


def _size(pairs: int) -> int:
    return 5 if pairs < 1500 else 4 if pairs < 8000 else 3 if pairs < 25_000 else 2


def _arrow(start: np.ndarray, end: np.ndarray, head: float = 0.012) -> list[np.ndarray]:
    """The vertices of an arrow drawn as one line: shaft, and both barbs at its end; in shares of the picture."""
    way = end - start
    length = float(np.linalg.norm(way))
    back = -way / max(length, 1e-9) * min(head, length / 2)
    turned = 0.6 * np.array([-back[1], back[0]])
    return [start, end, end + back + turned, end, end + back - turned]
