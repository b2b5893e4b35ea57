"""V-COCO predictions: the official pickled list of records, or a table (spec data-and-evaluation.md §5.7)."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq

from lib.data.restricted_pickle import read_pickle
from lib.evaluation.errors import PredictionError
from lib.evaluation.prediction_table import parquet_columns
from lib.evaluation.vcoco_annotation import ACTIONS, ROLES, RoleTruth
from lib.runs import atomic_write

_HUMAN = ("h_x1", "h_y1", "h_x2", "h_y2")
_OBJECT = ("o_x1", "o_y1", "o_x2", "o_y2")
_OURS = {"image": "image_id", "hoi": "hoi_id"} | {f"{name[2:]}{name[0]}": name for name in (*_HUMAN, *_OBJECT)}
_WRITE = "write official records, NaN where nothing is stated, or a table (docs/evaluation.md)"
UPT_FILLER = (0.0, 0.0, 0.1, 0.1, 0.0)


class FilledRecord(dict):
    """A record in which UPT's program stated one role: every other key reads as its filler."""

    def __missing__(self, key: str) -> float | list[float]:
        return UPT_FILLER[4] if key.rsplit("_", 1)[-1] == "agent" else list(UPT_FILLER)


STAND_INS = {"CacheTemplate": FilledRecord}  # UPT, ADA-CM, EZ-HOI: a dictionary with these defaults, in their `utils`


@dataclass(frozen=True)
class Statements:
    """What the records say about one role or agent: record [K] index, score [K], box [K, 4] (None for an agent)."""

    record: np.ndarray
    score: np.ndarray
    boxes: np.ndarray | None = None


@dataclass(frozen=True)
class RolePredictions:
    """Records of people (or person-object pairs) with statements, NaN scores left out.

    image [M] COCO ids, boxes [M, 4] of the person; roles by name (`hold_obj`), agents by action (`hold`). Boxes are
    compared as they are given, by the evaluator's pixel rule.
    """

    image: np.ndarray
    boxes: np.ndarray
    roles: dict[str, Statements]
    agents: dict[str, Statements]

    @property
    def num_statements(self) -> int:
        return sum(len(said.record) for said in chain(self.roles.values(), self.agents.values()))


def read_role_predictions(path: Path | str, truth: RoleTruth) -> RolePredictions:
    """The pickled list of official records (`.pkl`, `.pickle`), or a parquet table.

    A table has one row a statement: score, h_x1 .. h_y2, o_x1 .. o_y2 and either image_id (COCO id) with `role`
    (`hold_obj`; `hold_agent` for an agent, its object box is not read) or with `class_id` (0..23, order of
    instances_vcoco_*.json); or it is a table of HOI predictions like `lib.evaluation.hico_det`'s, image and hoi indices
    into an instance file, which then must be the ground truth.
    """
    path = Path(path)
    if path.suffix in (".pkl", ".pickle"):
        return from_records(read_pickle(path, STAND_INS), path)
    return _from_table(path, truth)


def from_records(records: Any, source: Path | str) -> RolePredictions:
    """Arrays of an official list; PredictionError names a missing key, as the official program would stop there."""
    if not isinstance(records, (list, tuple)) or not all(isinstance(record, dict) for record in records):
        raise PredictionError(source, f"a {type(records).__name__}", "a list of dictionaries, one a record", _WRITE)
    everyone = np.arange(len(records))
    roles, agents = {}, {}
    try:
        image = np.array([int(record["image_id"]) for record in records], np.int64)
        boxes = _numbers(records, "person_box", 4, source)
        for role in ROLES:
            values = _numbers(records, role, 5, source)
            said = everyone[~np.isnan(values[:, 4])]
            roles[role] = Statements(said, values[said, 4], values[said, :4])
        for action in ACTIONS:
            score = np.fromiter(map(itemgetter(f"{action}_agent"), records), np.float64, len(records))
            said = everyone[~np.isnan(score)]
            agents[action] = Statements(said, score[said])
    except KeyError as error:
        raise PredictionError(
            source, f"a record that lacks the key {error}",
            "image_id, person_box, 26 <action>_agent and 25 <action>_<role> in each", _WRITE,
        ) from None  # fmt: skip
    _check_people(boxes, source)
    return RolePredictions(image, boxes, roles, agents)


def merged(predictions: RolePredictions) -> RolePredictions:
    """The same statements in as few records as possible: one a person box, more where it has several of one role."""
    named = [(kind, name, said) for kind in ("roles", "agents") for name, said in getattr(predictions, kind).items()]
    keys = np.column_stack((predictions.image, predictions.boxes))
    _, first, person = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    person = first[person.reshape(-1)]  # of each record, the first with its box
    ranks = [_repeats(person[said.record]) for _, _, said in named]
    places = np.concatenate(
        [rank * len(person) + person[said.record] for rank, (_, _, said) in zip(ranks, named, strict=True)]
    )
    kept, record = np.unique(places, return_inverse=True)
    ends = np.cumsum([len(rank) for rank in ranks])[:-1]
    parts: dict[str, dict[str, Statements]] = {"roles": {}, "agents": {}}
    for (kind, name, said), at in zip(named, np.split(record, ends), strict=True):
        parts[kind][name] = replace(said, record=at)
    rows = kept % max(len(person), 1)
    return RolePredictions(predictions.image[rows], predictions.boxes[rows], **parts)


