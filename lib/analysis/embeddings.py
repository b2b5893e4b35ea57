"""The embeddings table: one row a point, with its vector, in one file.

    <folder>/embeddings.parquet   the columns below, `vector` (fixed-size list of D float32), `<method>_x`, `<method>_y`
                                  of every projection; remarks (parameters of the projections) in the file's metadata

A pair of boxes gives one row a vision state with the same `point`, so that its movement can be followed:

    raw       frozen CLIP on the regions of the pair     compared with text_raw, the frozen class sentences
    adapted   the detector's pair feature                compared with text, class sentences as the detector has them
    centred   the same less the mean of its modality     compared with text_centred, text less the mean of text
    bridged   what the bridge makes of it                compared with text_centred

Centred and bridged vision live in the space from which the mean has been subtracted and are compared with text centred
in the same way (spec diffusion-bridge.md §1.3, defect i). `text_centred` is written by the caller when the classifier
used a mean of its own (e.g. of captions), else derived here from the mean of the class texts. A state may be missing;
without `text_raw` raw vision is compared with `text`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lib.errors import FoundExpected
from lib.runs import atomic_write

FILE, INFO = "embeddings.parquet", b"embeddings"
VISION_STATES = ("raw", "adapted", "centred", "bridged")
TEXT_STATES = ("text_raw", "text", "text_centred")
# the texts that live in the space of a vision state; of several the first that the table has
TEXT_OF = {
    "raw": ("text_raw", "text"),
    "adapted": ("text",),
    "centred": ("text_centred",),
    "bridged": ("text_centred",),
}
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
    "source": "",
    "split": "",
    "sentence": "",
    "unseen": False,
    "rare": False,
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

    frame: one row a point; columns of `COLUMNS` and any others. `source` names the run or checkpoint of a row where a
        table holds several (`compare`), `split` the images (train | test). The optional column `hoi_ids` (list of int)
        holds all ground-truth classes of a pair that has several; without it the class is `hoi_id`. A pair of no class
        has `hoi_id` -1 and is left out of the class-aware metrics.
    vectors: [N, D] float32, as they came out of the model (the metrics normalise them).
    info: JSON-able remarks saved with the table, e.g. the projections' parameters.
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
        defaults = {name: value for name, value in COLUMNS.items() if name not in self.frame}
        frame = self.frame.assign(**defaults).reset_index(drop=True)
        key = ["source", "state", "point"]
        if frame.duplicated(key).any():
            twice = frame.loc[frame.duplicated(key), ["state", "point"]].iloc[0].tolist()
            raise ValueError(f"embeddings table: {twice} stands there twice, expected one row a (source, state, point)")
        # rows of texts and pairs are often concatenated from frames of unequal columns, which leaves gaps
        frame["image"] = frame["image"].fillna(-1).astype(int)
        for name in ("unseen", "rare", "correct"):
            frame[name] = frame[name].eq(True)
        for name in ("source", "split", "sentence"):
            frame[name] = frame[name].fillna("")
        self.frame = frame

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def states(self) -> list[str]:
        """Vision states present, in the order of VISION_STATES."""
        present = set(self.frame["state"])
        return [state for state in VISION_STATES if state in present]

    @property
    def sources(self) -> list[str]:
        """Runs or checkpoints of the rows, in the order of the table; [""] for a table of one run."""
        return list(dict.fromkeys(self.frame["source"]))

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

    def source(self, name: str) -> EmbeddingTable:
        """The rows of one run or checkpoint."""
        if name not in self.sources:
            raise FoundExpected("embeddings table", f"no source {name!r}", f"one of {self.sources}", "look at .sources")
        return self.where(self.frame["source"] == name)

    def sample(self, pairs: int, seed: int) -> EmbeddingTable:
        """All texts and at most `pairs` vision points, drawn with `seed`; the same points in every state."""
        vision = self.frame["modality"] == "vision"
        points = np.sort(self.frame.loc[vision, "point"].unique())
        if len(points) > pairs:
            points = np.random.default_rng(seed).choice(points, pairs, replace=False)
        return self.where(~vision | self.frame["point"].isin(points))

    def with_centred_text(self) -> EmbeddingTable:
        """The table with a `text_centred` row a text: N(N(t) - mean N(t)); unchanged where it already has them."""
        frames, vectors = [self.frame], [self.vectors]
        for name in self.sources:
            own = self.source(name)
            text = own.select("text")
            if len(text) and not len(own.select("text_centred")):
                unit = normalised(text.vectors)
                frames.append(text.frame.assign(state="text_centred").drop(columns=self._coordinates()))
                vectors.append(normalised(unit - unit.mean(0)))
        if len(frames) == 1:
            return self
        return replace(self, frame=pd.concat(frames, ignore_index=True), vectors=np.concatenate(vectors))

    def texts_for(self, state: str) -> EmbeddingTable:
        """The text rows that live in the space of a vision state."""
        return self.with_centred_text().select(self.text_state(state))

    def text_state(self, state: str) -> str:
        """The text state that a vision state is compared with."""
        present = set(self.frame["state"])
        return next((name for name in TEXT_OF[state] if name in present), TEXT_OF[state][-1])

    def _coordinates(self) -> list[str]:
        return [f"{method}_{axis}" for method in self.methods for axis in "xy"]

    # ---------------------------------------------------------------- files

    def save(self, folder: Path | str) -> Path:
        """Write the file, atomically; the folder is made."""
        folder = Path(folder)
        flat = pa.array(np.ascontiguousarray(self.vectors).ravel())
        vectors = pa.FixedSizeListArray.from_arrays(flat, self.vectors.shape[1])
        table = pa.Table.from_pandas(self.frame, preserve_index=False).append_column("vector", vectors)
        table = table.replace_schema_metadata((table.schema.metadata or {}) | {INFO: json.dumps(self.info).encode()})
        # vectors are noise to a compressor and to a dictionary
        columns = [name for name in table.column_names if name != "vector"]
        atomic_write(folder / FILE, lambda stream: pq.write_table(table, stream, use_dictionary=columns))
        return folder

    @classmethod
    def load(cls, folder: Path | str) -> EmbeddingTable:
        """Read a folder written by `save`; raises FileNotFoundError naming the missing file."""
        path = Path(folder) / FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: not found, expected an embeddings table; write one with EmbeddingTable.save "
                "(notebook 05_embedding_analysis)"
            )
        table = pq.read_table(path)
        if "vector" not in table.column_names:
            raise FoundExpected(
                path, "no column `vector`", "a table with its vectors (an older build kept them in vectors.npy)",
                "make it again: notebook 05 with recompute=[embeddings]",
            )  # fmt: skip
        column = table.column("vector").combine_chunks()
        vectors = column.flatten().to_numpy().reshape(len(column), column.type.list_size)
        info = json.loads((table.schema.metadata or {}).get(INFO, b"{}"))
        return cls(table.drop_columns("vector").to_pandas(), vectors, info)


def compare(tables: Mapping[str, EmbeddingTable]) -> EmbeddingTable:
    """Tables of several runs or checkpoints as one, `source` = their names; coordinates are dropped.

    Their spaces must have one dimension; project the result to see them in one picture.
    """
    widths = {name: table.vectors.shape[1] for name, table in tables.items()}
    if len(set(widths.values())) != 1:
        raise FoundExpected("compare", f"widths {widths}", "one width", "compare runs of the same CLIP model")
    parts = {name: table.with_centred_text() for name, table in tables.items()}
    frames = [t.frame.drop(columns=t._coordinates()).assign(source=name) for name, t in parts.items()]
    info = {"sources": {name: table.info for name, table in parts.items()}}
    return EmbeddingTable(
        pd.concat(frames, ignore_index=True), np.concatenate([t.vectors for t in parts.values()]), info
    )
