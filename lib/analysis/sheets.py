"""Contact sheets: many annotated images at a glance, and the class frequencies behind them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lib.analysis.palette import HUMAN, OBJECT, SPLIT_COLOUR
from lib.data.hico_det import HoiDataset
from lib.data.images import read_image
from lib.detection.proposals import Proposals


def image_sheet(data: HoiDataset, indices: Sequence[int], columns: int = 4) -> Figure:
    """Images with their annotated pairs: humans blue, objects orange, the labels as title."""
    figure = _grid(len(indices), columns)
    for axis, index in zip(figure.axes, indices, strict=False):
        record = data[index]
        _picture(axis, record)
        for boxes, colour in ((record.boxes_h, HUMAN), (record.boxes_o, OBJECT)):
            _boxes(axis, boxes, colour)
        names = [data.vocabulary.hoi_name(hoi) for hoi in record.hoi]
        axis.set_title("\n".join(_wrapped(names)) or "no pair", fontsize=7)
    return figure


def proposal_sheet(
    data: HoiDataset, proposals: Sequence[Proposals], indices: Sequence[int], columns: int = 4
) -> Figure:
    """Images with the detector's proposals (boxes as fractions of the image); line width grows with the score."""
    figure = _grid(len(indices), columns)
    for axis, index in zip(figure.axes, indices, strict=False):
        record, found = data[index], proposals[index]
        _picture(axis, record)
        pixels = found.boxes.numpy() * np.tile(record.size, 2)
        for i, (box, score) in enumerate(zip(pixels, found.scores.tolist(), strict=True)):
            _boxes(axis, box[None], HUMAN if i < found.n_human else OBJECT, 0.5 + 1.5 * score)
        names = [data.vocabulary.objects[label] for label in found.labels[found.n_human :].unique().tolist()]
        axis.set_title(f"{found.n_human} people, {', '.join(names) or 'no object'}"[:48], fontsize=7)
    return figure


def frequency_figure(data: HoiDataset, unseen: Sequence[int] | np.ndarray) -> Figure:
    """Training rows of every HOI class, most frequent first; the withheld classes in their own colour."""
    counts = data.hoi_counts
    order = np.argsort(-counts, kind="stable")
    hidden = np.isin(order, unseen)
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axis = figure.subplots()
    for mask, split in ((~hidden, "seen"), (hidden, "unseen")):
        axis.bar(np.flatnonzero(mask), counts[order][mask], color=SPLIT_COLOUR[split], label=split, width=0.85)
    names = [data.vocabulary.hoi_name(hoi) for hoi in order]
    if len(names) <= 80:
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    axis.set(yscale="log", ylabel="training rows", xlim=(-1, len(names)))
    axis.set_title(
        f"{len(counts)} HOI classes, {hidden.sum()} withheld, {(counts < 10).sum()} rare", loc="left", fontsize=10
    )
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def _grid(count: int, columns: int) -> Figure:
    rows = -(-count // columns)
    figure = Figure(figsize=(2.6 * columns, 2.35 * rows), layout="constrained")
    for axis in np.ravel(figure.subplots(rows, columns, squeeze=False)):
        axis.axis("off")
    return figure


def _picture(axis, record) -> None:
    axis.imshow(read_image(record.path).convert("RGB"))


def _boxes(axis, boxes: np.ndarray, colour: str, width: float = 1.2) -> None:
    for x1, y1, x2, y2 in boxes:
        axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=width))


def _wrapped(names: Sequence[str], a_line: int = 2, lines: int = 2) -> list[str]:
    distinct = list(dict.fromkeys(names))
    chunks = [", ".join(distinct[i : i + a_line]) for i in range(0, len(distinct), a_line)]
    return chunks[:lines] if len(chunks) <= lines else [*chunks[: lines - 1], f"{chunks[lines - 1]} ..."]
