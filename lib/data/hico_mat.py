"""Readers of the official MATLAB files: HICO-DET's `anno_bbox.mat`, HICO's `anno.mat` (spec §1.10, §3.1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lib.data.annotation_file import AnnotationError, MissingAnnotationError
from lib.data.dataset import ONE_BASED, HoiDataset, Rows, build_dataset
from lib.data.hico_classes import OFFICIAL

_SIDES = ("x1", "y1", "x2", "y2")  # in the file: x1, x2, y1, y2
_MEND = "use anno_bbox.mat of the HICO-DET release hico_20160224_det"


def read_hico_mat(annotations: Path | str, images: Path | str, split: str) -> HoiDataset:
    """Read `bbox_train` or `bbox_test`. One row is one connection (human, object) of a visible HOI; ids count from 1.

    Boxes are 1-based with inclusive ends. HOIs marked `invis` have no boxes and are left out. Raises AnnotationError.
    """
    annotations, images = Path(annotations), Path(images)
    records = _load(annotations, f"bbox_{split}")
    names, sizes, parts = [], [], []
    for place, record in enumerate(records):
        names.append(str(record.filename))
        sizes.append((int(record.size.width), int(record.size.height)))
        for hoi in _items(record.hoi):
            if not int(hoi.invis):
                parts.append(_connections(annotations, names[place], place, hoi))
    flat = np.concatenate([np.zeros((0, 10)), *parts])  # image, hoi, human box, object box
    image, hoi = flat[:, 0].astype(np.int64), flat[:, 1].astype(np.int64) - 1
    if (bad := np.flatnonzero((hoi < 0) | (hoi >= OFFICIAL.num_hois))).size:
        raise AnnotationError(
            f"{annotations}: {names[image[bad[0]]]}", f"HOI id {hoi[bad[0]] + 1}", f"1..{OFFICIAL.num_hois}", _MEND
        )
    rows = Rows(
        image, flat[:, 2:6].astype(np.float32), flat[:, 6:].astype(np.float32), hoi, OFFICIAL.hoi_object[hoi],
        OFFICIAL.hoi_verb[hoi],
    )  # fmt: skip
    return build_dataset(
        annotations, split, OFFICIAL, [images / name for name in names], np.array(sizes, np.int64).reshape(-1, 2), rows,
        ONE_BASED, f"official {annotations.name}, {len(flat)} connections",
    )  # fmt: skip


def read_anno_mat(path: Path | str, split: str) -> tuple[list[str], np.ndarray]:
    """HICO's `anno.mat` (§3.1): N file names, and labels [N, C] int8: 1, 0 ambiguous, -1, -2 unknown (NaN in the file).

    A file with labels only has no names. Raises AnnotationError.
    """
    content = load_mat(Path(path), [f"anno_{split}"], [f"list_{split}"], "HICO's anno.mat")
    names = np.atleast_1d(content.get(f"list_{split}", [])).tolist()
    values = np.atleast_2d(content[f"anno_{split}"])  # (C, N): the file has classes first
    if len(names) == 1:
        values = values.T  # squeezed away by the loader
    values = values.T
    return names, np.where(np.isnan(values), -2, values).astype(np.int8)


def load_mat(path: Path, needed: list[str], optional: list[str], what: str) -> dict[str, Any]:
    """Variables of a MATLAB file, squeezed, structs as objects. Raises AnnotationError naming what is missing."""
    from scipy.io import loadmat, whosmat  # a third of a second that other formats are spared

    if not path.is_file():
        raise MissingAnnotationError(path, "no file", what, "correct the path")
    try:
        content = loadmat(path, squeeze_me=True, struct_as_record=False, variable_names=[*needed, *optional])
        if absent := [name for name in needed if name not in content]:
            found = [name for name, _, _ in whosmat(path)]
            raise AnnotationError(path, f"the variables {found}", " and ".join(absent), f"use {what}")
    except AnnotationError:
        raise
    except Exception as error:  # damaged bytes raise anything: a reader for a format of 1996
        raise AnnotationError(path, f"no readable MATLAB file ({error})", what, "copy it again") from None
    return content


def _load(path: Path, variable: str) -> list[Any]:
    records = _items(load_mat(path, [variable], [], "HICO-DET's anno_bbox.mat")[variable])
    for place, record in enumerate(records):
        if lacks := {"filename", "size", "hoi"} - set(getattr(record, "_fieldnames", ())):
            raise AnnotationError(f"{path}: {variable}({place + 1})", f"no field {sorted(lacks)}", "an image", _MEND)
    return records


def _items(value: Any) -> list[Any]:
    """The elements of a struct array of any length; squeezing makes one element itself and none an empty array."""
    return list(np.atleast_1d(value)) if np.size(value) else []


def _connections(source: Path, name: str, place: int, hoi: Any) -> np.ndarray:
    """[n, 10]: image index, HOI id, human box, object box of every connection."""
    people, things = (
        np.array([[getattr(box, side) for side in _SIDES] for box in _items(boxes)], np.float64).reshape(-1, 4)
        for boxes in (hoi.bboxhuman, hoi.bboxobject)
    )
    links = np.asarray(hoi.connection, np.int64).reshape(-1, 2) - 1
    if (links < 0).any() or (links >= [len(people), len(things)]).any():
        raise AnnotationError(
            f"{source}: {name}, HOI {hoi.id}", f"a connection {(links + 1).max(0).tolist()}",
            f"1-based indices into {len(people)} human and {len(things)} object boxes", _MEND,
        )  # fmt: skip
    front = np.tile(np.array([place, hoi.id], np.float64), (len(links), 1))
    return np.concatenate((front, people[links[:, 0]], things[links[:, 1]]), 1)
