"""Which sentence is each class of pairs near? A sorted matrix of cosines, for the live view and for figures."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lib.analysis.embeddings import normalised
from lib.analysis.scene import Scene


def class_matrix(scene: Scene, state: str, rows: np.ndarray | None = None, limit: int = 60) -> pd.DataFrame:
    """Cosine of the mean direction of each class's pairs (row) to class texts (column), sorted by verb and object.

    rows: only these pairs; None or none of them takes all. Columns: the classes of most pairs in the scene, at most
    `limit`, and those of the rows. Where row and column name one class is where a detector wants the light.
    """
    pairs = np.arange(scene.pairs) if rows is None else rows[rows < scene.pairs]
    pairs = pairs if len(pairs) else np.arange(scene.pairs)
    common = np.argsort(-scene.truth.sum(0), kind="stable")[:limit]
    count = scene.truth[pairs].sum(0)
    own = np.argsort(-count, kind="stable")[: min(limit, int((count > 0).sum()))]
    order = scene.classes.reset_index(drop=True).sort_values(["verb", "object"]).index.to_numpy()
    own, shown = order[np.isin(order, own)], order[np.isin(order, np.union1d(common, own))]
    means = normalised(scene.truth[pairs][:, own].T.astype(np.float32) @ scene.vectors(state)[pairs])  # (k, D)
    names = scene.classes["hoi"].str.replace("_", " ").to_numpy()
    cosine = means @ scene.class_vectors(state)[shown].T
    return pd.DataFrame(cosine, index=names[own].tolist(), columns=names[shown].tolist())


def own_share(matrix: pd.DataFrame) -> float:
    """Share of the classes whose pairs are, on average, nearest to their own sentence; NaN for no class."""
    return float(np.mean(matrix.columns[matrix.to_numpy().argmax(1)] == matrix.index)) if len(matrix) else float("nan")
