"""Content of a HICO-DET instance file, checked as far as every use of it needs; readers and scoring both start here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from lib.data.annotation_file import AnnotationError, flat_rows, read_json, require_keys

LISTS = {"boxes_h": 4, "boxes_o": 4, "hoi": 1, "object": 1, "verb": 1}
_KEYS = {"annotation", "filenames", "objects", "verbs", "correspondence"}
_COPY = "copy the file again, or use the version that EZ-HOI and UPT read"


@dataclass(frozen=True)
class HicoInstances:
    """content: the whole file. names: I file names. rows: image [N] and the lists' keys, boxes 1-based.

    hoi_object, hoi_verb: [C] of the file's own table.
    """

    content: dict[str, Any]
    names: list[str]
    rows: dict[str, np.ndarray]
    hoi_object: np.ndarray
    hoi_verb: np.ndarray


def read_instances(
    path: Path | str, what: str = "HICO-DET annotations", mend: str = "check the path",
    lists: Mapping[str, int] = MappingProxyType(LISTS),
) -> HicoInstances:  # fmt: skip
    """Read `instances_*2015.json`, plain or gzipped.

    what, mend: words for the error about a missing file. lists: those of `LISTS` that are needed.
    Raises AnnotationError for missing keys, lists of unequal length, entries that are no numbers, an impossible table.
    """
    path = Path(path)
    content = read_json(path, what, mend)
    require_keys(path, "top level", content, _KEYS, _COPY)
    names, records = content["filenames"], content["annotation"]
    lengths = {key: len(content[key]) for key in ("annotation", "filenames", "size") if key in content}
    if len(set(lengths.values())) > 1:
        raise AnnotationError(path, f"lists of unequal length {lengths}", "one entry an image in each", _COPY)
    for name, record in zip(names, records, strict=True):
        require_keys(path, name, record, set(lists), "repair the file")
    table = _table(path, content)
    return HicoInstances(content, names, flat_rows(path, names, records, lists), table[:, 1], table[:, 2])


def _table(path: Path, content: dict[str, Any]) -> np.ndarray:
    """[C, 3] hoi, object, verb; HOI ids must be 0 .. C - 1, objects and verbs indices into the file's names."""
    try:
        triples = np.asarray(content["correspondence"], np.int64).reshape(-1, 3)
    except (ValueError, TypeError):
        triples = np.zeros((0, 3), np.int64)
    triples = triples[triples[:, 0].argsort(kind="stable")]
    limits = [len(triples), len(content["objects"]), len(content["verbs"])]
    whole = np.array_equal(triples[:, 0], np.arange(len(triples)))
    if not len(triples) or not whole or (triples < 0).any() or (triples >= limits).any():
        raise AnnotationError(
            f"{path}: correspondence", f"{len(triples)} rows, largest {triples.max(0, initial=-1).tolist()}",
            f"[hoi, object, verb] with each HOI id once, objects below {limits[1]}, verbs below {limits[2]}", _COPY,
        )  # fmt: skip
    return triples
