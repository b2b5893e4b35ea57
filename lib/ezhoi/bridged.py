"""A bridge between the pair features and the class texts, inside training (spec ez-hoi.md §9.2, equations for B).

    f' = bridge(f)   T' = G(T)   logits = s * mean over the rows of a class of (f' . T') / 2

The public fork samples without gradient, so there only s learns. Straight-through keeps that forward value and lets the
gradient pass as if the bridge were the geometric transform alone; `full` differentiates the sampler itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

GRADIENTS = ("none", "straight_through", "full")


class BridgeGeometry(Protocol):
    """Raw rows of each modality -> unit rows of the space in which bridged features are compared with texts."""

    def vision(self, features: Tensor) -> Tensor: ...

    def text(self, rows: Tensor) -> Tensor: ...


class FeatureBridge(Protocol):
    """What a detector needs of a bridge: raw pair features [P, D] -> unit rows [P, D], differentiable."""

    @property
    def geometry(self) -> BridgeGeometry: ...

    def __call__(self, features: Tensor) -> Tensor: ...

    def with_sampler(self, *, num_steps: int) -> FeatureBridge: ...


def bridged_features(features: Tensor, bridge: FeatureBridge, grad: str) -> Tensor:
    """f' [P, D] of raw pair features [P, D]; `grad` decides what reaches `features` in the backward pass.

    none: nothing. straight_through: the gradient of geometry.vision. full: that of the whole walk.
    """
    if grad not in GRADIENTS:
        raise ValueError(f"ezhoi.bridge_grad: found {grad!r}, expected one of {', '.join(GRADIENTS)}")
    if grad == "full":
        return bridge(features)
    with torch.no_grad():
        bridged = bridge(features)
    if grad == "none":
        return bridged
    centred = bridge.geometry.vision(features)
    return centred + (bridged - centred).detach()


def bridged_logits(
    features: Tensor, rows: Tensor, average: Tensor, scale: Tensor, bridge: FeatureBridge, grad: str
) -> Tensor:
    """Logits [P, C], at most scale/2 in size because both sides are unit vectors.

    features: raw pair features [P, D]. rows: raw text rows T [K, D], transformed one by one and then averaged.
    average: [K, C] with the share of each row in its class. scale: s.
    """
    class_text = bridge.geometry.text(rows).T @ average  # (D, C)
    return scale / 2 * bridged_features(features, bridge, grad) @ class_text


def bridge_of_epoch(bridge: FeatureBridge, steps: Sequence[int], epoch: int) -> FeatureBridge:
    """The bridge with the evaluations of an epoch (from 0): steps[epoch], the last one repeats; none = its own."""
    return bridge.with_sampler(num_steps=steps[min(epoch, len(steps) - 1)]) if steps else bridge
