"""Exponential moving average of a network's weights (spec diffusion-bridge.md §3.3)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn


class Ema:
    """Averaged copy of `model`, as the public trainer keeps it.

    Every `every`-th call of `update` moves the copy by (1 - decay) toward the model. During the first
    `after` calls it is a plain copy; from there the decay warms up as 1 - (1 + n)^(-2/3), n calls later,
    until it reaches `decay`.
    """

    def __init__(self, model: nn.Module, decay: float, every: int = 10, after: int = 100) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"averaged weights: found a decay of {decay}, expected from 0 (no averaging) to below 1")
        self.decay, self.every, self.after = decay, every, after
        self.calls = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.calls += 1
        if self.calls % self.every:
            return
        beyond = max(self.calls - self.after - 1, 0)
        decay = min(1 - (1 + beyond) ** (-2 / 3), self.decay) if self.calls > self.after else 0.0
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls, "model": self.model.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]
        self.model.load_state_dict(state["model"])
