"""A view as a matplotlib figure: what the live explorer shows, without a browser."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.analysis.colouring import COLOURINGS, Colouring, colouring
from lib.analysis.palette import FAINT, INK, drawing, headline, spread_labels
from lib.analysis.projections import LABELS, caveat
from lib.analysis.scene import Scene
from lib.analysis.view import View, arrow_ends, panels


def draw_view(scenes: Sequence[Scene] | Scene, view: View | None = None, title: str = "") -> Figure:
    """One panel a state (or a run) of a view: pairs as dots, class sentences as stars, arrows, the selection ringed.

    scenes: one, or two of the same points (see `scene.scenes`). view: None shows every state side by side. All
    panels of a scene share their axes. Shares are measured in the original space: no picture can overstate them.
    """
    scenes = [scenes] if isinstance(scenes, Scene) else list(scenes)
    view = (view or View(layout="side")).on(scenes[0])
    shown = panels(scenes, view)
    side = {1: 7.0, 2: 5.4}.get(len(shown), max(15 / len(shown), 3.4))
    with drawing((side * len(shown) + 2.2, min(side, 5.4) + 0.5)) as fig:
        axes = fig.subplots(1, len(shown), squeeze=False)[0]
        for ax, (scene, state, name) in zip(axes, shown, strict=True):
            found = colouring(scene, view.colour, state)
            _panel(ax, scene, state, found, view)
            low, high = scene.limits(view.projection, [state for other, state, _ in shown if other is scene]).T
            ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[])
            state_name, _, share = name.partition(", own")
            ax.set_title(state_name)
            ax.set_xlabel(f"own{share}" if share else "", loc="left", fontsize=9)
        fig.legend(
            *_once(axes), loc="outside right center", title=COLOURINGS[view.colour], markerscale=1.3, fontsize=8.5,
            ncols=1 if len(found.looks) <= 24 else 2,
        )  # fmt: skip
        headline(fig, title or _finding(scenes[0], view), _detail(scenes[0], view))
    return fig


def _panel(ax: Axes, scene: Scene, state: str, found: Colouring, view: View) -> None:
    at = scene.coordinates(state, view.projection)
    text = np.arange(len(at)) >= scene.pairs
    if state == scene.after:
        start, end = arrow_ends(scene, view)
        if len(start):
            ax.quiver(
                *start.T, *(end - start).T, angles="xy", scale_units="xy", scale=1, color=FAINT, alpha=0.75,
                width=0.003, headwidth=5, zorder=3,
            )  # fmt: skip
    size = float(np.clip(9000 / max(scene.pairs, 1), 3, 18))
    for i, look in enumerate(found.looks):
        here = found.code == i
        style = {"c": look.colour, "lw": 0}
        ax.scatter(*at[here & ~text].T, s=size, marker=look.marker, alpha=0.75, zorder=2, **style)
        ax.scatter(*at[here & text].T, s=80, c=look.colour, marker="*", edgecolors="white", lw=0.5, zorder=4)
        ax.scatter([], [], s=size + 12, marker=look.marker, label=look.value, **style)  # for the legend alone
    chosen = [scene.row_of[point] for point in view.selection]
    if chosen:
        ax.scatter(*at[chosen].T, s=size + 60, facecolors="none", edgecolors=INK, lw=1.2, zorder=5)
    ax.spines[["top", "right"]].set_visible(True)


def _once(axes: Sequence[Axes]) -> tuple[list, list[str]]:
    """Legend handles of all panels, each name once (score and correct may differ from state to state)."""
    found = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    return list(found.values()), list(spread_labels(found))


def _finding(scene: Scene, view: View) -> str:
    shares = " → ".join(f"{scene.hits(state):.0%}" for state in scene.states)
    where = LABELS.get(view.projection, view.projection)
    return f"{where}: {shares} of the pairs have their own sentence as the nearest one" if scene.texts else where


def _detail(scene: Scene, view: View) -> str:
    arrows = {"selection": " Arrows: the selection, before to after.", "movers": " Arrows: the pairs moved furthest."}
    drawn = arrows.get(view.arrows, "") if view.arrows == "movers" or view.selection else ""
    return f"{scene.pairs} pairs (dots), {scene.texts} class sentences (stars).{drawn} {caveat(view.projection)}"
