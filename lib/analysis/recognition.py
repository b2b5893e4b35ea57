"""Recognition of whole images: the geometry of classifier rows, and AP against training examples (defr.md §12)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from lib.analysis.embeddings import normalised
from lib.analysis.palette import CLASSES, FAINT, drawing, headline
from lib.data.vocabulary import Vocabulary

BINS = (1, 5, 10, 20, 50)  # upper ends of the groups of classes; what is above them is the last group


def row_metrics(rows: np.ndarray, vocabulary: Vocabulary, neighbours: int = 10) -> dict[str, float]:
    """Geometry of classifier rows [C, D].

    mean_cosine: over all pairs of rows; 0 for an isotropic set. effective_rank: exponential of the entropy of the
    normalised squared singular values, 1 to D. object_purity, verb_purity: share of the nearest `neighbours` rows by
    cosine that have the same object, or verb.
    """
    unit = normalised(rows).astype(np.float64)
    cosine = unit @ unit.T
    others = ~np.eye(len(unit), dtype=bool)
    energy = np.linalg.svd(unit, compute_uv=False) ** 2
    share = energy[energy > 0] / energy.sum()
    nearest = np.argsort(np.where(others, -cosine, np.inf), axis=1, kind="stable")[:, : min(neighbours, len(unit) - 1)]
    purity = {
        f"{name}_purity": float((ids[nearest] == ids[:, None]).mean())
        for name, ids in (("object", vocabulary.hoi_object), ("verb", vocabulary.hoi_verb))
    }
    rank = float(np.exp(-(share * np.log(share)).sum()))
    return {"mean_cosine": float(cosine[others].mean()), "effective_rank": rank} | purity


def label_map(
    rows: Mapping[str, np.ndarray], vocabulary: Vocabulary, *, perplexity: float = 30, seed: int = 0
) -> Figure:
    """t-SNE of several sets of rows [C, D], fitted on all of them together; a panel a set, coloured by object.

    Sets of another width than the first cannot share its picture: ValueError.
    """
    names, sets = list(rows), [normalised(each) for each in rows.values()]
    if len({each.shape for each in sets}) > 1:
        raise ValueError(f"label map: found rows {[each.shape for each in sets]}, expected sets of one shape")
    points = np.concatenate(sets)
    perplexity = min(perplexity, (len(points) - 1) / 3)
    places = TSNE(perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed).fit_transform(points)
    places = places.reshape(len(sets), -1, 2)
    hues = colormaps["hsv"](vocabulary.hoi_object / len(vocabulary.objects))
    with drawing((3.6 * len(sets), 4.0)) as fig:
        axes = fig.subplots(1, len(sets), squeeze=False, sharex=True, sharey=True)[0]
        for ax, name, spots, own in zip(axes, names, places, sets, strict=True):
            ax.scatter(*spots.T, c=hues, s=22, lw=0)
            cosine = row_metrics(own, vocabulary)["mean_cosine"]
            ax.set_title(f"{name}\nmean cosine {cosine:.2f}", fontsize=10)
            ax.set_xticks([])
            ax.set_yticks([])
        headline(fig, f"Rows of the classifier, one t-SNE of all (perplexity {perplexity:.0f}); colour: object")
    return fig


def by_examples(ap: Mapping[str, np.ndarray], count: np.ndarray, bins: Sequence[int] = BINS) -> pd.DataFrame:
    """Mean AP of every method over classes of like training support; one row a group that has classes.

    ap: method -> [C]. count: [C] positive training images. Columns: examples ("2-5"), classes, then the methods.
    """
    group = np.searchsorted(np.asarray(bins), count)  # (C,)
    lows = [0, *(end + 1 for end in bins)]
    names = [f"{low}-{end}" if low < end else str(end) for low, end in zip(lows, bins, strict=False)] + [f"{lows[-1]}+"]
    found = [
        {"examples": names[number], "classes": int((group == number).sum())}
        | {name: float(np.mean(values[group == number])) for name, values in ap.items()}
        for number in np.unique(group)
    ]
    return pd.DataFrame(found)


def few_shot_curve(table: pd.DataFrame, title: str = "") -> Figure:
    """Lines of the table that `by_examples` returns: a method a line over the number of training images."""
    methods = [name for name in table if name not in ("examples", "classes")]
    with drawing((7.5, 3.8)) as fig:
        ax = fig.subplots()
        for name, colour in zip(methods, CLASSES, strict=False):
            ax.plot(
                table["examples"], table[name], color=colour, marker="o", ms=5, lw=1.8, label=name.replace("_", " ")
            )
        for at, classes in enumerate(table["classes"]):
            ax.annotate(f"{classes} classes", (at, 0), (0, 3), xycoords=("data", "axes fraction"),
                        textcoords="offset points", ha="center", fontsize=8, color=FAINT)  # fmt: skip
        ax.set(xlabel="positive training images of a class", ylabel="mean AP")
        ax.set_ylim(bottom=0)
        ax.grid(axis="y")
        fig.legend(*ax.get_legend_handles_labels(), loc="outside right upper")
        leader = table[methods].iloc[0].astype(float).idxmax()
        finding = f"Classes with {table['examples'].iloc[0]} images: {leader.replace('_', ' ')} is best"
        headline(fig, title or finding)
    return fig
