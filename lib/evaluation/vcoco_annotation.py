"""Ground truth of V-COCO role AP from either annotation style (spec data-and-evaluation.md §2.2, §2.5, §5.7).

The original files of S. Gupta name agents and role objects by COCO annotation id, so they need COCO's boxes. The
instance files (`instances_vcoco_*.json`) list (human, object) pairs only: people without a visible object, role-less
actions and `point` are absent from them, hence fewer positives. The original is what published numbers are made with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lib.data.annotation_file import AnnotationError, read_json

ACTIONS: dict[str, tuple[str, ...]] = dict(
    hold=("obj",), stand=(), sit=("instr",), ride=("instr",), walk=(), look=("obj",), hit=("instr", "obj"),
    eat=("obj", "instr"), jump=("instr",), lay=("instr",), talk_on_phone=("instr",), carry=("obj",), throw=("obj",),
    catch=("obj",), cut=("instr", "obj"), run=(), work_on_computer=("instr",), ski=("instr",), surf=("instr",),
    skateboard=("instr",), smile=(), drink=("instr",), kick=("obj",), point=("instr",), read=("obj",),
    snowboard=("instr",),
)  # fmt: skip
ROLES = tuple(f"{action}_{role}" for action, roles in ACTIONS.items() for role in roles)  # 25
ACTION_OF_ROLE = np.array([index for index, roles in enumerate(ACTIONS.values()) for _ in roles])  # (25,)
UNREPORTED = "point_instr"  # published means are over the other 24


@dataclass(frozen=True)
class RoleTruth:
    """People of the split, image by image; P people, boxes in pixels with x2, y2 inclusive.

    images [I] ascending COCO ids; first, count [I]: an image's people are rows first .. first + count - 1.
    annotated [P] bool: the others are people that nobody labelled; what overlaps them best is discarded.
    label [P, 26] bool. role_boxes [P, 25, 4], nan where the role has no box.
    hoi_classes: (236,) role index of each HOI class, and image_list, the file's images in order: instance files only.
    """

    images: np.ndarray
    first: np.ndarray
    count: np.ndarray
    boxes: np.ndarray
    annotated: np.ndarray
    label: np.ndarray
    role_boxes: np.ndarray
    class_roles: tuple[int, ...] = ()
    hoi_roles: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    image_list: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def num_positives(self) -> np.ndarray:
        """(26,) people with each action, whether its role has a box or not."""
        return self.label.sum(0)


@dataclass(frozen=True)
class _CocoBoxes:
    """COCO annotations that the evaluator keeps: ids, image and box of each, whether a person."""

    ids: np.ndarray
    image: np.ndarray
    boxes: np.ndarray
    person: np.ndarray
    sizes: dict[int, tuple[int, int]]


def read_truth(annotations: Path | str, coco: Path | str | None = None) -> RoleTruth:
    """Ground truth of a split; files may be gzipped.

    annotations: `vcoco_test.json` (the list of 26 actions), one file {"coco": ..., "vcoco": [26 actions]}, or
        `instances_vcoco_test.json`.
    coco: COCO instances of at least the split's images (`instances_vcoco_all_2014.json`). The list of actions needs it;
        an instance file gains the unlabelled people from it.
    Raises FileNotFoundError, and ValueError naming what is wrong.
    """
    content = read_json(annotations)
    boxes = _coco_boxes(read_json(coco), coco) if coco else None
    if isinstance(content, dict) and {"coco", "vcoco"} <= content.keys():
        boxes, content = boxes or _coco_boxes(content["coco"], annotations), content["vcoco"]
    if isinstance(content, list):
        if boxes is None:
            raise AnnotationError(
                annotations, "people and objects by COCO id without boxes", "COCO's instances of the images beside it",
                "--coco instances_vcoco_all_2014.json",
            )  # fmt: skip
        return _from_actions(content, boxes, annotations)
    if isinstance(content, dict) and {"annotations", "classes", "images", "action_to_object"} <= content.keys():
        return _from_pairs(content, boxes, annotations)
    found = sorted(content)[:8] if isinstance(content, dict) else type(content).__name__
    raise AnnotationError(
        annotations, f"{found}",
        "the list of 26 actions, an object with `coco` and `vcoco`, or the keys of instances_vcoco_*.json",
        "use vcoco_test.json or instances_vcoco_test.json",
    )  # fmt: skip


def _coco_boxes(content: dict, source: Path | str) -> _CocoBoxes:
    """Boxes by the evaluator's rule: x2 = x1 + max(0, w - 1), clipped to the image, degenerate ones dropped."""
    if missing := {"images", "annotations"} - (content.keys() if isinstance(content, dict) else set()):
        raise AnnotationError(source, f"no key {sorted(missing)}", "COCO instances", "cut it from COCO's download")
    people = {category["id"] for category in content.get("categories", ()) if category["name"] == "person"} or {1}
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    rows = [row for row in content["annotations"] if row["image_id"] in sizes]
    image = np.array([row["image_id"] for row in rows], np.int64)
    size = np.array([sizes[row["image_id"]] for row in rows], np.float64).reshape(-1, 2)
    xywh = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
    boxes = _clipped(np.concatenate((xywh[:, :2], xywh[:, :2] + (xywh[:, 2:] - 1).clip(min=0)), 1), size)
    area = np.array([row.get("area", 1) for row in rows], np.float64)
    kept = (area > 0) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    ids = np.array([row["id"] for row in rows], np.int64)
    person = np.array([row["category_id"] in people for row in rows], bool)
    return _CocoBoxes(ids[kept], image[kept], boxes[kept], person[kept], sizes)


