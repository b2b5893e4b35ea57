"""What the colours of a view mean: every colouring as a list of named looks and one look a point.

Continuous quantities are cut into nine steps, so that live view, figure and HTML share looks and legend.
Class texts take part where the question applies to them (verb, object, class, split) and are dark where it does not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import matplotlib as mpl
import numpy as np
import pandas as pd

from lib.analysis.palette import INK, MARKERS, REST, SYMBOLS, Category, categories
from lib.analysis.scene import OUTCOMES, Scene

# name -> what a menu and a legend call it
COLOURINGS = {
    "verb": "verb",
    "object": "object",
    "hoi": "interaction",
    "modality": "vision or text",
    "split": "seen / unseen",
    "rare": "rare / common",
    "correct": "best class right or wrong",
    "outcome": "what the bridge does",
    "score": "score",
    "moved": "how far the bridge moves it",
    "margin_change": "margin gained by the bridge",
}
STEPS = 9
TEXT = "class text"
_DIVERGING = {"margin_change"}
_LOSS_TO_GAIN = mpl.colors.LinearSegmentedColormap.from_list(
    "loss to gain", ["#B34700", "#E69F00", REST, "#56B4E9", "#00507D"]
)
_FIXED = {
    OUTCOMES[0]: "#88CCEE",
    OUTCOMES[1]: "#117733",
    OUTCOMES[2]: "#D55E00",
    OUTCOMES[3]: "#C4C9D1",
}


@dataclass(frozen=True)
class Colouring:
    """looks: the legend, most frequent first (or low to high). code: [P + T] index into looks."""

    title: str
    looks: list[Category]
    code: np.ndarray
    ordered: bool = False  # low to high: a scale; steps that no point has are left out


def available(scene: Scene) -> list[str]:
    """The colourings that a scene's table can answer."""
    frame, pair = scene.frame, scene.frame.iloc[: scene.pairs]
    absent = {name for name in ("score", "moved", "margin_change") if not pair[name].notna().any()}
    absent |= set() if "rare" in frame else {"rare"}
    absent |= {"outcome"} if (pair["outcome"] == "text").all() else set()
    return [name for name in COLOURINGS if name not in absent]


def colouring(scene: Scene, by: str, state: str) -> Colouring:
    """The looks of every point of a scene by one of `COLOURINGS`; only score and correct depend on the state."""
    title = COLOURINGS[by]
    if by in ("score", "moved", "margin_change"):
        value = scene.column("score", state) if by == "score" else scene.frame[by].to_numpy()
        return _steps(value.astype(float), scene.pairs, by, title)
    values = _values(scene, by, state)
    looks = categories(values)
    if by == "outcome":
        looks = [Category(name, colour, MARKERS[0], SYMBOLS[0]) for name, colour in _FIXED.items()]
    else:
        looks = [look for look in looks if look.value != TEXT]
    return _coded(title, [*looks, _text_look()], values)


def _values(scene: Scene, by: str, state: str) -> pd.Series:
    frame, text = scene.frame, np.arange(len(scene.frame)) >= scene.pairs
    if by == "split":
        return frame["unseen"].map({True: "unseen", False: "seen"})
    if by == "rare":
        return frame["rare"].eq(True).map({True: "rare", False: "common"})
    if by == "modality":
        return pd.Series(np.where(text, TEXT, "vision"))
    if by == "correct":
        return pd.Series(np.where(text, TEXT, np.where(scene.column("correct", state), "correct", "wrong")))
    if by == "outcome":
        return frame["outcome"].where(~text, TEXT)
    return frame[by].astype(str).str.replace("_", " ")


def _text_look() -> Category:
    return Category(TEXT, INK, "*", "star")


def _coded(title: str, looks: list[Category], values: pd.Series) -> Colouring:
    place = {look.value: i for i, look in enumerate(looks)}
    other = place.get("other", 0)
    code = values.map(place).fillna(other).to_numpy(dtype=int)
    used = np.unique(code)
    kept = np.full(len(looks), -1)
    kept[used] = np.arange(len(used))
    return Colouring(title, [looks[i] for i in used], kept[code])


def _steps(value: np.ndarray, pairs: int, by: str, title: str) -> Colouring:
    known = value[np.isfinite(value)]
    low, high = np.quantile(known, [0.02, 0.98]) if len(known) else (0.0, 1.0)
    if by in _DIVERGING:
        high = max(abs(low), abs(high))
        low = -high
    edges = np.linspace(low, max(high, low + 1e-6), STEPS + 1)
    step = np.clip(np.digitize(value, edges[1:-1]), 0, STEPS - 1)
    colours = (_LOSS_TO_GAIN if by in _DIVERGING else mpl.colormaps["viridis"])(np.linspace(0, 0.95, STEPS))
    digits = max(2, -int(np.floor(np.log10(edges[1] - edges[0]))))
    looks = [
        Category(f"{a:.{digits}f} to {b:.{digits}f}", mpl.colors.to_hex(colour), MARKERS[0], SYMBOLS[0])
        for a, b, colour in zip(edges[:-1], edges[1:], colours, strict=True)
    ]
    names = np.array([*(look.value for look in looks), "unknown", TEXT], dtype=object)
    code = np.where(np.isfinite(value), step, STEPS)
    code[pairs:] = STEPS + 1
    unknown = Category("unknown", REST, MARKERS[0], SYMBOLS[0])
    coded = _coded(title, [*looks, unknown, _text_look()], pd.Series(names[code]))
    return replace(coded, ordered=True)
