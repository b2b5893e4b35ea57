"""Reader of V-COCO's original files: `vcoco_{split}.json` with COCO's instances (data-and-evaluation.md §2.5).

They hold more than pairs (people without a visible object, role-less actions, `point`); of those the evaluator makes
use (`lib.evaluation.vcoco_annotation`). Here they give the same rows in the same order as the instance files: action by
action, role by role, agent by agent; a row where the label is 1 and the role has an object.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from lib.data.annotation_file import AnnotationError, read_json, require_keys
from lib.data.dataset import COORDINATES, HoiDataset, build_dataset
from lib.data.hico_classes import OFFICIAL, coco80_of_coco91
from lib.data.vcoco import Pairs, chosen, only_present, pair_rows, pair_vocabulary, photograph

CLASSES: dict = json.loads(Path(__file__).with_name("vcoco_classes.json").read_text())
COCO_FILE = "instances_vcoco_all_2014.json"
UNUSED_ROLE = "point instr"  # 31 test agents; left out by everybody
_ACTION = {"action_name", "role_name", "image_id", "ann_id", "label", "role_object_id"}


def read_vcoco_gupta(
    annotations: Path | str, images: Path | str, split: str, pairs: Pairs = "all", coco: Path | str | None = None
) -> HoiDataset:
    """Read the list of 26 actions and COCO's boxes, or one file {"coco": ..., "vcoco": [26 actions]}; plain or gzipped.

    coco: COCO instances of at least the split's images; default instances_vcoco_all_2014.json beside the file or one
        folder up. Sizes come from there, so no photograph is opened. images, pairs: as in `read_vcoco`.
    The images are those of `splits/vcoco_{split}.ids` where that lies in the tree, else those with an agent.
    """
    annotations = Path(annotations)
    mend = "set data.root to the folder that holds vcoco_{trainval,test}.json and " + COCO_FILE
    actions = read_json(annotations, "V-COCO's original list of 26 actions", mend)
    if isinstance(actions, dict) and {"coco", "vcoco"} <= actions.keys():
        instances, boxes_file, actions = actions["coco"], annotations, actions["vcoco"]
    else:
        boxes_file = Path(coco) if coco else _beside(annotations, COCO_FILE)
        instances = read_json(boxes_file, "COCO's instances of the V-COCO images, which the boxes come from", mend)
    _check_actions(annotations, actions)
    require_keys(boxes_file, "top level", instances, {"images", "annotations"}, "cut it from COCO's download")
    boxes = {row["id"]: row for row in instances["annotations"]}
    records = {image["id"]: image for image in instances["images"]}
    ids = _image_ids(annotations, actions)
    if absent := [key for key in ids if key not in records]:
        raise AnnotationError(
            boxes_file, f"no image {absent[0]} ({len(absent)} such)", f"all images of {annotations.name}",
            f"use COCO's instances of train and val 2014 together, or {COCO_FILE}",
        )  # fmt: skip
    names = [records[key]["file_name"] for key in ids]
    vocabulary = pair_vocabulary(annotations, CLASSES | {"objects": ["background", *OFFICIAL.objects]})
    rows = pair_rows(annotations, names, vocabulary, _rows(annotations, actions, ids, boxes))
    sizes = np.array([(records[key]["width"], records[key]["height"]) for key in ids], np.int64).reshape(-1, 2)
    paths = [photograph(Path(images), name) for name in names]
    dataset = build_dataset(
        annotations, split, vocabulary, paths, sizes, rows, COORDINATES,
        f"V-COCO original list of actions, boxes and sizes of {boxes_file.name}",
    )  # fmt: skip
    return only_present(dataset) if chosen(pairs) == "present" else dataset


def _beside(annotations: Path, name: str) -> Path:
    """The file in the folder of the annotations or, as in the public tree, above it."""
    above = annotations.parent.parent / name
    return above if above.is_file() else annotations.parent / name


def _check_actions(source: Path, actions: object) -> None:
    what, mend = "the 26 actions of V-COCO", "use vcoco_{train,val,trainval,test}.json of s-gupta/v-coco"
    if not isinstance(actions, list) or not actions:
        raise AnnotationError(source, f"a {type(actions).__name__}", f"a list of {what}", mend)
    for place, action in enumerate(actions):
        require_keys(source, f"entry {place}", action, _ACTION, mend)
        count = len(action["image_id"])
        lengths = {key: len(action[key]) for key in ("image_id", "ann_id", "label", "role_object_id")}
        wanted = [count, count, count, len(action["role_name"]) * count]
        if list(lengths.values()) != wanted:
            raise AnnotationError(
                f"{source}: {action['action_name']}", f"lists of length {lengths}",
                f"one entry an agent, role_object_id {wanted[3]} (roles times agents)", "copy the file again",
            )  # fmt: skip
    found = {f"{action['action_name']} {role}" for action in actions for role in action["role_name"][1:]}
    if found != {*CLASSES["classes"], UNUSED_ROLE}:
        strange = sorted(found ^ {*CLASSES["classes"], UNUSED_ROLE})
        raise AnnotationError(source, f"roles that differ in {strange[:4]}", f"the roles of {what}", mend)


def _image_ids(annotations: Path, actions: list[dict]) -> list[int]:
    """Ascending COCO ids of the split."""
    listed = [_beside(annotations, f"splits/{annotations.stem}.ids"), annotations.with_suffix(".ids")]
    for file in listed:
        if file.is_file():
            return sorted(map(int, file.read_text().split()))
    return np.unique(actions[0]["image_id"]).tolist()


def _rows(source: Path, actions: list[dict], ids: list[int], boxes: dict[int, dict]) -> dict[str, np.ndarray]:
    """Flat lists as in an instance file, sorted by image and within it in the order of the actions."""
    parts = []  # image id, agent id, class, role object id of the rows of each role
    for action in actions:
        image, agent = np.array(action["image_id"], np.int64), np.array(action["ann_id"], np.int64)
        objects = np.array(action["role_object_id"], np.int64).reshape(len(action["role_name"]), -1)
        for role, thing in list(zip(action["role_name"], objects, strict=True))[1:]:
            name = f"{action['action_name']} {role}"
            if name != UNUSED_ROLE:
                said = (np.array(action["label"]) == 1) & (thing != 0)
                label = np.full(said.sum(), CLASSES["classes"].index(name))
                parts.append(np.column_stack((image[said], agent[said], label, thing[said])))
    image, agent, label, thing = np.concatenate(parts).T
    if (absent := [key for key in [*agent.tolist(), *thing.tolist()] if key not in boxes]) or not np.isin(
        image, ids
    ).all():
        found = f"COCO annotation {absent[0]} without box" if absent else "agents of images outside the split"
        raise AnnotationError(
            source, found, "boxes and images of one COCO release",
            f"use COCO's instances of 2014 (train and val together, or {COCO_FILE}) and the .ids of this split",
        )  # fmt: skip
    order = np.argsort(image, kind="stable")
    agent, thing = agent[order].tolist(), thing[order].tolist()
    category = np.array([boxes[key]["category_id"] for key in thing], np.int64)
    flat = {"image": np.searchsorted(ids, image[order]), "actions": label[order]}
    flat["objects"] = coco80_of_coco91(category) + 1
    for name, keys in (("boxes_h", agent), ("boxes_o", thing)):
        xywh = np.array([boxes[key]["bbox"] for key in keys], np.float64).reshape(-1, 4)
        flat[name] = np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), 1).astype(np.float32)
    return flat
