"""Detections of other programs: one JSON an image (`boxes`, `scores`, `labels`), as fredzzhang's tools write them.

    python -m lib.detection.json_cache detections/test2015 weights/test --annotations instances_test2015.json \\
        --labels coco80

The files say neither what their labels mean nor always in which frame their boxes lie (spec data-and-evaluation.md
§6.1), so both are named here and checked against the annotations before anything is written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from lib.data.annotation_file import read_json
from lib.data.hico_classes import ALPHABETICAL, COCO91, OFFICIAL, coco80_of_coco91
from lib.data.hico_det import HoiDataset, read_hico_det
from lib.detection.detr import DetectorError
from lib.detection.table import DetectionTable, box_rows, write_table
from lib.engine.progress import track
from lib.runs import fingerprint, write_json

LabelSpace = Literal["coco80", "coco91", "hico", "annotations"]
Frame = Literal["auto", "original", "resized"]
OUTSIDE = 0.02  # share of a side by which a box of another program may stick out of its image


def import_json_cache(
    folder: Path | str, dataset: HoiDataset, out: Path | str, labels: LabelSpace = "coco80", frame: Frame = "auto"
) -> DetectionTable:
    """Read a folder of `<image stem>.json` and write our table to `out`; image ids are those of `dataset`.

    labels: what the numbers mean. coco80: contiguous, person 0 (DETR variants on HICO-DET); coco91: COCO's own ids,
        person 1 (the V-COCO writer); hico: the 80 names in alphabetical order, person 49 (the Faster R-CNN writer on
        HICO-DET); annotations: places in the annotation file's objects. Refused where people, the commonest thing in
        every HOI data set, carry the number that another space gives them.
    frame: `original` pixels, or pixels of the `resized` image, whose [height, width] the file then holds as `size`
        (the H-DETR writer); `auto` goes by whether `size` is there.
    An image without any annotated pair may lack its file. Raises DetectorError naming the file at fault.
    """
    folder = Path(folder)
    names, place = _label_space(labels, dataset.vocabulary.objects)
    if frame not in get_args(Frame):
        raise DetectorError("detector.frame", repr(frame), " | ".join(get_args(Frame)), "name the frame of the boxes")
    if not folder.is_dir():
        raise DetectorError(folder, "no folder", "one JSON an image, <image stem>.json", "correct the path")
    absent: list[str] = []
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for image in track(dataset.images, "importing detections"):
        file = folder / f"{Path(image.name).stem}.json"
        if not file.is_file() and len(image.hoi):
            absent.append(file.name)
        found.append(_read(file, image.size, frame) if file.is_file() else _NOTHING)
    if absent:
        raise DetectorError(
            folder, f"no file for {len(absent)} of {len(dataset)} images: {', '.join(absent[:3])}",
            "one for every image with a pair", "give the folder of this split, or detect on the missing images",
        )  # fmt: skip
    counts = [len(scores) for _, scores, _ in found]
    boxes, scores, numbers = (np.concatenate(parts) for parts in zip(*found, strict=True))
    _check_labels(folder, numbers, scores, labels, place, dataset)
    owner = np.repeat(np.arange(len(dataset)), counts)
    image_names = np.array([image.name for image in dataset.images], object)[owner]
    detector = {"kind": "json", "labels": labels, "frame": frame, "content": cache_fingerprint(folder)}
    rows = box_rows(owner, image_names, boxes, scores, place[numbers])
    return write_table(out, rows, images=len(dataset), labels=names, detector=detector)


def write_json_cache(table: DetectionTable, dataset: HoiDataset, folder: Path | str) -> None:
    """The other way: one JSON an image in original pixels, labels as the table has them (see its manifest)."""
    for index, image in enumerate(track(dataset.images, "writing detections")):
        content = {name: values.tolist() for name, values in table.of(index)._asdict().items()}
        write_json(Path(folder) / f"{Path(image.name).stem}.json", content)


def cache_fingerprint(folder: Path | str) -> str:
    """Names and sizes of the files: scores have so many digits that other detections have other sizes."""
    files = sorted((file.name, file.stat().st_size) for file in Path(folder).glob("*.json"))
    return fingerprint("json_cache", files)


def _label_space(labels: str, objects: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names, and the class [K] of every number a file may hold (-1: none)."""
    if labels not in get_args(LabelSpace):
        expected = " | ".join(get_args(LabelSpace))
        raise DetectorError("detector.labels", repr(labels), expected, "name what the labels of the files mean")
    if labels == "coco91":
        return OFFICIAL.objects, coco80_of_coco91(np.arange(COCO91[-1] + 1))
    names = {"coco80": OFFICIAL.objects, "hico": ALPHABETICAL, "annotations": tuple(objects)}[labels]
    return names, np.arange(len(names))


