"""Reader of the HOIA form of HICO-DET (`trainval_hico.json`, `test_hico.json`; data-and-evaluation.md §1.9).

PPDM's form, read by QPIC, CDN, GEN-VLKT and HOICLIP. It names no classes and states no sizes: ids are HICO-DET's, sizes
come from the photographs. Its boxes were merged over the labels of a pair, so it has fewer boxes and the same labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from lib.data.annotation_file import AnnotationError, read_json, require_keys
from lib.data.dataset import ZERO_BASED, HoiDataset, Rows, build_dataset
from lib.data.hico_classes import OFFICIAL, coco80_of_coco91
from lib.data.images import image_sizes

_MEND = "use trainval_hico.json or test_hico.json of PPDM, QPIC or GEN-VLKT"


def read_hoia(annotations: Path | str, images: Path | str, split: str) -> HoiDataset:
    """Read the list of images, plain or gzipped. Boxes are 0-based with inclusive ends and become coordinates.

    Training images in which a label points past the boxes are left out, as every public reader does; in the test split
    that is an error. Raises AnnotationError for anything else impossible, ImageError without the photographs.
    """
    annotations, images = Path(annotations), Path(images)
    records = read_json(
        annotations, f"HOIA annotations of the {split} split", "set data.root to the folder that holds them"
    )
    if not isinstance(records, list):
        raise AnnotationError(annotations, f"a {type(records).__name__}", "a list with an entry an image", _MEND)
    for place, record in enumerate(records):
        name = record.get("file_name", f"image {place}") if isinstance(record, dict) else f"image {place}"
        require_keys(annotations, name, record, {"file_name", "annotations", "hoi_annotation"}, _MEND)
    past = [_points_past(record) for record in records]
    if any(past) and split == "test":
        name = records[past.index(True)]["file_name"]
        raise AnnotationError(
            f"{annotations}: {name}", f"labels that point past its boxes ({sum(past)} such images)",
            "subject_id and object_id below the number of `annotations`", "repair or remove the image",
        )  # fmt: skip
    records = [record for record, bad in zip(records, past, strict=True) if not bad]
    names = [record["file_name"] for record in records]
    paths = [images / name for name in names]
    words = "HOIA JSON, sizes from the photographs" + (f", {sum(past)} images with broken labels left out" * any(past))
    return build_dataset(
        annotations, split, OFFICIAL, paths, image_sizes(paths), _rows(annotations, names, records), ZERO_BASED, words
    )


def _points_past(record: dict) -> bool:
    ends = [int(label[key]) for label in record["hoi_annotation"] for key in ("subject_id", "object_id")]
    return bool(ends) and not 0 <= min(ends) <= max(ends) < len(record["annotations"])


def _rows(source: Path, names: Sequence[str], records: Sequence[dict]) -> Rows:
    counts = [len(record["hoi_annotation"]) for record in records]
    size = [len(record["annotations"]) for record in records]
    image = np.repeat(np.arange(len(records)), counts)
    offset = np.cumsum([0, *size])[image]  # (N,) where the boxes of a label's image start
    labels = list(chain.from_iterable(record["hoi_annotation"] for record in records))
    things = list(chain.from_iterable(record["annotations"] for record in records))
    try:
        subject, target, verb, hoi = (
            np.array([int(label[key]) for label in labels], np.int64)
            for key in ("subject_id", "object_id", "category_id", "hoi_category_id")
        )
        # old files write some categories as text with a line end, which int() reads
        category = np.array([int(thing["category_id"]) for thing in things], np.int64)
        boxes = np.array([thing["bbox"] for thing in things], np.float32).reshape(len(things), 4)
    except (KeyError, ValueError, TypeError) as error:
        raise AnnotationError(
            source, f"a box or label without or with an unreadable entry ({error!r})",
            "bbox (four numbers) and category_id; subject_id, object_id, category_id and hoi_category_id", _MEND,
        ) from None  # fmt: skip
    coco80 = coco80_of_coco91(category)
    human, thing = subject + offset, target + offset
    if (bad := np.flatnonzero(coco80[thing] < 0)).size or (bad := np.flatnonzero(coco80[human] != 0)).size:
        found = category[human[bad[0]]], category[thing[bad[0]]]
        raise AnnotationError(
            f"{source}: {names[image[bad[0]]]}", f"a label from category {found[0]} to category {found[1]}",
            "COCO-91 ids, from a person (1) to an object", _MEND,
        )  # fmt: skip
    return Rows(image, boxes[human], boxes[thing], hoi - 1, coco80[thing], verb - 1)
