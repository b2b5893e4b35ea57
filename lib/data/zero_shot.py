"""Zero-shot settings: the HOI classes withheld from training, and what that leaves (data-and-evaluation.md §4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lib.data.annotation_file import read_json
from lib.data.dataset import HoiDataset, HoiImage
from lib.errors import FoundExpected

SETTINGS = ("default", "unseen_verb", "unseen_object", "rare_first", "non_rare_first")
HICO_SPLITS = Path(__file__).with_name("hico_zero_shot.json")
HICO_CLASSES = (600, 117, 80)  # HOI classes, verbs, objects
HICO_TEST_ROWS = 33405


class ZeroShotError(FoundExpected, KeyError):
    """A setting that a file of splits does not have."""


class PublishedSize(NamedTuple):
    """What is unseen on HICO-DET: HOI classes, verbs and objects without any seen class, rows of the test file."""

    hois: int
    verbs: int
    objects: int
    test_rows: int


PUBLISHED = {
    "default": PublishedSize(0, 0, 0, 0),
    "unseen_verb": PublishedSize(84, 20, 0, 6580),
    "unseen_object": PublishedSize(100, 5, 12, 4988),
    "rare_first": PublishedSize(120, 0, 0, 836),
    "non_rare_first": PublishedSize(120, 0, 0, 21259),
    "uc0": PublishedSize(120, 9, 0, 6375),
    "uc1": PublishedSize(120, 10, 0, 4228),
    "uc2": PublishedSize(120, 10, 0, 6706),
    "uc3": PublishedSize(120, 9, 0, 5423),
    "uc4": PublishedSize(120, 10, 0, 5728),
}


def unseen_hois(setting: str, root: Path | str | None = None) -> np.ndarray:
    """Ascending ids of the unseen HOI classes.

    root: a data set with its own `zero_shot.json` (the stick world, a custom set); else HICO-DET's public splits,
        whose sizes are checked against the published ones.
    Raises ZeroShotError for an unknown setting, ValueError for a class listed twice or a size that disagrees.
    """
    own = Path(root) / "zero_shot.json" if root else None
    source = own if own and own.is_file() else HICO_SPLITS
    settings = read_json(source)["settings"]
    if setting not in settings:
        raise ZeroShotError(
            source, f"no setting {setting!r}", f"one of {sorted(settings)}", "correct data.zero_shot, or add it there"
        )
    listed = settings[setting]["unseen_hoi"]
    unseen = np.array(sorted(set(listed)), np.int64)
    if len(unseen) != len(listed):
        raise ValueError(f"{source}, {setting}: found {len(listed) - len(unseen)} classes twice, expected each once")
    if source == HICO_SPLITS and len(unseen) != PUBLISHED[setting].hois:
        raise _disagrees(f"{source}, {setting}", len(unseen), PUBLISHED[setting].hois, "unseen HOI classes")
    return unseen


def split_counts(
    dataset: HoiDataset, unseen: Sequence[int] | np.ndarray, setting: str = "", by: str = "row"
) -> dict[str, int]:
    """What a setting withholds, as whole numbers to print beside each result.

    Always: hoi_unseen, hoi_seen, verbs_unseen and objects_unseen (those of the annotations' classes without any seen
    class). For the test split: test_rows_unseen, test_rows_seen. For any other: train_images_kept and
    train_images_dropped (of the images with rows), train_rows_kept, train_rows_dropped under the filter `by`.

    setting: name of the split; on HICO-DET (600 classes, 117 verbs, 80 objects) the counts must be the published ones.
    Raises ValueError for ids outside the vocabulary and for counts that disagree.
    """
    vocabulary, unseen = dataset.vocabulary, np.unique(np.asarray(unseen, np.int64))
    if len(unseen) and (unseen[0] < 0 or unseen[-1] >= vocabulary.num_hois):
        raise ValueError(
            f"unseen classes {unseen[0]}..{unseen[-1]}: found ids outside 0..{vocabulary.num_hois - 1}, the classes of "
            f"{dataset.source}\n  mend: choose a split of this data set (data.zero_shot; a zero_shot.json in data.root)"
        )
    seen = np.setdiff1d(np.arange(vocabulary.num_hois), unseen)
    gone = {
        "verbs_unseen": np.setdiff1d(vocabulary.hoi_verb, vocabulary.hoi_verb[seen]),
        "objects_unseen": np.setdiff1d(vocabulary.hoi_object, vocabulary.hoi_object[seen]),
    }
    counts = {"hoi_unseen": len(unseen), "hoi_seen": len(seen)} | {name: len(ids) for name, ids in gone.items()}
    rows, withheld = int(dataset.hoi_counts.sum()), int(dataset.hoi_counts[unseen].sum())
    if dataset.split == "test":
        counts |= {"test_rows_unseen": withheld, "test_rows_seen": rows - withheld}
    else:
        left = filter_training(dataset, unseen, by)
        kept = int(left.hoi_counts.sum())
        counts |= {"train_images_kept": len(left), "train_images_dropped": len(dataset.annotated) - len(left)}
        counts |= {"train_rows_kept": kept, "train_rows_dropped": rows - kept}
    if (vocabulary.num_hois, len(vocabulary.verbs), len(vocabulary.objects)) == HICO_CLASSES and setting in PUBLISHED:
        _check_published(dataset, setting, counts, rows)
    return counts


def _check_published(dataset: HoiDataset, setting: str, counts: dict[str, int], rows: int) -> None:
    """Compare with the published sizes; test rows only where the whole test file was read."""
    names = ("hoi_unseen", "verbs_unseen", "objects_unseen", "test_rows_unseen")
    for name, expected in zip(names, PUBLISHED[setting], strict=True):
        if name == "test_rows_unseen" and rows != HICO_TEST_ROWS:
            continue
        if counts.get(name, expected) != expected:
            raise _disagrees(f"{dataset.source}, {setting}", counts[name], expected, name)


def _disagrees(where: str, found: int, expected: int, what: str) -> ValueError:
    return ValueError(
        f"{where}: found {found} {what}, expected {expected} as published for HICO-DET"
        "\n  mend: use the public split and annotation files, or give a split of your own another name"
    )


def filter_training(dataset: HoiDataset, unseen: Sequence[int] | np.ndarray, by: str = "row") -> HoiDataset:
    """The zero-shot training set by either family of methods (data-and-evaluation.md §4.2).

    row (family A: UPT, ADA-CM, CMMP, EZ-HOI ...): rows of unseen classes go, other labels of the same pair stay.
    pair (family B: GEN-VLKT, HOICLIP): a pair with any unseen label goes with all its labels. Images left empty go in
    both.
    """
    if by not in FILTERS:
        raise ValueError(
            f"data.zero_shot_filter: found {by!r}, expected row (rows of unseen classes go) or pair (their pairs go)"
        )
    return FILTERS[by](dataset, unseen)


def without_pairs(dataset: HoiDataset, unseen: Sequence[int] | np.ndarray, iou: float = 0.5) -> HoiDataset:
    """Family B: every row that shows the same physical pair as a row of an unseen class goes, then empty images.

    HICO-DET draws the boxes of a pair again for each of its labels, so pairs are told by overlap and never by equality:
    equal object class and min(IoU of humans, IoU of objects) >= `iou` (§1.7). The HOIA files that these methods read
    state pairs by id; how those were merged is not documented, so their counts may differ slightly.
    """
    return dataset.keep_rows([~_same_pair(image, np.isin(image.hoi, unseen), iou) for image in dataset.images])


def _same_pair(image: HoiImage, hidden: np.ndarray, iou: float) -> np.ndarray:
    """[n] bool: rows of the same pair as any row of `hidden` [n], these included."""
    if not hidden.any():
        return hidden
    return (image.overlaps()[:, hidden] >= iou).any(axis=1) | hidden


FILTERS: dict[str, Callable[..., HoiDataset]] = {"row": HoiDataset.without_hois, "pair": without_pairs}
