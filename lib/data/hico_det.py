"""Reader of HICO-DET instance files (`instances_{train,test}2015.json`) and of the stick world's, which look the same.

Six versions circulate (spec data-and-evaluation.md §1.2). They differ in the order of objects (COCO-80, as EZ-HOI,
ADA-CM, CMMP and UPT read; alphabetical, as fredzzhang/hicodet's main branch and DEFR), in whether `size` and the lists
of rare classes are there, and in `correspondence`. All become one: objects in COCO-80 order, official HOI ids.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from lib.data.annotation_file import AnnotationError
from lib.data.dataset import ONE_BASED, HoiDataset, HoiImage, Rows, build_dataset, check_classes
from lib.data.hico_classes import ALPHABETICAL, OFFICIAL, OFFICIAL_NAMES, names_of
from lib.data.hico_instances import read_instances
from lib.data.images import image_sizes
from lib.data.vocabulary import Vocabulary

__all__ = ["AnnotationError", "HoiDataset", "HoiImage", "read_hico_det"]


def read_hico_det(annotations: Path | str, images: Path | str, split: str) -> HoiDataset:
    """Read an instance file, plain or gzipped.

    Boxes in the file are 1-based with both ends inclusive; they become 0-based with exclusive ends
    (x1 - 1, y1 - 1, x2, y2; data-and-evaluation.md §1.3). images: folder of the photographs, opened only if the file
    states no sizes. Raises AnnotationError for anything impossible.
    """
    annotations, images = Path(annotations), Path(images)
    file = read_instances(
        annotations, f"HICO-DET annotations of the {split} split",
        "set data.root to the folder that holds instances_{train,test}2015.json, or run notebook 00 for the embedded"
        " stick world",
    )  # fmt: skip
    content, rows = file.content, Rows(**file.rows)
    table = Vocabulary(tuple(content["objects"]), tuple(content["verbs"]), file.hoi_object, file.hoi_verb)
    check_classes(annotations, table, file.names, rows)
    vocabulary, rows, words = _converted(annotations, table, rows)
    paths = [images / name for name in file.names]
    sizes = content["size"] if "size" in content else image_sizes(paths)
    words += ", sizes as stated" if "size" in content else ", sizes from the photographs"
    words += ", with lists of rare classes" if "rare" in content else ", without lists of rare classes"
    return build_dataset(
        annotations, split, vocabulary, paths, np.reshape(sizes, (-1, 2)), rows, ONE_BASED, f"instance JSON, {words}"
    )


def _converted(source: Path, table: Vocabulary, rows: Rows) -> tuple[Vocabulary, Rows, str]:
    """HICO-DET's names in COCO-80 order with official HOI ids; another data set's classes as they are.

    A file whose names are HICO-DET's but whose table is another keeps its own HOI ids (a historic version does that).
    """
    objects, verbs = ([name.replace(" ", "_") for name in names] for names in (table.objects, table.verbs))
    if (sorted(objects), sorted(verbs)) != (list(ALPHABETICAL), list(OFFICIAL.verbs)):
        return table, rows, "classes of its own"
    order = {OFFICIAL.objects: "COCO-80 order", ALPHABETICAL: "alphabetical order, converted to COCO-80"}
    words = f"objects in {order.get(tuple(objects), 'an order of its own, converted to COCO-80')}"
    thing, verb = (
        np.array([official.index(name) for name in own])
        for official, own in ((OFFICIAL.objects, objects), (OFFICIAL.verbs, verbs))
    )
    _refuse_mixed(source, table, tuple(objects))
    own = names_of(table)
    mapped = Vocabulary(OFFICIAL.objects, OFFICIAL.verbs, thing[table.hoi_object], verb[table.hoi_verb])
    rows = replace(rows, object=thing[rows.object], verb=verb[rows.verb])
    if own.keys() != OFFICIAL_NAMES.keys() or len(own) < table.num_hois:
        return mapped, rows, f"{words}, HOI ids of its own correspondence"
    hoi = np.array([OFFICIAL_NAMES[name] for name in own])
    if (hoi != np.arange(len(hoi))).any():
        words += ", HOI ids of its own correspondence, converted to the official ones"
    return OFFICIAL, replace(rows, hoi=hoi[rows.hoi]), words


def _refuse_mixed(source: Path, table: Vocabulary, objects: tuple[str, ...]) -> None:
    """Names in one of the two circulating orders with ids that count in the other say `board baseball_bat`."""
    alphabetical = np.array([ALPHABETICAL.index(name) for name in OFFICIAL.objects])
    counted = {OFFICIAL.objects: OFFICIAL.hoi_object, ALPHABETICAL: alphabetical[OFFICIAL.hoi_object]}
    for order, ids in counted.items():
        if order != objects and np.array_equal(table.hoi_object, ids):
            raise AnnotationError(
                f"{source}: objects", f"{objects[0]}, {objects[1]} ... with ids that count {order[0]}, {order[1]} ...",
                "names and ids in one order", "do not mix annotation versions: use one file as it was published",
            )  # fmt: skip
