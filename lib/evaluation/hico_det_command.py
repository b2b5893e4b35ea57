"""`python -m lib.evaluation.hico_det`: score a predictions table, ours or another program's."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.data.zero_shot import unseen_hois
from lib.evaluation.average_precision import INTEGRATIONS
from lib.evaluation.errors import PredictionError
from lib.evaluation.hico_annotation import HicoAnnotation, read_annotation
from lib.evaluation.hico_det import (
    PROTOCOLS,
    ApResult,
    Protocol,
    class_groups,
    hico_det_ap,
    per_class_table,
    summarise,
)
from lib.evaluation.prediction_table import read_predictions
from lib.evaluation.published import ZERO_SHOT_SETTINGS, beside_published
from lib.runs import atomic_write, write_json


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of means and write what was asked for; 0, or 1 after a message about the input."""
    asked = _parser().parse_args(arguments)
    try:
        annotation = read_annotation(asked.annotations)
        predictions = read_predictions(asked.predictions)
        _check_images(predictions["image"].to_numpy(), annotation, asked.predictions)
        rule = _rule(asked)
        if asked.published and asked.zero_shot not in (None, *ZERO_SHOT_SETTINGS):
            raise ValueError(f"--published with --zero-shot {asked.zero_shot}: expected one of {ZERO_SHOT_SETTINGS}")
        known_object = annotation.known_object(asked.known_object) if asked.known_object else None
        unseen = unseen_hois(asked.zero_shot, asked.annotations.parent).tolist() if asked.zero_shot else None
        rare = annotation.rare(asked.rare)
        result = hico_det_ap(
            predictions, annotation.truth, annotation.num_hois, protocol=rule, known_object=known_object
        )
        mode = "known object" if asked.known_object else "default"
        scores = report(result, unseen, rare) | {"protocol": asked.protocol, "rules": asdict(rule), "mode": mode}
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{annotation.source.name}, {mode} mode, protocol {asked.protocol}: {rule}")
    print(f"{int(result.counted.sum()):,} of {len(predictions):,} detections counted, {result.num_gt.sum():,} pairs\n")
    for name, count in scores["num_classes"].items():
        if count:
            print(f"  {name:10s} {100 * scores[f'mAP_{name}']:6.2f}   {count:4d} classes")
    if asked.published:
        means = summarise(result, unseen=unseen, rare=rare)
        table = beside_published(means, asked.zero_shot or "default")
        print(f"\n{table.to_string(index=False, float_format='{:.2f}'.format, na_rep='-')}")
    if asked.json:
        write_json(asked.json, scores)
    if asked.figure:
        _draw(asked.figure, predictions, result, _class_names(annotation), unseen, rare)
    if asked.per_class:
        table = per_class_table(result, unseen=unseen or (), rare=rare or ())
        table = table.assign(name=_class_names(annotation))
        atomic_write(asked.per_class, lambda stream: stream.write(table.to_csv(index=False).encode()))
    return 0


def report(result: ApResult, unseen: list[int] | None, rare: list[int] | None) -> dict[str, Any]:
    """Fractions: ap and max_recall by HOI id (None without ground truth), the means that exist, class counts."""
    means = summarise(result, unseen=unseen, rare=rare)
    groups = class_groups(result, unseen, rare)
    return {
        "ap": [None if value != value else float(value) for value in result.ap],
        **{name: value / 100 if value == value else None for name, value in means.items()},
        "num_classes": {name: int(members.sum()) for name, members in groups.items()},
        "num_gt": result.num_gt.tolist(),
        "num_det": result.num_det.tolist(),
        "max_recall": [None if value != value else float(value) for value in result.max_recall],
    }


def _draw(
    path: Path, predictions: pd.DataFrame, result: ApResult, names: list[str], unseen: list[int] | None,
    rare: list[int] | None,
) -> None:  # fmt: skip
    from lib.analysis.palette import save_figure  # the command reaches up to draw; scoring itself needs no matplotlib
    from lib.analysis.precision_recall import precision_recall_figure

    rare = rare if unseen is None else None  # two groups beside all classes are enough in one picture
    save_figure(precision_recall_figure(predictions, result, names, unseen=unseen, rare=rare), path)


def _check_images(image: np.ndarray, annotation: HicoAnnotation, source: Path) -> None:
    low, high = image.min(initial=0), image.max(initial=-1)
    if low < 0 or high >= annotation.num_images:
        raise PredictionError(
            source, f"images {low}..{high}",
            f"0..{annotation.num_images - 1}, indices into `filenames` of {annotation.source}",
            "give the annotations of the split that was predicted",
        )  # fmt: skip


def _rule(asked: argparse.Namespace) -> Protocol:
    changes = {name: getattr(asked, name) for name in ("integration", "cap") if getattr(asked, name) is not None}
    if asked.empty_images is not None:
        changes["include_empty_images"] = asked.empty_images == "count"
    return replace(PROTOCOLS[asked.protocol], **changes)


def _class_names(annotation: HicoAnnotation) -> list[str]:
    pairs = zip(annotation.hoi_verb, annotation.hoi_object, strict=True)
    return [f"{annotation.verbs[verb]} {annotation.objects[thing]}" for verb, thing in pairs]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lib.evaluation.hico_det",
        description="HICO-DET mAP. Boxes: pixels of the original image, 0-based coordinates, x2 and y2 exclusive.",
    )
    parser.add_argument("predictions", type=Path, help="parquet: image_id, hoi_id, score, h_x1 .. h_y2, o_x1 .. o_y2")
    parser.add_argument("--annotations", type=Path, required=True, help="instances_test2015.json, also gzipped")
    parser.add_argument("--protocol", choices=list(PROTOCOLS), default="pocket")
    parser.add_argument("--known-object", type=Path, metavar="FILE", help="JSON: object -> images; Known-Object mode")
    parser.add_argument("--zero-shot", metavar="NAME", help="e.g. unseen_verb, rare_first: adds unseen and seen")
    parser.add_argument("--rare", type=Path, metavar="FILE", help="list of rare classes, or instances_train2015.json")
    parser.add_argument("--json", type=Path, metavar="OUT", help="class APs and means as fractions")
    parser.add_argument("--per-class", type=Path, metavar="OUT", help="CSV, one row a class, in percent")
    parser.add_argument("--figure", type=Path, metavar="OUT", help="PNG: precision over recall, groups and classes")
    parser.add_argument("--published", action="store_true", help="print published numbers of the setting beside")
    parser.add_argument("--integration", choices=INTEGRATIONS, help="instead of the protocol's")
    parser.add_argument("--cap", type=int, metavar="K", help="keep the K best detections of an image")
    parser.add_argument("--empty-images", choices=("count", "skip"), help="detections on images without any pair")
    return parser
