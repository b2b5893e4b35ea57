"""The live view of the modality gap for JupyterLab: linked scatters, pictures, similarities, one selection.

    from lib.stages.explore import explore
    explorer = explore("runs/demo")          # the last line of a cell shows it
    explorer.selected                        # a DataFrame of what was clicked or drawn round
    explorer.selected = ["pair-3", "pair-8"] # and the other way round
    explorer.save_selection("mine.csv")

Every control is a widget that can be set from code (`explorer.colour.value = "outcome"`); what is shown is a `View`,
so that `explorer.figure()` and `explorer.html(path)` draw the same without a kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import ipywidgets as w
import numpy as np
import pandas as pd
from IPython.display import display
from matplotlib.figure import Figure

from lib.analysis import cards
from lib.analysis.colouring import COLOURINGS, available, colouring
from lib.analysis.gallery import Gallery
from lib.analysis.heatmap import HeatMap
from lib.analysis.interactive import view_html
from lib.analysis.palette import STATE_LABEL
from lib.analysis.panes import GLIDE_MS, Pane, linked, watch
from lib.analysis.projections import LABELS, caveat
from lib.analysis.scatter import draw_view
from lib.analysis.scene import Scene
from lib.analysis.similarity import class_matrix, own_share
from lib.analysis.thumbnails import ImageLoader, Thumbnails
from lib.analysis.view import ARROWS, LAYOUTS, View, arrow_ends, panels
from lib.errors import FoundExpected
from lib.runs import atomic_write

COLUMNS = ("point", "hoi", "verb", "object", "unseen", "score", "correct", "outcome", "moved", "margin_change", "image")
HOW = "Hover for a picture; click, or draw round points with the lasso, to select."
SHOWN = 24  # thumbnails of a selection


class Explorer:
    """Panes, controls and side panel over one scene, or two scenes of the same points (see `scene.scenes`).

    load_image: image index and split of the table -> PIL image; None leaves the pictures out.
    view: where to start. folder: where `save_selection` and `save_view` write relative paths.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        load_image: ImageLoader | None = None,
        view: View | None = None,
        folder: Path | str = ".",
    ) -> None:
        self.scenes, self.folder = list(scenes), Path(folder)
        self.scene = self.scenes[0]
        self.look = Thumbnails(self.scene.frame, load_image)
        start = (view or View(layout="runs" if len(self.scenes) > 1 else "one")).on(self.scene)
        self._states = start.states
        self._limit = start.arrow_limit
        self._rows = np.array([self.scene.row_of[point] for point in start.selection], dtype=int)
        self._busy, self._focus = False, None
        self._controls(start)
        self._outputs()
        self._arrange()
        self._selection_shown()

    # ---------------------------------------------------------------- parts

    def _controls(self, start: View) -> None:
        scene, narrow = self.scene, w.Layout(width="auto")
        known = [name for name in LAYOUTS if name != "runs" or len(self.scenes) > 1]
        self.layout = w.Dropdown(options=[(LAYOUTS[name], name) for name in known], value=start.layout)
        self.projection = w.Dropdown(options=[(LABELS.get(m, m), m) for m in scene.methods], value=start.projection)
        self.colour = w.Dropdown(options=[(COLOURINGS[name], name) for name in available(scene)], value=start.colour)
        self.arrows = w.Dropdown(options=[(label, name) for name, label in ARROWS.items()], value=start.arrows)
        for control in (self.layout, self.projection, self.colour, self.arrows):
            control.layout = narrow
        options = [(STATE_LABEL[state].removeprefix("vision, "), state) for state in scene.states]
        self.state = w.SelectionSlider(options=options, value=start.state, layout=w.Layout(width="230px"))
        self.play = w.Play(max=len(options) - 1, interval=2 * GLIDE_MS, layout=w.Layout(width="130px"))
        self.step = w.IntSlider(
            scene.steps, 0, scene.steps, description="step of the bridge", continuous_update=False,
            style={"description_width": "initial"}, layout=w.Layout(width="300px"),
        )  # fmt: skip
        self.step_play = w.Play(max=max(scene.steps, 1), interval=GLIDE_MS, layout=w.Layout(width="130px"))
        self.search = w.Text(placeholder="search: ride bicycle, unseen, lost, image:12", layout=w.Layout(width="270px"))
        self.found = w.HTML()
        self.clear = w.Button(description="clear", icon="times", layout=w.Layout(width="80px"))
        self.fly = w.Button(description="zoom to selection", icon="search-plus", layout=w.Layout(width="170px"))
        self.save = w.Button(description="save selection", icon="save", layout=w.Layout(width="150px"))
        self.layout.observe(lambda _: self._arrange(), names="value")
        for control in (self.projection, self.state):
            control.observe(lambda _: self._move(), names="value")
        self.colour.observe(lambda _: self._paint(), names="value")
        self.arrows.observe(lambda _: self._arrows(), names="value")
        self.step.observe(lambda _: self._stepped(), names="value")
        self.play.observe(lambda change: setattr(self.state, "index", change["new"]), names="value")
        self.step_play.observe(lambda change: setattr(self.step, "value", change["new"]), names="value")
        self.search.observe(lambda change: self.find(change["new"]), names="value")
        self.clear.on_click(lambda _: self._clear())
        self.fly.on_click(lambda _: self._zoom(self._rows))
        self.save.on_click(lambda _: self._save_clicked())

    def _outputs(self) -> None:
        self.header = w.HTML(f"<style>{cards.CSS}</style>" + cards.header(self.scenes, "large dots", HOW))
        self.legend, self.note, self.summary, self.card = w.HTML(), w.HTML(), w.HTML(), w.HTML()
        self.gallery, self.near = Gallery(), Gallery()
        self.heat: HeatMap | None = None  # made when its tab is first opened: plotly's widgets cost seconds to import
        self.matrix = w.VBox()
        self.plot = w.Box(layout=w.Layout(width="100%"))
        for strip in (self.gallery, self.near):
            strip.observe(lambda change: self._tile_clicked(change["owner"]), names="clicked")
        self.tabs = w.Tab([w.VBox([self.gallery]), self.matrix], titles=["Selected pairs", "Similarity"])
        self.tabs.observe(lambda _: self._heat(), names="selected_index")

    def widget(self) -> w.Widget:
        """The whole layout."""
        row = w.Layout(flex_flow="row wrap", align_items="center")
        beside = w.Layout(margin="0 14px 0 0", align_items="center")
        choose = [
            w.HBox([w.HTML(f"<span class=quiet>{text}</span>"), control], layout=beside)
            for text, control in (
                ("panels", self.layout), ("projection", self.projection), ("colour", self.colour),
                ("arrows", self.arrows),
            )
        ]  # fmt: skip
        move = [w.HTML("<span class=quiet>state</span>"), self.play, self.state, self.step_play, self.step]
        find = [self.search, self.clear, self.fly, self.save, self.found]
        left = [self.plot, self.legend, self.note, self.summary, self.tabs]
        near = [w.HTML("<b>Nearest pairs</b> <span class=quiet>in the original space; green: same class</span>")]
        side = w.VBox([self.card, *near, self.near], layout=w.Layout(width="33%", padding="0 0 0 14px"))
        whole = w.VBox(
            [self.header, *(w.Box(part, layout=row) for part in (choose, move, find)),
             w.HBox([w.VBox(left, layout=w.Layout(width="67%")), side])]
        )  # fmt: skip
        whole.add_class("hoi-explorer")
        return whole

    def _ipython_display_(self) -> None:
        display(self.widget())

    # ---------------------------------------------------------------- what is shown

    @property
    def view(self) -> View:
        """What is shown now, to be saved or drawn by the static twins."""
        return View(
            self.state.value, self._states, self.projection.value, self.colour.value,
            tuple(self.scene.frame["point"].iloc[self._rows]),
            self.arrows.value, self._limit, self.layout.value,
        )  # fmt: skip

    def _shown(self) -> list[tuple[Pane, Scene, str, str]]:
        found = panels(self.scenes, self.view)
        return [(pane, *panel) for pane, panel in zip(self.panes, found, strict=True)]

    def _arrange(self) -> None:
        """New panes for a layout."""
        method, found = self.projection.value, panels(self.scenes, self.view)
        self.panes = [Pane(s, self.look, s.coordinates(state, method), s.limits(method)) for s, state, _ in found]
        watch(self.panes[0], self._chosen_in_pane, self._hovered)
        self.titles = [w.HTML() for _ in found]
        grid = linked(self.panes, self.titles, 500 if len(found) == 1 else 300)
        self.state.disabled = self.play.disabled = self.layout.value == "side"
        self._mark()
        self._drawn()
        self.plot.children = [grid]  # last: a pane is shown as it is by then

    def _move(self) -> None:
        """Glide to the coordinates of the state and the projection."""
        for pane, scene, state, _ in self._shown():
            pane.move(scene.coordinates(state, self.projection.value), scene.limits(self.projection.value))
        self._drawn()

    def _drawn(self) -> None:
        """Everything that follows from state, projection and colour, apart from the places of the points."""
        method = self.projection.value
        for title, (_, _, _, text) in zip(self.titles, self._shown(), strict=True):
            title.value = f"<b>{text}</b>"
        stepping = self.layout.value == "one" and self.scene.can_step(method)
        self.step.layout.display = self.step_play.layout.display = "" if stepping else "none"
        self.note.value = f"<span class=quiet>{caveat(method)}</span>"
        self._paint()
        self._arrows()
        self._heat()
        self._card()

    def _stepped(self) -> None:
        """Along the way of the bridge; only pairs whose way was kept are shown."""
        method, step = self.projection.value, self.step.value
        if self.layout.value == "one" and self.scene.can_step(method):
            self.panes[0].move(self.scene.step_coordinates(step, method), self.scene.limits(method))
            self.titles[0].value = f"<b>on the way of the bridge: step {step} of {self.scene.steps}</b>"

    def _paint(self) -> None:
        by = self.colour.value
        for pane, scene, state, _ in self._shown():
            found = colouring(scene, by, state)
            pane.paint(f"{by}, {state}" if by in ("score", "correct") else by, found)
        self.legend.value = cards.legend(found)

    def _arrows(self) -> None:
        for pane, scene, state, _ in self._shown():
            ends = arrow_ends(scene, self.view)
            pane.arrows(*(end if state == scene.after else end[:0] for end in ends))

    def _heat(self) -> None:
        if self.tabs.selected_index != 1 or not self.scene.texts:
            return
        matrix = class_matrix(self.scene, self.state.value, self._rows)
        whose = "the selection" if len(self._rows) else "all pairs"
        finding = f"{own_share(matrix):.0%} of the classes lie nearest to their own sentence"
        title = f"{STATE_LABEL[self.state.value]}, {whose}: {finding}"
        if self.heat is None:
            self.matrix.children = [w.HTML("<span class=quiet>drawing …</span>")]
            self.heat = HeatMap(matrix, title, self._class_clicked)
            self.matrix.children = [self.heat.widget]
        else:
            self.heat.show(matrix, title)

    # ---------------------------------------------------------------- selection

    @property
    def selected(self) -> pd.DataFrame:
        """One row a selected point, in the order of selection."""
        part = self.scene.frame[[name for name in COLUMNS if name in self.scene.frame]].iloc[self._rows]
        changing = {name: self.scene.column(name, self.state.value)[self._rows] for name in ("score", "correct")}
        return part.assign(**changing).reset_index(drop=True)

    @selected.setter
    def selected(self, points: pd.DataFrame | Iterable[str]) -> None:
        """Select points by their ids, or the rows of a DataFrame with a column `point`."""
        points = points["point"] if isinstance(points, pd.DataFrame) else points
        self.select(points)

    def select(self, points: Iterable[str]) -> None:
        """Select points by their ids; raises ViewError for an id that the scene does not have."""
        chosen = View(selection=tuple(map(str, points))).on(self.scene).selection
        self._choose(np.array([self.scene.row_of[point] for point in chosen], dtype=int))

    def find(self, words: str) -> pd.DataFrame:
        """Select and fly to what holds every word (see `Scene.search`); returns the selection. Nothing typed clears."""
        rows = self.scene.search(words)
        count = f"{len(rows)} found" if len(rows) else "nothing found"
        self.found.value = f"<span class=quiet>{count}</span>" if words.strip() else ""
        self._choose(rows)
        self._zoom(rows)
        return self.selected

    def focus(self, point: str) -> None:
        """Show one point in the side panel, whatever is selected."""
        self._focus = View(selection=(str(point),)).on(self.scene) and self.scene.row_of[str(point)]
        self._card()

    def _clear(self) -> None:
        self.search.value = ""
        self._choose(np.zeros(0, dtype=int))
        self._zoom(self._rows)

    def _choose(self, rows: np.ndarray) -> None:
        self._rows = rows
        self._mark()
        self._selection_shown()

    def _mark(self) -> None:
        """Tell the panes; the first hands it on to the linked ones."""
        self._busy = True
        try:
            self.panes[0].select(self._rows)
        finally:
            self._busy = False

    def _chosen_in_pane(self, rows: np.ndarray) -> None:
        if not self._busy:
            self._rows = rows
            self._selection_shown()

    def _selection_shown(self) -> None:
        self._focus = int(self._rows[0]) if len(self._rows) else None
        self.summary.value = cards.summary(self.scene, self._rows)
        self.gallery.items = [self._tile(row) for row in self._rows[:SHOWN].tolist()]
        self._arrows()
        self._heat()
        self._card()

    def _tile(self, row: int, cosine: float | None = None, mark: str = "") -> dict[str, object]:
        found = self.scene.frame.iloc[row]
        name = str(found["hoi"]).replace("_", " ")
        note = (
            f"cosine {cosine:.2f}" if cosine is not None else found["outcome"] if row < self.scene.pairs else "sentence"
        )
        return {"row": row, "src": self.look.uri(row), "name": name, "note": note, "title": name, "mark": mark}

    def _card(self) -> None:
        """The side panel: the pair in focus and its neighbours in the space of the state."""
        if self._focus is None:
            self.card.value = "<div class='card quiet'>Select a point to see its picture and its best classes.</div>"
            self.near.items = []
            return
        state = self.state.value
        self.card.value = cards.card(self.scene, self._focus, state, self.look.uri(self._focus, 360))
        near = self.scene.neighbours(self._focus, state)
        tiles = near[["row", "cosine", "same"]].itertuples(index=False)
        self.near.items = [self._tile(int(row), cosine, "same" if same else "") for row, cosine, same in tiles]

    def _hovered(self, row: int | None) -> None:
        """The side panel follows the pointer while nothing is selected."""
        if row is not None and not len(self._rows):
            self._focus = row
            self._card()

    def _tile_clicked(self, strip: Gallery) -> None:
        if strip.clicked >= 0:
            self._focus, row = strip.clicked, strip.clicked
            self._card()
            self._zoom(np.array([row]))
            strip.clicked = -1  # the same tile can be clicked again

    def _class_clicked(self, name: str) -> None:
        own = self.scene.frame["hoi"].str.replace("_", " ") == name
        self._choose(np.flatnonzero(own))

    def _zoom(self, rows: np.ndarray) -> None:
        for pane in self.panes:
            pane.zoom(rows)

    # ---------------------------------------------------------------- keeping

    def save_selection(self, path: Path | str = "selection.csv") -> Path:
        """Write `selected` as .csv or .parquet; a relative path starts at the run folder."""
        path = self.folder / path
        writers = {".csv": lambda s: self.selected.to_csv(s, index=False), ".parquet": self.selected.to_parquet}
        if path.suffix not in writers:
            raise FoundExpected(
                "save_selection", f"{path.name!r}", "a name in .csv or .parquet", "save_selection('a.csv')"
            )
        atomic_write(path, writers[path.suffix])
        return path

    def save_view(self, path: Path | str = "view.json") -> Path:
        """Write the view, for `explore(run, view=View.load(path))`; a relative path starts at the run folder."""
        return self.view.save(self.folder / path)

    def _save_clicked(self) -> None:
        self.found.value = f"<span class=quiet>written: {self.save_selection()}</span>"

    def figure(self) -> Figure:
        """The view as a matplotlib figure."""
        return draw_view(self.scenes, self.view)

    def html(self, path: Path | str) -> Path:
        """The view as one self-contained HTML file."""
        return view_html(self.scene, self.view, path, self.look)
