"""Pictures of images: predicted pairs drawn on an image, and what a patch token is similar to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from lib.analysis.palette import HUMAN, INK, OBJECT, drawing, headline, spread_labels


def draw_pairs(
    image: Image.Image | np.ndarray,
    boxes_h: np.ndarray,
    boxes_o: np.ndarray,
    labels: Sequence[str],
    scores: Sequence[float] | None = None,
    title: str = "",
    limit: int = 6,
) -> Figure:
    """Human (blue) and object boxes (orange) of the highest-scored pairs, their centres joined, with a numbered list.

    image: PIL or [H, W, 3] uint8. boxes_h, boxes_o: [P, 4] xyxy in pixels. labels: a pair's text, e.g. "ride bicycle".
    scores: [P]; None keeps the given order. limit: pairs drawn; the list says how many were left out.
    """
    pixels = np.asarray(image)
    boxes_h, boxes_o = np.reshape(boxes_h, (-1, 4)), np.reshape(boxes_o, (-1, 4))
    if not len(boxes_h) == len(boxes_o) == len(labels):
        raise ValueError(
            f"draw_pairs: found {len(boxes_h)} human boxes, {len(boxes_o)} object boxes and {len(labels)} labels, "
            "expected as many of each"
        )
    order = np.arange(len(labels)) if scores is None else np.argsort(-np.asarray(scores, dtype=float), kind="stable")
    height, width = pixels.shape[:2]
    lines = []
    with drawing((4.6 * min(max(width / height, 0.6), 2.2) + 2.6, 4.6 + 0.4 * bool(title))) as fig:
        ax, side = fig.subplots(1, 2, width_ratios=(4.6 * min(max(width / height, 0.6), 2.2), 2.6))
        ax.imshow(pixels)
        for number, i in enumerate(order[:limit], start=1):
            for box, colour in ((boxes_h[i], HUMAN), (boxes_o[i], OBJECT)):
                corner, size = box[:2], box[2:] - box[:2]
                # a white rim keeps the colour legible on any background
                ax.add_patch(Rectangle(corner, *size, fill=False, ec="white", lw=3.2, alpha=0.8))
                ax.add_patch(Rectangle(corner, *size, fill=False, ec=colour, lw=1.8))
            ends = np.stack([(box[:2] + box[2:]) / 2 for box in (boxes_h[i], boxes_o[i])])
            ax.plot(*ends.T, color="white", lw=2.6, alpha=0.8)
            ax.plot(*ends.T, color=OBJECT, lw=1.3, marker="o", ms=3)
            tag = {"facecolor": "white", "edgecolor": OBJECT, "boxstyle": "circle,pad=0.18", "lw": 1}
            ax.text(*ends.mean(0), str(number), fontsize=8, ha="center", va="center", bbox=tag)
            score = "" if scores is None else f"  {scores[i]:.2f}"
            lines.append(f"{number}  {spread_labels([labels[i]], 26)[0]}{score}")
        if len(order) > limit:
            lines.append(f"and {len(order) - limit} more")
        ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        ax.set_axis_off()
        side.set_axis_off()
        side.text(0, 1, "\n".join(lines) or "no pair", va="top", fontsize=10, linespacing=1.7)
        side.text(0, 0, "■ human", color=HUMAN, fontsize=9)
        side.text(0.5, 0, "■ object", color=OBJECT, fontsize=9)
        if title:
            headline(fig, title)
    return fig


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
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    with drawing((8.8, 3.9 * min(max(height / width, 0.5), 1.6) + 0.7)) as fig:
        plain, overlay = fig.subplots(1, 2)
        for ax in (plain, overlay):
            ax.imshow(pixels)
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
