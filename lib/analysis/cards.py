"""What the explorer says about points, as HTML: the card of one pair, the legend, the summary of a selection."""

from __future__ import annotations

from html import escape

import numpy as np
import pandas as pd

from lib.analysis.colouring import Colouring
from lib.analysis.palette import STATE_LABEL
from lib.analysis.scene import OUTCOMES, Scene

CSS = """
.hoi-explorer { --ink: #22272e; --quiet: #5b6472; --line: #dfe3e8; --card: #f7f8fa; --blue: #0072b2; --good: #007a58;
  background: #fff; color: var(--ink); padding: 10px 14px 14px; border: 1px solid var(--line); border-radius: 8px;
  font: 13px/1.45 system-ui, sans-serif }
.hoi-explorer .widget-label, .hoi-explorer .widget-html-content, .hoi-explorer .widget-readout { color: var(--ink) }
.hoi-explorer h3 { margin: 0; font-size: 17px; font-weight: 600 } .hoi-explorer .quiet { color: var(--quiet) }
.hoi-explorer .widget-html-content { line-height: 1.45; white-space: normal }
.hoi-explorer .legend { display: flex; flex-wrap: wrap; gap: 2px 14px; margin-top: 4px }
.hoi-explorer .legend i { display: inline-block; width: 10px; height: 10px; border-radius: 50%; margin-right: 5px }
.hoi-explorer .scale { gap: 0 } .hoi-explorer .scale span { margin: 0 }
.hoi-explorer .scale b { width: 26px; height: 11px; display: block }
.hoi-explorer .card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px }
.hoi-explorer .card img { display: block; max-width: 100%; max-height: 230px; margin: 0 auto 8px; border-radius: 4px }
.hoi-explorer .card h4 { margin: 0; font-size: 15px; font-weight: 600 } .hoi-explorer .card p { margin: 2px 0 6px }
.hoi-explorer .chip { display: inline-block; border: 1px solid var(--line); border-radius: 9px; padding: 0 8px;
  margin: 0 4px 4px 0; background: #fff; font-size: 12px }
.hoi-explorer .card table { border-collapse: collapse; width: 100%; font-size: 12px; table-layout: fixed }
.hoi-explorer .card th { text-align: left; color: var(--quiet); font-weight: 600; padding: 4px 6px 2px 0 }
.hoi-explorer .card td { padding: 1px 6px 1px 0; overflow: hidden; white-space: nowrap; text-overflow: ellipsis }
.hoi-explorer .card td b { color: var(--good) } .hoi-explorer .card td s { text-decoration: none; color: var(--quiet) }
"""


def header(scenes: list[Scene], sentences: str, how: str) -> str:
    """Which runs, how many points, how to read the picture; `sentences` says what a class sentence looks like."""
    first = scenes[0]
    names = " against ".join(escape(scene.name) for scene in scenes if scene.name) or "embeddings"
    return (
        f"<h3>Vision and text: {names}</h3><span class=quiet>{first.pairs} human-object pairs (dots) and {first.texts} "
        f"class sentences ({sentences}). Where vision and text speak one language, a pair lies at its own sentence. "
        f"{how}</span>"
    )


def legend(found: Colouring) -> str:
    """Name and swatch of every look; a scale for continuous quantities."""
    count = np.bincount(found.code, minlength=len(found.looks))
    if not found.ordered:
        items = [
            f"<span><i style='background:{look.colour}'></i>{escape(look.value)} <span class=quiet>{n}</span></span>"
            for look, n in zip(found.looks, count, strict=True)
        ]
        return f"<div class=legend><b>{escape(found.title)}</b>{''.join(items)}</div>"
    steps = [look for look in found.looks if " to " in look.value]
    bars = "".join(f"<span><b style='background:{s.colour}' title='{escape(s.value)}'></b></span>" for s in steps)
    ends = (steps[0].value.split(" to ")[0], steps[-1].value.split(" to ")[1]) if steps else ("", "")
    rest = [look for look in found.looks if look not in steps]
    others = "".join(f"<span><i style='background:{o.colour}'></i>{escape(o.value)}</span>" for o in rest)
    scale = f"<span>{ends[0]}</span><span class='legend scale'>{bars}</span><span>{ends[1]}</span>"
    return f"<div class=legend><b>{escape(found.title)}</b>{scale}{others}</div>"


def card(scene: Scene, row: int, state: str, picture: str) -> str:
    """One point: picture, class and sentence, what is known of it, its five best classes before and after."""
    found = scene.frame.iloc[row]
    image = f"<img src='{picture}' alt='{escape(str(found['hoi']))}'>" if picture else ""
    chips = ["unseen class" if found["unseen"] else "seen class"]
    if row < scene.pairs:
        score = float(scene.column("score", state)[row])
        if np.isfinite(score):
            chips.append(f"score {score:.2f}, {'right' if scene.column('correct', state)[row] else 'wrong'}")
        chips += [f"nearest sentence: {found['outcome']}"] if found["outcome"] in OUTCOMES else []
        if np.isfinite(found["moved"]):
            chips.append(f"moved by {found['moved']:.3f}")
        chips.append(f"image {found['image']}")
    else:
        chips = ["class sentence", *chips]
    shown = "".join(f"<span class=chip>{escape(str(chip))}</span>" for chip in chips)
    return (
        f"<div class=card>{image}<h4>{escape(_name(found['hoi']))}</h4>"
        f"<p class=quiet>{escape(str(found['sentence']))}</p>{shown}{_best(scene, row)}</div>"
    )


def _best(scene: Scene, row: int) -> str:
    """The five best classes of both states side by side; true ones in bold green."""
    if not scene.texts:
        return ""
    states = list(dict.fromkeys([scene.before, scene.after]))
    columns = [scene.predictions(row, state) for state in states]
    head = "".join(f"<th>{escape(STATE_LABEL[state])}</th>" for state in states)
    lines = "".join(
        "<tr>"
        + "".join(_prediction(column.iloc[i]) if i < len(column) else "<td></td>" for column in columns)
        + "</tr>"
        for i in range(max(map(len, columns)))
    )
    what = columns[0].attrs["what"]
    return f"<table><caption class=quiet>{what}; its own in green</caption><tr>{head}</tr>{lines}</table>"


def _prediction(found: pd.Series) -> str:
    name = escape(_name(found["hoi"]))
    return f"<td title='{name}'><s>{found['score']:.2f}</s> {f'<b>{name}</b>' if found['true'] else name}</td>"


def summary(scene: Scene, rows: np.ndarray) -> str:
    """A selection in one line: how many, which classes, how often the nearest text is right by state."""
    pairs = rows[rows < scene.pairs]
    if not len(rows):
        return "<span class=quiet>Nothing selected. Click a point, draw a lasso, or search.</span>"
    classes = scene.frame["hoi"].iloc[pairs if len(pairs) else rows].value_counts()
    named = ", ".join(f"{escape(_name(name))} {count}" for name, count in classes.head(4).items())
    more = f" and {len(classes) - 4} more classes" if len(classes) > 4 else ""
    counts = {"pair": len(pairs), "sentence": len(rows) - len(pairs)}
    what = ", ".join(f"{count} {name}{'s' * (count != 1)}" for name, count in counts.items() if count)
    text = f"<b>{what} selected</b>: {named}{more}."
    shares = [f"{STATE_LABEL[state]} {scene.hits(state, pairs):.0%}" for state in scene.states] if len(pairs) else []
    return text + (f" Own sentence nearest: {' → '.join(shares)}." if shares and scene.texts else "")


def _name(hoi: object) -> str:
    return str(hoi).replace("_", " ")
