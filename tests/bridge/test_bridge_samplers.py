"""Grids to the integer, solvers against closed forms and against the 600-step reference."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from lib.bridge.denoisers import PrototypeDenoiser
from lib.bridge.diffusion import Schedule
from lib.bridge.geometry import normalise
from lib.bridge.samplers import reference_grid, sample, sphere_2m, sphere_ddim, tau_grid, trajectory


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


@pytest.mark.parametrize("solver", ["sphere_2m", "reference"])
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


@pytest.mark.parametrize("cosine", [0.3, 0.5])
def test_six_evaluations_reproduce_six_hundred(mixture: Callable, schedule: Schedule, cosine: float) -> None:
    x, label = mixture.inputs(128, cosine)

    def bridged(**settings: int | str) -> torch.Tensor:
        return normalise(sample(mixture, x, schedule, entry_step=600, scale=5.0, **settings))

    reference = bridged(num_steps=600, solver="reference")
    fast = bridged(num_steps=6)
    similarity = (fast * reference).sum(1)
    assert float(similarity.mean()) >= 0.999 and float(similarity.quantile(0.01)) >= 0.999
    classes = (reference @ mixture.prototypes.T).argmax(1)
    assert (classes == (fast @ mixture.prototypes.T).argmax(1)).all() and (classes == label).all()
    # both solvers converge to one limit; the uniform loop needs far more evaluations
    assert float((bridged(num_steps=50, last_step=0) * reference).sum(1).min()) > 0.99999
    assert float((bridged(num_steps=6, solver="reference") * reference).sum(1).mean()) < 0.999


@pytest.mark.parametrize("solver", ["sphere_2m", "reference"])
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


def test_trajectory_is_the_sample_and_its_path(mixture: Callable, schedule: Schedule) -> None:
    x, _ = mixture.inputs(4, 0.4)
    settings = {"entry_step": 300, "num_steps": 4, "scale": 5.0}
    timesteps, states, predictions = trajectory(mixture, x, schedule, **settings)
    assert timesteps == tau_grid(300, 4, schedule) and states.shape == predictions.shape == (4, 4, 512)
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
