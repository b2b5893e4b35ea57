"""Class logits with the bridge on, and their blend with the detector's own (spec diffusion-bridge.md §11, "scoring").

    s = (1 - w) · logit + w · (alpha · cos(bridge(f), G(T)) + b)

The bridged feature has lost the length that carried the detector's confidence, so the cosine gets a scale
and an offset of its own. w = 0 is the detector, bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.bridge.geometry import Geometry


def class_cosines(features: Tensor, text_rows: Tensor, row_classes: Tensor, geometry: Geometry) -> Tensor:
    """Cosines [P, C] of centred features with the classes' texts, averaged over the text rows of a class.

    features: [P, D] unit, bridged (`Bridge.__call__`) or centred only (`Geometry.vision`).
    text_rows: [R, D] raw text-encoder outputs. row_classes: [R, C], 1 where text row r speaks for class c.
    """
    rows_per_class = row_classes.sum(dim=0)
    if (rows_per_class == 0).any():
        empty = (rows_per_class == 0).nonzero().flatten().tolist()
        raise ValueError(f"row_classes: found no text row for the classes {empty[:5]}, expected at least one each")
    class_texts = geometry.text(text_rows).T @ (row_classes / rows_per_class).to(features)  # (D, C)
    return features @ class_texts


@dataclass(frozen=True)
class Blend:
    """Fitted blend: weight w in [0, 1], slope alpha and offset b of the cosine, and the loss before and after."""

    weight: float
    alpha: float = 0.0
    offset: float = 0.0
    loss: float = float("nan")
    loss_unblended: float = float("nan")

    def __call__(self, logits: Tensor, cosines: Tensor) -> Tensor:
        """Blended logits of the shape of `logits`."""
        if self.weight == 0:
            return logits
        return (1 - self.weight) * logits + self.weight * (self.alpha * cosines + self.offset)


@dataclass(frozen=True)
class Ensemble:
    """Scores averaged with and without the bridge: weight · sigmoid(bridged) + (1 - weight) · sigmoid(own).

    The fixed ensemble of the old guide (its weight: 0.7). Unlike `Blend` nothing is fitted and two complete
    predictions are needed; it also serves where the bridged logits come from a detector trained with a bridge.
    """

    weight: float = 0.7

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"ensemble: found weight {self.weight}, expected 0 (detector alone) to 1 (bridge alone)")

    def __call__(self, logits: Tensor, bridged: Tensor) -> Tensor:
        """Logits of the averaged scores, both inputs of one shape; weight 0 or 1 returns one side bit for bit."""
        if self.weight in (0, 1):
            return bridged if self.weight else logits
        w = self.weight
        log_on = torch.logaddexp(math.log(w) + F.logsigmoid(bridged), math.log1p(-w) + F.logsigmoid(logits))
        log_off = torch.logaddexp(math.log(w) + F.logsigmoid(-bridged), math.log1p(-w) + F.logsigmoid(-logits))
        return log_on - log_off


def fit_blend(
    logits: Tensor,
    cosines: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    weights: int = 20,
    max_entries: int = 1_000_000,
    seed: int = 0,
) -> Blend:
    """Fit w, alpha and b by binary cross-entropy on pairs with labels.

    logits, cosines, labels: [P, C], best of pairs held out from the detector's training, on which its own logits
        look better than they are.
    mask: [P, C] bool, entries that count: seen classes, prior above 0.

    For each of `weights` + 1 values of w from 0 to 1 the convex problem in (alpha, b) is solved by Newton's
    method; the w of least loss wins. Cosines that would need alpha <= 0 do not help, and give w = 0.
    """
    mask = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask
    z, cos, y = (values[mask].double().cpu() for values in (logits, cosines, labels))
    if len(y) == 0 or not 0 < float(y.mean()) < 1:
        raise ValueError(
            f"blend: found {len(y)} entries with a positive share of {float(y.mean()) if len(y) else 0:.3g},"
            " expected both positives and negatives of seen classes; mend: fit on more training pairs"
        )
    if len(y) > max_entries:
        kept = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))[:max_entries]
        z, cos, y = z[kept], cos[kept], y[kept]

    unblended = float(F.binary_cross_entropy_with_logits(z, y))
    best = Blend(0.0, loss=unblended, loss_unblended=unblended)
    slope_offset = torch.zeros(2, dtype=torch.float64)
    for w in torch.linspace(0, 1, weights + 1).tolist()[1:]:
        slope_offset, loss = _fit_line((1 - w) * z, cos, y, slope_offset)
        alpha, offset = (slope_offset / w).tolist()
        if alpha > 0 and loss < best.loss:
            best = Blend(w, alpha, offset, loss, unblended)
    return best


def _fit_line(base: Tensor, cos: Tensor, y: Tensor, start: Tensor, iterations: int = 30) -> tuple[Tensor, float]:
    """argmin over (slope, offset) of BCE(base + slope·cos + offset, y): damped Newton, all [N] float64."""
    design = torch.stack([cos, torch.ones_like(cos)])  # (2, N)
    line = start
    loss = float(F.binary_cross_entropy_with_logits(base + line @ design, y))
    for _ in range(iterations):
        p = torch.sigmoid(base + line @ design)
        gradient = design @ (p - y) / len(y)
        hessian = (design * (p * (1 - p))) @ design.T / len(y) + 1e-9 * torch.eye(2, dtype=torch.float64)
        step = torch.linalg.solve(hessian, gradient)
        for halving in range(12):
            candidate = line - step / 2**halving
            new_loss = float(F.binary_cross_entropy_with_logits(base + candidate @ design, y))
            if new_loss <= loss:
                break
        else:
            break
        improvement = loss - new_loss
        line, loss = candidate, new_loss
        if improvement < 1e-10:
            break
    return line, loss
