"""Predictions of other programs to our table and back (spec data-and-evaluation.md §1.9, §5.6, §5.7).

The form is told by the name: `.parquet` is ours (long column names), a folder is the `.mat` cache that UPT, ADA-CM and
EZ-HOI write for the official MATLAB program (`detections_01.mat` ... one an object), `.json` the HOIA form of PPDM,
`.pkl` V-COCO's official list of records.

    python -m lib.evaluation.foreign matlab_cache predictions.parquet --annotations instances_test2015.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from scipy.io import loadmat, savemat
from scipy.io.matlab import MatReadError

from lib.data.annotation_file import read_json, require_keys
from lib.data.hico_classes import COCO91, coco80_of_coco91
from lib.evaluation.errors import MissingPredictionError, PredictionError
from lib.evaluation.hico_annotation import HicoAnnotation, read_annotation
from lib.evaluation.hico_det import BOX_COLUMNS, PREDICTION_COLUMNS
from lib.evaluation.prediction_table import LONG_NAMES, read_predictions
from lib.evaluation.vcoco_annotation import read_truth
from lib.evaluation.vcoco_records import RolePredictions, merged, read_role_predictions, write_records
from lib.runs import atomic_write, write_json

_PPDM = "write PPDM's form: a list of {file_name, predictions, hoi_prediction}, ids from 1"
_ENDS = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.float64)  # x2, y2 of both boxes: last pixel <-> exclusive end


def read_mat_cache(folder: Path | str, annotation: HicoAnnotation) -> pd.DataFrame:
    """Our table from `detections_%02d.mat`: cells HOI of the object x image, rows of human box, object box, score.

    Boxes of the files are 0-based with x2, y2 inclusive. Raises FileNotFoundError for a missing file, ValueError for
    one that is damaged or of another number of classes or images.
    """
    tables = []
    for path, classes in _cache_files(Path(folder), annotation):
        if not path.is_file():
            raise MissingPredictionError(path, "no file", "one for each of the 80 objects", "copy the whole cache")
        try:
            cells = loadmat(path, variable_names=["all_boxes"])["all_boxes"]
        except (MatReadError, ValueError, KeyError, TypeError, NotImplementedError) as error:
            raise PredictionError(
                path, f"not a MATLAB file with that variable ({error})", "the variable all_boxes", "write it again"
            ) from None
        if cells.shape != (len(classes), annotation.num_images):
            raise PredictionError(
                path, f"cells {cells.shape}", f"{(len(classes), annotation.num_images)}: HOIs of the object, images",
                "give the annotations of the split that was predicted",
            )  # fmt: skip
        cells = cells.reshape(-1)
        counts = np.fromiter(map(len, cells), np.int64, len(cells))
        filled = np.flatnonzero(counts)
        values = np.concatenate([np.zeros((0, 9)), *cells[filled]])
        place = np.repeat(filled, counts[filled])
        table = pd.DataFrame(values[:, :8] + _ENDS, columns=list(BOX_COLUMNS))
        tables.append(
            table.assign(
                image=place % annotation.num_images, hoi=classes[place // annotation.num_images], score=values[:, 8]
            )
        )
    return pd.concat(tables, ignore_index=True)[list(PREDICTION_COLUMNS)]


def write_mat_cache(folder: Path | str, predictions: pd.DataFrame, annotation: HicoAnnotation) -> None:
    """Write the 80 files for the official MATLAB program, rows of a cell in the order of the table."""
    image, hoi = (predictions[name].to_numpy(np.int64) for name in ("image", "hoi"))
    values = np.column_stack([predictions[name].to_numpy(np.float64) for name in (*BOX_COLUMNS, "score")])
    values[:, :8] -= _ENDS
    order = np.lexsort((image, hoi))
    keys, first, count = np.unique(
        hoi[order] * annotation.num_images + image[order], return_index=True, return_counts=True
    )
    for path, classes in _cache_files(Path(folder), annotation):
        cells = np.empty((len(classes), annotation.num_images), object)
        cells.fill(np.zeros((0, 0)))
        for row, label in enumerate(classes):
            for group in range(
                *np.searchsorted(keys, (label * annotation.num_images, (label + 1) * annotation.num_images))
            ):
                rows = order[first[group] : first[group] + count[group]]
                cells[row, keys[group] % annotation.num_images] = values[rows]
        atomic_write(path, lambda stream, cells=cells: savemat(stream, {"all_boxes": cells}, do_compression=True))


def read_hoia(path: Path | str, annotation: HicoAnnotation, inclusive: bool = False) -> pd.DataFrame:
    """Our table from PPDM's JSON: a list of {file_name, predictions: [{bbox, category_id}], hoi_prediction:
    [{subject_id, object_id, category_id, score}]}, objects as COCO-91 ids, verbs counted from 1.

    inclusive: x2, y2 are last pixels. (Verb, object) combinations that are no HOI class are left out, as in PPDM.
    """
    content = read_json(path)
    if not isinstance(content, list):
        raise PredictionError(path, f"a {type(content).__name__}", "a list with an entry an image", _PPDM)
    for place, entry in enumerate(content):
        require_keys(path, f"entry {place}", entry, {"file_name", "predictions", "hoi_prediction"}, _PPDM)
    index = {name: place for place, name in enumerate(annotation.filenames)}
    if unknown := [entry.get("file_name") for entry in content if entry.get("file_name") not in index]:
        raise PredictionError(
            path, f"image {unknown[0]!r} ({len(unknown)} such)", f"an image of {annotation.source}",
            "give the annotations of the split that was predicted",
        )  # fmt: skip
    boxes = [entry["predictions"] for entry in content]
    claims = [entry["hoi_prediction"] for entry in content]
    offset = np.cumsum([0, *map(len, boxes)])[:-1]  # first box of each image in the flat list
    size = np.array([len(entry) for entry in boxes], np.int64)
    counts = [len(entry) for entry in claims]
    flat = np.array([box["bbox"] for entry in boxes for box in entry], np.float64).reshape(-1, 4)
    category = np.array([int(box["category_id"]) for entry in boxes for box in entry], np.int64)
    subject, thing, verb = (
        np.array([int(claim[key]) for entry in claims for claim in entry], np.int64)
        for key in ("subject_id", "object_id", "category_id")
    )
    score = np.array([claim["score"] for entry in claims for claim in entry], np.float64)
    owner = np.repeat(np.arange(len(content)), counts)
    if (bad := (subject < 0) | (thing < 0) | (np.maximum(subject, thing) >= size[owner])).any():
        name = content[owner[np.flatnonzero(bad)[0]]]["file_name"]
        found = f"a hoi_prediction that points past its `predictions` ({bad.sum()} such)"
        raise PredictionError(f"{path}: {name}", found, "ids of boxes of its image", _PPDM)
    classes = _hoi_of(annotation, path)
    coco = coco80_of_coco91(category)
    if (strange := category[coco < 0]).size or (len(verb) and not 1 <= verb.min() <= verb.max() <= 117):
        found = f"objects {strange[:3].tolist()}, verbs {verb.min(initial=1)}..{verb.max(initial=1)}"
        raise PredictionError(path, found, "COCO-91 ids and verbs 1..117", _PPDM)
    human, thing = subject + offset[owner], thing + offset[owner]
    hoi = classes[coco[thing], verb - 1] if len(thing) else np.zeros(0, np.int64)
    table = pd.DataFrame(np.concatenate((flat[human], flat[thing]), 1) + _ENDS * inclusive, columns=list(BOX_COLUMNS))
    image = np.array([index[entry["file_name"]] for entry in content], np.int64)[owner]
    return table.assign(image=image, hoi=hoi, score=score)[list(PREDICTION_COLUMNS)][hoi >= 0].reset_index(drop=True)


def write_hoia(
    path: Path | str, predictions: pd.DataFrame, annotation: HicoAnnotation, inclusive: bool = False
) -> None:
    """Write PPDM's JSON, an entry for every image of the annotation; equal boxes of one class appear once."""
    _hoi_of(annotation, path)
    hoi = predictions["hoi"].to_numpy()
    boxes = np.column_stack([predictions[name].to_numpy(np.float64) for name in BOX_COLUMNS]) - _ENDS * inclusive
    image = predictions["image"].to_numpy(np.int64)
    category = COCO91[annotation.coco_object[hoi]]
    # one row a box: image, category, x1, y1, x2, y2; humans then objects
    rows = np.concatenate((
        np.column_stack((image, np.full(len(image), COCO91[0]), boxes[:, :4])),
        np.column_stack((image, category, boxes[:, 4:])),
    ))  # fmt: skip
    unique, place = np.unique(rows, axis=0, return_inverse=True)  # sorted by image
    start = np.searchsorted(unique[:, 0], np.arange(annotation.num_images + 1))
    subject, thing = (place.reshape(2, -1) - start[image]).tolist()
    entries = [
        {
            "file_name": name,
            "predictions": [{"bbox": row[2:], "category_id": int(row[1])} for row in unique[low:high].tolist()],
            "hoi_prediction": [],
        }
        for name, low, high in zip(annotation.filenames, start[:-1], start[1:], strict=True)
    ]
    verbs, scores = (annotation.hoi_verb[hoi] + 1).tolist(), predictions["score"].to_numpy(np.float64).tolist()
    for where, s, o, verb, score in zip(image.tolist(), subject, thing, verbs, scores, strict=True):
        entries[where]["hoi_prediction"].append({"subject_id": s, "object_id": o, "category_id": verb, "score": score})
    write_json(path, entries)


