"""One state and split of an embeddings table as the arrays that the gap metrics take."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from lib.analysis.embeddings import EmbeddingTable, normalised


@dataclass
class Sets:
    """One state and split, ready for the metrics."""

    v: np.ndarray  # [N, D]
    texts: np.ndarray  # [K, D], one row a class, all classes
    split_texts: np.ndarray  # [M, D], the class texts of the split
    similarity: np.ndarray  # [N, K]
    truth: np.ndarray  # [N, K] bool
    labels: np.ndarray  # [N]
    images: np.ndarray  # [N] groups of the bootstrap
    norms: np.ndarray  # [N] lengths before normalisation
    text_norm: float
    reference: np.ndarray  # [N, D] the same pairs as the detector gave them, whose neighbours are to be kept
    unseen: np.ndarray  # [N] bool
    text_unseen: np.ndarray  # [K] bool


def class_texts(table: EmbeddingTable, state: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HOI ids [K] ascending, unit text rows [K, D] of a state's space (several texts: their mean), unseen [K]."""
    text = table.texts_for(state)
    if not len(text):
        raise ValueError("embeddings table: found no row of state 'text', expected one a class; add the class texts")
    ids, first, row_class = np.unique(text.frame["hoi_id"], return_index=True, return_inverse=True)
    texts = np.zeros((len(ids), text.vectors.shape[1]), dtype=np.float32)
    np.add.at(texts, row_class, normalised(text.vectors))
    return ids, normalised(texts), text.frame["unseen"].to_numpy(dtype=bool)[first]


def labelled(table: EmbeddingTable, state: str, ids: np.ndarray) -> tuple[EmbeddingTable, np.ndarray]:
    """The vision rows of a state whose class is among ids [K], in the order of their points, and truth [N, K]."""
    vision = table.select(state)
    vision = vision.where(vision.frame["hoi_id"].isin(ids))
    order = vision.frame["point"].argsort(kind="stable").to_numpy()
    vision = replace(vision, frame=vision.frame.iloc[order].reset_index(drop=True), vectors=vision.vectors[order])
    return vision, truth_of(vision.frame, ids)


def truth_of(frame: pd.DataFrame, ids: np.ndarray) -> np.ndarray:
    """[N, K] bool: the classes of every row among ids [K] (ascending), `hoi_ids` where the table has them."""
    truth = np.zeros((len(frame), len(ids)), dtype=bool)
    truth[np.arange(len(frame)), np.searchsorted(ids, frame["hoi_id"])] = True
    if "hoi_ids" in frame:
        several = frame["hoi_ids"].reset_index(drop=True).explode().dropna().astype(int)
        several = several[several.isin(ids)]
        truth[several.index, np.searchsorted(ids, several)] = True
    return truth


def state_sets(table: EmbeddingTable, state: str) -> Sets:
    """What the metrics of one state are computed from, all classes; see `of_split`."""
    ids, texts, text_unseen = class_texts(table, state)
    vision, truth = labelled(table, state, ids)
    reference = labelled(table, own_state(table), ids)[0] if own_state(table) != state else vision
    if list(reference.frame["point"]) != list(vision.frame["point"]):
        reference = vision
    frame, v = vision.frame, normalised(vision.vectors)
    return Sets(
        v=v,
        texts=texts,
        split_texts=texts,
        similarity=(v @ texts.T).astype(np.float64),
        truth=truth,
        labels=frame["hoi_id"].to_numpy(),
        # pairs of no known image are their own group
        images=np.where(frame["image"] >= 0, frame["image"], -1 - np.arange(len(frame))),
        norms=np.linalg.norm(vision.vectors, axis=1).astype(np.float64),
        text_norm=float(np.linalg.norm(table.texts_for(state).vectors, axis=1).mean()),
        reference=normalised(reference.vectors),
        unseen=frame["unseen"].to_numpy(dtype=bool),
        text_unseen=text_unseen,
    )


def own_state(table: EmbeddingTable) -> str:
    """The vision state that holds the detector's own features: `adapted`, or the first where there is none."""
    return "adapted" if "adapted" in table.states else table.states[0]


def of_split(sets: Sets, split: str) -> Sets:
    """The pairs of `all`, `seen` or `unseen` classes; class-aware metrics keep ranking against all classes."""
    if split == "all":
        return sets
    rows = sets.unseen == (split == "unseen")
    fields = ("v", "similarity", "truth", "labels", "images", "norms", "reference", "unseen")
    kept = {name: getattr(sets, name)[rows] for name in fields}
    return replace(sets, **kept, split_texts=sets.texts[sets.text_unseen == (split == "unseen")])


def moved(sets: Sets, v: np.ndarray, texts: np.ndarray) -> Sets:
    """The same pairs with other vision rows [N, D] and class texts [K, D]."""
    v, texts = normalised(v), normalised(texts)
    similarity = (v @ texts.T).astype(np.float64)
    return replace(sets, v=v, texts=texts, split_texts=texts, similarity=similarity)
