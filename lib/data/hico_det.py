"""Reader of HICO-DET instance files (`instances_{train,test}2015.json`), real ones and the stick world's alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from lib.data.vocabulary import Vocabulary


class AnnotationError(ValueError):
    """An annotation file says something impossible; the message names file, image, finding, expectation, mend."""

    def __init__(self, path: Path, where: str, found: str, expected: str, mend: str) -> None:
        super().__init__(f"{path}: {where}\n  found: {found}\n  expected: {expected}\n  mend: {mend}")


@dataclass(frozen=True)
class HoiImage:
    """One image and its rows; a row is one (human box, object box, HOI) triple.

    boxes_h, boxes_o: [n, 4] xyxy in pixels of the image, 0-based, right and bottom exclusive.
    hoi, object, verb: [n] ids.
    """

    path: Path
    size: tuple[int, int]  # width, height
    boxes_h: np.ndarray
    boxes_o: np.ndarray
    hoi: np.ndarray
    object: np.ndarray
    verb: np.ndarray

    @property
    def name(self) -> str:
        return self.path.name

    def rows(self, keep: np.ndarray) -> HoiImage:
        """The image with only the rows of a boolean or integer index."""
        fields = {name: getattr(self, name)[keep] for name in ("boxes_h", "boxes_o", "hoi", "object", "verb")}
        return replace(self, **fields)


@dataclass(frozen=True)
class HoiDataset:
    """Images of one split with the vocabulary of their file; index = position in the file, empty images included."""

    source: Path
    split: str
    vocabulary: Vocabulary
    images: tuple[HoiImage, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> HoiImage:
        return self.images[index]

    @cached_property
    def annotated(self) -> np.ndarray:
        """Indices of images with at least one row (HICO's `empty` images have none)."""
        return np.flatnonzero([len(image.hoi) for image in self.images])

    @cached_property
    def hoi_counts(self) -> np.ndarray:
        """[C] number of rows of every HOI class."""
        return np.bincount(np.concatenate([image.hoi for image in self.images]), minlength=self.vocabulary.num_hois)

    def rare(self, below: int = 10) -> np.ndarray:
        """HOI ids with fewer than `below` rows (HICO-DET: counted on the unfiltered training file)."""
        return np.flatnonzero(self.hoi_counts < below)

    def truth(self) -> dict[str, np.ndarray]:
        """Flat ground truth for evaluation: image [N], boxes_h [N,4], boxes_o [N,4], hoi [N]."""
        counts = [len(image.hoi) for image in self.images]
        return {
            "image": np.repeat(np.arange(len(self.images)), counts),
            "boxes_h": np.concatenate([image.boxes_h for image in self.images]),
            "boxes_o": np.concatenate([image.boxes_o for image in self.images]),
            "hoi": np.concatenate([image.hoi for image in self.images]),
        }

    def without_hois(self, unseen: Sequence[int] | np.ndarray) -> HoiDataset:
        """Zero-shot training set, family A (data-and-evaluation.md §4.2): unseen rows go, then images left empty."""
        kept = [image.rows(~np.isin(image.hoi, unseen)) for image in self.images]
        return replace(self, images=tuple(image for image in kept if len(image.hoi)))

    def subset(self, count: int) -> HoiDataset:
        """The first `count` images (0 = all)."""
        return replace(self, images=self.images[:count]) if count else self


def read_hico_det(annotations: Path | str, images: Path | str, split: str) -> HoiDataset:
    """Read an instance file.

    Boxes in the file are 1-based with both ends inclusive; they become 0-based with exclusive ends
    (x1 - 1, y1 - 1, x2, y2; data-and-evaluation.md §1.3). Raises AnnotationError for anything impossible.
    """
    annotations, images = Path(annotations), Path(images)
    if not annotations.is_file():
        raise FileNotFoundError(
            f"{annotations}: found no file, expected HICO-DET annotations of the {split} split"
            "\n  mend: set data.root to the folder that holds instances_{train,test}2015.json, or run notebook 00"
            " for the embedded stick world"
        )
    try:
        content = json.loads(annotations.read_text())
    except json.JSONDecodeError as error:
        raise AnnotationError(
            annotations, "whole file", f"broken JSON ({error})", "a JSON object", "copy it again"
        ) from None
    missing = {"annotation", "filenames", "objects", "verbs", "correspondence", "size"} - content.keys()
    if missing:
        raise AnnotationError(
            annotations, "top level", f"no key {sorted(missing)}", "the keys of an HICO-DET instance file",
            "use the version that EZ-HOI and UPT read (it has `size` and COCO object order)",
        )  # fmt: skip
    triples = np.asarray(content["correspondence"], np.int64)  # (C, 3) hoi, object, verb
    triples = triples[triples[:, 0].argsort()]
    vocabulary = Vocabulary(tuple(content["objects"]), tuple(content["verbs"]), triples[:, 1], triples[:, 2])
    records = zip(content["filenames"], content["size"], content["annotation"], strict=True)
    parsed = tuple(_parse_image(annotations, images, vocabulary, *record) for record in records)
    return HoiDataset(annotations, split, vocabulary, parsed)


def _parse_image(source: Path, folder: Path, vocabulary: Vocabulary, name: str, size: list, rows: dict) -> HoiImage:
    width, height = size
    boxes = {key: np.asarray(rows[key], np.float32).reshape(-1, 4) for key in ("boxes_h", "boxes_o")}
    ids = {key: np.asarray(rows[key], np.int64) for key in ("hoi", "object", "verb")}
    if len({len(values) for values in (*boxes.values(), *ids.values())}) > 1:
        lengths = {key: len(values) for key, values in (boxes | ids).items()}
        raise AnnotationError(
            source, name, f"lists of unequal length {lengths}", "one entry a row in each", "repair the file"
        )
    for key, values in boxes.items():
        low, high = values.min(initial=1), values.max(axis=0, initial=0)
        inverted = (values[:, :2] > values[:, 2:]).any()
        if low < 1 or high[[0, 2]].max(initial=0) > width or high[[1, 3]].max(initial=0) > height or inverted:
            bad = np.flatnonzero(
                (values < 1).any(1) | (values[:, [0, 2]] > width).any(1) | (values[:, [1, 3]] > height).any(1)
                | (values[:, :2] > values[:, 2:]).any(1)
            )[0]  # fmt: skip
            raise AnnotationError(
                source, f"{name}, {key}[{bad}]", f"box {values[bad].tolist()}",
                f"1-based inclusive x1, y1, x2, y2 inside {width} x {height}",
                "correct or remove the row; boxes must not be 0-based or belong to a resized image",
            )  # fmt: skip
    if len(ids["hoi"]):
        if ids["hoi"].min() < 0 or ids["hoi"].max() >= vocabulary.num_hois:
            raise AnnotationError(
                source,
                name,
                f"HOI ids {ids['hoi'].tolist()}",
                f"0..{vocabulary.num_hois - 1}",
                "repair the file",
            )
        agrees = (vocabulary.hoi_object[ids["hoi"]] == ids["object"]) & (vocabulary.hoi_verb[ids["hoi"]] == ids["verb"])
        if not agrees.all():
            bad = int(np.flatnonzero(~agrees)[0])
            raise AnnotationError(
                source, f"{name}, row {bad}", f"(hoi, object, verb) = {[int(ids[k][bad]) for k in ids]}",
                "a row of `correspondence`", "do not mix annotation versions: object orders differ",
            )  # fmt: skip
    shift = np.array([1, 1, 0, 0], np.float32)
    return HoiImage(
        folder / name, (int(width), int(height)), boxes["boxes_h"] - shift, boxes["boxes_o"] - shift,
        ids["hoi"], ids["object"], ids["verb"],
    )  # fmt: skip
