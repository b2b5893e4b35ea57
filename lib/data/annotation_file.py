"""Annotation files: JSON read whole or refused, the shape of its errors, lists of rows made flat."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lib.errors import FoundExpected


class AnnotationError(FoundExpected):
    """An annotation file says something impossible: file and image, finding, expectation, mend."""


class MissingAnnotationError(AnnotationError, FileNotFoundError):
    """There is no such file."""


def read_json(path: Path | str, what: str = "a JSON file", mend: str = "check the path") -> Any:
    """Content of a JSON file, gunzipped if its name ends in .gz. what, mend: words for the error about a missing one.

    Raises MissingAnnotationError, and AnnotationError for an empty or damaged file.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingAnnotationError(path, "no file", what, mend)
    data = path.read_bytes()
    if not data:
        raise AnnotationError(path, "an empty file (0 bytes)", what, "copy it again")
    try:
        return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    except (ValueError, EOFError, OSError, zlib.error) as error:  # ValueError: broken JSON, text that is not UTF-8
        raise AnnotationError(path, f"broken JSON ({error})", what, "copy it again") from None


def require_keys(source: Path, where: str, content: Any, keys: set[str], mend: str) -> None:
    """Raise AnnotationError unless `content` is an object with these keys."""
    if not isinstance(content, dict):
        raise AnnotationError(
            f"{source}: {where}", f"a {type(content).__name__}", f"an object with keys {sorted(keys)}", mend
        )
    if missing := keys - content.keys():
        raise AnnotationError(f"{source}: {where}", f"no key {sorted(missing)}", f"the keys {sorted(keys)}", mend)


def flat_rows(source: Path, names: Sequence[str], records: Sequence[dict], keys: Mapping[str, int]) -> dict:
    """One array of each list key over all images, and `image` [N].

    keys: name -> numbers an entry (4 for boxes [N, 4] float64, 1 for ids [N] int64). All lists of an image must be
    equally long. Raises AnnotationError naming image and key.
    """
    counts = np.array([[len(record[key]) for key in keys] for record in records], np.int64).reshape(-1, len(keys))
    if (uneven := np.flatnonzero((counts != counts[:, :1]).any(1))).size:
        lengths = dict(zip(keys, counts[uneven[0]].tolist(), strict=True))
        raise AnnotationError(
            f"{source}: {names[uneven[0]]}", f"lists of unequal length {lengths}", "one entry a row in each",
            "repair the file",
        )  # fmt: skip
    found = {key: _flat(source, names, records, key, width) for key, width in keys.items()}
    return found | {"image": np.repeat(np.arange(len(records)), counts[:, 0])}


def _flat(source: Path, names: Sequence[str], records: Sequence[dict], key: str, width: int) -> np.ndarray:
    def array(entries: list) -> np.ndarray:
        values = np.array(entries, np.float64)
        if width == 1:
            whole = values.astype(np.int64)
            if (whole != values).any():
                raise ValueError
            return whole.reshape(len(entries))
        return values.reshape(len(entries), width)

    try:
        return array([entry for record in records for entry in record[key]])
    except (ValueError, TypeError):
        for name, record in zip(names, records, strict=True):
            for place, entry in enumerate(record[key]):
                try:
                    array([entry])
                except (ValueError, TypeError):
                    raise AnnotationError(
                        f"{source}: {name}, {key}[{place}]", f"{entry!r}"[:80],
                        "four numbers" if width == 4 else "a whole number", "repair the file",
                    ) from None  # fmt: skip
        raise
