"""V-COCO role AP in both scenarios and agent AP, after S. Gupta's evaluator (spec data-and-evaluation.md §5.7).

A role without a box in the annotation (the object is not visible) is where the scenarios differ: in scenario 1 the
prediction must say so (four zeros, or NaN), in scenario 2 any box will do.

    python -m lib.evaluation.vcoco PREDICTIONS --annotations vcoco_test.json --coco instances_vcoco_all_2014.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lib.data.boxes import iou
from lib.evaluation.average_precision import average_precision
from lib.evaluation.matching import best_of_group, find_groups, first_claims
from lib.evaluation.vcoco_annotation import ACTION_OF_ROLE, ACTIONS, ROLES, UNREPORTED, RoleTruth, read_truth
from lib.evaluation.vcoco_records import RolePredictions, Statements, read_role_predictions
from lib.runs import write_json


@dataclass(frozen=True)
class RoleApResult:
    """Fractions; nan for an action without positives, and for all agents if the predictions state none.

    role_s1, role_s2 [25] in the order of `ROLES`; agent [26] in the order of `ACTIONS`; num_positives [26].
    """

    role_s1: np.ndarray
    role_s2: np.ndarray
    agent: np.ndarray
    num_positives: np.ndarray

    def means(self) -> dict[str, float]:
        """Means over what is not nan: role AP over the 24 roles of published numbers and over all 25; agent AP."""
        reported = np.array(ROLES) != UNREPORTED
        means = {}
        for name, ap in (("role_s1", self.role_s1), ("role_s2", self.role_s2)):
            means |= {f"mAP_{name}_24": _mean(ap[reported]), f"mAP_{name}_25": _mean(ap)}
        return means | {"mAP_agent": _mean(self.agent)}


def vcoco_ap(predictions: RolePredictions, truth: RoleTruth) -> RoleApResult:
    """Average precision (area under the whole envelope) of every role and every agent.

    Each record belongs to the person of its image whom its box overlaps best, by however little; records of a person
    without annotation are discarded. A statement is right if that person does the action, both overlaps reach 0.5, and
    no statement of higher score on the same person was right. Equal scores rank in the order of the records.
    """
    person, overlap = _people_of(predictions, truth)
    num_positives = truth.num_positives
    scenarios = np.full((2, len(ROLES)), np.nan)
    for r, role in enumerate(ROLES):
        said, action = predictions.roles[role], ACTION_OF_ROLE[r]
        rows = _ranked(said, person)
        j = person[said.record[rows]]
        on_person = truth.label[j, action] & (overlap[said.record[rows]] >= 0.5)
        box, predicted = truth.role_boxes[j, r], said.boxes[rows]
        unseen = np.isnan(box[:, 0])
        with np.errstate(invalid="ignore"):  # a predicted box may be NaN: it overlaps nothing
            right = iou(predicted, box, inclusive=True) >= 0.5
        nothing = (predicted == 0).all(1) | np.isnan(predicted).all(1)
        for scenario, forgiven in enumerate((unseen & nothing, unseen)):
            positive = first_claims(j, on_person & (right | forgiven))
            scenarios[scenario, r] = _ap(positive, num_positives[action])

    agent = np.full(len(ACTIONS), np.nan)
    stated = any(len(said.record) for said in predictions.agents.values())
    for action, name in enumerate(ACTIONS):
        said = predictions.agents[name]
        rows = _ranked(said, person)
        j = person[said.record[rows]]
        positive = first_claims(j, truth.label[j, action] & (overlap[said.record[rows]] >= 0.5))
        agent[action] = _ap(positive, num_positives[action]) if stated else np.nan
    return RoleApResult(*scenarios, agent, num_positives)


def report(result: RoleApResult) -> dict[str, Any]:
    """JSON content: role_s1, role_s2 {role: AP}, agent {action: AP} (None without positives), means, counts."""
    means = {name: _plain(value) for name, value in result.means().items()}
    roles = {
        name: dict(zip(ROLES, map(_plain, ap), strict=True))
        for name, ap in (("role_s1", result.role_s1), ("role_s2", result.role_s2))
    }
    return {
        **roles,
        "agent": dict(zip(ACTIONS, map(_plain, result.agent), strict=True)),
        **means,
        "num_positives": dict(zip(ACTIONS, result.num_positives.tolist(), strict=True)),
    }


def _people_of(predictions: RolePredictions, truth: RoleTruth) -> tuple[np.ndarray, np.ndarray]:
    """(person [M], overlap [M]) of each record; person -1 where it is discarded."""
    person, overlap = np.full(len(predictions.image), -1), np.zeros(len(predictions.image))
    rows, group = find_groups(predictions.image, truth.images)
    boxes = predictions.boxes[rows]
    best, value = best_of_group(
        truth.first[group], truth.count[group], lambda d, p: iou(boxes[d], truth.boxes[p], inclusive=True)
    )
    person[rows] = np.where(truth.annotated[best], best, -1)
    overlap[rows] = value
    return person, overlap


def _ranked(said: Statements, person: np.ndarray) -> np.ndarray:
    """Statements on annotated people by descending score."""
    rows = np.flatnonzero(person[said.record] >= 0)
    return rows[np.argsort(-said.score[rows], kind="stable")]


def _ap(positive: np.ndarray, num_positives: int) -> float:
    return average_precision(positive, num_positives, "all-point")[0] if num_positives else np.nan


def _mean(ap: np.ndarray) -> float:
    known = ap[~np.isnan(ap)]
    return float(known.mean()) if len(known) else np.nan


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print role and agent AP and write what was asked for; 0, or 1 after a message about the input."""
    parser = argparse.ArgumentParser(
        prog="python -m lib.evaluation.vcoco", description="V-COCO AP_role (scenarios 1 and 2) and AP_agent"
    )
    parser.add_argument("predictions", type=Path, help="official pickle (.pkl), or parquet with a row a statement")
    parser.add_argument("--annotations", type=Path, required=True, help="vcoco_test.json or instances_vcoco_test.json")
    parser.add_argument("--coco", type=Path, help="COCO instances of the images; vcoco_test.json needs it")
    parser.add_argument("--json", type=Path, metavar="OUT", help="all values as fractions")
    asked = parser.parse_args(arguments)
    try:
        truth = read_truth(asked.annotations, asked.coco)
        predictions = read_role_predictions(asked.predictions, truth)
        result = vcoco_ap(predictions, truth)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"{len(truth.images):,} images, {len(predictions.image):,} records, {predictions.num_statements:,} statements\n"
    )
    print(f"\n  {'role':24s} {'S1':>6s} {'S2':>6s}  positives")
    for r, role in enumerate(ROLES):
        s1, s2 = 100 * result.role_s1[r], 100 * result.role_s2[r]
        print(f"  {role:24s} {s1:6.2f} {s2:6.2f}  {result.num_positives[ACTION_OF_ROLE[r]]:6d}")
    means = result.means()
    for count in (24, 25):
        s1, s2 = 100 * means[f"mAP_role_s1_{count}"], 100 * means[f"mAP_role_s2_{count}"]
        print(f"  {f'mean over {count}':24s} {s1:6.2f} {s2:6.2f}")
    print(f"  {'agent, mean over 26':24s} {100 * means['mAP_agent']:6.2f}")
    if asked.json:
        write_json(asked.json, report(result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
