"""The public variants as plain data, and what applying one changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lib.bridge.architectures import build_denoiser
from lib.bridge.bundle import Bridge
from lib.bridge.diffusion import Schedule
from lib.bridge.geometry import Geometry, centre, modality_mean, normalise
from lib.bridge.presets import MODES, PRESETS, apply, text_rows
from lib.bridge.samplers import reference_grid, sphere_ddim
from lib.clip.text_space import TextSpace


@pytest.fixture
def bridge(raw_text: Callable, schedule: Schedule, space: TextSpace) -> Bridge:
    torch.manual_seed(0)
    architecture = {"kind": "mlp", "width": 16, "depth": 1}
    denoiser = build_denoiser(architecture, 16, schedule, 5.0)
    torch.nn.init.normal_(denoiser.outlet[1].weight, std=0.1)
    geometry = Geometry(modality_mean(raw_text(50, 16)), modality_mean(raw_text(50, 16, seed=1) + 2.0))
    return Bridge(denoiser, architecture, geometry, schedule, space)


def calls(bridge: Bridge, features: torch.Tensor) -> int:
    seen = []
    handle = bridge.denoiser.register_forward_hook(lambda *_: seen.append(1))
    bridge(features)
    handle.remove()
    return len(seen)


@pytest.mark.parametrize(
    ("name", "mode", "depth", "count", "mean"),
    [
        ("cvpr", "evaluate", 600, 5, "vision_mean"),
        ("fork_main", "evaluate", 600, 600, "text_mean"),
        ("fork_test", "evaluate", 600, 600, "text_mean"),
        ("fork_test", "train", 100, 600, "text_mean"),
    ],
)
def test_walk_and_centring(
    bridge: Bridge, raw_text: Callable, name: str, mode: str, depth: int, count: int, mean: str
) -> None:
    features = raw_text(4, 16, seed=2)
    applied = apply(bridge, name, mode)
    assert calls(applied, features) == count
    entry = 5 * centre(features, getattr(bridge.geometry, mean))
    grid = reference_grid(depth, count, allow_repeats=True)
    expected = normalise(sphere_ddim(bridge.denoiser, entry, bridge.schedule, grid, 5.0))
    torch.testing.assert_close(applied(features), expected, atol=3e-2, rtol=0)  # rounded tables on repeats
    assert (bridge.solver, bridge.geometry.center) == ("sphere_pc", "own")  # the given bridge stays


def test_text_side(bridge: Bridge, raw_text: Callable) -> None:
    rows = raw_text(5, 16, seed=3)
    assert torch.equal(text_rows(bridge, "fork_main", rows), rows)
    for name in ("cvpr", "fork_test"):
        assert torch.equal(text_rows(bridge, name, rows), centre(rows, bridge.geometry.text_mean))


def test_wrong_names_and_modes_are_refused(bridge: Bridge) -> None:
    with pytest.raises(ValueError, match="bridge preset: found 'fork', expected one of cvpr, fork_main, fork_test"):
        apply(bridge, "fork")
    with pytest.raises(ValueError, match="mode: found 'test', expected one of evaluate, train"):
        apply(bridge, "cvpr", "test")
    for name, preset in PRESETS.items():
        for mode in MODES:
            if getattr(preset, mode) is None:
                with pytest.raises(ValueError, match=f"{name}: the bridge takes no part in its training"):
                    apply(bridge, name, mode)