_NOTHING = (np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))


def _read(file: Path, size: tuple[int, int], frame: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes in original pixels [n, 4], scores [n], numbers [n] of one file."""
    mend, content = "write the file again", read_json(file, "detections of one image")
    try:
        boxes = np.asarray(content["boxes"], np.float64).reshape(-1, 4)
        scores = np.asarray(content["scores"], np.float64).reshape(-1)
        numbers = np.asarray(content["labels"]).reshape(-1).astype(np.int64)
    except (KeyError, TypeError, ValueError) as error:
        found = f"{type(error).__name__}: {error}"
        raise DetectorError(file, found, "JSON with boxes (n x 4), scores (n) and labels (n)", mend) from None
    if not len(boxes) == len(scores) == len(numbers):
        found = f"{len(boxes)} boxes, {len(scores)} scores, {len(numbers)} labels"
        raise DetectorError(file, found, "one of each a detection", mend)
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise DetectorError(file, "boxes or scores that are not finite", "numbers", "detect again on this image")
    if frame == "resized" and "size" not in content:
        raise DetectorError(file, "no key `size`", "[height, width] of the resized image", "detector.frame=original")
    if "size" in content and frame != "original":
        boxes = boxes * np.tile(np.array(size) / np.array(content["size"][::-1], np.float64), 2)
    limit = np.tile(np.array(size, np.float64), 2)
    if (boxes < -OUTSIDE * limit).any() or (boxes > (1 + OUTSIDE) * limit).any():
        raise DetectorError(
            file, f"boxes up to x {boxes[:, 2].max():.0f}, y {boxes[:, 3].max():.0f}",
            f"boxes inside the image of {size[0]} x {size[1]}",
            "these are pixels of a resized image: name its size, or give the folder that belongs to these photographs",
        )  # fmt: skip
    return boxes.clip(0, limit), scores, numbers


def _check_labels(
    folder: Path, numbers: np.ndarray, scores: np.ndarray, labels: str, place: np.ndarray, dataset: HoiDataset
) -> None:
    """No number outside the space, and people where this space has them."""
    mend = f"set labels to one of {' | '.join(get_args(LabelSpace))}"
    outside = (numbers < 0) | (numbers >= len(place))
    if outside.any() or (place[numbers] < 0).any():
        strange = numbers[outside] if outside.any() else numbers[place[numbers] < 0]
        expected = f"numbers of {labels} (up to {len(place) - 1})"
        raise DetectorError(folder, f"labels {np.unique(strange)[:4].tolist()}", expected, mend)
    if not len(numbers):
        return
    weight = np.bincount(numbers, weights=scores, minlength=len(place))
    commonest = int(weight.argmax())
    people = {"coco80": 0, "coco91": 1, "hico": ALPHABETICAL.index("person"), "annotations": dataset.vocabulary.person}
    others = [name for name, person in people.items() if person == commonest]
    if weight[commonest] > 2 * weight[people[labels]] and others:
        expected = f"people (number {people[labels]} of {labels}) to be the commonest thing"
        raise DetectorError(folder, f"label {commonest} most often, people in {' and '.join(others)}", expected, mend)


def main(arguments: Sequence[str] | None = None) -> int:
    """Import FOLDER as a table; 0, or 1 after a message about the input."""
    parser = argparse.ArgumentParser(prog="python -m lib.detection.json_cache", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="one JSON an image")
    parser.add_argument("out", type=Path, help="receives detections.parquet and manifest.json")
    parser.add_argument("--annotations", type=Path, required=True, help="HICO-DET instance file of the split")
    parser.add_argument("--labels", choices=get_args(LabelSpace), default="coco80", help="what the numbers mean")
    parser.add_argument("--frame", choices=get_args(Frame), default="auto", help="in which pixels the boxes are")
    asked = parser.parse_args(arguments)
    try:
        dataset = read_hico_det(asked.annotations, asked.annotations.parent, "")
        table = import_json_cache(asked.folder, dataset, asked.out, asked.labels, asked.frame)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{asked.out}: {len(table.rows):,} boxes on {table.num_images:,} images")
    print(f"how good they are: python -m lib.detection.box_ap {asked.out} --annotations {asked.annotations}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
