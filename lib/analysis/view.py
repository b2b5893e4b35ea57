"""What is being looked at, apart from how it is shown: the live explorer and its static twins draw the same `View`.

view = View(projection="tsne", colour="outcome", selection=("pair-3", "pair-8"))
explore("runs/demo", view=view)          # live, in JupyterLab
draw_view(scene, view)                   # matplotlib
view_html(scene, view, "gap.html")       # one file for any browser
view.save("gap.json"); View.load("gap.json")
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lib.analysis.palette import STATE_LABEL
from lib.errors import FoundExpected
from lib.runs import write_json

if TYPE_CHECKING:
    from lib.analysis.scene import Scene

ARROWS = {"none": "no arrows", "selection": "of the selection", "movers": "of the top movers"}
LAYOUTS = {"one": "one state, moving", "side": "states side by side", "runs": "two runs"}


class ViewError(FoundExpected):
    """A view that asks for something the table does not hold."""


@dataclass(frozen=True)
class View:
    """One look at one or two runs. Empty text means: the scene's own default, filled in by `on`."""

    state: str = ""  # state of the single panel; empty is the last
    states: tuple[str, ...] = ()  # panels when side by side, left to right; empty is all
    projection: str = ""  # a projection of the table: pca, gap axis, t-SNE, UMAP
    colour: str = "verb"  # a colouring of lib.analysis.colouring
    selection: tuple[str, ...] = ()  # points, by their id in the table
    arrows: str = "selection"  # none | selection | movers: whose way from centred to bridged is drawn
    arrow_limit: int = 40  # arrows drawn at most, longest ways first
    layout: str = "one"  # one | side | runs: the panels

    def on(self, scene: Scene) -> View:
        """The view with every default filled in for a scene; raises ViewError for what the scene does not have."""
        from lib.analysis.colouring import COLOURINGS

        wanted = {"state": scene.states, "projection": scene.methods, "colour": [*COLOURINGS]}
        wanted |= {"arrows": [*ARROWS], "layout": [*LAYOUTS]}
        filled = dataclasses.replace(
            self,
            state=self.state or scene.states[-1],
            states=tuple(self.states or scene.states),
            projection=self.projection or scene.methods[0],
            selection=tuple(self.selection),
        )
        asked = [(name, getattr(filled, name), known) for name, known in wanted.items()]
        for name, value, known in [*asked, *(("states", state, scene.states) for state in filled.states)]:
            if value not in known:
                _refuse(f"view.{name}", value, known)
        unknown = set(filled.selection) - scene.row_of.keys()
        if unknown:
            point = sorted(unknown)[0]
            _refuse("view.selection", point, list(scene.row_of))
        return filled

    def save(self, path: Path | str) -> Path:
        """Write the view as JSON."""
        write_json(path, dataclasses.asdict(self))
        return Path(path)

    @classmethod
    def load(cls, path: Path | str) -> View:
        """Read a view written by `save`; raises ViewError for a key that views do not have."""
        values = json.loads(Path(path).read_text())
        names = [field.name for field in dataclasses.fields(cls)]
        for key in values.keys() - set(names):
            _refuse(str(path), key, names)
        lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
        return cls(**values | lists)


def panels(scenes: Sequence[Scene], view: View) -> list[tuple[Scene, str, str]]:
    """The panels of a view that is filled in: scene, state, title, left to right; live and static alike."""
    if view.layout == "runs":
        return [(scene, view.state, f"{scene.name}: {_title(scene, view.state)}") for scene in scenes]
    states = view.states if view.layout == "side" else (view.state,)
    return [(scenes[0], state, _title(scenes[0], state)) for state in states]


def arrow_ends(scene: Scene, view: View) -> tuple[np.ndarray, np.ndarray]:
    """Start and end [n, 2] of the arrows of a view that is filled in: the longest ways, before to after."""
    selected = np.array([scene.row_of[point] for point in view.selection], dtype=int)
    rows = selected if view.arrows == "selection" else None
    chosen = scene.movers(0 if view.arrows == "none" else view.arrow_limit, rows)
    start, end = (scene.coordinates(state, view.projection)[chosen] for state in (scene.before, scene.after))
    return start, end


def _title(scene: Scene, state: str) -> str:
    hits = scene.hits(state)
    share = f", own sentence nearest: {hits:.0%}" if hits == hits else ""
    return f"{STATE_LABEL[state]}{share}"


def _refuse(where: str, found: str, known: list[str]) -> None:
    near = get_close_matches(str(found), known, n=1, cutoff=0.0) or ["nothing"]
    shown = ", ".join(known[:12]) + (f" and {len(known) - 12} more" if len(known) > 12 else "")
    raise ViewError(where, repr(found), f"one of {shown}", f"nearest: {near[0]!r}")
