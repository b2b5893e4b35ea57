"""Pickles of the public programs, read without running them (spec ez-hoi.md §9.3, diffusion-bridge.md §2.3).

A pickle is a program. `read_pickle` runs only what builds tensors, arrays and plain containers; anything else is
refused by name before it is called. `read_mean` and `read_embeddings` know the layouts of the CVPR repo and the fork.
"""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from lib.bridge.geometry import check_mean, uncentre
from lib.errors import FoundExpected

MEAN_KEYS = {"text_mean": "text", "mean": "", "vision_mean": "vision", "image_mean": "vision"}  # key -> modality
TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # first object of torch.save's older format


class LegacyError(FoundExpected):
    """A pickle that is refused or is none of the known layouts: found, expected, mend."""


# ---------------------------------------------------------------- reading without running


def read_pickle(path: Path | str) -> Any:
    """Content of a .pkl or torch.save file: tensors (on the CPU), numpy arrays and plain containers.

    Raises LegacyError for a missing or broken file and for one that asks for anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise LegacyError(path, "no file", "a pickle of the public programs", "correct the path")
    try:
        if zipfile.is_zipfile(path):
            return torch.load(path, map_location="cpu", weights_only=True)
        content = _Restricted(io.BytesIO(path.read_bytes())).load()
        if isinstance(content, int) and content == TORCH_MAGIC:
            return torch.load(path, map_location="cpu", weights_only=True)
        return content
    except _NotPlain as error:
        raise LegacyError(
            path, f"a pickle that calls {error}, which could run any program", "tensors, arrays and plain containers",
            "do not load it; whoever made it can save the tensor alone",
        ) from None  # fmt: skip
    except Exception as error:  # a broken stream can raise anything
        raise LegacyError(
            path, f"a file that is no whole pickle ({type(error).__name__}: {str(error).splitlines()[0][:120]})",
            "a pickle of tensors, arrays and plain containers", "copy it again",
        ) from None  # fmt: skip


class _NotPlain(Exception):
    """Dotted name of something that a pickle may not reach."""


def _plain_storage(blob: bytes) -> Any:
    """The bytes of torch.save inside a pickled tensor; `torch.storage._load_from_bytes` would run what they say."""
    try:
        return torch.load(io.BytesIO(blob), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise _NotPlain("something other than tensors inside the bytes of a tensor") from None


def _latin1(text: str, encoding: str) -> bytes:
    """How protocol 2 writes bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise _NotPlain(f"_codecs.encode(..., {encoding!r})")
    return text.encode(encoding)


def _default_dict(factory: Any = None, *rest: Any) -> dict:
    return collections.OrderedDict(*rest)  # what it would make of a missing key is not needed


