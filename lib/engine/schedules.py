"""Learning-rate schedules shared by the trainings."""

from __future__ import annotations

import math


def warmup_cosine(step: int, warmup: int, steps: int) -> float:
    """Factor on the learning rate: a linear start over `warmup` steps, never above the cosine that ends at `steps`."""
    return min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / steps)))
