"""A view as one HTML file that needs no kernel and no network: gliding states, colours, search, pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from lib.analysis.cards import header
from lib.analysis.colouring import available, colouring
from lib.analysis.palette import STATE_LABEL
from lib.analysis.projections import LABELS, caveat
from lib.analysis.scene import Scene
from lib.analysis.thumbnails import Thumbnails
from lib.analysis.view import View
from lib.runs import write_text

TEMPLATE = Path(__file__).with_name("twin.html")


def view_html(
    scene: Scene, view: View | None, path: Path | str, look: Thumbnails | None = None, pictures: int = 400
) -> Path:
    """Write a view as a self-contained page; a picture is about 3 kB, a point 0.2 kB.

    look: draws the pictures of the first `pictures` pairs, selected ones first; None leaves them out.
    """
    view = (view or View()).on(scene)
    page = TEMPLATE.read_text()
    data = json.dumps(_payload(scene, view, look, pictures), separators=(",", ":"), allow_nan=False)
    head = header([scene], "stars", "Point at a dot for its picture; click to keep it.")
    for name, text in {"TITLE": escape(scene.name or "embeddings"), "HEADER": head}.items():
        page = page.replace(f"<!--{name}-->", text)
    # "</" would end the script element; JSON may write the slash escaped
    write_text(path, page.replace("/*DATA*/null", data.replace("</", "<\\/")))
    return Path(path)


def _payload(scene: Scene, view: View, look: Thumbnails | None, pictures: int) -> dict[str, Any]:
    frame = scene.frame
    colours = {
        name: [_look(scene, name, state) for state in scene.states] if name in ("score", "correct")
        else [_look(scene, name, view.state)]
        for name in available(scene)
    }  # fmt: skip
    return {
        "pairs": scene.pairs,
        "states": [STATE_LABEL[state] for state in scene.states],
        "hits": [None if np.isnan(scene.hits(state)) else round(scene.hits(state), 3) for state in scene.states],
        "methods": {m: {"label": LABELS.get(m, m), "note": caveat(m), "at": _places(scene, m)} for m in scene.methods},
        "colours": colours,
        "points": [
            {"id": str(point), "hoi": str(hoi).replace("_", " "), "text": str(sentence), "seen": not unseen}
            for point, hoi, sentence, unseen in zip(
                frame["point"], frame["hoi"], frame["sentence"], frame["unseen"], strict=True
            )
        ],
        "best": [
            [_best(scene, row, state) for state in dict.fromkeys([scene.before, scene.after])]
            for row in range(scene.pairs)
        ],
        "ends": [STATE_LABEL[state] for state in dict.fromkeys([scene.before, scene.after])],
        "pictures": _pictures(scene, view, look, pictures),
        "arrows": _arrows(scene, view),
        "start": {
            "state": scene.states.index(view.state), "method": view.projection, "colour": view.colour,
            "selected": [scene.row_of[point] for point in view.selection],
        },
    }  # fmt: skip


def _look(scene: Scene, name: str, state: str) -> dict[str, Any]:
    found = colouring(scene, name, state)
    looks = [[look.value, look.colour] for look in found.looks]
    return {"title": found.title, "looks": looks, "code": found.code.tolist()}


def _places(scene: Scene, method: str) -> list[list[list[float]]]:
    """[state][row][x, y] in 0..1 of the axes that all states share, y downwards."""
    low, high = scene.limits(method).T
    places = [(scene.coordinates(state, method) - low) / (high - low) for state in scene.states]
    return [np.nan_to_num(np.stack([at[:, 0], 1 - at[:, 1]], 1), nan=-9).round(4).tolist() for at in places]


def _best(scene: Scene, row: int, state: str) -> list[list[Any]]:
    if not scene.texts:
        return []
    found = scene.predictions(row, state)
    names = found["hoi"].astype(str).str.replace("_", " ")
    return [[n, round(float(s), 2), bool(t)] for n, s, t in zip(names, found["score"], found["true"], strict=True)]


def _pictures(scene: Scene, view: View, look: Thumbnails | None, limit: int) -> dict[int, str]:
    if look is None:
        return {}
    first: Sequence[int] = [row for row in map(scene.row_of.get, view.selection) if row < scene.pairs]
    # an even choice over the pairs rather than the first images only
    rest = np.random.default_rng(0).permutation(scene.pairs).tolist()
    chosen = list(dict.fromkeys([*first, *rest]))[:limit]
    return {row: uri for row in chosen if (uri := look.uri(row, 110, quality=70))}


def _arrows(scene: Scene, view: View) -> list[int]:
    """Rows whose way is drawn from `ends[0]` to `ends[1]`."""
    if view.arrows == "selection":
        rows = np.array([scene.row_of[point] for point in view.selection], dtype=int)
        return scene.movers(view.arrow_limit, rows).tolist()
    return scene.movers(view.arrow_limit if view.arrows == "movers" else 0).tolist()
