"""Reader of V-COCO instance files, `instances_vcoco_{train,val,trainval,test}.json` (spec §2.2-2.4)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lib.data.annotation_file import AnnotationError, flat_rows, read_json, require_keys
from lib.data.dataset import COORDINATES, HoiDataset, Rows, build_dataset
from lib.data.images import image_sizes
from lib.data.vocabulary import Vocabulary

_KEYS = {"annotations", "classes", "objects", "images", "action_to_object"}
_LISTS = {"boxes_h": 4, "boxes_o": 4, "actions": 1, "objects": 1}
Pairs = Literal["all", "present"]


def read_vcoco(annotations: Path | str, images: Path | str, split: str, pairs: Pairs = "all") -> HoiDataset:
    """Read an instance file of the 24 action-role classes, plain or gzipped.

    Classes are the verbs (`hit instr` -> `hit_instr`), object ids become 0-based COCO-80 ids (the file counts from 1,
    0 is background), HOI classes are (object, class) pairs by ascending (object, class). Boxes stay as they are:
    float, 0-based, x1, y1, x1 + w, y1 + h. Images without a pair stay as images without rows.

    images: folder of the photographs, or the folder above `train2014` and `val2014`. The file states no sizes, so
        every photograph's header is read.
    pairs: "all" = the 236 pairs of `action_to_object`, as published methods use. 18 of them occur in the test split
        only, so a mask made from that list knows the test labels (§2.4). "present" = the pairs with a row in this very
        file, 218 for trainval. HOI ids then differ from split to split; for a clean mask over equal ids read both
        splits with "all" and use `vocabulary.valid_verbs(np.flatnonzero(trainval.hoi_counts))`.
    Raises FileNotFoundError, and AnnotationError for anything impossible.
    """
    annotations, images = Path(annotations), Path(images)
    content = _content(annotations)
    records = content["annotations"]
    if len(content["images"]) != len(records):
        raise AnnotationError(
            annotations, f"{len(content['images'])} `images` and {len(records)} `annotations`",
            "one record an image id", "copy the file again",
        )  # fmt: skip
    vocabulary = pair_vocabulary(annotations, content)
    for record in records:
        name = record.get("file_name", "an image without name") if isinstance(record, dict) else "an image"
        require_keys(annotations, name, record, {*_LISTS, "file_name"}, "repair the file")
    names = [record["file_name"] for record in records]
    flat = flat_rows(annotations, names, records, _LISTS)
    rows = pair_rows(annotations, names, vocabulary, flat)
    paths = [photograph(images, name) for name in names]
    sizes = image_sizes(paths)
    dataset = build_dataset(
        annotations, split, vocabulary, paths, sizes, rows, COORDINATES,
        "V-COCO instance JSON, sizes from the photographs",
    )  # fmt: skip
    return only_present(dataset) if chosen(pairs) == "present" else dataset


def vcoco_vocabulary(annotations: Path | str) -> Vocabulary:
    """The 80 objects, 24 classes and 236 pairs of an instance file; needs no photograph."""
    annotations = Path(annotations)
    return pair_vocabulary(annotations, _content(annotations))


def _content(source: Path) -> dict:
    content = read_json(
        source, "V-COCO annotations", "set data.root to the folder that holds instances_vcoco_{trainval,test}.json"
    )
    mend = "use instances_vcoco_*.json; the original vcoco_*.json lists of 26 actions are read by data.kind=vcoco_gupta"
    require_keys(source, "top level", content, _KEYS, mend)
    return content


# ---------------------------------------------------------------- shared with the original files


def chosen(pairs: str) -> str:
    """The argument `pairs`, checked."""
    if pairs not in ("all", "present"):
        raise ValueError(
            f"pairs={pairs!r}: expected 'all' (the 236 of the file's table) or 'present' (those with rows)"
        )
    return pairs


def pair_vocabulary(source: Path, content: dict[str, Any]) -> Vocabulary:
    """Objects, classes and pairs of `objects`, `classes` and `action_to_object`."""
    objects = [name.replace(" ", "_") for name in content["objects"]]
    verbs = [name.replace(" ", "_") for name in content["classes"]]
    table = content["action_to_object"]
    if objects[:2] != ["background", "person"] or len(table) != len(verbs):
        raise AnnotationError(
            f"{source}: `objects`, `classes`, `action_to_object`",
            f"objects {content['objects'][:2]}..., {len(verbs)} classes, {len(table)} lists of objects",
            "objects that start with background, person; one list of objects a class", "copy the file again",
        )  # fmt: skip
    found = sorted((name, verb) for verb, names in enumerate(table) for name in set(names))
    if not found or found[0][0] < 1 or found[-1][0] >= len(objects):
        raise AnnotationError(
            f"{source}: `action_to_object`", f"objects {found[0][0]}..{found[-1][0]}" if found else "no pair",
            f"1..{len(objects) - 1}", "copy the file again",
        )  # fmt: skip
    pairs = np.array(found, np.int64)  # (C, 2) object from 1, class
    return Vocabulary(tuple(objects[1:]), tuple(verbs), pairs[:, 0] - 1, pairs[:, 1])


def pair_rows(source: Path, names: list[str], vocabulary: Vocabulary, flat: dict[str, np.ndarray]) -> Rows:
    """Rows with HOI ids. flat: image, boxes_h, boxes_o, actions (class from 0), objects (from 1), each [N]."""
    verb, thing = flat["actions"], flat["objects"]
    known = (verb >= 0) & (verb < len(vocabulary.verbs)) & (thing >= 1) & (thing <= len(vocabulary.objects))
    hoi = np.where(known, vocabulary.hoi_of[np.where(known, thing - 1, 0), np.where(known, verb, 0)], -1)
    if (bad := np.flatnonzero(hoi < 0)).size:
        image = flat["image"][bad[0]]
        raise AnnotationError(
            f"{source}: {names[image]}, row {bad[0] - np.searchsorted(flat['image'], image)}",
            f"class {verb[bad[0]]} with object {thing[bad[0]]}",
            "a pair of `action_to_object` (class from 0, object from 1)", "do not mix annotation versions",
        )  # fmt: skip
    return Rows(flat["image"], flat["boxes_h"], flat["boxes_o"], hoi, thing - 1, verb)


def photograph(folder: Path, name: str) -> Path:
    """`COCO_val2014_000000012448.jpg` in the folder itself or in its `val2014`; the latter where neither is there."""
    part = name.split("_")[1] if name.count("_") == 2 else ""
    return folder / name if (folder / name).is_file() else folder / part / name


def only_present(dataset: HoiDataset) -> HoiDataset:
    """The data set with only the HOI classes that have rows, renumbered."""
    vocabulary, kept = dataset.vocabulary, np.flatnonzero(dataset.hoi_counts)
    fewer = Vocabulary(vocabulary.objects, vocabulary.verbs, vocabulary.hoi_object[kept], vocabulary.hoi_verb[kept])
    images = tuple(replace(image, hoi=np.searchsorted(kept, image.hoi)) for image in dataset.images)
    return replace(dataset, vocabulary=fewer, images=images)
