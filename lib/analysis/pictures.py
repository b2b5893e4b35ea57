"""Pictures of images: predicted pairs drawn on an image, and what a patch token is similar to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from lib.analysis.embeddings import BOXES_H, BOXES_O
from lib.analysis.palette import FAINT, HUMAN, INK, OBJECT, drawing, headline, spread_labels


def draw_hois(image: Image.Image | np.ndarray, hois: pd.DataFrame, limit: int = 6, title: str = "") -> Figure:
    """The best interactions of one image, drawn by `draw_pairs`.

    hois: rows with x1h .. y2h, x1o .. y2o in pixels, `hoi` and `score`, as lib.ezhoi.infer.detect_hois gives them.
    """
    boxes_h, boxes_o = (hois[list(names)].to_numpy(float) for names in (BOXES_H, BOXES_O))
    return draw_pairs(image, boxes_h, boxes_o, hois["hoi"].tolist(), hois["score"].tolist(), title, limit, inches=6.0)


def draw_pairs(
    image: Image.Image | np.ndarray,
    boxes_h: np.ndarray,
    boxes_o: np.ndarray,
    labels: Sequence[str],
    scores: Sequence[float] | None = None,
    title: str = "",
    limit: int = 6,
    inches: float = 4.6,
) -> Figure:
    """Human (blue) and object boxes (orange) of the highest-scored pairs, their centres joined, with a numbered list.

    image: PIL or [H, W, 3] uint8. boxes_h, boxes_o: [P, 4] xyxy in pixels. labels: a pair's text, e.g. "ride bicycle".
    scores: [P]; None keeps the given order. limit: rows listed; the list says how many were left out. Rows with the
    same two boxes share a number. inches: height of the picture, whatever the number of pixels; text keeps its size.
    """
    boxes_h, boxes_o = np.reshape(boxes_h, (-1, 4)), np.reshape(boxes_o, (-1, 4))
    if not len(boxes_h) == len(boxes_o) == len(labels):
        raise ValueError(
            f"draw_pairs: found {len(boxes_h)} human boxes, {len(boxes_o)} object boxes and {len(labels)} labels, "
            "expected as many of each"
        )
    order = np.arange(len(labels)) if scores is None else np.argsort(-np.asarray(scores, dtype=float), kind="stable")
    pairs: dict[tuple, list[int]] = {}  # the two boxes -> rows, best first
    for i in order[:limit]:
        pairs.setdefault((*boxes_h[i], *boxes_o[i]), []).append(i)
    corners = np.array(list(pairs), float).reshape(-1, 2, 4)  # (pairs, human and object, 4)

    pixels, (height, width) = _pixels(image)
    across = inches * min(max(width / height, 0.45), 2.2)
    down = max(min(inches, across * height / width), 0.25 * min(limit, len(order)) + 0.8)  # room for the list
    with drawing((across + 3.2, down + 0.4 * bool(title))) as fig:
        ax, side = fig.subplots(1, 2, width_ratios=(across, 3.2))
        ax.imshow(pixels, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
        _draw_boxes(ax, corners)
        inch = max(height / down, width / across)  # in pixels of the image
        for number, (ends, spot) in enumerate(zip(_centres(corners), _clear_spots(corners, 0.13 * inch), strict=True)):
            for colour, lw in (("white", 3.0), (OBJECT, 1.5)):
                ax.plot(*ends.T, color=colour, lw=lw, marker="o", ms=2 * lw, solid_capstyle="round")
            ax.plot(
                *np.stack([spot, ends.mean(0)]).T, color=OBJECT, lw=1, ls=":"
            )  # seen where the number is off the link
            ax.text(*spot, str(number + 1), fontsize=9, ha="center", va="center", zorder=5, bbox=_TAG)
        ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        ax.set_axis_off()
        _list_pairs(side, list(pairs.values()), labels, scores, len(order) - min(limit, len(order)))
        if title:
            headline(fig, title if len(title) <= 60 else f"…{title[-59:]}")
    return fig


_TAG = {"facecolor": "white", "edgecolor": OBJECT, "boxstyle": "circle,pad=0.2", "lw": 1.2}


def _centres(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def _draw_boxes(ax: Axes, pairs: np.ndarray) -> None:
    """Every box of [P, 2, 4] once: humans, then objects; a human that is also an object is dashed in orange."""
    humans, objects = (list(dict.fromkeys(map(tuple, pairs[:, side]))) for side in (0, 1))
    for boxes, colour in ((humans, HUMAN), (objects, OBJECT)):
        for x1, y1, x2, y2 in boxes:
            both = colour == OBJECT and (x1, y1, x2, y2) in humans
            shape = {"xy": (x1, y1), "width": x2 - x1, "height": y2 - y1, "fill": False}
            if not both:  # a white rim keeps the colour legible on any background
                ax.add_patch(Rectangle(**shape, ec="white", lw=3.4, alpha=0.8))
            ax.add_patch(Rectangle(**shape, ec=colour, lw=1.9, ls=(0, (4, 4)) if both else "-"))


def _clear_spots(pairs: np.ndarray, radius: float) -> np.ndarray:
    """[P, 2] where each pair's number of that radius hides least: no face, no small object, no other number.

    pairs: [P, 2, 4] boxes. Candidates lie on the link, its middle first, then at the lower corners of both boxes.
    """
    if not len(pairs):
        return np.zeros((0, 2))
    x1, y1, x2, y2 = np.unique(pairs[:, 0], axis=0).T  # humans: the face is in the middle of the upper quarter
    heads = np.stack([x1 + 0.2 * (x2 - x1), y1, x2 - 0.2 * (x2 - x1), y1 + 0.25 * (y2 - y1)], axis=1)
    small = pairs[:, 1][(pairs[:, 1, 2:] - pairs[:, 1, :2]).max(axis=1) < 6 * radius]
    taken, along = np.zeros((0, 2)), np.array([0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8])
    off_link = np.repeat([0, 3], [len(along), 4])
    for boxes, (start, end) in zip(pairs, _centres(pairs), strict=True):
        corners = boxes[:, [0, 3, 2, 3]].reshape(-1, 2)  # bottom left and right
        spots = np.concatenate([start + along[:, None] * (end - start), corners])  # (S, 2)
        crowd = np.linalg.norm(spots[:, None] - taken, axis=2) < 2.2 * radius  # (S, numbers so far)
        cost = 4 * _touching(spots, heads, radius) + _touching(spots, small, radius) + 5 * crowd.sum(axis=1) + off_link
        taken = np.concatenate([taken, spots[[np.argmin(cost)]]])  # the first of the best
    return taken


def _touching(spots: np.ndarray, boxes: np.ndarray, radius: float) -> np.ndarray:
    """[S] how many of the boxes [K, 4] a disc at each spot [S, 2] touches."""
    nearest = np.clip(spots[:, None], boxes[:, :2], boxes[:, 2:])  # (S, K, 2)
    return (np.linalg.norm(nearest - spots[:, None], axis=2) < radius).sum(axis=1)


def _list_pairs(
    ax: Axes, pairs: Sequence[Sequence[int]], labels: Sequence[str], scores: Sequence[float] | None, more: int
) -> None:
    """Numbers, interactions and scores in columns, one line a row, beside the picture."""
    ax.set_axis_off()
    place = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "center", "annotation_clip": False}
    line = 0
    for number, rows in enumerate(pairs, start=1):
        for i in rows:
            down = -10 - 17 * line
            if i == rows[0]:
                ax.annotate(str(number), (0.04, 1), (0, down), fontsize=9, ha="center", bbox=_TAG, **place)
            ax.annotate(spread_labels([labels[i]], 30)[0], (0.12, 1), (0, down), fontsize=10, **place)
            if scores is not None:
                ax.annotate(
                    f"{scores[i]:.2f}" if scores[i] >= 0.01 else f"{scores[i]:.1g}",
                    (1, 1),
                    (0, down),
                    fontsize=10,
                    ha="right",
                    **place,
                )
            line += 1
    if more or not pairs:
        text = f"and {more} more" if more else "no pair"
        ax.annotate(text, (0.12, 1), (0, -10 - 17 * line), fontsize=10, color=FAINT, **place)
    ax.text(0, 0, "■ human", color=HUMAN, fontsize=9, transform=ax.transAxes)
    ax.text(0.4, 0, "■ object", color=OBJECT, fontsize=9, transform=ax.transAxes)


def _pixels(image: Image.Image | np.ndarray, longest: int = 2000) -> tuple[np.ndarray, tuple[int, int]]:
    """RGB pixels, at most `longest` a side, and (height, width) of the whole image: more would only be thrown away."""
    if not isinstance(image, Image.Image):
        return image, image.shape[:2]
    shown = image.convert("RGB")  # files may be palette, grey or CMYK
    if max(shown.size) > longest:
        shown.thumbnail((longest, longest))
    return np.asarray(shown), (image.height, image.width)


def patch_similarity_map(
    image: Image.Image | np.ndarray,
    patches: np.ndarray,
    token: int | np.ndarray,
    grid: tuple[int, int] | None = None,
    title: str = "",
) -> Figure:
    """Cosine of every patch token to one of them, or to a given vector (a class text), laid over the image.

    patches: [L, D], row-major over the grid, no class token. token: index of a patch (marked on the image), or a
    vector [D]. grid: (rows, columns); None takes the square root of L, which must then be whole.
    """
    patches = np.asarray(patches, dtype=np.float32)
    side = int(round(len(patches) ** 0.5))
    rows, columns = grid or (side, side)
    if rows * columns != len(patches):
        raise ValueError(
            f"patch map: found {len(patches)} patch tokens for a grid of {rows} x {columns}, "
            f"expected {rows * columns}; give grid=(rows, columns) and leave the class token out"
        )
    unit = patches / np.maximum(np.linalg.norm(patches, axis=1, keepdims=True), 1e-12)
    query = unit[token] if np.ndim(token) == 0 else np.asarray(token) / np.linalg.norm(token)
    heat = (unit @ query).reshape(rows, columns)  # (rows, columns)
    pixels, (height, width) = _pixels(image)
    with drawing((8.8, 3.9 * min(max(height / width, 0.5), 1.6) + 0.7)) as fig:
        plain, overlay = fig.subplots(1, 2)
        for ax in (plain, overlay):
            ax.imshow(pixels, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
            ax.set_axis_off()
        # the tokens' own resolution is shown: smoothing would suggest detail that is not there
        shown = overlay.imshow(
            heat, cmap="cividis", alpha=0.72, extent=(-0.5, width - 0.5, height - 0.5, -0.5), interpolation="nearest"
        )
        fig.colorbar(shown, ax=overlay, shrink=0.8, label="cosine").outline.set_visible(False)
        if np.ndim(token) == 0:
            cell = np.array([width / columns, height / rows])
            corner = np.array([token % columns, token // columns]) * cell - 0.5
            for ax in (plain, overlay):
                ax.add_patch(Rectangle(corner, *cell, fill=False, ec=INK, lw=3.4))
                ax.add_patch(Rectangle(corner, *cell, fill=False, ec="white", lw=1.6))
        what = f"patch {token}" if np.ndim(token) == 0 else "the text"
        headline(fig, title or f"Patches similar to {what}: cosine {heat.min():.2f} to {heat.max():.2f}")
    return fig
