"""The detections table: one row a box, unthresholded, in pixels of the original image (parquet + manifest).

Thresholds, NMS and instance limits belong to the consumer (`lib.detection.proposals`), so one table serves them all.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchvision.ops import box_convert

from lib.data.images import read_image
from lib.detection.detr import DetectorError, Detr, class_positions, detect, preprocess
from lib.engine.progress import Progress
from lib.runs import atomic_write, file_sha256, write_json

ROWS_FILE, MANIFEST_FILE, SCHEMA = "detections.parquet", "manifest.json", 1
BOX = ["x1", "y1", "x2", "y2"]


class Detections(NamedTuple):
    """Boxes of one image: [n, 4] xyxy float32 pixels of the original image, scores [n], labels [n] int64."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class DetectionTable:
    """A detections table in memory; image ids are positions in the list of images it was made from."""

    rows: pd.DataFrame  # image, name, x1, y1, x2, y2, score, label; grouped by image
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: Path | str) -> DetectionTable:
        """Read a table; a missing, changed or foreign file is an error that names it."""
        folder = Path(folder)
        mend = "run notebook 01 again to make the detections"
        for name in (MANIFEST_FILE, ROWS_FILE):
            if not (folder / name).is_file():
                raise DetectorError(folder / name, "no file", f"{ROWS_FILE} beside {MANIFEST_FILE}", mend)
        manifest = json.loads((folder / MANIFEST_FILE).read_text())
        found, vouched = file_sha256(folder / ROWS_FILE)[:12], str(manifest.get("rows_sha256"))[:12]
        if (manifest.get("schema"), found) != (SCHEMA, vouched):
            raise DetectorError(
                folder / ROWS_FILE,
                f"rows {found} beside a manifest of schema {manifest.get('schema')} for rows {vouched}",
                f"schema {SCHEMA} and the rows that the manifest was written with",
                mend,
            )
        return cls(pd.read_parquet(folder / ROWS_FILE), manifest)

    @cached_property
    def _starts(self) -> np.ndarray:
        return np.searchsorted(self.rows["image"].to_numpy(), np.arange(self.num_images + 1))

    @cached_property
    def _columns(self) -> Detections:
        boxes, scores, labels = (self.rows[names].to_numpy() for names in (BOX, "score", "label"))
        return Detections(
            torch.tensor(boxes, dtype=torch.float32),
            torch.tensor(scores, dtype=torch.float32),
            torch.tensor(labels).long(),
        )

    @property
    def num_images(self) -> int:
        """Number of images the table covers, those without boxes included."""
        return self.manifest["images"]

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names, index = label."""
        return tuple(self.manifest["labels"])

    def of(self, image: int) -> Detections:
        """All boxes of one image id, in the detector's order."""
        if not 0 <= image < self.num_images:
            raise IndexError(f"detections: found image id {image}, expected 0..{self.num_images - 1}")
        rows = slice(*self._starts[image : image + 2])
        return Detections(*(column[rows] for column in self._columns))

    def in_label_space(self, objects: Sequence[str]) -> DetectionTable:
        """The table with labels as positions in `objects` (matched by name); boxes of other classes are left out."""
        to = np.array(class_positions(self.labels, objects))
        if not (to >= 0).any():
            raise ValueError(
                f"detections: found classes {list(self.labels)}, expected some of {list(objects)}"
                "\n  mend: use a detector whose classes are those of the annotations"
            )
        rows = self.rows.assign(label=to[self.rows["label"].to_numpy()])
        return DetectionTable(
            rows[rows["label"] >= 0].reset_index(drop=True), self.manifest | {"labels": list(objects)}
        )


def write_table(
    folder: Path | str, rows: pd.DataFrame, *, images: int, labels: Sequence[str], detector: dict[str, Any]
) -> DetectionTable:
    """Write rows, then the manifest that vouches for them: a folder with a manifest is whole."""
    folder = Path(folder)
    rows = rows.sort_values("image", kind="stable", ignore_index=True)
    atomic_write(folder / ROWS_FILE, lambda stream: rows.to_parquet(stream, index=False))
    manifest = {
        "schema": SCHEMA,
        "images": images,
        "boxes": len(rows),
        "frame": "xyxy pixels of the original image",
        "labels": list(labels),
        "detector": detector,
        "rows_sha256": file_sha256(folder / ROWS_FILE),
    }
    write_json(folder / MANIFEST_FILE, manifest)
    return DetectionTable(rows, manifest)


def detect_images(detr: Detr, paths: Sequence[Path], folder: Path | str, batch_size: int = 16) -> DetectionTable:
    """Detect on every image (id = position in `paths`) and write the table."""
    frames = []
    with Progress("detections", len(paths)) as progress:
        for ids, names, sizes, pixels in _equal_size_batches(detr, paths, batch_size):
            scores, labels, boxes = (part.cpu() for part in detect(detr, pixels))
            corners = box_convert(boxes, "cxcywh", "xyxy") * sizes.repeat(1, 2)[:, None]  # (B, Q, 4)
            count = scores.shape[1]
            owners = (np.repeat(ids, count), np.repeat(names, count))
            frames.append(box_rows(*owners, corners.flatten(0, 1), scores.flatten(), labels.flatten()))
            progress.step(len(ids))
    return write_table(folder, pd.concat(frames), images=len(paths), labels=detr.labels, detector=detr.describe())


def _equal_size_batches(
    detr: Detr, paths: Sequence[Path], batch_size: int
) -> Iterator[tuple[list[int], list[str], Tensor, Tensor]]:
    """Batches of images that have one size after resizing: ids, names, original (width, height) [B, 2], pixels.

    At most 4 batches of decoded images wait for others of their size; then the largest group goes out as it is.
    """
    waiting: dict[tuple[int, ...], list[tuple[int, str, tuple[int, int], Tensor]]] = {}
    for index, path in enumerate(paths):
        image = read_image(path)
        pixels = preprocess(detr, image)
        group = waiting.setdefault(tuple(pixels.shape), [])
        group.append((index, Path(path).name, image.size, pixels))
        full = sum(map(len, waiting.values())) >= 4 * batch_size
        if full or len(group) == batch_size:
            group = max(waiting.values(), key=len)
            yield _batch(group)
            group.clear()
    yield from (_batch(group) for group in waiting.values() if group)


def _batch(group: Iterable[tuple[int, str, tuple[int, int], Tensor]]) -> tuple[list[int], list[str], Tensor, Tensor]:
    ids, names, sizes, pixels = zip(*group, strict=True)
    return list(ids), list(names), torch.tensor(sizes, dtype=torch.float32), torch.stack(pixels)


def box_rows(images: Any, names: Any, boxes: Any, scores: Any, labels: Any) -> pd.DataFrame:
    """Rows of a table from [N] image ids, [N] names, [N, 4] boxes, [N] scores and [N] labels."""
    boxes = np.asarray(boxes, np.float32)
    columns = {"image": np.asarray(images, np.int32), "name": names}
    columns |= {key: boxes[:, index] for index, key in enumerate(BOX)}
    columns |= {"score": np.asarray(scores, np.float32), "label": np.asarray(labels, np.int16)}
    return pd.DataFrame(columns)
