"""Small pictures of pairs: the crop around both boxes with the boxes drawn, as data URIs for HTML of any kind."""

from __future__ import annotations

import base64
import io
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from lib.analysis.embeddings import BOXES_H, BOXES_O
from lib.analysis.palette import HUMAN, OBJECT

ImageLoader = Callable[[int, str], Image.Image]  # index and split of the table -> image


class Thumbnails:
    """Pictures of the rows of a frame with `image` and the boxes; the last ones drawn are remembered.

    load: image index and split -> PIL image; None for a table without images. Without boxes no picture.
    """

    def __init__(self, frame: pd.DataFrame, load: ImageLoader | None, remember: int = 2000) -> None:
        self.load, self.remember = load, remember
        self.images, self.splits = frame["image"].to_numpy(), frame["split"].to_numpy()
        self.boxes = frame[[*BOXES_H, *BOXES_O]].to_numpy(dtype=float).reshape(-1, 2, 4)  # human, object
        self._kept: OrderedDict[tuple[int, int], str] = OrderedDict()

    def has(self, row: int) -> bool:
        """Whether a row has a picture."""
        return self.load is not None and self.images[row] >= 0 and bool(np.isfinite(self.boxes[row]).all())

    def uri(self, row: int, side: int = 96, quality: int = 80) -> str:
        """JPEG of a row, its longer side `side` pixels, as a data URI; empty where there is none."""
        if not self.has(row):
            return ""
        if (row, side) not in self._kept:
            stream = io.BytesIO()
            self.picture(row, side).save(stream, "jpeg", quality=quality)
            self._kept[row, side] = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
            while len(self._kept) > self.remember:
                self._kept.popitem(last=False)
        self._kept.move_to_end((row, side))
        return self._kept[row, side]

    def picture(self, row: int, side: int = 320, margin: float = 0.15) -> Image.Image:
        """The crop around both boxes with a margin; human blue, object orange, their centres joined."""
        image, pair = self.load(int(self.images[row]), str(self.splits[row])), self.boxes[row]
        low, high = pair[:, :2].min(0), pair[:, 2:].max(0)
        pad = margin * (high - low).max()
        x1, y1 = np.floor(np.maximum(low - pad, 0)).astype(int).tolist()
        x2, y2 = np.ceil(np.minimum(high + pad, image.size)).astype(int).tolist()
        x2, y2 = max(x2, x1 + 1), max(y2, y1 + 1)
        scale = side / max(x2 - x1, y2 - y1)
        size = (max(round((x2 - x1) * scale), 1), max(round((y2 - y1) * scale), 1))
        crop = image.crop((x1, y1, x2, y2)).convert("RGB").resize(size, Image.Resampling.BICUBIC)
        drawn = (pair - [x1, y1, x1, y1]) * scale
        return draw_boxes(crop, drawn, width=max(2, round(side / 90)))


def draw_boxes(image: Image.Image, pair: np.ndarray, width: int = 2) -> Image.Image:
    """Draw a human and an object box [2, 4] (pixels) and the line between their centres into the image; returns it."""
    pen = ImageDraw.Draw(image)
    limit = np.array([*image.size, *image.size]) - 1
    centres = [tuple(((box[:2] + box[2:]) / 2).tolist()) for box in pair]
    for box, colour in zip(np.clip(pair, 0, limit), (HUMAN, OBJECT), strict=True):
        pen.rectangle(box.tolist(), outline="white", width=width + 2)  # a rim keeps it legible on any background
        if (box[2:] - box[:2] > 2).all():
            pen.rectangle((box + [1, 1, -1, -1]).tolist(), outline=colour, width=width)
    pen.line(centres, fill="white", width=width + 2)
    pen.line(centres, fill=OBJECT, width=width)
    return image
