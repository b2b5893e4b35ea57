"""`HoiDataset`: what every annotation format becomes, with all checks in one place.

Readers hand over flat lists of rows in their file's own box convention; `build_dataset` turns boxes into 0-based
coordinates (right and bottom exclusive) once, and names file, image, row and mend of whatever is impossible.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from lib.data.annotation_file import AnnotationError
from lib.data.boxes import iou
from lib.data.vocabulary import NO_INTERACTION, PERSON, Vocabulary


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

    def overlaps(self) -> np.ndarray:
        """[n, n] min(IoU of humans, IoU of objects) of every two rows with the same object class, else 0."""
        same = self.object[:, None] == self.object[None]
        boxes = (values.astype(np.float64) for values in (self.boxes_h, self.boxes_o))
        with np.errstate(invalid="ignore"):  # boxes without area, which V-COCO has
            overlap = np.minimum(*(iou(values[:, None], values[None]) for values in boxes))  # (n, n)
        return np.where(same, np.nan_to_num(overlap), 0)

    def pairs(self, least: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
        """Rows that show one physical pair, told by overlap and never by equality (spec data-and-evaluation.md §1.7).

        HICO-DET draws a pair's boxes again for each of its labels. Returns first [m], the first row of each pair, and
        pair [n], the pair of each row: connected components of overlaps() >= least. A multi-hot target of pair p is
        `verb[pair == p]`.
        """
        linked = self.overlaps() >= least
        np.fill_diagonal(linked, True)
        grown = linked @ linked
        while (grown != linked).any():
            linked, grown = grown, grown @ grown
        leader = linked.argmax(axis=1) if len(linked) else np.zeros(0, np.int64)  # first row of each row's pair
        first, pair = np.unique(leader, return_inverse=True)
        return first, pair.reshape(-1)


@dataclass(frozen=True)
class HoiDataset:
    """Images of one split with the vocabulary of their file; index = position in the file, empty images included.

    version: which of the circulating files it was and what was converted, in words.
    """

    source: Path
    split: str
    vocabulary: Vocabulary
    images: tuple[HoiImage, ...]
    version: str = ""

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
        return np.bincount(self.truth()["hoi"], minlength=self.vocabulary.num_hois)

    def rare(self, below: int = 10) -> np.ndarray:
        """HOI ids with fewer than `below` rows (HICO-DET: counted on the unfiltered training file)."""
        return np.flatnonzero(self.hoi_counts < below)

    def truth(self) -> dict[str, np.ndarray]:
        """Flat ground truth for evaluation: image [N], boxes_h [N,4], boxes_o [N,4], hoi [N]."""
        counts = np.array([len(image.hoi) for image in self.images], np.int64)
        nothing = {"boxes_h": np.zeros((0, 4), np.float32), "boxes_o": np.zeros((0, 4), np.float32)}
        nothing |= {"hoi": np.zeros(0, np.int64)}
        rows = {name: [none, *(getattr(image, name) for image in self.images)] for name, none in nothing.items()}
        return {"image": np.repeat(np.arange(len(counts)), counts)} | {k: np.concatenate(v) for k, v in rows.items()}

    def without_hois(self, unseen: Sequence[int] | np.ndarray) -> HoiDataset:
        """Zero-shot training set, family A (data-and-evaluation.md §4.2): unseen rows go, then images left empty."""
        seen = np.ones(self.vocabulary.num_hois, bool)
        seen[np.asarray(unseen, np.int64)] = False
        return self.keep_rows([seen[image.hoi] for image in self.images])

    def keep_rows(self, kept: Sequence[np.ndarray]) -> HoiDataset:
        """Images with only their rows of the masks [n] bool, one mask an image; images left empty go."""
        images = zip(self.images, kept, strict=True)
        some = [(image, rows) for image, rows in images if rows.any()]
        return replace(self, images=tuple(image if rows.all() else image.rows(rows) for image, rows in some))

    def subset(self, count: int) -> HoiDataset:
        """The first `count` images (0 = all)."""
        return replace(self, images=self.images[:count]) if count else self

    def summary(self) -> dict[str, str | int]:
        """What was read, to print: file, version, and counts of images, rows, physical pairs and classes."""
        vocabulary, rows = self.vocabulary, int(self.hoi_counts.sum())
        things = np.concatenate([np.zeros(0, np.int64), *(image.object for image in self.images)])
        verbs = np.concatenate([np.zeros(0, np.int64), *(image.verb for image in self.images)])
        person = vocabulary.objects.index(PERSON) if PERSON in vocabulary.objects else -1
        idle = vocabulary.verbs.index(NO_INTERACTION) if NO_INTERACTION in vocabulary.verbs else -1
        return {
            "file": self.source.name,
            "version": self.version,
            "images": len(self),
            "images_without_rows": len(self) - len(self.annotated),
            "rows": rows,
            "pairs": sum(len(self.images[index].pairs()[0]) for index in self.annotated),
            "rows_person_as_object": int((things == person).sum()),
            "rows_no_interaction": int((verbs == idle).sum()),
            "hoi_classes": vocabulary.num_hois,
            "hoi_classes_present": int((self.hoi_counts > 0).sum()),
        }


# ---------------------------------------------------------------- from flat rows


@dataclass(frozen=True)
class BoxFrame:
    """A file's convention for boxes: what to add for 0-based coordinates, how far outside is still rounding."""

    words: str
    shift: tuple[int, int, int, int]
    slack: float = 0.0


