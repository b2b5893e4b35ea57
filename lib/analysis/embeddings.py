"""The embeddings table: one row a point, its vector in a companion array.

    <folder>/embeddings.parquet   the columns below, and `<method>_x`, `<method>_y` for every projection
    <folder>/vectors.npy          [N, D] float32, row order = table
    <folder>/embeddings.json      rows a state, dimension, projection parameters

A pair of boxes gives one row a vision state (raw | centred | bridged) with the same `point`, so that its movement can
be followed; a class text gives one row `text`. Raw vision is compared with raw text; centred and bridged vision live
in the space from which the mean has been subtracted and are compared with text centred in the same way
(spec diffusion-bridge.md §1.3, defect i). That text is the state `text_centred`: written by the caller when the
classifier used a mean of its own (e.g. of captions), else derived here from the mean of the class texts.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.runs import atomic_write, write_json

VISION_STATES = ("raw", "centred", "bridged")
TEXT_STATES = ("text", "text_centred")
MODALITY = {state: "vision" for state in VISION_STATES} | {state: "text" for state in TEXT_STATES}
BOXES_H = ("x1h", "y1h", "x2h", "y2h")
BOXES_O = ("x1o", "y1o", "x2o", "y2o")

# column -> value for a row that does not say; None marks the columns that every row must have
COLUMNS: dict[str, Any] = {
    "point": None,
    "modality": None,
    "state": None,
    "hoi": None,
    "verb": None,
    "object": None,
    "hoi_id": None,
    "unseen": False,
    "image": -1,
    "score": np.nan,
    "correct": False,
    **dict.fromkeys(BOXES_H + BOXES_O, np.nan),
}


def normalised(vectors: np.ndarray) -> np.ndarray:
    """L2-normalised rows [N, D] as float32; the norm is floored at 1e-12."""
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


@dataclass
class EmbeddingTable:
    """Points and their vectors.

    frame: one row a point; columns of `COLUMNS` and any others. The optional column `hoi_ids` (list of int) holds all
        ground-truth classes of a pair that has several; without it the class is `hoi_id`. A pair of no class has
        `hoi_id` -1 and is left out of the class-aware metrics.
    vectors: [N, D] float32, as they came out of the model (the metrics normalise them).
    info: JSON-able remarks saved beside the table, e.g. the projections' parameters.
    """

    frame: pd.DataFrame
    vectors: np.ndarray
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        missing = [name for name, default in COLUMNS.items() if default is None and name not in self.frame]
        if missing:
            raise ValueError(f"embeddings table: found no column {missing}, expected all of {list(COLUMNS)}")
        self.vectors = np.asarray(self.vectors, dtype=np.float32)
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.frame):
            raise ValueError(
                f"embeddings table: found vectors {list(self.vectors.shape)} for {len(self.frame)} rows, "
                "expected one row [D] for every row of the table"
            )
        if not np.isfinite(self.vectors).all():
            row = int(np.flatnonzero(~np.isfinite(self.vectors).all(1))[0])
            raise ValueError(f"embeddings table: vector {row} holds a value that is not finite; look at its model")
        unknown = set(self.frame["state"]) - set(MODALITY)
        if unknown:
            raise ValueError(f"embeddings table: found states {sorted(unknown)}, expected some of {list(MODALITY)}")
        if self.frame.duplicated(["state", "point"]).any():
            twice = self.frame.loc[self.frame.duplicated(["state", "point"]), ["state", "point"]].iloc[0].tolist()
            raise ValueError(f"embeddings table: {twice} stands there twice, expected one row a (state, point)")
        defaults = {name: value for name, value in COLUMNS.items() if name not in self.frame}
        frame = self.frame.assign(**defaults).reset_index(drop=True)
        # rows of texts and pairs are often concatenated from frames of unequal columns, which leaves gaps
        frame["image"] = frame["image"].fillna(-1).astype(int)
        for name in ("unseen", "correct"):
            frame[name] = frame[name].eq(True)
        self.frame = frame

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def states(self) -> list[str]:
        """Vision states present, in the order raw, centred, bridged."""
        present = set(self.frame["state"])
        return [state for state in VISION_STATES if state in present]

    @property
    def methods(self) -> list[str]:
        """Projections whose coordinates are columns of the table."""
        return [name[:-2] for name in self.frame.columns if name.endswith("_x") and f"{name[:-2]}_y" in self.frame]

    # ---------------------------------------------------------------- parts

    def where(self, keep: np.ndarray | pd.Series) -> EmbeddingTable:
        """The rows of a boolean mask [N]."""
        keep = np.asarray(keep, dtype=bool)
        return replace(self, frame=self.frame[keep], vectors=self.vectors[keep])

    def select(self, state: str | Sequence[str] | None = None, modality: str | None = None) -> EmbeddingTable:
        """The rows of one or several states and / or one modality; an empty selection is allowed."""
        keep = np.ones(len(self), dtype=bool)
        if state is not None:
            keep &= self.frame["state"].isin([state] if isinstance(state, str) else list(state)).to_numpy()
        if modality is not None:
            keep &= (self.frame["modality"] == modality).to_numpy()
        return self.where(keep)

    def sample(self, pairs: int, seed: int) -> EmbeddingTable:
        """All texts and at most `pairs` vision points, drawn with `seed`; the same points in every state."""
        vision = self.frame["modality"] == "vision"
        points = np.sort(self.frame.loc[vision, "point"].unique())
        if len(points) > pairs:
            points = np.random.default_rng(seed).choice(points, pairs, replace=False)
        return self.where(~vision | self.frame["point"].isin(points))

    def with_centred_text(self) -> EmbeddingTable:
        """The table with a `text_centred` row a text: N(N(t) - mean N(t)); unchanged if it already has them."""
        if not len(self.select("text")) or len(self.select("text_centred")):
            return self
        text = self.select("text")
        unit = normalised(text.vectors)
        centred = text.frame.assign(state="text_centred").drop(columns=self._coordinates(), errors="ignore")
        return replace(
            self,
            frame=pd.concat([self.frame, centred], ignore_index=True),
            vectors=np.concatenate([self.vectors, normalised(unit - unit.mean(0))]),
        )

    def texts_for(self, state: str) -> EmbeddingTable:
        """The text rows that live in the space of a vision state."""
        table = self.with_centred_text()
        return table.select("text" if state == "raw" else "text_centred")

    def _coordinates(self) -> list[str]:
        return [f"{method}_{axis}" for method in self.methods for axis in "xy"]

    # ---------------------------------------------------------------- files

    def save(self, folder: Path | str) -> Path:
        """Write the three files, each atomically; the folder is made."""
        folder = Path(folder)
        atomic_write(folder / "vectors.npy", lambda stream: np.save(stream, self.vectors, allow_pickle=False))
        buffer = io.BytesIO()
        self.frame.to_parquet(buffer, index=False)
        atomic_write(folder / "embeddings.parquet", lambda stream: stream.write(buffer.getvalue()))
        counts = {name: int(count) for name, count in self.frame["state"].value_counts().items()}
        write_json(folder / "embeddings.json", {"rows": counts, "dim": self.vectors.shape[1], **self.info})
        return folder

    @classmethod
    def load(cls, folder: Path | str) -> EmbeddingTable:
        """Read a folder written by `save`; raises FileNotFoundError naming the missing file."""
        folder = Path(folder)
        for name in ("embeddings.parquet", "vectors.npy", "embeddings.json"):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder / name}: not found, expected an embeddings folder; write one with EmbeddingTable.save "
                    "(notebook 05_embedding_analysis)"
                )
        info = json.loads((folder / "embeddings.json").read_text())
        info = {key: value for key, value in info.items() if key not in ("rows", "dim")}
        vectors = np.load(folder / "vectors.npy", allow_pickle=False)
        return cls(pd.read_parquet(folder / "embeddings.parquet"), vectors, info)