def write_records(path: Path | str, predictions: RolePredictions, unstated: Literal["nan", "upt"] = "nan") -> None:
    """Write the official pickled list (protocol 2) for the official program.

    unstated: what a role or agent without a statement holds: NaN (no statement, recommended), or "upt", the filler
        that UPT and EZ-HOI write: agent 0, role [0, 0, 0.1, 0.1, 0]. The filler changes numbers, see §5.7.
    """
    empty = {"nan": [float("nan")] * 5, "upt": list(UPT_FILLER)}[unstated]
    silent = {role: empty for role in ROLES} | {f"{action}_agent": empty[4] for action in ACTIONS}
    records: list[dict[str, Any]] = [
        {"image_id": int(image), "person_box": box, **silent}
        for image, box in zip(predictions.image, predictions.boxes.tolist(), strict=True)
    ]
    for name, said in predictions.roles.items():
        values = np.column_stack((said.boxes, said.score)).tolist()
        for record, value in zip(said.record.tolist(), values, strict=True):
            records[record][name] = value
    for action, said in predictions.agents.items():
        for record, score in zip(said.record.tolist(), said.score.tolist(), strict=True):
            records[record][f"{action}_agent"] = score
    atomic_write(path, lambda stream: pickle.dump(records, stream, protocol=2))


def _repeats(keys: np.ndarray) -> np.ndarray:
    """[K] how often each key occurred before."""
    order = np.argsort(keys, kind="stable")
    _, first, count = np.unique(keys[order], return_index=True, return_counts=True)
    seen = np.empty(len(keys), np.int64)
    seen[order] = np.arange(len(keys)) - np.repeat(first, count)
    return seen


def _numbers(records: Sequence[dict[str, Any]], key: str, width: int, source: Path | str) -> np.ndarray:
    """[M, width] float64 of one key."""
    values = list(map(itemgetter(key), records))
    if any(len(value) != width for value in values):
        bad = next(index for index, value in enumerate(values) if len(value) != width)
        raise PredictionError(source, f"{key} of record {bad} is {values[bad]}", f"{width} numbers", _WRITE)
    return np.fromiter(chain.from_iterable(values), np.float64, width * len(values)).reshape(-1, width)


def _check_people(boxes: np.ndarray, source: Path | str) -> None:
    if (bad := np.flatnonzero(~np.isfinite(boxes).all(1))).size:
        found = f"person box of record {bad[0]} is {boxes[bad[0]].tolist()}"
        raise PredictionError(source, found, "numbers", "every record needs its person's box")


def _from_table(path: Path, truth: RoleTruth) -> RolePredictions:
    names = parquet_columns(path)
    table = pq.read_table(path)
    columns = {_OURS.get(name, name): table[name].to_numpy() for name in names}
    if missing := [name for name in ("image_id", "score", *_HUMAN, *_OBJECT) if name not in columns]:
        raise PredictionError(path, f"columns {names}, {missing} are missing", "all of them", "write the table again")
    image, role = np.asarray(columns["image_id"], np.int64), _table_roles(columns, truth, path)
    if "hoi_id" in columns and "role" not in columns and "class_id" not in columns:
        if len(image) and not 0 <= image.min() <= image.max() < len(truth.image_list):
            raise PredictionError(
                path, f"images {image.min()}..{image.max()}",
                f"indices below {len(truth.image_list)} into the `images` of the instance file",
                "give the instance file of the split that was predicted",
            )  # fmt: skip
        image = truth.image_list[image]
    score = np.asarray(columns["score"], np.float64)
    humans, things = (np.column_stack([columns[name] for name in keys]).astype(float) for keys in (_HUMAN, _OBJECT))
    _check_people(humans, path)
    said = ~np.isnan(score)
    rows = {name: np.flatnonzero(said & (role == name)) for name in np.unique(role).tolist()}
    known = {*ROLES, *(f"{action}_agent" for action in ACTIONS)}
    if strange := sorted(rows.keys() - known):
        expected = f"names like {', '.join(sorted(known)[:3])}"
        raise PredictionError(path, f"roles {strange[:4]}", expected, "use <action>_<role> and <action>_agent")
    nothing = np.zeros(0, np.int64)
    roles = {name: rows.get(name, nothing) for name in ROLES}
    agents = {name: rows.get(f"{name}_agent", nothing) for name in ACTIONS}
    return RolePredictions(
        image, humans,
        {name: Statements(at, score[at], things[at]) for name, at in roles.items()},
        {name: Statements(at, score[at]) for name, at in agents.items()},
    )  # fmt: skip


def _table_roles(columns: dict[str, np.ndarray], truth: RoleTruth, path: Path) -> np.ndarray:
    """[M] role name of each row."""
    if "role" in columns:
        return columns["role"].astype(str)
    kind = "class_id" if "class_id" in columns else "hoi_id"
    if kind not in columns:
        found = f"columns {sorted(columns)}"
        raise PredictionError(path, found, "one of role, class_id, hoi_id", "add a column that names the role")
    classes = np.array([i for i, name in enumerate(ROLES) if name != "point_instr"]) if kind == "class_id" else None
    index_to_role = truth.hoi_roles if classes is None else np.array(truth.class_roles or classes)
    ids = np.asarray(columns[kind], np.int64)
    if len(ids) and not 0 <= ids.min() <= ids.max() < len(index_to_role):
        raise PredictionError(
            path, f"{kind} {ids.min()}..{ids.max()}", f"0..{len(index_to_role) - 1}",
            "give the annotations of these ids" if len(index_to_role) else
            "HOI ids need instances_vcoco_*.json as ground truth",
        )  # fmt: skip
    return np.array(ROLES)[index_to_role[ids]] if len(ids) else np.zeros(0, str)
