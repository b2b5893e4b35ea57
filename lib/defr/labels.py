"""Image-level HOI labels, and how images of rare classes are repeated (spec defr.md §1, §6.1).

+1 HOI present; 0 object present, HOI ambiguous; -1 object present, HOI absent; -2 object not verified.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.data.dataset import HoiDataset
from lib.data.hico_mat import read_anno_mat
from lib.errors import FoundExpected
from lib.runs import atomic_write

POSITIVE, AMBIGUOUS, ABSENT, UNKNOWN = 1, 0, -1, -2
SPLITS = ("train", "test")


class LabelError(FoundExpected):
    """A label file that cannot be used; names file, finding, expectation, mend."""


@dataclass(frozen=True)
class RecognitionLabels:
    """Labels of one split. files: N image names. values: [N, C] int8 in {-2, -1, 0, 1}."""

    files: tuple[str, ...]
    values: np.ndarray

    @property
    def positive(self) -> np.ndarray:
        """[N, C] bool targets of the losses."""
        return self.values == POSITIVE

    @property
    def known_object(self) -> np.ndarray:
        """[N, C] bool: the object was verified to be there."""
        return np.abs(self.values) == 1

    @property
    def certain(self) -> np.ndarray:
        """[N, C] bool: counts in the evaluation."""
        return self.values != AMBIGUOUS


def read_labels(path: Path | str, split: str) -> RecognitionLabels:
    """One split of HICO's `anno.mat` (NaN becomes -2) or of an .npz written by `save_labels`."""
    path = Path(path)
    if split not in SPLITS:
        raise ValueError(f"labels: found split {split!r}, expected one of {SPLITS}")
    if not path.is_file():
        raise LabelError(path, "no file", "HICO's anno.mat or an .npz of labels", "set defr.labels")
    try:
        files, values = read_anno_mat(path, split) if path.suffix == ".mat" else _read_npz(path, split)
    except FoundExpected as error:
        raise LabelError(*error.args) from None
    except (KeyError, OSError, ValueError) as error:
        raise LabelError(
            path, f"no readable {split} labels ({error})", "anno.mat or save_labels' .npz", "copy it again"
        ) from error
    foreign = np.setdiff1d(values, [UNKNOWN, ABSENT, AMBIGUOUS, POSITIVE])
    if values.ndim != 2 or len(values) != len(files) or len(foreign):
        found = f"labels {values.shape} with values {foreign.tolist()} for {len(files)} files"
        raise LabelError(path, found, "[files, classes] of -2, -1, 0, 1", "copy it again")
    return RecognitionLabels(tuple(map(str, files)), values)


def save_labels(path: Path | str, **splits: RecognitionLabels) -> None:
    """Write splits (train=..., test=...) to an .npz without pickles."""
    arrays = {}
    for split, labels in splits.items():
        arrays |= {f"files_{split}": np.array(labels.files), f"labels_{split}": labels.values}
    atomic_write(path, lambda stream: np.savez_compressed(stream, **arrays))


def labels_of_pairs(data: HoiDataset) -> RecognitionLabels:
    """Labels from annotated pairs: +1 the annotated HOIs, -1 other HOIs of an annotated object, -2 all others."""
    vocabulary = data.vocabulary
    values = np.full((len(data), vocabulary.num_hois), UNKNOWN, np.int8)
    truth = data.truth()
    image, hoi = truth["image"], truth["hoi"]
    present = np.zeros((len(data), len(vocabulary.objects)), bool)
    present[image, vocabulary.hoi_object[hoi]] = True
    values[present[:, vocabulary.hoi_object]] = ABSENT
    values[image, hoi] = POSITIVE
    return RecognitionLabels(tuple(record.name for record in data.images), values)


def oversampled(positive: np.ndarray, min_samples: int) -> np.ndarray:
    """Image indices of an epoch: every image once, then extra copies of images with rare classes (§6.1).

    positive: [N, C] bool. Class c asks for r_c = ceil(m / n_c) - 1 copies, at most m; an image gets the most that one
    of its classes asks for, if that is more than one: a published off-by-one (classes with m / 2 <= n_c < m get none).
    """
    originals = np.arange(len(positive))
    if min_samples <= 1:
        return originals
    count = positive.sum(0)  # (C,)
    wanted = np.where(count > 0, np.ceil(min_samples / np.maximum(count, 1)) - 1, 0).clip(0, min_samples)
    copies = (positive * wanted).max(axis=1, initial=0).astype(np.int64)  # (N,)
    return np.concatenate([originals, np.repeat(originals, np.where(copies > 1, copies, 0))])


def few_shot(positive: np.ndarray, most: Sequence[int] = (1, 5, 10)) -> dict[str, np.ndarray]:
    """few_1, few_5, ... -> ids of the classes with at most so many positive training images (§9).

    positive: [N, C] bool of the training split. Groups without a class are left out.
    """
    count = positive.sum(0)
    groups = {f"few_{k}": np.flatnonzero(count <= k) for k in most}
    return {name: classes for name, classes in groups.items() if len(classes)}


def _read_npz(path: Path, split: str) -> tuple[Sequence[str], np.ndarray]:
    with np.load(path, allow_pickle=False) as content:
        return content[f"files_{split}"].tolist(), content[f"labels_{split}"]
