"""Which ground truth a detection may claim, and who gets it: array code for groups of unequal size.

A group is what can be compared at all: the ground-truth pairs of one (image, HOI) for HICO-DET, the people of one image
for V-COCO. Groups lie one after another in the ground-truth arrays.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

COMBINATIONS_AT_ONCE = 200_000  # (detection, ground truth) combinations held in memory together: about 50 MB


def find_groups(keys: np.ndarray, group_keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rows [K'], group [K']): the rows of `keys` [K] found in the ascending `group_keys` [G], and where."""
    if not len(keys) or not len(group_keys):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    group = np.searchsorted(group_keys, keys).clip(max=len(group_keys) - 1)
    rows = np.flatnonzero(group_keys[group] == keys)
    return rows, group[rows]


def best_of_group(
    first: np.ndarray, count: np.ndarray, overlap: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Best ground truth of each detection among first .. first + count - 1.

    first, count: [K] with count >= 1. overlap(detection [T], ground truth [T]) -> [T], finite.
    Returns (index [K] of the ground truth, the first one at equal overlap; overlap [K] float64).
    """
    best, value = np.empty(len(first), np.int64), np.empty(len(first))
    ends = np.cumsum(count)
    start = 0
    while start < len(first):
        done = ends[start] - count[start]
        stop = max(start + 1, int(np.searchsorted(ends, done + COMBINATIONS_AT_ONCE, side="right")))
        part = slice(start, stop)
        owner = np.repeat(np.arange(stop - start), count[part])  # (T,) detection of each combination
        offset = ends[part] - count[part] - done  # (K',) where each detection's combinations begin
        combination = np.arange(len(owner))
        candidate = first[part][owner] + combination - offset[owner]  # (T,) its ground truth
        m = overlap(owner + start, candidate)  # (T,)
        value[part] = np.maximum.reduceat(m, offset)
        is_best = m == value[part][owner]
        best[part] = candidate[np.minimum.reduceat(np.where(is_best, combination, len(m)), offset)]
        start = stop
    return best, value


def first_claims(claimed: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """[K] bool: the first valid claim on each ground truth; claimed [K] indices, valid [K] bool, in score order."""
    granted = np.zeros(len(claimed), bool)
    rows = np.flatnonzero(valid)
    granted[rows[np.unique(claimed[rows], return_index=True)[1]]] = True
    return granted
