"""HICO image classification: mAP over all classes, Known Object, Few@k (spec data-and-evaluation.md §3).

A label is +1 (the image shows the HOI), -1 (it shows the object but not this HOI), 0 (ambiguous) or -2 (unknown: the
object is absent; NaN in `anno.mat`). Default mode ranks all images but the ambiguous ones; Known-Object mode ranks the
images with a label of +1 or -1 only.

    python -m lib.evaluation.recognition SCORES.npz --labels anno.mat --json ap.json
"""

from __future__ import annotations

import argparse
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lib.data.annotation_file import read_json
from lib.data.hico_classes import FACTS
from lib.data.hico_mat import read_anno_mat
from lib.evaluation.average_precision import INTEGRATIONS, Integration, average_precision
from lib.evaluation.errors import MissingPredictionError, PredictionError
from lib.runs import write_json

LABELS = (-2, -1, 0, 1)
FEW_SHOT: dict[str, list[int]] = {name: FACTS[name] for name in ("few_1", "few_5", "few_10")}


def recognition_ap(
    scores: np.ndarray, labels: np.ndarray, *, known_object: bool = False, integration: Integration = "11-point"
) -> np.ndarray:
    """(C,) average precision of every class, 0..1; 0 for a class without a positive image, as DEFR's meter has it.

    scores: [N, C], higher is better; equal scores rank in the order of the images. labels: [N, C] of {-2, -1, 0, 1}.
    known_object: rank only images that contain the object.
    integration: "int" and "auc" are DEFR's other two meters, see `average_precision`.
    Raises PredictionError for arrays of unequal shape, non-finite scores and other labels.
    """
    _check(scores, labels)
    dropped = np.isin(labels, (0, -2)) if known_object else labels == 0
    ap = np.zeros(scores.shape[1])
    for c in range(scores.shape[1]):
        order = np.argsort(-scores[:, c], kind="stable")
        positive = labels[order, c] == 1
        ap[c], _ = average_precision(positive, max(int(positive.sum()), 1), integration, dropped[order, c])
    return ap


def _check(scores: np.ndarray, labels: np.ndarray, source: Path | str = "scores", truth: Path | str = "labels") -> None:
    if scores.ndim != 2 or scores.shape != labels.shape:
        found = f"scores {scores.shape} for labels {labels.shape}"
        raise PredictionError(source, found, "the same [images, classes]", "score the split and classes of the labels")
    if not np.isfinite(scores).all():
        image, label = np.argwhere(~np.isfinite(scores))[0]
        found = f"score of image {image}, class {label} is {scores[image, label]}"
        raise PredictionError(source, found, "finite numbers", "the model diverged or the file is damaged: score again")
    if not np.isin(labels, LABELS).all():
        mend = "-2 unknown, -1 absent, 0 ambiguous, 1 present"
        raise PredictionError(truth, f"labels {np.unique(labels)[:8].tolist()}", f"only {list(LABELS)}", mend)


def recognition_means(
    ap: np.ndarray, ap_known_object: np.ndarray, few: Mapping[str, Sequence[int]] | None = None
) -> dict[str, float]:
    """mAP_full, mAP_known_object and one mAP_<name> a group of `few` (Default mode), as fractions.

    few: {name: class ids}, e.g. `FEW_SHOT` (at most 1, 5, 10 positive training images of HICO's 600 classes).
    """
    means = {"mAP_full": float(ap.mean()), "mAP_known_object": float(ap_known_object.mean())}
    return means | {f"mAP_{name}": float(ap[list(classes)].mean()) for name, classes in (few or {}).items()}


def read_labels(path: Path | str, split: str = "test") -> np.ndarray:
    """[images, classes] or [classes, images] int8, as the file has them.

    path: HICO's `anno.mat` (`anno_<split>`, NaN becomes -2), an npz with `label`, `labels` or one array only, or npy.
    """
    path = Path(path)
    if path.suffix == ".mat":
        return read_anno_mat(path, split)[1]
    labels = read_array(path, ("label", "labels"))
    return np.where(np.isnan(labels), -2, labels).astype(np.int8) if labels.dtype.kind == "f" else labels


def read_array(path: Path | str, names: Sequence[str]) -> np.ndarray:
    """The array of an npy file, or of an npz under one of `names` (or its only one). No pickled objects are read."""
    path = Path(path)
    if not path.is_file():
        raise MissingPredictionError(path, "no file", "an npz, npy or mat file", "check the path")
    try:
        stored = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise PredictionError(
            path, f"not a readable npz or npy file ({error})", "arrays without pickled objects", "write it again"
        ) from None
    if isinstance(stored, np.ndarray):
        return stored
    with stored:
        found = [name for name in names if name in stored.files] or stored.files
        if len(found) != 1:
            raise PredictionError(path, f"arrays {stored.files}", f"one named {' or '.join(names)}", "rename it")
        try:
            return stored[found[0]]
        except (ValueError, OSError, zlib.error, zipfile.BadZipFile) as error:
            raise PredictionError(
                path, f"an unreadable array ({error})", "numbers, no pickled objects", "write it again"
            ) from None


def oriented(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Labels as [images, classes]: turned if their file lists classes first, as `anno.mat` does."""
    return labels.T if labels.shape != scores.shape and labels.T.shape == scores.shape else labels


def report(
    scores: np.ndarray, labels: np.ndarray, few: Mapping[str, Sequence[int]] | None, integration: Integration
) -> dict[str, Any]:
    """Class APs of both modes, means, number of positive images of each class."""
    ap = recognition_ap(scores, labels, integration=integration)
    ap_known_object = recognition_ap(scores, labels, known_object=True, integration=integration)
    return {
        "ap": ap.tolist(),
        "ap_known_object": ap_known_object.tolist(),
        **recognition_means(ap, ap_known_object, few),
        "num_classes": {"full": len(ap)} | {name: len(classes) for name, classes in (few or {}).items()},
        "num_positives": (labels == 1).sum(0).tolist(),
        "integration": integration,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the means and write what was asked for; 0, or 1 after a message about the input."""
    parser = argparse.ArgumentParser(prog="python -m lib.evaluation.recognition", description="HICO recognition mAP")
    parser.add_argument("scores", type=Path, help="npz (score or scores) or npy, [images, classes]")
    parser.add_argument("--labels", type=Path, required=True, help="anno.mat, or npz / npy of -2, -1, 0, 1")
    parser.add_argument("--split", default="test", help="which annotation of anno.mat")
    parser.add_argument("--few", type=Path, metavar="FILE", help="JSON {few_1: [classes], ...} of another class list")
    parser.add_argument("--integration", choices=INTEGRATIONS, default="11-point")
    parser.add_argument("--json", type=Path, metavar="OUT", help="class APs and means as fractions")
    asked = parser.parse_args(arguments)
    try:
        scores = read_array(asked.scores, ("score", "scores"))
        labels = oriented(read_labels(asked.labels, asked.split), scores)
        _check(scores, labels, asked.scores, asked.labels)
        few = FEW_SHOT if scores.shape[-1] == len(FACTS["hoi_object"]) else None
        if asked.few:
            few = {name: ids for name, ids in read_json(asked.few).items() if isinstance(ids, list)}
        result = report(scores, labels, few, asked.integration)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(scores):,} images, {scores.shape[1]} classes, {asked.integration} AP\n")
    for name, value in result.items():
        if name.startswith("mAP_"):
            count = result["num_classes"].get(name.removeprefix("mAP_"), scores.shape[1])
            print(f"  {name.removeprefix('mAP_'):14s} {100 * value:6.2f}   {count:4d} classes")
    if asked.json:
        write_json(asked.json, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
