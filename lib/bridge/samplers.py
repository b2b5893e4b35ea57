"""Walking a feature to the text distribution: timestep grids and solvers (spec diffusion-bridge.md §4, §8.2).

The feature itself is taken for the noisy state at timestep M-1 (M: entry step); no noise is added. Two
settings that public programs confuse are separate here: the depth M, which decides *where* the walk ends,
and the number of network evaluations S, which only decides how accurately it is walked.

All functions are pure: `denoise(x [B, D], t [B] int) -> x0_hat [B, D]` is any callable, nothing is
detached, and the returned x0 prediction [B, D] of about length c is left for the caller to normalise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lib.bridge.diffusion import Schedule
from lib.bridge.geometry import normalise

Denoise = Callable[[Tensor, Tensor], Tensor]
OnStep = Callable[[int, Tensor, Tensor], None]  # (timestep, state on the sphere of radius c, x0 prediction)

SOLVERS = ("sphere_2m", "reference")


def reference_grid(entry_step: int, num_steps: int, *, allow_repeats: bool = False) -> list[int]:
    """Timesteps the public loop evaluates, M-1 first: S+1 points from -1 to M-1, truncated, less the last.

    (600, 5) -> 599, 479, 359, 239, 119. float32 on purpose: the public programs build the grid so, and for
    a few (M, S) rounding moves a point by one. allow_repeats: permit S > M as the fork's `test` branch runs
    it; the repeated evaluations change nothing but the cost.
    """
    check_sampler("reference", entry_step, 1 if allow_repeats else num_steps, entry_step)
    return torch.linspace(-1, entry_step - 1, num_steps + 1).int().flip(0)[:-1].tolist()


def tau_grid(entry_step: int, num_steps: int, schedule: Schedule, last_step: int = 20) -> list[int]:
    """S distinct timesteps from M-1 down to `last_step`, uniform in tau = asinh(sqrt(SNR)).

    Where fewer than S integers lie between the ends, the last step gives way towards 0.
    """
    check_sampler("sphere_2m", entry_step, num_steps, len(schedule))
    first, last = entry_step - 1, min(last_step, entry_step - num_steps)
    if num_steps == 1:
        return [first]
    tau = schedule.tau
    wanted = torch.linspace(float(tau[first]), float(tau[last]), num_steps, dtype=torch.float64)
    nearest = (tau[:, None] - wanted).abs().argmin(dim=0).tolist()
    grid = [first]
    for k in range(1, num_steps):
        still_to_come = num_steps - 1 - k
        grid.append(max(min(nearest[k], grid[-1] - 1), last + still_to_come))
    return grid


def check_sampler(solver: str, entry_step: int, num_steps: int, timesteps: int) -> None:
    """Raise ValueError for an unknown solver or for counts that `timesteps` timesteps do not allow."""
    if solver not in SOLVERS:
        raise ValueError(f"bridge.solver: found {solver!r}, expected one of {', '.join(SOLVERS)}")
    if not 1 <= num_steps <= entry_step <= timesteps:
        raise ValueError(
            f"found entry_step {entry_step} and num_steps {num_steps}, expected 1 <= num_steps <= entry_step"
            f" <= {timesteps}; mend: bridge.num_steps is the number of network evaluations (6 are enough),"
            " bridge.entry_step the depth"
        )


def sphere_ddim(
    denoise: Denoise,
    x: Tensor,
    schedule: Schedule,
    grid: Sequence[int],
    scale: float,
    on_step: OnStep | None = None,
) -> Tensor:
    """The public loop: deterministic DDIM, the state put back on the sphere before every evaluation (§4.1).

    x: [B, D], any length (only its direction matters). grid: timesteps, deepest first. Returns x0 at the
        last one.
    """
    a, sigma = schedule.a.tolist(), schedule.sigma.tolist()
    for t, following in zip(grid, [*grid[1:], None], strict=True):
        x = scale * normalise(x)
        x0 = denoise(x, _filled(t, x))
        if on_step:
            on_step(t, x, x0)
        if following is not None:
            noise = (x - a[t] * x0) / sigma[t]
            x = a[following] * x0 + sigma[following] * noise
    return x0


def sphere_2m(
    denoise: Denoise,
    x: Tensor,
    schedule: Schedule,
    grid: Sequence[int],
    scale: float,
    on_step: OnStep | None = None,
) -> Tensor:
    """Spherical second-order multistep solver of what the public loop integrates (§4.3, §8.2).

    In the time tau the loop's state rotates toward the current prediction: du/dtau = (I - u u^T) x0 / c.
    For a constant x0 = c m e (e unit) the angle to e obeys tan(theta'/2) = q tan(theta/2), q = exp(-m h);
    here without angles, so that it stays differentiable at theta = 0:

        u' = [(1-q) ((1+q) + (1-q) cos theta) e + 2 q u] / [(1+q²) + (1-q²) cos theta]

    The drift of x0 over a step is extrapolated from the step before. Arguments and result as in
    `sphere_ddim`.
    """
    tau = schedule.tau.tolist()
    u = normalise(x)
    previous_x0, previous_h = None, math.nan
    for t, following in zip(grid, [*grid[1:], None], strict=True):
        x0 = denoise(scale * u, _filled(t, u))
        if on_step:
            on_step(t, scale * u, x0)
        if following is None:
            break
        h = tau[following] - tau[t]
        d = x0 if previous_x0 is None else x0 + (x0 - previous_x0) * (h / (2 * previous_h))
        previous_x0, previous_h = x0, h
        m = d.norm(dim=-1, keepdim=True) / scale  # (B, 1)
        e = normalise(d)
        q = torch.exp(-m * h)
        cos = (u * e).sum(dim=-1, keepdim=True)
        u = (1 - q) * ((1 + q) + (1 - q) * cos) * e + 2 * q * u
        u = normalise(u / ((1 + q.square()) + (1 - q.square()) * cos))
    return x0


def _filled(t: int, like: Tensor) -> Tensor:
    return torch.full((len(like),), t, dtype=torch.long, device=like.device)


def sample(
    denoise: Denoise,
    x: Tensor,
    schedule: Schedule,
    *,
    entry_step: int,
    num_steps: int,
    scale: float,
    solver: str = "sphere_2m",
    last_step: int = 20,
    on_step: OnStep | None = None,
) -> Tensor:
    """Bridge states x [B, D] from depth `entry_step` with `num_steps` evaluations -> x0 prediction [B, D].

    solver: sphere_2m (tau grid down to `last_step`) | reference (uniform grid, public loop).
    on_step: called after every evaluation with (timestep, state, x0 prediction), see `trajectory`.
    """
    check_sampler(solver, entry_step, num_steps, len(schedule))
    if solver == "sphere_2m":
        grid = tau_grid(entry_step, num_steps, schedule, last_step)
        return sphere_2m(denoise, x, schedule, grid, scale, on_step)
    return sphere_ddim(denoise, x, schedule, reference_grid(entry_step, num_steps), scale, on_step)


def trajectory(denoise: Denoise, x: Tensor, schedule: Schedule, **settings) -> tuple[list[int], Tensor, Tensor]:
    """`sample` with its path kept: timesteps (S), states and x0 predictions [S, B, D], detached."""
    timesteps: list[int] = []
    states: list[Tensor] = []
    predictions: list[Tensor] = []

    def keep(t: int, state: Tensor, x0: Tensor) -> None:
        timesteps.append(t)
        states.append(state.detach())
        predictions.append(x0.detach())

    sample(denoise, x, schedule, on_step=keep, **settings)
    return timesteps, torch.stack(states), torch.stack(predictions)
