"""Grids to the integer, solvers against closed forms and against the 600-step reference."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from lib.bridge.architectures import build_denoiser
from lib.bridge.denoisers import PrototypeDenoiser
from lib.bridge.diffusion import Schedule
from lib.bridge.geometry import normalise
from lib.bridge.samplers import (
    ROW_BUCKETS,
    SOLVERS,
    mixed_grid,
    pad_rows,
    probability_flow,
    public_loop,
    reference_grid,
    sample,
    sphere_2m,
    sphere_ddim,
    tau_grid,
    trajectory,
)

WALKS = [solver for solver in SOLVERS if solver != "student"]


@pytest.mark.parametrize(
    ("entry_step", "num_steps", "grid"),
    [
        (600, 5, [599, 479, 359, 239, 119]),
        (400, 5, [399, 319, 239, 159, 79]),
        (600, 7, [599, 513, 427, 341, 256, 170, 84]),
        (50, 3, [49, 32, 15]),
        (1, 1, [0]),
        (600, 600, list(range(599, -1, -1))),
        (100, 100, list(range(99, -1, -1))),
    ],
)
def test_reference_grid(entry_step: int, num_steps: int, grid: list[int]) -> None:
    assert reference_grid(entry_step, num_steps) == grid


def test_fork_test_grid_repeats_timesteps() -> None:
    grid = reference_grid(100, 600, allow_repeats=True)
    assert (len(grid), len(set(grid)), grid[0], grid[-1]) == (600, 100, 99, 0)
    with pytest.raises(ValueError, match="num_steps <= entry_step"):
        reference_grid(100, 600)


def test_tau_grid_is_uniform_in_tau_and_distinct(schedule: Schedule) -> None:
    grid = tau_grid(600, 6, schedule)
    assert (grid[0], grid[-1], len(grid)) == (599, 20, 6)
    steps = schedule.tau[grid].diff()
    assert float(steps.max() / steps.min()) < 1.05
    assert tau_grid(600, 1, schedule) == [599]
    assert tau_grid(6, 6, schedule) == [5, 4, 3, 2, 1, 0]  # too shallow for last_step = 20
    assert tau_grid(22, 3, schedule) == [21, 20, 19]
    for entry_step in (1, 2, 10, 50, 600, 1000):
        for num_steps in (1, 2, 5, 12, 50):
            for last_step in (0, 5, 20):
                if num_steps <= entry_step:
                    grid = tau_grid(entry_step, num_steps, schedule, last_step)
                    assert len(grid) == num_steps and grid == sorted(set(grid), reverse=True)
                    assert grid[0] == entry_step - 1 and grid[-1] >= 0
    for wrong in ((5, 6), (0, 0), (1001, 6), (600, 0)):
        with pytest.raises(ValueError, match="mend: bridge.num_steps"):
            tau_grid(*wrong, schedule)


def test_mixed_grid_lies_between_uniform_in_t_and_in_tau(schedule: Schedule) -> None:
    grid = mixed_grid(600, 12, schedule)
    assert (grid[0], grid[-1], len(grid)) == (599, 20, 12)
    uniform, tau = torch.linspace(599, 20, 12).tolist(), tau_grid(600, 12, schedule)
    assert all(a >= b >= c for a, b, c in zip(uniform, grid, tau, strict=True))
    assert mixed_grid(600, 1, schedule) == [599] and mixed_grid(6, 6, schedule) == [5, 4, 3, 2, 1, 0]
    for entry_step in (1, 2, 22, 50, 1000):
        for num_steps in {1, min(2, entry_step), min(12, entry_step)}:
            grid = mixed_grid(entry_step, num_steps, schedule)
            assert len(grid) == num_steps and grid == sorted(set(grid), reverse=True) and grid[-1] >= 0


def test_corrector_takes_the_step_again_with_the_average_of_its_ends(schedule: Schedule) -> None:
    """Three evaluations by hand: the third starts where the corrected second state leads, extrapolated as ever."""
    generator = torch.Generator().manual_seed(0)
    a, b, c = (5 * normalise(torch.randn(1, 6, generator=generator, dtype=torch.float64)) for _ in range(3))
    x, grid = normalise(torch.randn(1, 6, generator=generator, dtype=torch.float64)), [599, 400, 100]
    tau = schedule.tau[grid]

    def turn(u: torch.Tensor, d: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        e = normalise(d)
        angle = torch.arccos((u * e).sum())
        new = 2 * torch.atan(torch.tan(angle / 2) * torch.exp(-d.norm() / 5 * h))
        across = normalise(u - (u * e).sum() * e)
        return torch.cos(new) * e + torch.sin(new) * across

    second = turn(normalise(x), a, tau[1] - tau[0])
    corrected = turn(normalise(x), (a + b) / 2, tau[1] - tau[0])
    ratio = (tau[2] - tau[1]) / (2 * (tau[1] - tau[0]))
    third = turn(corrected, b + (b - a) * ratio, tau[2] - tau[1])
    states, outputs = [], iter((a, b, c))
    keep = lambda t, state, x0: states.append(state)  # noqa: E731
    sphere_2m(lambda x, t: next(outputs), x, schedule, grid, 5.0, keep, corrector=True)
    torch.testing.assert_close(torch.cat(states), 5 * torch.cat([normalise(x), second, third]))


def test_constant_prediction_follows_the_half_angle_law(schedule: Schedule) -> None:
    """One prototype: tan(theta'/2) = tan(theta/2) exp(-dtau), exactly for sphere_2m, in the limit for the loop."""
    target = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    x = torch.tensor([[math.cos(2.0), math.sin(2.0), 0.0]], dtype=torch.float64)
    for grid in ([599, 300], [599, 500, 300], list(range(599, 299, -1))):
        states = []
        keep = lambda t, state, x0, states=states: states.append(state)  # noqa: E731
        sphere_2m(lambda x, t: 5 * target.expand_as(x), x, schedule, grid, 5.0, keep)
        angle = torch.arccos(normalise(states[-1]) @ target.T)
        decay = math.exp(-float(schedule.tau[grid[-1]] - schedule.tau[599]))
        assert float(torch.tan(angle / 2)) == pytest.approx(math.tan(1.0) * decay, rel=1e-9)
    loop = []
    sphere_ddim(lambda x, t: 5 * target.expand_as(x), x, schedule, grid, 5.0, lambda t, state, x0: loop.append(state))
    assert float(torch.arccos(normalise(loop[-1]) @ target.T)) == pytest.approx(float(angle), abs=5e-3)


@pytest.mark.parametrize("solver", WALKS)
def test_prototypes_snap_to_the_nearest(schedule: Schedule, solver: str) -> None:
    """The analytic limit of the closed form over far-apart prototypes is the nearest of them."""
    prototypes = torch.eye(64, dtype=torch.float64)[:20]
    denoise = PrototypeDenoiser(prototypes, schedule.inverse_temperature(64, 5.0), 5.0)
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(20, (40,), generator=generator)
    x = normalise(prototypes[label] + 0.1 * torch.randn(40, 64, generator=generator, dtype=torch.float64))
    for num_steps in (6, 50):
        out = sample(denoise, x, schedule, entry_step=600, num_steps=num_steps, scale=5.0, solver=solver)
        torch.testing.assert_close(out, 5 * prototypes[label], atol=1e-3, rtol=0)


@pytest.mark.parametrize("solver", ["sphere_2m", "sphere_pc"])
@pytest.mark.parametrize("cosine", [0.3, 0.5])
def test_six_evaluations_reproduce_six_hundred(
    mixture: Callable, schedule: Schedule, cosine: float, solver: str
) -> None:
    x, label = mixture.inputs(128, cosine)

    def bridged(**settings: int | str) -> torch.Tensor:
        return normalise(sample(mixture, x, schedule, entry_step=600, scale=5.0, **settings))

    reference = bridged(num_steps=600, solver="reference")
    fast = bridged(num_steps=6, solver=solver)
    similarity = (fast * reference).sum(1)
    assert float(similarity.mean()) >= 0.999 and float(similarity.quantile(0.01)) >= 0.999
    classes = (reference @ mixture.prototypes.T).argmax(1)
    assert (classes == (fast @ mixture.prototypes.T).argmax(1)).all() and (classes == label).all()
    # both solvers converge to one limit; the uniform loop needs far more evaluations
    assert float((bridged(num_steps=50, last_step=0, solver=solver) * reference).sum(1).min()) > 0.99999
    assert float((bridged(num_steps=6, solver="reference") * reference).sum(1).mean()) < 0.999


@pytest.mark.parametrize("solver", WALKS)
def test_input_scale_does_not_matter(mixture: Callable, schedule: Schedule, solver: str) -> None:
    x, _ = mixture.inputs(8, 0.4)
    settings = {"entry_step": 600, "num_steps": 6, "scale": 5.0, "solver": solver}
    expected = sample(mixture, x, schedule, **settings)
    for factor in (0.1, 2, 5, 10):
        torch.testing.assert_close(sample(mixture, factor * x, schedule, **settings), expected, atol=1e-5, rtol=0)


def test_repeated_timesteps_cost_and_change_nothing(mixture: Callable, schedule: Schedule) -> None:
    """S=600 at M=100, as one public branch runs it, against S=100: six times the calls for the same vector."""
    x, _ = mixture.inputs(16, 0.4)
    mixture.calls = 0
    many = normalise(sphere_ddim(mixture, x, schedule, reference_grid(100, 600, allow_repeats=True), 5.0))
    assert mixture.calls == 600
    few = normalise(sphere_ddim(mixture, x, schedule, reference_grid(100, 100), 5.0))
    assert mixture.calls == 700
    assert (many - few).abs().max() < 2e-2 and float((many * few).sum(1).min()) > 0.9998


def test_public_loop_drifts_by_its_rounded_tables(schedule: Schedule) -> None:
    """A repeated timestep 0 multiplies the state by 1.00026 and takes 0.00026 x0 away; exactly it is nothing."""
    x0, x = torch.tensor([[5.0, 0.0]]), torch.tensor([[0.0, 5.0]])
    ends = {}
    for walk in (public_loop, sphere_ddim):
        states = []
        walk(lambda x, t: x0, x, schedule, [0, 0], 5.0, lambda t, state, x0, states=states: states.append(state))
        ends[walk] = states[1]
    torch.testing.assert_close(ends[sphere_ddim], x, atol=1e-5, rtol=0)
    assert float(-ends[public_loop][0, 0] / 5) == pytest.approx(0.00026, abs=1e-5)


def test_public_solver_may_repeat_timesteps(mixture: Callable, schedule: Schedule) -> None:
    x, _ = mixture.inputs(4, 0.4)
    mixture.calls = 0
    many = sample(mixture, x.float(), schedule, entry_step=20, num_steps=60, scale=5.0, solver="public")
    assert mixture.calls == 60
    few = sample(mixture, x.float(), schedule, entry_step=20, num_steps=20, scale=5.0, solver="reference")
    assert float((normalise(many) * normalise(few)).sum(1).min()) > 0.9998
    with pytest.raises(ValueError, match="num_steps <= entry_step"):
        sample(mixture, x, schedule, entry_step=20, num_steps=60, scale=5.0, solver="reference")


class Gaussian:
    """Posterior mean for clean vectors from N(0, v I), as a vp network; its probability flow is known exactly."""

    variant = "vp"

    def __init__(self, variance: float, schedule: Schedule, scale: float) -> None:
        self.variance, self.schedule, self.scale = variance, schedule, scale

    def spread(self, t: int | torch.Tensor) -> torch.Tensor:
        return self.schedule.abar[t] * self.variance + 1 - self.schedule.abar[t]

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        state = x * (self.schedule.state_norm(x.shape[1], self.scale) / self.scale)[t, None]
        return (self.schedule.a[t] * self.variance / self.spread(t))[:, None] * state


def test_probability_flow_of_a_gaussian_and_its_order(schedule: Schedule) -> None:
    """x_t / sqrt(a² v + sigma²) is constant along the flow; halving the step quarters the error of order 2."""
    denoise = Gaussian(2.0, schedule, 5.0)
    u = normalise(torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    start = schedule.state_norm(8, 5.0)[599]
    ends = start * u * (denoise.spread(20) / denoise.spread(599)).sqrt()
    expected = schedule.a[20] * 2.0 / denoise.spread(20) * ends
    error = {}
    for order in (1, 2):
        for steps in (20, 40):
            found = probability_flow(denoise, u, schedule, tau_grid(600, steps, schedule), 5.0, order=order)
            error[order, steps] = float((found - expected).norm() / expected.norm())
    assert error[2, 20] < 6e-3 and error[2, 40] < error[1, 40] / 5
    assert 1.7 < error[1, 20] / error[1, 40] < 2.3 and error[2, 20] / error[2, 40] > 3


def test_probability_flow_is_exact_for_a_constant_prediction(schedule: Schedule) -> None:
    """a x0 + sigma n with the noise n read off the start, whatever the grid and the order."""
    x0 = torch.tensor([[5.0, 0.0, 0.0]], dtype=torch.float64)
    u = torch.tensor([[0.6, 0.8, 0.0]], dtype=torch.float64)
    noise = (schedule.state_norm(3, 5.0)[599] * u - schedule.a[599] * x0) / schedule.sigma[599]
    expected = normalise(schedule.a[300] * x0 + schedule.sigma[300] * noise)
    for grid in ([599, 300], [599, 550, 400, 300]):
        for order in (1, 2):
            states = []
            keep = lambda t, state, x0, states=states: states.append(state)  # noqa: E731
            probability_flow(lambda x, t: x0.expand_as(x), u, schedule, grid, 5.0, keep, order=order)
            torch.testing.assert_close(states[-1], 5 * expected)


def test_flows_on_the_sphere_and_off_it_end_alike(mixture: Callable, schedule: Schedule) -> None:
    """Different flows (spec §4.3): their long walks agree to .97-.999 on average; and few dpm_2m steps follow ddim."""
    x, _ = mixture.inputs(64, 0.5)

    def walk(solver: str, num_steps: int) -> torch.Tensor:
        return normalise(sample(mixture, x, schedule, entry_step=600, num_steps=num_steps, scale=5.0, solver=solver))

    vp, sphere = walk("ddim", 600), walk("reference", 600)
    assert 0.97 < float((vp * sphere).sum(1).mean()) < 0.9999
    assert float((walk("dpm_2m", 20) * vp).sum(1).mean()) > 0.999
    assert (walk("dpm_2m", 10) * vp).sum(1).mean() > (walk("ddim", 10) * vp).sum(1).mean()


def test_networks_go_with_their_solvers(schedule: Schedule) -> None:
    x = normalise(torch.randn(2, 16, generator=torch.Generator().manual_seed(0)))
    record = {"kind": "mlp", "width": 8, "depth": 1}
    settings = {"entry_step": 300, "scale": 5.0}
    for variant in ("sphere", "vp", "student"):
        network = build_denoiser(record | {"variant": variant, "entry_step": 300}, 16, schedule, 5.0)
        for solver, variants in SOLVERS.items():
            num_steps = 1 if solver == "student" else 4
            if variant in variants:
                assert sample(network, x, schedule, num_steps=num_steps, solver=solver, **settings).isfinite().all()
                continue
            with pytest.raises(ValueError, match=f"bridge.solver: found {solver}, .* trained as {variant}; mend"):
                sample(network, x, schedule, num_steps=num_steps, solver=solver, **settings)
    with pytest.raises(ValueError, match="bridge.num_steps: found 2, expected 1 for solver student"):
        sample(network, x, schedule, num_steps=2, solver="student", **settings)
    with pytest.raises(ValueError, match="bridge.entry_step: found 100, expected 300"):
        sample(network, x, schedule, num_steps=1, solver="student", entry_step=100, scale=5.0)


@pytest.mark.parametrize(("rows", "padded"), [(0, 0), (1, 32), (32, 32), (33, 128), (2048, 2048), (2049, 4096)])
def test_rows_are_padded_to_few_sizes(rows: int, padded: int) -> None:
    x = torch.arange(rows * 2.0).reshape(rows, 2)
    found = pad_rows(x)
    assert len(found) == padded and torch.equal(found[:rows], x)
    assert not padded or padded in ROW_BUCKETS or padded % ROW_BUCKETS[-1] == 0


@pytest.mark.parametrize("solver", WALKS)
def test_padded_equals_unpadded_and_the_network_sees_buckets_only(schedule: Schedule, solver: str) -> None:
    torch.manual_seed(0)
    network = build_denoiser({"kind": "mlp", "width": 32, "depth": 1}, 16, schedule, 5.0).double()
    torch.nn.init.normal_(network.outlet[1].weight, std=0.1)
    sizes = set()
    network.register_forward_pre_hook(lambda module, inputs: sizes.add(len(inputs[0])))
    x = normalise(torch.randn(41, 16, dtype=torch.float64)).requires_grad_()
    settings = {"entry_step": 600, "num_steps": 6, "scale": 5.0, "solver": solver}
    plain = sample(network, x, schedule, **settings)
    assert sizes == {41}
    sizes.clear()
    padded = sample(network, x, schedule, pad_to_bucket=True, **settings)
    assert sizes == {128}
    torch.testing.assert_close(padded, plain, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(out.square().sum(), x)[0] for out in (plain, padded)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_trajectory_is_the_sample_and_its_path(mixture: Callable, schedule: Schedule) -> None:
    x, _ = mixture.inputs(4, 0.4)
    settings = {"entry_step": 300, "num_steps": 4, "scale": 5.0}
    timesteps, states, predictions = trajectory(mixture, x, schedule, **settings)
    assert timesteps == mixed_grid(300, 4, schedule) and states.shape == predictions.shape == (4, 4, 512)
    torch.testing.assert_close(states[0], 5 * x)
    torch.testing.assert_close(states.norm(dim=-1), torch.full((4, 4), 5.0, dtype=torch.float64))
    torch.testing.assert_close(predictions[-1], sample(mixture, x, schedule, **settings))


def test_gradients_reach_the_input_even_at_the_target(schedule: Schedule) -> None:
    prototypes = torch.eye(8, dtype=torch.float64)
    denoise = PrototypeDenoiser(prototypes, schedule.inverse_temperature(8, 5.0), 5.0)
    x = prototypes[:2].clone().requires_grad_()
    sample(denoise, x, schedule, entry_step=600, num_steps=5, scale=5.0).square().sum().backward()
    assert x.grad.isfinite().all()
    with pytest.raises(ValueError, match="bridge.solver: found 'heun'"):
        sample(denoise, x, schedule, entry_step=600, num_steps=5, scale=5.0, solver="heun")