_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_ALLOWED: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): lambda data, requires_grad, hooks: data,
    ("torch.storage", "_load_from_bytes"): _plain_storage,
    ("torch", "Size"): torch.Size,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): _default_dict,
    ("_codecs", "encode"): _latin1,
    **{(name, "_reconstruct"): np._core.multiarray._reconstruct for name in _MULTIARRAY},
    **{(name, "scalar"): np._core.multiarray.scalar for name in _MULTIARRAY},
    **{(name, "_frombuffer"): np._core.numeric._frombuffer for name in _NUMERIC},
    **{
        (module, kind.__name__): kind
        for module in ("builtins", "__builtin__")
        for kind in (set, frozenset, complex, list, dict, int, float)
    },
}  # fmt: skip


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _NotPlain(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise _NotPlain(f"persistent object {pid!r}")


# ---------------------------------------------------------------- what a file means


@dataclass(frozen=True)
class LegacyMean:
    """mean: [D] float32. modality: text | vision | "" where the file does not say. details: its other entries."""

    mean: Tensor
    modality: str
    details: dict[str, Any]


@dataclass(frozen=True)
class LegacyEmbeddings:
    """vectors: [N, D] float32. scale: 0 for raw rows; c for rows that are c · G(row). details: other entries."""

    vectors: Tensor
    scale: float
    details: dict[str, Any]

    def raw(self, mean: Tensor | None) -> Tensor:
        """Raw rows, of length 1 where the file kept c · G(row) and `mean` [D], its text mean, undoes that."""
        if not self.scale:
            return self.vectors
        if mean is None:
            raise LegacyError(
                "embeddings", f"rows already centred and of length {self.scale:g}", "the mean that was taken off",
                "give it with --mean, or import the _raw file",
            )  # fmt: skip
        return uncentre(self.vectors, mean)


def read_mean(path: Path | str, modality: str = "") -> LegacyMean:
    """Mean of a bare tensor or array [D] or [1, D], or of a dict with text_mean, mean, vision_mean or image_mean.

    modality: text | vision, what the caller needs; a file that says it is the other one is refused, and so is a mean
    whose length tells that it was not taken over normalised raw rows. Also reads the means.safetensors of a bridge
    folder or of an imported mean, given the folder.
    """
    content, details, found = _content(path), {}, ""
    if isinstance(content, Mapping):
        keys = [key for key in MEAN_KEYS if key in content]
        wanted = [key for key in keys if MEAN_KEYS[key] == modality] or keys
        if not wanted:
            raise LegacyError(
                path, f"a dict of {sorted(map(str, content))[:8]}", f"one of {', '.join(MEAN_KEYS)}",
                "give a mean file; files of embeddings are imported by `python -m lib.bridge.legacy import`",
            )  # fmt: skip
        found = MEAN_KEYS[wanted[0]]
        details = {str(key): value for key, value in content.items() if key not in MEAN_KEYS}
        content = content[wanted[0]]
    mean = _float_tensor(content, path, "a mean [D] or [1, D]").squeeze()
    if mean.ndim != 1:
        raise LegacyError(path, f"a tensor of shape {tuple(mean.shape)}", "a mean [D] or [1, D]", "give a mean file")
    if modality and found and found != modality:
        raise LegacyError(path, f"a {found} mean", f"a {modality} mean", "swap the two files")
    check_mean(mean, str(path))
    return LegacyMean(mean, found or modality, details)


def _content(path: Path | str) -> Any:
    means = Path(path) / "means.safetensors"
    return load_file(means) if means.is_file() else read_pickle(path)


def read_embeddings(path: Path | str) -> LegacyEmbeddings:
    """Rows of a bare tensor or array [N, D], or of a dict with `embeddings`; tells raw rows from c · G(row)."""
    content = read_pickle(path)
    details: dict[str, Any] = {}
    if isinstance(content, Mapping):
        if "embeddings" not in content:
            raise LegacyError(
                path, f"a dict of {sorted(map(str, content))[:8]}", "the key embeddings", "give a file of embeddings"
            )
        details = {str(key): value for key, value in content.items() if key != "embeddings"}
        content = content["embeddings"]
    vectors = _float_tensor(content, path, "rows [N, D]")
    if vectors.ndim == 3 and vectors.shape[1] == 1:  # the training file of the public trainer
        vectors = vectors[:, 0]
    if vectors.ndim != 2 or len(vectors) < 2:
        raise LegacyError(path, f"a tensor of shape {tuple(vectors.shape)}", "rows [N, D]", "give embeddings")
    lengths = vectors.norm(dim=1)
    same = float(lengths.mean())
    # rows of one length c were scaled; unit rows may be raw, which average to 0.3 and more, or G, about nothing
    scaled = abs(same - 1) > 1e-3 or float(vectors.mean(dim=0).norm()) < 0.3
    transformed = bool((lengths - same).abs().max() < 1e-3 * same) and scaled
    return LegacyEmbeddings(vectors, round(same, 3) if transformed else 0.0, details)


def _float_tensor(content: Any, path: Path | str, expected: str) -> Tensor:
    if isinstance(content, np.ndarray) and content.dtype.kind in "fiu":
        content = torch.from_numpy(content.copy())
    if not isinstance(content, Tensor):
        raise LegacyError(path, f"a {type(content).__name__}", expected, "give the file that the public programs wrote")
    content = content.detach().float()
    if not content.isfinite().all():
        raise LegacyError(path, "values that are not finite", expected, "make the file again")
    return content
