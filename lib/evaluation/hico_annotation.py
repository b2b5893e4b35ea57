"""What scoring needs of a HICO-DET instance file: flat ground truth, the HOI table, rare classes, Known-Object images.

Read here apart from `lib.data`, so that scoring another program's predictions starts in under a second, needs no
photograph, and takes files of every circulating version (spec data-and-evaluation.md §1.2), gzipped or not.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np

from lib.data.annotation_file import AnnotationError, read_json
from lib.data.hico_classes import FACTS
from lib.data.hico_instances import read_instances


@dataclass(frozen=True)
class HicoAnnotation:
    """One split. truth: image [N], hoi [N], boxes_h, boxes_o [N, 4] in 0-based coordinates (x2, y2 exclusive)."""

    source: Path
    filenames: tuple[str, ...]
    objects: tuple[str, ...]
    verbs: tuple[str, ...]
    hoi_object: np.ndarray  # (C,) in the file's own object order
    hoi_verb: np.ndarray  # (C,)
    truth: dict[str, np.ndarray]
    listed_rare: tuple[int, ...] | None  # the file's own `rare`, present in the newest versions only

    @property
    def num_images(self) -> int:
        return len(self.filenames)

    @property
    def num_hois(self) -> int:
        return len(self.hoi_object)

    @cached_property
    def coco_object(self) -> np.ndarray | None:
        """(C,) COCO-80 object id of each class if this is HICO-DET's table, in whatever object order; else None."""
        if self.num_hois != len(FACTS["hoi_object"]) or self.hoi_verb.tolist() != FACTS["hoi_verb"]:
            return None
        pairs = {(own, coco) for own, coco in zip(self.hoi_object.tolist(), FACTS["hoi_object"], strict=True)}
        one_to_one = len(pairs) == len({own for own, _ in pairs}) == len({coco for _, coco in pairs})
        return np.array(FACTS["hoi_object"]) if one_to_one else None

    def rare(self, source: Path | str | None = None) -> list[int] | None:
        """Rare classes: of `source` if given, else the file's own list, else HICO-DET's published 138, else None.

        source: a JSON list of ids, an object with key `rare`, or a training instance file, in which classes with
        fewer than 10 rows are rare.
        """
        if source is not None:
            content = read_json(source)
            if isinstance(content, dict) and "annotation" in content:
                rows = chain.from_iterable(image["hoi"] for image in content["annotation"])
                counts = np.bincount(np.fromiter(rows, np.int64), minlength=self.num_hois)
                return np.flatnonzero(counts < 10).tolist()
            listed = content.get("rare") if isinstance(content, dict) else content
            if not isinstance(listed, list):
                expected = "[ids], {'rare': [ids]} or instances_train2015.json"
                raise AnnotationError(source, "no list of rare classes", expected, "give another file with --rare")
            return listed
        if self.listed_rare is not None:
            return list(self.listed_rare)
        return FACTS["rare"] if self.coco_object is not None else None

    def known_object(self, source: Path | str) -> np.ndarray:
        """(C, images) bool: where a detection counts in the Known-Object setting (§5.6).

        source: JSON {object: [image indices]}, possibly under the key `images_of_object`. An object is a name of the
        annotation file or an id: COCO-80 order for HICO-DET, the file's own order for any other table.
        """
        content = read_json(source)
        listed = content.get("images_of_object", content) if isinstance(content, dict) else None
        if not isinstance(listed, dict):
            expected = "an object {object: [images]}"
            raise AnnotationError(source, f"a {type(content).__name__}", expected, "give another with --known-object")
        class_object = self.hoi_object if self.coco_object is None else self.coco_object
        ids = {name: index for index, name in enumerate(self.objects)}
        allowed = np.zeros((self.num_hois, self.num_images), bool)
        for name, images in listed.items():
            classes = class_object == int(name) if name.isdigit() else self.hoi_object == ids.get(name, -1)
            images = np.asarray(images, np.int64)
            if not classes.any() or (len(images) and not 0 <= images.min() <= images.max() < self.num_images):
                raise AnnotationError(
                    source, f"object {name!r} with images up to {images.max(initial=-1)}",
                    f"an object of {self.source} and indices below its {self.num_images} images",
                    "give the file of the same split",
                )  # fmt: skip
            allowed[np.ix_(classes, images)] = True
        return allowed


def read_annotation(path: Path | str) -> HicoAnnotation:
    """Read `instances_{train,test}2015.json`, plain or gzipped. Raises AnnotationError naming the key or image."""
    file = read_instances(path, lists={"boxes_h": 4, "boxes_o": 4, "hoi": 1})
    rare, shift = file.content.get("rare"), np.array([1.0, 1.0, 0.0, 0.0])  # 1-based inclusive -> coordinates
    truth = {key: file.rows[key] - shift for key in ("boxes_h", "boxes_o")}
    return HicoAnnotation(
        Path(path), tuple(file.names), tuple(file.content["objects"]), tuple(file.content["verbs"]), file.hoi_object,
        file.hoi_verb, truth | {key: file.rows[key] for key in ("hoi", "image")}, None if rare is None else tuple(rare),
    )  # fmt: skip
