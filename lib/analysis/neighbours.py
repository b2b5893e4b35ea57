"""Nearest neighbours and nearest classes in the original space, never in a picture of it.

table = with_neighbours(table, k=5)
nearest_rows(table, row, "text", k=5)      # live, for any row
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from lib.analysis.embeddings import EmbeddingTable, normalised
from lib.analysis.gap import nearest
from lib.analysis.gap_sets import class_texts, truth_of

MODALITIES = ("vision", "text")


def with_neighbours(table: EmbeddingTable, k: int = 5) -> EmbeddingTable:
    """The table (with its centred text) and, for every row, its neighbours within and across the modalities.

    near_vision, near_text: lists of k `point` names, nearest first; near_vision_cosine, near_text_cosine: beside them.
    near5, near5_cosine: names and cosines of the k nearest classes (several texts of a class are one).
    Vision looks among the rows of its own state and among the texts of its space; a text among the texts beside it and
    among the pairs of the first vision state that is compared with it. A row is never its own neighbour.
    """
    table = table.with_centred_text()
    columns = {f"near_{name}{end}": _empty(len(table)) for name in MODALITIES for end in ("", "_cosine")}
    columns |= {"near5": _empty(len(table)), "near5_cosine": _empty(len(table))}
    names = table.frame["point"].to_numpy()
    unit = normalised(table.vectors)
    for rows, modality, candidates in _searches(table):
        found = nearest(unit[rows], k, None if rows is candidates else unit[candidates])  # (n, k)
        cosine = np.einsum("nd,nkd->nk", unit[rows], unit[candidates[found]])
        _fill(columns, f"near_{modality}", f"near_{modality}_cosine", rows, names[candidates[found]], cosine)
    class_names = table.frame.drop_duplicates("hoi_id").set_index("hoi_id")["hoi"]
    for source in table.sources:
        own = table.source(source)
        for state in own.states:
            ids, texts, _ = class_texts(own, state)
            rows = np.flatnonzero(_of(table, source, state))
            found = nearest(unit[rows], k, texts)
            cosine = np.take_along_axis(unit[rows] @ texts.T, found, axis=1)
            _fill(columns, "near5", "near5_cosine", rows, class_names.loc[ids].to_numpy()[found], cosine)
    return replace(table, frame=table.frame.assign(**columns))


def nearest_rows(table: EmbeddingTable, row: int, modality: str, k: int = 5) -> pd.DataFrame:
    """The k rows nearest to one row (a position in the table) among vision or text, best first, with their `cosine`."""
    for rows, kind, candidates in _searches(table):
        if kind == modality and row in rows:
            unit = normalised(table.vectors)
            cosine = unit[candidates] @ unit[row]
            cosine[candidates == row] = -np.inf
            best = np.argsort(-cosine, kind="stable")[: min(k, len(candidates) - (row in candidates))]
            return table.frame.iloc[candidates[best]].assign(cosine=cosine[best])
    raise ValueError(f"neighbours: row {row} has nothing of modality {modality!r} to look among, expected {MODALITIES}")


def _searches(table: EmbeddingTable) -> list[tuple[np.ndarray, str, np.ndarray]]:
    """(rows that look, modality they look among, candidates), rows being the candidates themselves within a state."""
    found, looked = [], set()
    for source in table.sources:
        own = table.source(source)
        for state in own.states:
            text_state = own.text_state(state)
            vision, text = (np.flatnonzero(_of(table, source, name)) for name in (state, text_state))
            found += [(vision, "vision", vision), (vision, "text", text)]
            if (source, text_state) not in looked:
                looked.add((source, text_state))
                found += [(text, "text", text), (text, "vision", vision)]
    return [search for search in found if len(search[0]) and len(search[2])]


def _of(table: EmbeddingTable, source: str, state: str) -> np.ndarray:
    return ((table.frame["source"] == source) & (table.frame["state"] == state)).to_numpy()


def _empty(length: int) -> np.ndarray:
    column = np.empty(length, dtype=object)
    column[:] = [[] for _ in range(length)]
    return column


def _fill(columns: dict, names: str, cosines: str, rows: np.ndarray, found: np.ndarray, cosine: np.ndarray) -> None:
    for column, values in ((names, found), (cosines, cosine.round(4))):
        columns[column][rows] = np.fromiter((list(line) for line in values.tolist()), dtype=object, count=len(rows))


def outcome_columns(table: EmbeddingTable) -> EmbeddingTable:
    """The table with `true_cosine` and `margin` (cosine to the true class, and that less the best wrong class) on
    every labelled vision row, and `moved` = 1 - cos(centred, bridged) on bridged ones; NaN elsewhere."""
    columns = {name: np.full(len(table), np.nan) for name in ("true_cosine", "margin", "moved")}
    frame, unit = table.frame, normalised(table.vectors)
    for source in table.sources:
        own = table.source(source)
        for state in own.states:
            ids, texts, _ = class_texts(own, state)
            rows = np.flatnonzero(_of(table, source, state) & frame["hoi_id"].isin(ids).to_numpy())
            truth = truth_of(frame.iloc[rows], ids)
            similarity = (unit[rows] @ texts.T).astype(np.float64)
            best = np.where(truth, similarity, -np.inf).max(1)
            columns["true_cosine"][rows] = best
            columns["margin"][rows] = best - np.where(truth, -np.inf, similarity).max(1)
        before, after = (np.flatnonzero(_of(table, source, state)) for state in ("centred", "bridged"))
        _, one, other = np.intersect1d(frame["point"].iloc[before], frame["point"].iloc[after], return_indices=True)
        columns["moved"][after[other]] = 1 - (unit[before[one]] * unit[after[other]]).sum(1)
    return replace(table, frame=frame.assign(**columns))
