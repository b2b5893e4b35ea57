"""Overlap of boxes in NumPy, for readers and scoring, which start without torch."""

from __future__ import annotations

import numpy as np


def iou(a: np.ndarray, b: np.ndarray, inclusive: bool = False) -> np.ndarray:
    """IoU [...] of boxes a, b [..., 4] that broadcast, x1, y1, x2, y2; nan for two boxes without area.

    inclusive: x2, y2 belong to the box, sides are x2 - x1 + 1 (MATLAB, V-COCO); else sides are x2 - x1.
    """
    end = 1.0 if inclusive else 0.0
    sides = (np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + end).clip(min=0)  # (..., 2)
    shared = sides[..., 0] * sides[..., 1]
    area_a = ((a[..., 2] - a[..., 0] + end) * (a[..., 3] - a[..., 1] + end)).clip(min=0)  # a prediction may be inverted
    area_b = (b[..., 2] - b[..., 0] + end) * (b[..., 3] - b[..., 1] + end)
    return shared / (area_a + area_b - shared)
