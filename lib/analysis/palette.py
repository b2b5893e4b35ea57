"""One look for every figure: colour-blind safe colours (Okabe and Ito 2008; Paul Tol's `muted`), fonts, grid.

Meaning keeps its colour everywhere: text green, raw vision blue, adapted pink, centred sky blue, bridged vermillion.
Colours alone can tell about eight classes apart; beyond, colour and marker shape together name a class.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from lib.runs import atomic_write, write_text

INK, FAINT, GRID, REST = "#22272e", "#6b7280", "#e5e7eb", "#b8bec8"
STATE_COLOUR = {
    "text": "#009E73",
    "text_centred": "#009E73",
    "text_raw": "#009E73",
    "raw": "#0072B2",
    "adapted": "#CC79A7",
    "centred": "#56B4E9",
    "bridged": "#D55E00",
}
STATE_LABEL = {
    "text": "text",
    "text_centred": "text, centred",
    "text_raw": "text, raw",
    "raw": "vision, raw",
    "adapted": "vision, adapted",
    "centred": "vision, centred",
    "bridged": "vision, bridged",
}
SPLIT_COLOUR = {"full": "#4b5563", "seen": "#0072B2", "unseen": "#D55E00"}
HUMAN, OBJECT = "#0072B2", "#E69F00"  # boxes
CLASSES = ("#332288", "#DDCC77", "#88CCEE", "#CC6677", "#117733", "#AA4499", "#999933", "#882255")
MARKERS = ("o", "s", "^")  # matplotlib
SYMBOLS = ("circle", "square", "triangle-up")  # the same, plotly

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": REST,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.titlesize": 14,
    "figure.titleweight": "bold",
}


@dataclass(frozen=True)
class Category:
    """How one value of a colouring looks: matplotlib marker, plotly symbol."""

    value: str
    colour: str
    marker: str
    symbol: str


def categories(values: pd.Series, limit: int = len(CLASSES) * len(MARKERS)) -> list[Category]:
    """Looks for the distinct values, most frequent first; values beyond `limit` share a grey `other`."""
    ranked = values.astype(str).value_counts(sort=True)
    ranked = sorted(ranked.index, key=lambda value: (-ranked[value], value))
    fixed = {
        "vision": STATE_COLOUR["raw"],
        "text": STATE_COLOUR["text"],
        "unseen": SPLIT_COLOUR["unseen"],
        "seen": SPLIT_COLOUR["seen"],
        "correct": STATE_COLOUR["text"],
        "wrong": STATE_COLOUR["bridged"],
    }
    looks = []
    for i, value in enumerate(ranked[:limit]):
        shape = (i // len(CLASSES)) if value not in fixed else 0
        colour = fixed.get(value, _shade(CLASSES[i % len(CLASSES)], shape))
        looks.append(Category(value, colour, MARKERS[shape], SYMBOLS[shape]))
    if len(ranked) > limit:
        looks.append(Category("other", REST, MARKERS[0], SYMBOLS[0]))
    return looks


def _shade(colour: str, turn: int) -> str:
    """The colour itself, a paler and a darker one: told apart where markers have no shape, and by colour-blind eyes."""
    mix = {0: (colour, 0.0), 1: ("#ffffff", 0.4), 2: ("#000000", 0.45)}[turn]
    own, other = np.array(to_rgb(colour)), np.array(to_rgb(mix[0]))
    return to_hex(own + mix[1] * (other - own))


@contextmanager
def drawing(size: tuple[float, float], **more) -> Iterator[Figure]:
    """A figure in the house style; it is taken out of pyplot's memory, so a notebook shows it once, as a result."""
    with plt.rc_context(_STYLE):
        fig = plt.figure(figsize=size, layout="constrained", **more)
        fig.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
        try:
            yield fig
        finally:
            plt.close(fig)


def headline(fig: Figure, finding: str, detail: str = "") -> None:
    """The finding as the figure's title, left-aligned, with a quieter line at its foot; both broken to its width."""
    inches = fig.get_figwidth()
    fig.suptitle("\n".join(wrap(finding, int(8.3 * inches))), x=0.01, ha="left", color=INK)
    if detail:
        lines = "\n".join(wrap(detail, int(14.5 * inches)))
        fig.supxlabel(lines, x=0.01, ha="left", color=FAINT, fontsize=9)


def save_figure(fig: Figure, path: Path | str, caption: str = "", dpi: int = 130) -> Path:
    """Write a PNG atomically, and beside it the caption (same name, .txt) that the report prints below the picture."""
    path = Path(path)
    atomic_write(path, lambda stream: fig.savefig(stream, format="png", dpi=dpi, bbox_inches="tight"))
    if caption:
        write_text(path.with_suffix(".txt"), caption + "\n")
    return path


def spread_labels(labels: Iterable[str], width: int = 22) -> Sequence[str]:
    """Labels cut to `width` characters with an ellipsis."""
    return [label if len(label) <= width else label[: width - 1] + "…" for label in labels]
