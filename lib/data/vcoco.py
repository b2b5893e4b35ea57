"""Reader of V-COCO instance files (`instances_vcoco_{train,val,trainval,test}.json`; data-and-evaluation.md §2)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from lib.data.hico_det import AnnotationError, HoiDataset, HoiImage
from lib.data.vocabulary import Vocabulary

_KEYS = {"annotations", "classes", "objects", "images", "action_to_object"}
_OUTSIDE = 1.0  # pixels that a COCO box may stick out by rounding


def read_vcoco(
    annotations: Path | str, images: Path | str, split: str, pairs: Literal["all", "present"] = "all"
) -> HoiDataset:
    """Read an instance file of the 24 action-role classes.

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
    if len(content["images"]) != len(content["annotations"]):
        raise AnnotationError(
            annotations, "top level",
            f"{len(content['images'])} `images` and {len(content['annotations'])} `annotations`",
            "one record an image id", "copy the file again",
        )  # fmt: skip
    vocabulary = _vocabulary(annotations, content)
    parsed = [_parse_image(annotations, images, vocabulary, record) for record in content["annotations"]]
    if pairs == "present":
        rows = np.concatenate([image.hoi for image in parsed]) if parsed else np.zeros(0, np.int64)
        kept = np.unique(rows)
        vocabulary = Vocabulary(
            vocabulary.objects, vocabulary.verbs, vocabulary.hoi_object[kept], vocabulary.hoi_verb[kept]
        )
        parsed = [_renumber(image, kept) for image in parsed]
    elif pairs != "all":
        raise ValueError(
            f"pairs={pairs!r}: expected 'all' (the 236 of the file's table) or 'present' (those with rows)"
        )
    return HoiDataset(annotations, split, vocabulary, tuple(parsed))


def vcoco_vocabulary(annotations: Path | str) -> Vocabulary:
    """The 80 objects, 24 classes and 236 pairs of an instance file; needs no photograph."""
    annotations = Path(annotations)
    return _vocabulary(annotations, _content(annotations))


def _content(source: Path) -> dict:
    if not source.is_file():
        raise FileNotFoundError(
            f"{source}: found no file, expected V-COCO annotations"
            "\n  mend: set data.root to the folder that holds instances_vcoco_{trainval,test}.json"
        )
    try:
        content = json.loads(source.read_text())
    except json.JSONDecodeError as error:
        raise AnnotationError(
            source, "whole file", f"broken JSON ({error})", "a JSON object", "copy it again"
        ) from None
    missing = _KEYS - (content.keys() if isinstance(content, dict) else set())
    if missing:
        raise AnnotationError(
            source, "top level", f"no key {sorted(missing)}", f"the keys {sorted(_KEYS)}",
            "use instances_vcoco_*.json, not the original vcoco_*.json lists of 26 actions",
        )  # fmt: skip
    return content


def _vocabulary(source: Path, content: dict) -> Vocabulary:
    objects = [name.replace(" ", "_") for name in content["objects"]]
    verbs = [name.replace(" ", "_") for name in content["classes"]]
    table = content["action_to_object"]
    if objects[:2] != ["background", "person"] or len(table) != len(verbs):
        raise AnnotationError(
            source, "`objects`, `classes`, `action_to_object`",
            f"objects {content['objects'][:2]}..., {len(verbs)} classes, {len(table)} lists of objects",
            "objects that start with background, person; one list of objects a class", "copy the file again",
        )  # fmt: skip
    found = sorted((name, verb) for verb, names in enumerate(table) for name in set(names))
    if not found or found[0][0] < 1 or found[-1][0] >= len(objects):
        raise AnnotationError(
            source, "`action_to_object`", f"objects {found[0][0]}..{found[-1][0]}" if found else "no pair",
            f"1..{len(objects) - 1}", "copy the file again",
        )  # fmt: skip
    pairs = np.array(found, np.int64)  # (C, 2) object from 1, class
    return Vocabulary(tuple(objects[1:]), tuple(verbs), pairs[:, 0] - 1, pairs[:, 1])


def _parse_image(source: Path, folder: Path, vocabulary: Vocabulary, record: dict) -> HoiImage:
    if missing := {"boxes_h", "boxes_o", "actions", "objects", "file_name"} - record.keys():
        where = record.get("file_name", "an image without name")
        raise AnnotationError(source, where, f"no key {sorted(missing)}", "boxes, actions, objects", "repair the file")
    name = record["file_name"]
    path, size = _photograph(folder, name)
    boxes = {key: np.asarray(record[key], np.float32).reshape(-1, 4) for key in ("boxes_h", "boxes_o")}
    verb, thing = (np.asarray(record[key], np.int64).reshape(-1) for key in ("actions", "objects"))
    lengths = {key: len(record[key]) for key in ("boxes_h", "boxes_o", "actions", "objects")}
    if len(set(lengths.values())) > 1:
        raise AnnotationError(
            source, name, f"lists of unequal length {lengths}", "one entry a row in each", "repair the file"
        )
    limit = np.array([*size, *size], np.float32) + _OUTSIDE
    for key, values in boxes.items():
        bad = (values < -_OUTSIDE).any(1) | (values > limit).any(1) | (values[:, :2] > values[:, 2:]).any(1)
        if bad.any() or not np.isfinite(values).all():
            row = int(np.flatnonzero(bad | ~np.isfinite(values).all(1))[0])
            raise AnnotationError(
                source, f"{name}, {key}[{row}]", f"box {values[row].tolist()}",
                f"x1, y1, x2, y2 inside {size[0]} x {size[1]}",
                "correct or remove the row; are the photographs those of the annotations, unresized?",
            )  # fmt: skip
    known = (verb >= 0) & (verb < len(vocabulary.verbs)) & (thing >= 1) & (thing <= len(vocabulary.objects))
    hoi = np.where(known, vocabulary.hoi_of[np.where(known, thing - 1, 0), np.where(known, verb, 0)], -1)
    if (hoi < 0).any():
        row = int(np.flatnonzero(hoi < 0)[0])
        raise AnnotationError(
            source, f"{name}, row {row}", f"class {verb[row]} with object {thing[row]}",
            "a pair of `action_to_object` (class from 0, object from 1)", "do not mix annotation versions",
        )  # fmt: skip
    return HoiImage(path, size, boxes["boxes_h"], boxes["boxes_o"], hoi, thing - 1, verb)


def _photograph(folder: Path, name: str) -> tuple[Path, tuple[int, int]]:
    """Path and (width, height) of `COCO_val2014_000000012448.jpg`, in the folder or in its `val2014`."""
    part = name.split("_")[1] if name.count("_") == 2 else ""
    for path in (folder / name, folder / part / name):
        if path.is_file():
            try:
                with Image.open(path) as image:
                    return path, image.size
            except UnidentifiedImageError:
                raise ValueError(f"{path}: found no picture, expected a photograph\n  mend: copy it again") from None
    raise FileNotFoundError(
        f"{folder / name}: found no photograph, expected it there or in {folder / part}"
        "\n  mend: set data.images to the folder of COCO's photographs (V-COCO's train and val lie in train2014,"
        " its test in val2014)"
    )


def _renumber(image: HoiImage, kept: np.ndarray) -> HoiImage:
    return replace(image, hoi=np.searchsorted(kept, image.hoi))
