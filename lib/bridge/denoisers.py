"""Denoisers without a U-Net: the preconditioned residual MLP (default) and the closed form over prototypes.

Every denoiser maps a state on the sphere of radius c to its prediction of the clean vector:
`forward(x [B, D], t [B] int) -> x0_hat [B, D]`. It knows neither the schedule nor the solver; what it needs
of the schedule are plain per-timestep numbers handed to its constructor.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.bridge.geometry import normalise


class SinusoidalTimeCode(nn.Module):
    """Integer timesteps [B] -> [sin(t f); cos(t f)] [B, dim], f_j = 10000^(-j / (dim/2 - 1)) (spec §3.1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = dim // 2
        frequency = torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1)))
        self.register_buffer("frequency", frequency, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angle = t[:, None] * self.frequency
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


class ResidualMlp(nn.Module):
    """Preconditioned residual MLP (spec §3.2 "numerically stable equivalent", §8.4).

        x0_hat = cos(phi_t) x + sin(phi_t) (c / sqrt D) F(x sqrt(D) / c, t)

    so that F sees and predicts coordinates of about unit variance at every t, and F = 0, where training
    starts, is already the best prediction that knows no data.

    dim: D. cos_phi: [T], typical cosine of a state to its clean vector (`Schedule.cos_phi`). scale: radius c.
    """

    def __init__(self, dim: int, cos_phi: Tensor, scale: float, width: int = 1024, depth: int = 3) -> None:
        super().__init__()
        self.dim = dim
        self.unit = scale / math.sqrt(dim)  # root mean square of a coordinate on the sphere
        self.register_buffer("cos_phi", cos_phi.float(), persistent=False)
        self.register_buffer("sin_phi", (1 - cos_phi.double().square()).sqrt().float(), persistent=False)
        self.time_code = nn.Sequential(SinusoidalTimeCode(128), nn.Linear(128, 128), nn.SiLU())
        self.inlet = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(FilmBlock(width, 128) for _ in range(depth))
        self.outlet = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim))
        nn.init.zeros_(self.outlet[1].weight)
        nn.init.zeros_(self.outlet[1].bias)

    def residual(self, x: Tensor, t: Tensor) -> Tensor:
        """F(x sqrt(D) / c, t): [B, D]."""
        code = self.time_code(t)
        h = self.inlet(x / self.unit)
        for block in self.blocks:
            h = block(h, code)
        return self.outlet(h)

    def residual_target(self, x: Tensor, x0: Tensor, t: Tensor) -> Tensor:
        """F* = (x0 - cos(phi_t) x) sqrt(D) / (c sin(phi_t)), what `residual` should have returned: [B, D]."""
        return (x0 - self.cos_phi[t, None] * x) / (self.unit * self.sin_phi[t, None])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.cos_phi[t, None] * x + self.sin_phi[t, None] * self.unit * self.residual(x, t)


class FilmBlock(nn.Module):
    """h + W2 SiLU(W1 (LayerNorm(h) (1 + s_t) + b_t)), hidden layer twice as wide."""

    def __init__(self, width: int, code: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.film = nn.Linear(code, 2 * width)
        self.expand = nn.Linear(width, 2 * width)
        self.contract = nn.Linear(2 * width, width)

    def forward(self, h: Tensor, code: Tensor) -> Tensor:
        gain, shift = self.film(code).chunk(2, dim=-1)
        return h + self.contract(F.silu(self.expand(self.norm(h) * (1 + gain) + shift)))


class PrototypeDenoiser(nn.Module):
    """The optimal denoiser of K equally likely vectors of one length, in closed form (spec §6.3).

        x0_hat = c sum_k w_k p_k,   w = softmax_k(beta_t cos(x, p_k))

    It needs no training: a baseline, an oracle for the solvers, and a yardstick of memorisation - a network
    whose output is close to it has learnt its training set by heart.

    prototypes: [K, D], any length, normalised here. inverse_temperature: beta [T]
        (`Schedule.inverse_temperature`).
    """

    def __init__(self, prototypes: Tensor, inverse_temperature: Tensor, scale: float) -> None:
        super().__init__()
        self.dim, self.scale = prototypes.shape[1], scale
        self.register_buffer("prototypes", normalise(prototypes))
        self.register_buffer("inverse_temperature", inverse_temperature.to(prototypes.dtype), persistent=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        cosine = normalise(x) @ self.prototypes.T  # (B, K)
        weight = torch.softmax(self.inverse_temperature[t, None] * cosine, dim=-1)
        return self.scale * weight @ self.prototypes
