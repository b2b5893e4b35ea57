"""Writes one HICO-DET data set in every form and version that circulates, for the tests of the readers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

from lib.data.hico_classes import ALPHABETICAL, COCO91, OFFICIAL

Content = dict[str, Any]
SIZES = [[64, 48], [48, 64], [40, 40], [30, 20]]


def small() -> Content:
    """Four images in COCO-80 order: two rows of one pair, an empty image, people as objects, a one-pixel box.

    Rows of an image ascend by HOI id and name their boxes in order, as anno_bbox.mat must.
    """
    rows = [
        [([2, 3, 30, 48], [10, 20, 64, 48], "ride", "bicycle"), ([3, 3, 30, 47], [10, 21, 63, 48], "hold", "bicycle")],
        [],
        [([1, 1, 20, 40], [21, 1, 40, 40], "hug", "person"), ([21, 1, 40, 40], [1, 1, 20, 40], "hug", "person"),
         ([1, 1, 20, 40], [5, 5, 5, 9], "no_interaction", "airplane")],
        [([1, 1, 30, 20], [1, 1, 30, 20], "wear", "tie")],
    ]  # fmt: skip
    records = []
    for image in rows:
        objects = [OFFICIAL.objects.index(name) for *_, name in image]
        verbs = [OFFICIAL.verbs.index(name) for *_, name, _ in image]
        hoi = OFFICIAL.hoi_of[objects, verbs].tolist()
        order = np.argsort(hoi, kind="stable")
        lists = dict(boxes_h=[row[0] for row in image], boxes_o=[row[1] for row in image], hoi=hoi, object=objects)
        records.append({key: [values[i] for i in order] for key, values in (lists | {"verb": verbs}).items()})
    return {
        "annotation": records,
        "filenames": [f"HICO_train2015_{i + 1:08d}.jpg" for i in range(len(rows))],
        "size": SIZES,
        "empty": [i for i, image in enumerate(rows) if not image],
        "objects": list(OFFICIAL.objects),
        "verbs": list(OFFICIAL.verbs),
        "correspondence": [
            [hoi, int(thing), int(verb)]
            for hoi, (thing, verb) in enumerate(zip(OFFICIAL.hoi_object, OFFICIAL.hoi_verb, strict=True))
        ],
    }


def photographs(folder: Path, content: Content) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, size in zip(content["filenames"], content["size"], strict=True):
        Image.new("L", size).save(folder / name)
    return folder


# ---------------------------------------------------------------- versions of the instance file


def alphabetical(content: Content) -> Content:
    new = [ALPHABETICAL.index(name.replace(" ", "_")) for name in content["objects"]]
    return content | {
        "objects": list(ALPHABETICAL),
        "correspondence": [[hoi, new[thing], verb] for hoi, thing, verb in content["correspondence"]],
        "annotation": [row | {"object": [new[thing] for thing in row["object"]]} for row in content["annotation"]],
    }


def other_hoi_ids(content: Content) -> Content:
    """A historic `correspondence`: HOI ids in another order, rows of the table shuffled."""
    new = np.random.default_rng(0).permutation(len(content["correspondence"])).tolist()
    return content | {
        "correspondence": [[new[hoi], thing, verb] for hoi, thing, verb in content["correspondence"]],
        "annotation": [row | {"hoi": [new[hoi] for hoi in row["hoi"]]} for row in content["annotation"]],
    }


def without_sizes(content: Content) -> Content:
    return {key: value for key, value in content.items() if key != "size"}


def with_rare(content: Content) -> Content:
    return content | {"rare": [1], "non_rare": [hoi for hoi in range(600) if hoi != 1]}


VERSIONS = {
    "coco80": lambda content: content,
    "coco80, no sizes": without_sizes,
    "coco80, rare": with_rare,
    "alphabetical": alphabetical,
    "alphabetical, no sizes": lambda content: without_sizes(alphabetical(content)),
    "alphabetical, rare": lambda content: with_rare(alphabetical(content)),
    "other HOI ids": other_hoi_ids,
    "other HOI ids, alphabetical": lambda content: other_hoi_ids(alphabetical(content)),
}


def write_json(path: Path, content: Any) -> Path:
    data = json.dumps(content).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


# ---------------------------------------------------------------- other forms


def hoia(content: Content) -> list[Content]:
    """PPDM's form: boxes 0-based inclusive, equal boxes once, ids from 1, a category as text with a line end."""
    entries = []
    for name, row in zip(content["filenames"], content["annotation"], strict=True):
        boxes: dict[tuple, int] = {}
        labels = []
        for human, thing, hoi, kind, verb in zip(*(row[key] for key in row), strict=True):
            ends = [
                boxes.setdefault((*(side - 1 for side in box), int(COCO91[label])), len(boxes))
                for box, label in ((human, 0), (thing, kind))
            ]
            labels.append(dict(subject_id=ends[0], object_id=ends[1], category_id=verb + 1, hoi_category_id=hoi + 1))
        found = [
            {"bbox": list(box[:4]), "category_id": f"{box[4]}\n" if i == 0 else box[4]} for i, box in enumerate(boxes)
        ]
        entries.append({"file_name": name, "annotations": found, "hoi_annotation": labels})
    return entries


def _struct(rows: list[dict]) -> np.ndarray:
    """MATLAB struct array 1 x n."""
    if not rows:
        return np.zeros((0, 0))
    array = np.empty((1, len(rows)), [(name, object) for name in rows[0]])
    for place, row in enumerate(rows):
        array[0, place] = tuple(row.values())
    return array


def _boxes(boxes: list[list[int]]) -> np.ndarray:
    return _struct([dict(x1=box[0], x2=box[2], y1=box[1], y2=box[3]) for box in boxes])


def bbox_mat(path: Path, content: Content, split: str = "train") -> Path:
    """The official file: HOIs of an image with their own box lists, an invisible HOI in the first image."""
    images = []
    for place, (name, size, row) in enumerate(
        zip(content["filenames"], content["size"], content["annotation"], strict=True)
    ):
        hois = []
        if place == 0:
            nothing = np.zeros((0, 0))
            hois.append(dict(id=1, bboxhuman=nothing, bboxobject=nothing, connection=nothing, invis=1))
        for hoi in dict.fromkeys(row["hoi"]):
            chosen = [i for i, label in enumerate(row["hoi"]) if label == hoi]
            people = _boxes([row["boxes_h"][i] for i in chosen])
            things = _boxes([row["boxes_o"][i] for i in chosen][::-1])
            links = np.array([[i + 1, len(chosen) - i] for i in range(len(chosen))])
            hois.append(dict(id=hoi + 1, bboxhuman=people, bboxobject=things, connection=links, invis=0))
        size = _struct([dict(width=size[0], height=size[1], depth=3)])
        images.append(dict(filename=name, size=size, hoi=_struct(hois)))
    savemat(path, {f"bbox_{split}": _struct(images)})
    return path