ONE_BASED = BoxFrame("1-based inclusive x1, y1, x2, y2", (-1, -1, 0, 0))  # HICO-DET, MATLAB
ZERO_BASED = BoxFrame("0-based inclusive x1, y1, x2, y2", (0, 0, 1, 1))  # HOIA
COORDINATES = BoxFrame("x1, y1, x2, y2", (0, 0, 0, 0), slack=1.0)  # COCO's x, y, x + w, y + h


@dataclass(frozen=True)
class Rows:
    """Flat rows of a file, in order of image. image, hoi, object, verb: [N]; boxes_h, boxes_o: [N, 4] in its frame."""

    image: np.ndarray
    boxes_h: np.ndarray
    boxes_o: np.ndarray
    hoi: np.ndarray
    object: np.ndarray
    verb: np.ndarray


def build_dataset(
    source: Path, split: str, vocabulary: Vocabulary, paths: Sequence[Path], sizes: np.ndarray, rows: Rows,
    frame: BoxFrame, version: str,
) -> HoiDataset:  # fmt: skip
    """The data set of a file's rows. paths: one an image. sizes: [I, 2] width, height.

    Raises AnnotationError for file names that occur twice, HOI ids out of range, rows that are no class of the
    vocabulary and boxes that are not inside their image.
    """
    if twice := [name for name, count in Counter(path.name for path in paths).items() if count > 1]:
        raise AnnotationError(
            source, f"the file name {twice[0]} more than once ({len(twice)} such names)", "each image once",
            "remove the repeated images: predictions and features are found by file name",
        )  # fmt: skip
    names = [path.name for path in paths]
    check_classes(source, vocabulary, names, rows)
    offset = np.array(frame.shift, np.float32)
    boxes = {}
    for key in ("boxes_h", "boxes_o"):
        values = getattr(rows, key)
        boxes[key] = (values + offset).astype(np.float32)
        _check_boxes(source, names, rows.image, key, values, boxes[key], sizes, frame)
    ends = np.cumsum(np.bincount(rows.image, minlength=len(paths)))[:-1] if len(paths) else []
    parts = zip(
        *(np.split(values, ends) for values in (*boxes.values(), rows.hoi, rows.object, rows.verb)), strict=True
    )
    images = tuple(
        HoiImage(path, (int(width), int(height)), *part)
        for path, (width, height), part in zip(paths, sizes, parts, strict=bool(paths))
    )
    return HoiDataset(source, split, vocabulary, images, version)


def check_classes(source: Path, vocabulary: Vocabulary, names: Sequence[str], rows: Rows) -> None:
    """Raise AnnotationError for a HOI id out of range or a (hoi, object, verb) that is no class of the vocabulary."""
    place = np.arange(len(rows.image)) - np.searchsorted(rows.image, rows.image)  # row within its image
    if (bad := np.flatnonzero((rows.hoi < 0) | (rows.hoi >= vocabulary.num_hois))).size:
        raise AnnotationError(
            f"{source}: {names[rows.image[bad[0]]]}, row {place[bad[0]]}",
            f"HOI id {rows.hoi[bad[0]]} ({len(bad)} such rows)", f"0..{vocabulary.num_hois - 1}",
            "do not mix annotation versions; repair or remove the row",
        )  # fmt: skip
    agrees = (vocabulary.hoi_object[rows.hoi] == rows.object) & (vocabulary.hoi_verb[rows.hoi] == rows.verb)
    if (bad := np.flatnonzero(~agrees)).size:
        found = [int(values[bad[0]]) for values in (rows.hoi, rows.object, rows.verb)]
        hoi = found[0]
        raise AnnotationError(
            f"{source}: {names[rows.image[bad[0]]]}, row {place[bad[0]]}",
            f"(hoi, object, verb) = {found} ({len(bad)} such rows)",
            f"a row of `correspondence`: {[hoi, int(vocabulary.hoi_object[hoi]), int(vocabulary.hoi_verb[hoi])]}",
            "do not mix annotation versions: object orders differ (COCO-80: person 0; alphabetical: person 49)",
        )  # fmt: skip


def _check_boxes(
    source: Path, names: Sequence[str], image: np.ndarray, key: str, given: np.ndarray, boxes: np.ndarray,
    sizes: np.ndarray, frame: BoxFrame,
) -> None:  # fmt: skip
    """given [N, 4] in the file's frame, boxes [N, 4] in coordinates."""
    limit = np.tile(np.asarray(sizes, np.float32).reshape(-1, 2)[image], 2) + frame.slack  # (N, 4)
    inside = (boxes >= -frame.slack) & (boxes <= limit)  # false for NaN
    bad = np.flatnonzero(~inside.all(1) | (given[:, :2] > given[:, 2:]).any(1))
    if bad.size:
        row = bad[0]
        width, height = np.asarray(sizes)[image[row]].tolist()
        raise AnnotationError(
            f"{source}: {names[image[row]]}, {key}[{row - np.searchsorted(image, image[row])}]",
            f"box {given[row].tolist()} ({len(bad)} such boxes)", f"{frame.words} inside {width} x {height}",
            "correct or remove the row; do boxes and sizes belong to the original photographs, unresized?",
        )  # fmt: skip
