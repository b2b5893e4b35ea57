"""What the pickles of the public bridge programs mean (spec ez-hoi.md §9.3, diffusion-bridge.md §2.3).

`read_mean` and `read_embeddings` know the layouts of the CVPR repo and the fork; nothing of a file is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from lib.bridge.geometry import check_mean, uncentre
from lib.data.restricted_pickle import read_pickle
from lib.errors import FoundExpected

MEAN_KEYS = {"text_mean": "text", "mean": "", "vision_mean": "vision", "image_mean": "vision"}  # key -> modality


class LegacyError(FoundExpected):
    """A pickle that is none of the known layouts: found, expected, mend."""


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
