"""An embeddings table turned around for looking: one row a point, its vectors and coordinates looked up by state.

The table holds a row a (point, state). A scene holds the pairs that exist in every state, then the class texts, in one
fixed order; `rows[state]` says where they lie in the table. So the same row is the same pair in every panel, selecting
and hovering are shared by row number, and moving from state to state moves points instead of replacing them. The text
of a state is the one of its space (`EmbeddingTable.text_state`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pandas as pd

from lib.analysis.embeddings import EmbeddingTable, normalised
from lib.analysis.projections import project
from lib.errors import FoundExpected

OUTCOMES = ("right before and after", "gained", "lost", "wrong before and after")


class Scene:
    """The points of one run, ready to be drawn.

    table: an embeddings table; without coordinates it gets an exact PCA.
    name: of the run, for titles. sentences: class sentence a HOI id, used where the table has no column `sentence`.
    trajectory: the bridge's way by step (columns point, step, `<method>_x`, `<method>_y`) of some or all pairs.
    only: ids of the points to keep, in this order; None keeps all. Two scenes of the same `only` share their rows.

    frame: one row a point (pairs, then texts): the table's columns of its first state without coordinates, and
        `sentence`, `outcome` (does the nearest class text become right), `moved` (1 - cosine of before and after),
        `margin_change` (true class less best wrong class, after less before).
    """

    def __init__(
        self,
        table: EmbeddingTable,
        name: str = "",
        sentences: Sequence[str] = (),
        only: Sequence[str] | None = None,
        trajectory: pd.DataFrame | None = None,
    ) -> None:
        if not table.methods:
            table = project(table, ["pca"])
        self.table, self.name = table.with_centred_text(), name
        frame = self.table.frame
        self.states = self.table.states
        if not self.states:
            raise FoundExpected("embeddings table", "no vision row", "pairs in at least one state", "run notebook 05")
        self.methods = self.table.methods
        self.rows = self._aligned(frame, only)
        self._unit: dict[str, np.ndarray] = {}
        self._margins: dict[str, np.ndarray] = {}
        self.frame = self._frame(frame, sentences)
        self.frame = self.frame.assign(**self._movement())
        self.trajectory = _steps(trajectory)
        named = self.frame["point"].drop_duplicates()  # where pairs and texts are counted alike the pair has the name
        self.row_of = dict(zip(named, named.index.tolist(), strict=True))

    def _aligned(self, frame: pd.DataFrame, only: Sequence[str] | None) -> dict[str, np.ndarray]:
        """state -> [P + T] row numbers in the table, the same point at the same place in every state."""
        at = {state: part.astype(str) for state, part in frame.groupby("state", sort=False)["point"]}
        where = {state: pd.Series(part.index.to_numpy(), index=part.to_numpy()) for state, part in at.items()}
        common = where[self.states[0]].index
        for state in self.states[1:]:
            common = common[common.isin(where[state].index)]
        none = pd.Series(dtype=int)
        side = {state: self.table.text_state(state) for state in self.states}
        texts = where.get(side[self.states[0]], none).index
        for state in self.states[1:]:
            texts = texts[texts.isin(where.get(side[state], none).index)]
        if only is not None:
            common, texts = (pd.Index([point for point in only if point in set(part)]) for part in (common, texts))
        self.pairs, self.texts = len(common), len(texts)
        return {
            state: np.concatenate([where[state].loc[common], where.get(side[state], none).loc[texts]]).astype(int)
            for state in self.states
        }

    def _frame(self, frame: pd.DataFrame, sentences: Sequence[str]) -> pd.DataFrame:
        coordinates = [f"{method}_{axis}" for method in self.methods for axis in "xy"]
        own = frame.iloc[self.rows[self.states[0]]].drop(columns=["state", *coordinates]).reset_index(drop=True)
        own["point"] = own["point"].astype(str)
        if not own["sentence"].ne("").any():
            known = dict(enumerate(sentences))
            own["sentence"] = [known.get(int(i), hoi) for i, hoi in zip(own["hoi_id"], own["hoi"], strict=True)]
        return own

    def _movement(self) -> dict[str, np.ndarray]:
        """The columns outcome, moved, margin_change; unknown where there is only one state or no text."""
        outcome = np.full(self.pairs + self.texts, "text", dtype=object)
        moved, gained = (np.full(len(outcome), np.nan) for _ in range(2))
        if self.before != self.after and self.pairs and self.texts:
            first, last = self.margins(self.before), self.margins(self.after)
            code = np.select([(first > 0) & (last > 0), last > 0, first > 0], [0, 1, 2], 3)
            outcome[: self.pairs] = np.array(OUTCOMES)[code]
            gained[: self.pairs] = last - first
            ends = (self.vectors(state)[: self.pairs] for state in (self.before, self.after))
            moved[: self.pairs] = 1 - np.einsum("nd,nd->n", *ends)
        return {"outcome": outcome, "moved": moved, "margin_change": gained}

    # ---------------------------------------------------------------- what there is

    @property
    def before(self) -> str:
        """The state that a movement starts from: the one before the last, since earlier ones lie in other spaces."""
        return self.states[max(len(self.states) - 2, 0)]

    @property
    def after(self) -> str:
        """The last state."""
        return self.states[-1]

    def vectors(self, state: str) -> np.ndarray:
        """[P + T, D] normalised vectors of a state and of the texts of its space."""
        if state not in self._unit:  # looked at with every click
            self._unit[state] = normalised(self.table.vectors[self.rows[state]])
        return self._unit[state]

    def column(self, name: str, state: str) -> np.ndarray:
        """[P + T] a column of the table that differs from state to state, such as score and correct."""
        return self.table.frame[name].to_numpy()[self.rows[state]]

    def coordinates(self, state: str, method: str) -> np.ndarray:
        """[P + T, 2] of a projection; NaN for a point that the projection left out."""
        columns = [f"{method}_x", f"{method}_y"]
        return self.table.frame[columns].to_numpy(dtype=np.float64)[self.rows[state]]

    @property
    def steps(self) -> int:
        """Steps of the bridge whose coordinates are known; 0 without a trajectory."""
        return int(self.trajectory["step"].max()) if len(self.trajectory) else 0

    def can_step(self, method: str) -> bool:
        """Whether the trajectory was projected with a method."""
        return bool(self.steps) and f"{method}_x" in self.trajectory

    def step_coordinates(self, step: int, method: str) -> np.ndarray:
        """[P + T, 2] on the way of the bridge (0: centred); NaN for a pair whose way was not kept; texts stay."""
        found = self.coordinates(self.after, method)
        found[: self.pairs] = np.nan
        part = self.trajectory[self.trajectory["step"] == step]
        rows = part["point"].astype(str).map(self.row_of)
        known = rows.notna().to_numpy()
        columns = [f"{method}_x", f"{method}_y"]
        found[rows[known].astype(int)] = part.loc[known, columns].to_numpy(dtype=np.float64)
        return found

    def limits(self, method: str, states: Sequence[str] = (), margin: float = 0.05) -> np.ndarray:
        """[2, 2] low and high of both axes over states (default: all): one frame for all panels shows movement."""
        every = np.concatenate([self.coordinates(state, method) for state in states or self.states])
        low, high = np.nanmin(every, axis=0), np.nanmax(every, axis=0)
        pad = margin * np.maximum(high - low, 1e-6)
        return np.stack([low - pad, high + pad], axis=1)

    # ---------------------------------------------------------------- classes

    @cached_property
    def classes(self) -> pd.DataFrame:
        """One row a class that has a text: hoi_id, hoi, verb, object, unseen, in order of the id."""
        text = self.frame.iloc[self.pairs :]
        return text.drop_duplicates("hoi_id").sort_values("hoi_id")[["hoi_id", "hoi", "verb", "object", "unseen"]]

    def class_vectors(self, state: str) -> np.ndarray:
        """[K, D] mean direction of the texts of each row of `classes`, in the space of a state."""
        codes = np.searchsorted(self.classes["hoi_id"], self.frame["hoi_id"].iloc[self.pairs :])
        unit = self.vectors(state)[self.pairs :]
        total = np.zeros((len(self.classes), unit.shape[1]), dtype=np.float32)
        np.add.at(total, codes, unit)
        return normalised(total)

    @cached_property
    def truth(self) -> np.ndarray:
        """[P, K] bool: the ground-truth classes of every pair."""
        ids = self.classes["hoi_id"].to_numpy()
        pair = self.frame.iloc[: self.pairs]
        several = pair["hoi_ids"] if "hoi_ids" in pair else pair["hoi_id"]
        flat = several.explode().dropna().astype(int)
        flat = flat[flat.isin(ids)]
        truth = np.zeros((self.pairs, len(ids)), dtype=bool)
        truth[flat.index, np.searchsorted(ids, flat)] = True
        return truth

    def class_cosines(self, state: str, rows: np.ndarray | slice) -> np.ndarray:
        """[n, K] cosine of rows to every class text in the space of a state."""
        return self.vectors(state)[rows] @ self.class_vectors(state).T

    def margins(self, state: str) -> np.ndarray:
        """[P] best true class less best wrong class; NaN for a pair of no known class."""
        if state not in self._margins:
            cosine = self.class_cosines(state, slice(0, self.pairs))
            best = [np.where(part, cosine, -np.inf).max(1, initial=-np.inf) for part in (self.truth, ~self.truth)]
            finite = np.isfinite(best).all(0)
            self._margins[state] = np.where(finite, np.subtract(*best, where=finite, out=np.zeros(len(finite))), np.nan)
        return self._margins[state]

    def predictions(self, row: int, state: str, count: int = 5) -> pd.DataFrame:
        """The five best classes of a point: hoi, score, true; `attrs["what"]` says whose.

        The scorer's own where the table has them (`top5`), else the nearest class texts.
        """
        true = self.truth[row] if row < self.pairs else self.classes["hoi_id"].eq(self.frame["hoi_id"][row]).to_numpy()
        names = self.classes["hoi"].to_numpy()
        if row < self.pairs and "top5" in self.table.frame:
            found = self.table.frame.iloc[self.rows[state][row]]
            if np.size(found["top5"]):
                best = pd.DataFrame({"hoi": found["top5"], "score": found["top5_score"]}).head(count)
                best["true"] = best["hoi"].isin(names[true])
                best.attrs["what"] = "best classes by score"
                return best
        cosine = self.class_cosines(state, np.array([row]))[0]
        order = np.argsort(-cosine, kind="stable")[:count]
        best = pd.DataFrame({"hoi": names[order], "score": cosine[order], "true": true[order]})
        best.attrs["what"] = "nearest class sentences by cosine"
        return best

    def hits(self, state: str, rows: np.ndarray | slice = slice(None)) -> float:
        """Share of the pairs among `rows` whose nearest class text is a ground-truth class; NaN without any."""
        rows = np.arange(self.pairs + self.texts)[rows]
        margin = self.margins(state)[rows[rows < self.pairs]]
        margin = margin[np.isfinite(margin)]
        return float((margin > 0).mean()) if len(margin) else float("nan")

    # ---------------------------------------------------------------- finding points

    def neighbours(self, row: int, state: str, count: int = 6) -> pd.DataFrame:
        """The nearest pairs of a point in the original space (never in the picture): row, hoi, cosine, same (class)."""
        unit = self.vectors(state)
        cosine = unit[: self.pairs] @ unit[row]
        if row < self.pairs:
            cosine[row] = -np.inf
        best = np.argsort(-cosine, kind="stable")[: min(count, self.pairs - (row < self.pairs))]
        found = self.frame.iloc[best]
        same = found["hoi_id"].eq(self.frame["hoi_id"][row]).to_numpy()
        return pd.DataFrame({"row": best, "hoi": found["hoi"].to_numpy(), "cosine": cosine[best], "same": same})

    @cached_property
    def _words(self) -> pd.Series:
        f = self.frame
        split = f["unseen"].map({True: "unseen", False: "seen"})
        kind = np.where(np.arange(len(f)) < self.pairs, "pair image:" + f["image"].astype(str), "text")
        words = f["hoi"] + " " + f["sentence"].astype(str) + " " + split + " " + kind + " " + f["outcome"]
        return (words + " " + f["point"].astype(str)).map(_plain)

    def search(self, words: str) -> np.ndarray:
        """Rows that hold every word or its beginning: HOI, sentence, seen, unseen, pair, text, image:12, an id."""
        found = pd.Series(True, index=self._words.index)
        for word in _plain(words).split():
            end = r"(?:\s|$)" if ":" in word else ""  # image:1 is not image:12
            found &= self._words.str.contains(rf"(?:^|\s){re.escape(word)}{end}", regex=True)
        return np.flatnonzero(found) if words.strip() else np.zeros(0, dtype=int)

    def movers(self, count: int, rows: np.ndarray | None = None) -> np.ndarray:
        """The pairs that the last step moved furthest in the original space, furthest first; among `rows` if given."""
        moved = self.frame["moved"].to_numpy()
        rows = np.arange(self.pairs) if rows is None else rows[rows < self.pairs]
        rows = rows[np.isfinite(moved[rows])]
        return rows[np.argsort(-moved[rows], kind="stable")[:count]]


def _steps(trajectory: pd.DataFrame | None) -> pd.DataFrame:
    return pd.DataFrame(columns=["point", "step"]) if trajectory is None else trajectory


def _plain(text: object) -> str:
    return str(text).lower().replace("_", " ")


def scenes(
    tables: Sequence[EmbeddingTable],
    names: Sequence[str],
    sentences: Sequence[str] = (),
    trajectories: Sequence[pd.DataFrame | None] = (),
) -> list[Scene]:
    """One scene a run; two runs keep only the points that both have, so that a row is the same pair in both.

    Raises FoundExpected where two runs share no pair.
    """
    ways = list(trajectories) or [None] * len(tables)
    made = [Scene(*both, sentences, trajectory=way) for *both, way in zip(tables, names, ways, strict=True)]
    if len(made) == 1:
        return made
    kinds = [{point: row < scene.pairs for point, row in scene.row_of.items()} for scene in made]
    shared = [point for point, pair in kinds[0].items() if all(kind.get(point) == pair for kind in kinds[1:])]
    if not any(kinds[0][point] for point in shared):
        raise FoundExpected(
            " and ".join(names), "no pair in common", "pairs with the same `point` ids",
            "compare runs of one detector on the same images",
        )  # fmt: skip
    return [Scene(*both, sentences, shared, way) for *both, way in zip(tables, names, ways, strict=True)]
