"""Foreign pickles of plain containers and numpy arrays, read without running any code of theirs."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np


class FilledRecord(dict):
    """A V-COCO record in which UPT's program stated one role: every other key reads as its filler (spec §5.7)."""

    def __missing__(self, key: str) -> float | list[float]:
        return 0.0 if key.rsplit("_", 1)[-1] == "agent" else [0.0, 0.0, 0.1, 0.1, 0.0]


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name == "CacheTemplate":  # UPT, ADA-CM, EZ-HOI: a dictionary with the defaults above, in their `utils`
            return FilledRecord
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name in ("_reconstruct", "scalar"):
            return getattr(np._core.multiarray, name)
        allowed = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("collections", "OrderedDict"): OrderedDict,
        }
        if (module, name) == ("_codecs", "encode"):  # how protocol 2 writes the bytes of an array
            return _encode
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return allowed[module, name]


def _encode(text: str, encoding: str) -> bytes:
    return text.encode(encoding)


def read_pickle(path: Path | str) -> Any:
    """Content of a pickle that holds only plain containers, numbers, text and numpy arrays.

    Raises FileNotFoundError; ValueError for a damaged file or one that names anything else, none of which is run.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: found no file, expected a pickle")
    try:
        return _PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise ValueError(
            f"{path}: not a pickle of plain containers, numbers and numpy arrays ({error}); nothing of it was run"
        ) from None