def _clipped(boxes: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Inclusive boxes [n, 4] inside 0 .. W - 1, 0 .. H - 1; size [n, 2]."""
    return np.clip(boxes, 0, np.tile(size, 2) - 1)


def _from_actions(actions: list[dict], coco: _CocoBoxes, source: Path | str) -> RoleTruth:
    names = [action.get("action_name") for action in actions]
    if sorted(map(str, names)) != sorted(ACTIONS):
        found = f"actions {names[:4]}... ({len(names)})"
        raise AnnotationError(source, found, "the 26 of V-COCO", "use vcoco_*.json of s-gupta/v-coco")
    split = np.unique(actions[0]["image_id"])
    if (absent := split[~np.isin(split, list(coco.sizes))]).size:
        raise _absent(source, absent)
    people = np.flatnonzero(coco.person & np.isin(coco.image, split))
    people = people[np.argsort(coco.image[people], kind="stable")]  # COCO's order within an image: first maximum wins
    person_of = {int(coco.ids[row]): place for place, row in enumerate(people)}
    box_of = {int(key): row for row, key in enumerate(coco.ids)}

    annotated = np.zeros(len(people), bool)
    label = np.zeros((len(people), len(ACTIONS)), bool)
    role_boxes = np.full((len(people), len(ROLES), 4), np.nan)
    known = np.append(coco.boxes, np.full((1, 4), np.nan), 0)  # row -1: no box
    for action in actions:
        name, roles = action["action_name"], action["role_name"]
        agent = np.array([person_of.get(key, -1) for key in action["ann_id"]], np.int64)
        objects = np.array(action["role_object_id"], np.int64)
        if roles[0] != "agent" or set(roles[1:]) != set(ACTIONS[name]) or len(objects) != len(roles) * len(agent):
            raise AnnotationError(
                f"{source}: {name}", f"roles {roles} and {len(objects)} role objects for {len(agent)} agents",
                f"agent, {', '.join(ACTIONS[name])}, each once", "copy the file again",
            )  # fmt: skip
        annotated[agent[agent >= 0]] = True
        acts = (agent >= 0) & (np.array(action["label"]) == 1)
        label[agent[acts], list(ACTIONS).index(name)] = True
        for role, ids in zip(roles[1:], objects.reshape(len(roles), -1)[1:], strict=True):
            rows = np.array([box_of.get(key, -1) for key in ids[acts].tolist()], np.int64)
            role_boxes[agent[acts], ROLES.index(f"{name}_{role}")] = known[rows]
    images, first, count = np.unique(coco.image[people], return_index=True, return_counts=True)
    return RoleTruth(images, first, count, coco.boxes[people], annotated, label, role_boxes)


def _absent(source: Path | str, images: np.ndarray) -> AnnotationError:
    found = f"image {images[0]} ({len(images)} such) that is not among the COCO images given"
    return AnnotationError(source, found, "all of its images there", "give COCO's instances of train and val 2014")


def _from_pairs(content: dict, coco: _CocoBoxes | None, source: Path | str) -> RoleTruth:
    """Equal human boxes of an image are one person; a second object of one (person, class) is not kept."""
    class_roles = [ROLES.index(name.replace(" ", "_")) for name in content["classes"]]
    images = np.array(content["images"], np.int64)
    records = content["annotations"]
    if len(images) != len(records):
        found = f"{len(images)} `images` and {len(records)} `annotations`"
        raise AnnotationError(source, found, "one record each", "copy the file again")
    counts = [len(record["actions"]) for record in records]
    row_image = np.repeat(images, counts)
    role = np.array(class_roles)[np.concatenate([np.asarray(record["actions"], np.int64) for record in records])]
    humans, things = (
        np.concatenate([np.asarray(record[key], np.float64).reshape(-1, 4) for record in records])
        for key in ("boxes_h", "boxes_o")
    )
    if not len(role) == len(humans) == len(things):
        found = "boxes_h, boxes_o and actions of different lengths"
        raise AnnotationError(source, found, "one entry a pair in each", "copy the file again")
    for boxes in (humans, things):  # x + w, y + h become the last pixel
        boxes[:, 2:] = np.maximum(boxes[:, :2], boxes[:, 2:] - 1)
    if coco is not None:
        if (absent := images[~np.isin(images, list(coco.sizes))]).size:
            raise _absent(source, absent)
        size = np.array([coco.sizes[key] for key in row_image.tolist()], np.float64).reshape(-1, 2)
        humans, things = _clipped(humans, size), _clipped(things, size)
        bystanders = np.flatnonzero(coco.person & np.isin(coco.image, images))
    else:
        bystanders = np.zeros(0, np.int64)

    # COCO's people first and in COCO's order, so that each human box finds its own entry there
    every_image = np.concatenate((coco.image[bystanders] if coco else row_image[:0], row_image))
    every_box = np.concatenate((coco.boxes[bystanders] if coco else humans[:0], humans))
    keys = np.column_stack((every_image, np.rint(every_box * 1000).astype(np.int64)))  # equal to 0.001 pixel
    _, first, same = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    order = np.lexsort((first, every_image[first]))  # by image, then first appearance
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    person = place[same.reshape(-1)[len(bystanders) :]]  # (rows,) the person of each pair

    people = first[order]
    annotated = np.zeros(len(people), bool)
    annotated[person] = True
    label = np.zeros((len(people), len(ACTIONS)), bool)
    label[person, ACTION_OF_ROLE[role]] = True
    role_boxes = np.full((len(people), len(ROLES), 4), np.nan)
    role_boxes[person[::-1], role[::-1]] = things[::-1]  # the first of repeated rows stays
    found, start, count = np.unique(every_image[people], return_index=True, return_counts=True)
    pairs = sorted(
        (thing, index) for index, allowed in enumerate(content["action_to_object"]) for thing in set(allowed)
    )
    hoi_roles = np.array([class_roles[index] for _, index in pairs], np.int64)
    return RoleTruth(
        found, start, count, every_box[people], annotated, label, role_boxes, tuple(class_roles), hoi_roles, images
    )