def role_table(predictions: RolePredictions) -> pd.DataFrame:
    """V-COCO statements as a table that `python -m lib.evaluation.vcoco` reads: image_id, role, score and boxes."""
    named = [*predictions.roles.items(), *((f"{name}_agent", said) for name, said in predictions.agents.items())]
    parts = []
    for role, said in named:
        things = np.full((len(said.record), 4), np.nan) if said.boxes is None else said.boxes
        values = np.concatenate((predictions.boxes[said.record], things), 1)
        table = pd.DataFrame(values, columns=[f"{who}_{side}" for who in "ho" for side in ("x1", "y1", "x2", "y2")])
        parts.append(table.assign(image_id=predictions.image[said.record], role=role, score=said.score))
    return pd.concat(parts, ignore_index=True)


def _cache_files(folder: Path, annotation: HicoAnnotation) -> list[tuple[Path, np.ndarray]]:
    """File of each object and its HOI classes in ascending order."""
    class_object = annotation.hoi_object if annotation.coco_object is None else annotation.coco_object
    return [
        (folder / f"detections_{thing + 1:02d}.mat", np.flatnonzero(class_object == thing))
        for thing in range(len(annotation.objects))
    ]


def _hoi_of(annotation: HicoAnnotation, path: Path | str) -> np.ndarray:
    """(80, 117) HOI class of a COCO object and a verb, -1 where there is none."""
    if annotation.coco_object is None:
        found = f"classes of its own in {annotation.source}"
        raise PredictionError(path, found, "HICO-DET's, as the HOIA form names COCO objects", "use a parquet table")
    table = np.full((len(annotation.objects), len(annotation.verbs)), -1)
    table[annotation.coco_object, annotation.hoi_verb] = np.arange(annotation.num_hois)
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert SOURCE to TARGET; 0, or 1 after a message about the input."""
    parser = argparse.ArgumentParser(prog="python -m lib.evaluation.foreign", description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="predictions.parquet, a folder of .mat, PPDM .json, V-COCO .pkl")
    parser.add_argument("target", type=Path, help="the same forms; one of the two is a parquet file")
    parser.add_argument("--annotations", type=Path, required=True, help="instance file of the split")
    parser.add_argument("--coco", type=Path, help="COCO instances, for vcoco_test.json")
    parser.add_argument("--inclusive", action="store_true", help="PPDM JSON: x2, y2 are the last pixel")
    parser.add_argument("--unstated", choices=("nan", "upt"), default="nan", help="V-COCO export: unstated roles")
    asked = parser.parse_args(arguments)
    try:
        convert(asked.source, asked.target, asked.annotations, asked.coco, asked.inclusive, asked.unstated)
    except (ValueError, KeyError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def convert(
    source: Path, target: Path, annotations: Path, coco: Path | None = None, inclusive: bool = False,
    unstated: Literal["nan", "upt"] = "nan",
) -> None:  # fmt: skip
    """Read `source` in its form and write `target` in its own; exactly one of the two is a parquet file.

    coco: COCO instances, where the annotations are V-COCO's original file. inclusive: see `read_hoia`. unstated: see
    `write_records`. Raises ValueError and FileNotFoundError for a bad input.
    """
    forms = {".parquet": "ours", ".json": "hoia", ".pkl": "vcoco", ".pickle": "vcoco", "": "mat"}
    form, wanted = forms.get(source.suffix), forms.get(target.suffix)
    if form is None or wanted is None or (form == "ours") == (wanted == "ours"):
        raise ValueError(f"{source} to {target}: exactly one must be .parquet, the other a folder (.mat cache), .json "
                         "(PPDM) or .pkl (V-COCO)")  # fmt: skip
    if "vcoco" in (form, wanted):
        predictions = read_role_predictions(source, read_truth(annotations, coco))
        if wanted == "vcoco":
            write_records(target, merged(predictions), unstated)
        else:
            _write_table(target, role_table(predictions))
        return
    annotation = read_annotation(annotations)
    if wanted == "mat":
        write_mat_cache(target, read_predictions(source), annotation)
    elif wanted == "hoia":
        write_hoia(target, read_predictions(source), annotation, inclusive)
    else:
        read = read_mat_cache(source, annotation) if form == "mat" else read_hoia(source, annotation, inclusive)
        _write_table(target, read.rename(columns={ours: long for long, ours in LONG_NAMES.items()}))


def _write_table(path: Path, table: pd.DataFrame) -> None:
    atomic_write(path, lambda stream: table.to_parquet(stream, index=False))


if __name__ == "__main__":
    raise SystemExit(main())
