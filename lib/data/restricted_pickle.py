"""Foreign pickles and torch.save files, read without running them.

A pickle is a program. `read_pickle` runs only what builds tensors, NumPy arrays and plain containers; anything else is
refused by name before it is called.
"""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lib.errors import FoundExpected

TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # first object of torch.save's older format
PLAIN = "a pickle of tensors, arrays and plain containers"


class PickleError(FoundExpected):
    """A file that is no whole pickle, or one that asks for more than data: found, expected, mend."""


def read_pickle(path: Path | str, stand_ins: Mapping[str, type] | None = None) -> Any:
    """Content of a .pkl or torch.save file: tensors (on the CPU, wherever they were saved), arrays, plain containers.

    stand_ins: plain classes that take the place of the public programs' own, by class name whatever its module.
    Raises PickleError for a missing, empty, truncated or other file and for one that asks for anything else; nothing
    of it is run then.
    """
    path = Path(path)
    if not path.is_file():
        raise PickleError(path, "no file", PLAIN, "correct the path")
    if not path.stat().st_size:
        raise PickleError(path, "an empty file (0 bytes)", PLAIN, "copy it again; nothing of it was run")
    try:
        if zipfile.is_zipfile(path):
            return _torch_content(path)
        content = _Restricted(io.BytesIO(path.read_bytes()), stand_ins or {}).load()
        if isinstance(content, int) and content == TORCH_MAGIC:
            return _torch_content(path)
        return content
    except _NotPlain as error:
        raise PickleError(
            path, f"a pickle that calls {error}, which could run any program", "tensors, arrays and plain containers",
            "nothing of it was run; whoever made it can save the arrays alone",
        ) from None  # fmt: skip
    except Exception as error:  # a broken stream can raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        raise PickleError(
            path, f"a file that is no whole pickle ({reason})",
            PLAIN, "nothing of it was run; copy it again",
        ) from None  # fmt: skip


class _NotPlain(Exception):
    """Dotted name of something that a pickle may not reach."""


def _torch_content(file: Path | io.BytesIO) -> Any:
    """What torch.save wrote, arrays included; `weights_only` refuses everything else."""
    try:
        with torch.serialization.safe_globals(_ARRAY_PARTS):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _NotPlain(_forbidden(str(error))) from None


def _forbidden(message: str) -> str:
    """The name in torch's refusal, else its first line."""
    marks = ("GLOBAL ", "global: ", "function ")
    found = [message.split(mark, 1)[1].split()[0].strip(",.`'") for mark in marks if mark in message]
    return found[0] if found else message.splitlines()[0][:120]


def _plain_storage(blob: bytes) -> Any:
    """The bytes of torch.save inside a pickled tensor; `torch.storage._load_from_bytes` would run what they say."""
    return _torch_content(io.BytesIO(blob))


def _latin1(text: str, encoding: str) -> bytes:
    """How protocol 2 writes bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise _NotPlain(f"_codecs.encode(..., {encoding!r})")
    return text.encode(encoding)


def _default_dict(factory: Any = None, *rest: Any) -> dict:
    return collections.OrderedDict(*rest)  # what it would make of a missing key is not needed


_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_ARRAYS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
    **{(name, "_reconstruct"): np._core.multiarray._reconstruct for name in _MULTIARRAY},
    **{(name, "scalar"): np._core.multiarray.scalar for name in _MULTIARRAY},
    **{(name, "_frombuffer"): np._core.numeric._frombuffer for name in _NUMERIC},
}  # fmt: skip
_ALLOWED: dict[tuple[str, str], Any] = _ARRAYS | {
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): lambda data, requires_grad, hooks: data,
    ("torch.storage", "_load_from_bytes"): _plain_storage,
    ("torch", "Size"): torch.Size,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): _default_dict,
    **{
        (module, kind.__name__): kind
        for module in ("builtins", "__builtin__")
        for kind in (set, frozenset, complex, list, dict, int, float)
    },
}  # fmt: skip
# NumPy loads as the class of its own type (np.dtypes.Float32DType ...), which torch checks as well
_ARRAY_PARTS = [(value, ".".join(name)) for name, value in _ARRAYS.items()] + [
    getattr(np.dtypes, name) for name in np.dtypes.__all__
]


class _Restricted(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, stand_ins: Mapping[str, type]) -> None:
        super().__init__(stream, encoding="latin1")  # Python 2 wrote the bytes of arrays as text
        self.stand_ins = stand_ins

    def find_class(self, module: str, name: str) -> Any:
        if name in self.stand_ins:
            return self.stand_ins[name]
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _NotPlain(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise _NotPlain(f"persistent object {pid!r}")
