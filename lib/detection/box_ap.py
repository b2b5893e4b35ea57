"""How good a detector is on its own: box AP and AR of a detections table against annotated boxes.

    python -m lib.detection.box_ap runs/demo/detections/test --annotations instances_test2015.json

COCO's numbers, computed by faster-coco-eval. A HOI data set annotates only the people and objects that interact, so
right boxes of anything else count as wrong: compare detectors with each other, not with COCO's leader board.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from faster_coco_eval import COCO, COCOeval_faster

from lib.data.annotation_file import read_json
from lib.data.hico_det import read_hico_det
from lib.data.vcoco import read_vcoco
from lib.detection.detr import DetectorError
from lib.detection.proposals import propose
from lib.detection.table import BOX, DetectionTable
from lib.detection.truth import TrueBoxes, flat, instance_boxes, read_coco_boxes
from lib.runs import write_json

BoxRule = Literal["coco", "upt"]
# what UPT's detectors were published with (spec data-and-evaluation.md §6.1): NMS, a threshold, 50 people, 50 objects
UPT_RULE = {"nms_iou": 0.5, "score_threshold": 0.05, "min_instances": 0, "max_instances": 50}


@dataclass(frozen=True)
class BoxAp:
    """per_class: one row a class with boxes: name, boxes, detections, AP, AP50, AP75, AR (percent); means over them."""

    per_class: pd.DataFrame

    @property
    def means(self) -> dict[str, float]:
        """AP (mean over IoU 0.50:0.95), AP50, AP75, AR (best 100 boxes of a class in an image), percent."""
        return {name: float(self.per_class[name].mean()) for name in ("AP", "AP50", "AP75", "AR")}


def box_ap(table: DetectionTable, truth: Sequence[TrueBoxes], names: Sequence[str], rule: BoxRule = "coco") -> BoxAp:
    """Average precision and recall of every class that has annotated boxes.

    truth: one entry an image id of the table, labels as positions in `names`; the table's classes are matched by name.
    rule: `coco` takes every box of the table; `upt` those of the diagnostic behind the published 50.60 of DETR-R50
        (compare AP50): class-wise NMS 0.5, score >= 0.05, the 50 best people and 50 best objects of an image.
    Raises DetectorError where table and truth are not of the same images.
    """
    if rule not in get_args(BoxRule):
        raise ValueError(f"rule: found {rule!r}, expected one of {list(get_args(BoxRule))}")
    _check_images(table, truth)
    table = table.in_label_space(names)
    rows = table.rows if rule == "coco" else _upt_rows(table, names)
    images, boxes, labels = (part.numpy() for part in flat(truth))
    known = np.unique(labels)
    if not len(known):
        raise DetectorError("annotations", "no box", "at least one", "check the split")
    rows = rows[np.isin(rows["label"], known)]
    whole = _coco(len(truth), known, images, boxes, labels, np.ones(len(labels)))
    found = _coco(
        len(truth), known, rows["image"].to_numpy(), rows[BOX].to_numpy(), rows["label"].to_numpy(),
        rows["score"].to_numpy(),
    )  # fmt: skip
    judge = COCOeval_faster(whole, found, "bbox", print_function=lambda *_: None)
    judge.evaluate()
    judge.accumulate()
    precision = judge.eval["precision"][:, :, :, 0, -1]  # (IoU, recall, class): all areas, most detections
    recall = judge.eval["recall"][:, :, 0, -1]  # (IoU, class)
    return BoxAp(
        pd.DataFrame(
            {
                "name": [names[label] for label in known],
                "boxes": np.bincount(labels, minlength=len(names))[known],
                "detections": np.bincount(rows["label"], minlength=len(names))[known],
                "AP": 100 * precision.mean((0, 1)),
                "AP50": 100 * precision[0].mean(0),
                "AP75": 100 * precision[5].mean(0),
                "AR": 100 * recall.mean(0),
            }
        )
    )


def _coco(
    count: int,
    known: np.ndarray,
    image: np.ndarray,
    boxes: np.ndarray,
    label: np.ndarray,
    score: np.ndarray | None = None,
) -> COCO:
    """The arrays as a COCO data set (scores: as its results)."""
    boxes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64)  # x, y, w, h
    columns = [image.tolist(), label.tolist(), boxes.tolist(), boxes[:, 2:].prod(1).tolist(), score.tolist()]
    content = {
        "images": [{"id": index} for index in range(count)],
        "categories": [{"id": int(index)} for index in known],
        "annotations": [
            {"id": index, "image_id": i, "category_id": c, "bbox": box, "area": area, "score": s, "iscrowd": 0}
            for index, (i, c, box, area, s) in enumerate(zip(*columns, strict=True), start=1)
        ],
    }
    return COCO(content)


def _upt_rows(table: DetectionTable, names: Sequence[str]) -> pd.DataFrame:
    frames = []
    for image in range(table.num_images):
        kept = propose(*table.of(image), human=list(names).index("person"), **UPT_RULE)
        columns = dict(zip(BOX, kept.boxes.numpy().T, strict=True))
        frames.append(pd.DataFrame({"image": image, **columns, "score": kept.scores, "label": kept.labels}))
    return pd.concat(frames, ignore_index=True)


def _check_images(table: DetectionTable, truth: Sequence[TrueBoxes]) -> None:
    mend = "give the annotations of the split that was detected, with the same limit on images"
    if table.num_images != len(truth):
        raise DetectorError("detections", f"{table.num_images} images", f"the {len(truth)} of the annotations", mend)
    first = table.rows.drop_duplicates("image")
    expected = np.array([Path(true.name).name for true in truth], object)[first["image"]]
    if (other := np.flatnonzero(first["name"].to_numpy() != expected)).size:
        row = first.iloc[other[0]]
        raise DetectorError(f"detections, image {row['image']}", row["name"], expected[other[0]], mend)


def read_boxes(path: Path | str, images: Path | str = "") -> tuple[list[TrueBoxes], tuple[str, ...]]:
    """Boxes and class names of a HICO-DET, COCO or V-COCO instance file (`images`: the photographs of V-COCO)."""
    path = Path(path)
    keys = read_json(path, "annotations with boxes").keys()
    if "categories" in keys:
        return read_coco_boxes(path)
    dataset = read_vcoco(path, images, "") if "action_to_object" in keys else read_hico_det(path, images, "")
    return instance_boxes(dataset), dataset.vocabulary.objects


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the means and the weakest classes; 0, or 1 after a message about the input."""
    parser = argparse.ArgumentParser(prog="python -m lib.detection.box_ap", description=__doc__.splitlines()[0])
    parser.add_argument("detections", type=Path, help="folder of a detections table, e.g. runs/demo/detections/test")
    parser.add_argument("--annotations", type=Path, required=True, help="HICO-DET, V-COCO or COCO instance file")
    parser.add_argument("--images", type=Path, default=Path(), help="photographs; V-COCO states no sizes without them")
    parser.add_argument("--rule", choices=get_args(BoxRule), default="coco", help="upt: as DETR-R50's published 50.60")
    parser.add_argument("--worst", type=int, default=10, help="how many of the weakest classes are listed")
    parser.add_argument("--json", type=Path, metavar="OUT", help="means and classes, percent")
    asked = parser.parse_args(arguments)
    try:
        truth, names = read_boxes(asked.annotations, asked.images)
        result = box_ap(DetectionTable.open(asked.detections), truth, names, asked.rule)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report(result, asked.worst))
    if asked.json:
        write_json(asked.json, content(result) | {"rule": asked.rule})
    return 0


def report(result: BoxAp, worst: int = 10) -> str:
    """A short text: means, then the classes with the lowest AP50."""
    table = result.per_class
    means = "   ".join(f"{name} {value:.1f}" for name, value in result.means.items())
    lines = [f"box AP over {len(table)} classes, {table['boxes'].sum():,} boxes:   {means}", ""]
    lines += [f"  {'weakest classes':18s} {'boxes':>6s} {'AP':>6s} {'AP50':>6s} {'AR':>6s}"]
    for row in table.nsmallest(worst, "AP50").itertuples():
        lines.append(f"  {row.name:18s} {row.boxes:6d} {row.AP:6.1f} {row.AP50:6.1f} {row.AR:6.1f}")
    return "\n".join(lines)


def content(result: BoxAp) -> dict[str, Any]:
    """JSON content: means and one entry a class."""
    return result.means | {"classes": result.per_class.to_dict("records")}


if __name__ == "__main__":
    raise SystemExit(main())
