"""Walking a feature to the text distribution: timestep grids and solvers (spec diffusion-bridge.md §4, §8.2).

The feature itself is taken for the noisy state at timestep M-1 (M: entry step); no noise is added. Two
settings that public programs confuse are separate here: the depth M, which decides *where* the walk ends,
and the number of network evaluations S, which only decides how accurately it is walked.

All functions are pure: `denoise(x [B, D], t [B] int) -> x0_hat [B, D]` is any callable, nothing is
detached, and the returned x0 prediction [B, D] of about length c is left for the caller to normalise.

    solver      walks                                   grid                 networks
    sphere_pc   rotation flow of the public loop,       mixed, to last_step  sphere
                second order with a corrector
    sphere_2m   the same without corrector              tau, to last_step    sphere
    reference   the public loop, exact tables           uniform, to 0        sphere
    public      the public loop, float32 tables         uniform, may repeat  sphere
    dpm_2m      probability-flow ODE, DPM-Solver++(2M)  tau, to last_step    sphere, vp
    ddim        probability-flow ODE, first order       uniform, to 0        sphere, vp
    student     one evaluation of a distilled network   M-1                  student
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from lib.bridge.diffusion import Schedule, network_input, variant_of
from lib.bridge.geometry import normalise

Denoise = Callable[[Tensor, Tensor], Tensor]
OnStep = Callable[[int, Tensor, Tensor], None]  # (timestep, state on the sphere of radius c, x0 prediction)

# solver -> variants of networks it may walk (`diffusion.variant_of`). The flows on the sphere never form the states
# whose length a vp network was taught to read; the other way round only the network's input is re-normalised (§4.3).
SOLVERS = {
    "sphere_2m": ("sphere",),
    "reference": ("sphere",),
    "sphere_pc": ("sphere",),
    "public": ("sphere",),
    "dpm_2m": ("sphere", "vp"),
    "ddim": ("sphere", "vp"),
    "student": ("student",),
}
UNIFORM_SHARE = 0.9  # of the mixed grid; measured, see `mixed_grid`
ROW_BUCKETS = (32, 128, 512, 2048)  # numbers of rows a walk is padded to, and multiples of the last


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
    return _even_grid(schedule.tau, entry_step - 1, min(last_step, entry_step - num_steps), num_steps)


def mixed_grid(entry_step: int, num_steps: int, schedule: Schedule, last_step: int = 20) -> list[int]:
    """S distinct timesteps from M-1 down to `last_step`, uniform in a mixture of t (nine tenths) and tau.

    A trained denoiser commits to one text among its neighbours at high t, where tau hardly moves, and an error made
    there is not made good later. First percentile of the cosine to the 600-evaluation reference over pair features of
    the demo, 12 evaluations of `sphere_pc`: 0.9934 with tau alone, 0.9991 with t alone, 0.9993 with this mixture.
    Ends as in `tau_grid`.
    """
    check_sampler("sphere_pc", entry_step, num_steps, len(schedule))
    first, last = entry_step - 1, min(last_step, entry_step - num_steps)
    t = torch.arange(len(schedule), device=schedule.tau.device)
    by_tau = (schedule.tau - schedule.tau[first]) / (schedule.tau[last] - schedule.tau[first])
    by_t = (first - t) / max(first - last, 1)
    return _even_grid(UNIFORM_SHARE * by_t + (1 - UNIFORM_SHARE) * by_tau, first, last, num_steps)


def _even_grid(measure: Tensor, first: int, last: int, num_steps: int) -> list[int]:
    """Distinct timesteps from `first` down to `last`, nearest to even steps of a measure [T] of t."""
    if num_steps == 1:
        return [first]
    wanted = torch.linspace(float(measure[first]), float(measure[last]), num_steps, dtype=torch.float64)
    nearest = (measure[:, None] - wanted.to(measure)).abs().argmin(dim=0).tolist()
    grid = [first]
    for k in range(1, num_steps):
        still_to_come = num_steps - 1 - k
        grid.append(max(min(nearest[k], grid[-1] - 1), last + still_to_come))
    return grid


def check_sampler(solver: str, entry_step: int, num_steps: int, timesteps: int) -> None:
    """Raise ValueError for an unknown solver or for counts that `timesteps` timesteps do not allow."""
    if solver not in SOLVERS:
        raise ValueError(f"bridge.solver: found {solver!r}, expected one of {', '.join(SOLVERS)}")
    if solver == "student" and num_steps != 1:
        raise ValueError(
            f"bridge.num_steps: found {num_steps}, expected 1 for solver student, which is a single evaluation"
        )
    repeats = solver == "public"  # the fork's `test` branch makes 600 evaluations of 100 timesteps
    if not (num_steps >= 1 and 1 <= entry_step <= timesteps and (repeats or num_steps <= entry_step)):
        raise ValueError(
            f"found entry_step {entry_step} and num_steps {num_steps}, expected 1 <= num_steps <= entry_step"
            f" <= {timesteps}; mend: bridge.num_steps is the number of network evaluations (12 are enough),"
            " bridge.entry_step the depth"
        )


def check_denoiser(denoise: Denoise, solver: str, entry_step: int) -> None:
    """Raise ValueError when a network was trained for states (or for a depth) that the solver does not feed it."""
    variant = variant_of(denoise)
    if variant not in SOLVERS[solver]:
        fitting = ", ".join(name for name, variants in SOLVERS.items() if variant in variants)
        raise ValueError(
            f"bridge.solver: found {solver}, which walks {' or '.join(SOLVERS[solver])} networks, but this network"
            f" was trained as {variant}; mend: bridge.solver={fitting.split(', ')[0]} (fitting: {fitting}), or train"
            " with another bridge.variant"
        )
    if variant == "student" and denoise.entry_step != entry_step:
        raise ValueError(
            f"bridge.entry_step: found {entry_step}, expected {denoise.entry_step}, the only depth this student"
            " learnt; mend: set that depth, or distil a student of the other one"
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
    noise_of = lambda t, x, x0: (x - a[t] * x0) / sigma[t]  # noqa: E731
    return _ddim_on_sphere(denoise, x, grid, scale, a, sigma, noise_of, on_step)


def _ddim_on_sphere(
    denoise: Denoise,
    x: Tensor,
    grid: Sequence[int],
    scale: float,
    a: Sequence[float],
    sigma: Sequence[float],
    noise_of: Callable[[int, Tensor, Tensor], Tensor],
    on_step: OnStep | None,
) -> Tensor:
    """The loop of `sphere_ddim` with its tables: a[t], sigma[t], and the noise of a state given its prediction."""
    for t, following in zip(grid, [*grid[1:], None], strict=True):
        x = scale * normalise(x)
        x0 = denoise(x, _filled(t, x))
        if on_step:
            on_step(t, x, x0)
        if following is not None:
            x = a[following] * x0 + sigma[following] * noise_of(t, x, x0)
    return x0


def sphere_2m(
    denoise: Denoise,
    x: Tensor,
    schedule: Schedule,
    grid: Sequence[int],
    scale: float,
    on_step: OnStep | None = None,
    *,
    corrector: bool = False,
) -> Tensor:
    """Spherical second-order multistep solver of what the public loop integrates (§4.3, §8.2).

    In the time tau the loop's state rotates toward the current prediction, du/dtau = (I - u u^T) x0 / c; a step
    rotates toward a prediction that is extrapolated to its middle from the two last ones.

    corrector: once the prediction at the end of a step is known, take that step again with the average of the
        predictions at its two ends. It costs no evaluation: the next step merely starts from the better place.
    Arguments and result otherwise as in `sphere_ddim`.
    """
    tau = schedule.tau.tolist()
    u = normalise(x)
    previous_u, previous_x0, previous_h = u, None, math.nan
    for t, following in zip(grid, [*grid[1:], None], strict=True):
        x0 = denoise(scale * u, _filled(t, u))
        if on_step:
            on_step(t, scale * u, x0)
        if following is None:
            break
        h = tau[following] - tau[t]
        d = x0 if previous_x0 is None else x0 + (x0 - previous_x0) * (h / (2 * previous_h))
        if corrector and previous_x0 is not None:
            u = _rotate(previous_u, (previous_x0 + x0) / 2, previous_h, scale)
        previous_u, previous_x0, previous_h = u, x0, h
        u = _rotate(u, d, h, scale)
    return x0


def _rotate(u: Tensor, d: Tensor, h: float, scale: float) -> Tensor:
    """Unit rows u turned toward predictions d for a time h of du/dtau = (I - u u^T) d / c.

    With d = c m e (e unit) the angle to e obeys tan(theta'/2) = q tan(theta/2), q = exp(-m h); here without angles,
    so that it stays differentiable at theta = 0:

        u' = [(1-q) ((1+q) + (1-q) cos theta) e + 2 q u] / [(1+q²) + (1-q²) cos theta]
    """
    m = d.norm(dim=-1, keepdim=True) / scale  # (B, 1)
    e = normalise(d)
    q = torch.exp(-m * h)
    cos = (u * e).sum(dim=-1, keepdim=True)
    turned = (1 - q) * ((1 + q) + (1 - q) * cos) * e + 2 * q * u
    return normalise(turned / ((1 + q.square()) + (1 - q.square()) * cos))


def public_loop(
    denoise: Denoise,
    x: Tensor,
    schedule: Schedule,
    grid: Sequence[int],
    scale: float,
    on_step: OnStep | None = None,
) -> Tensor:
    """`sphere_ddim` with the rounding of the public programs, and their repeated timesteps (parity README §5.3).

    They keep float32 tables and take 1 - abar of the rounded abar, so that a repeated timestep, which is nothing in
    exact arithmetic, drifts: 600 evaluations at depth 100 end 1e-3 to 1e-2 away from 100. Arguments and result as
    in `sphere_ddim`.
    """
    abar = schedule.abar.float()
    a, sigma = abar.sqrt().tolist(), (1 - abar).sqrt().tolist()
    by_a, ratio = (1 / schedule.abar).sqrt().float().tolist(), (1 / schedule.abar - 1).sqrt().float().tolist()
    noise_of = lambda t, x, x0: (by_a[t] * x - x0) / ratio[t]  # noqa: E731
    return _ddim_on_sphere(denoise, x, grid, scale, a, sigma, noise_of, on_step)


def probability_flow(
    denoise: Denoise,
    x: Tensor,
    schedule: Schedule,
    grid: Sequence[int],
    scale: float,
    on_step: OnStep | None = None,
    *,
    order: int = 2,
) -> Tensor:
    """The probability-flow ODE of the diffusion: DPM-Solver++(2M), or DDIM for order 1 (§4.3 `vp`, §8.2).

    The state keeps its length: it starts as s_{M-1} u, the typical length at its timestep, and only the network's
    input is put where the network expects it. With lambda = ln(a / sigma), h its step and d the prediction, for order
    2 extrapolated from the one before:

        x' = (sigma'/sigma) x - a' (exp(-h) - 1) d

    Arguments and result as in `sphere_ddim`.
    """
    a, sigma, log_kappa = schedule.a.tolist(), schedule.sigma.tolist(), schedule.kappa.log().tolist()
    x = float(schedule.state_norm(x.shape[1], scale)[grid[0]]) * normalise(x)
    previous_x0, previous_h = None, math.nan
    for t, following in zip(grid, [*grid[1:], None], strict=True):
        steps = _filled(t, x)
        x0 = denoise(network_input(x, steps, schedule, scale, variant_of(denoise)), steps)
        if on_step:
            on_step(t, scale * normalise(x), x0)
        if following is None:
            break
        h = log_kappa[following] - log_kappa[t]
        d = x0 if previous_x0 is None or order == 1 else x0 + (x0 - previous_x0) * (h / (2 * previous_h))
        previous_x0, previous_h = x0, h
        x = sigma[following] / sigma[t] * x - a[following] * math.expm1(-h) * d
    return x0


def _filled(t: int, like: Tensor) -> Tensor:
    return torch.full((len(like),), t, dtype=torch.long, device=like.device)


def pad_rows(x: Tensor) -> Tensor:
    """Rows [B, D] padded with copies of the last to one of ROW_BUCKETS, or to a multiple of the largest.

    Few batch sizes mean few compiled graphs (torch.compile) and few captured ones (CUDA graphs). Rows are walked
    independently, so the extra ones change nothing but the cost.
    """
    largest = ROW_BUCKETS[-1]
    rows = next((size for size in ROW_BUCKETS if len(x) <= size), math.ceil(len(x) / largest) * largest)
    return torch.cat([x, x[-1:].expand(rows - len(x), -1)]) if len(x) else x


def sample(
    denoise: Denoise,
    x: Tensor,
    schedule: Schedule,
    *,
    entry_step: int,
    num_steps: int,
    scale: float,
    solver: str = "sphere_pc",
    last_step: int = 20,
    on_step: OnStep | None = None,
    pad_to_bucket: bool = False,
) -> Tensor:
    """Bridge states x [B, D] from depth `entry_step` with `num_steps` evaluations -> x0 prediction [B, D].

    solver: one of SOLVERS, see the head of this file; `last_step` is where sphere_pc, sphere_2m and dpm_2m end.
    on_step: called after every evaluation with (timestep, state, x0 prediction), see `trajectory`.
    pad_to_bucket: walk `pad_rows(x)`, for a compiled or captured denoiser, whose results are copied, as the next
        evaluation may write to the same place; on_step then sees the padded rows.

    Raises ValueError for counts that do not fit, and for a network that was trained for another kind of solver.
    """
    check_sampler(solver, entry_step, num_steps, len(schedule))
    check_denoiser(denoise, solver, entry_step)
    if solver == "sphere_pc":
        grid = mixed_grid(entry_step, num_steps, schedule, last_step)
    elif solver in ("sphere_2m", "dpm_2m"):
        grid = tau_grid(entry_step, num_steps, schedule, last_step)
    elif solver == "student":
        grid = [entry_step - 1]
    else:
        grid = reference_grid(entry_step, num_steps, allow_repeats=solver == "public")
    walk = {
        "sphere_pc": partial(sphere_2m, corrector=True),
        "sphere_2m": sphere_2m,
        "reference": sphere_ddim,
        "public": public_loop,
        "dpm_2m": probability_flow,
        "ddim": partial(probability_flow, order=1),
        "student": sphere_ddim,  # of a grid of one point: the network at the entering direction
    }[solver]
    if not pad_to_bucket:
        return walk(denoise, x, schedule, grid, scale, on_step)

    def copied(x: Tensor, t: Tensor) -> Tensor:
        return denoise(x, t).clone()

    copied.variant = variant_of(denoise)
    return walk(copied, pad_rows(x), schedule, grid, scale, on_step)[: len(x)]


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
