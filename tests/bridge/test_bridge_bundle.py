"""The bridge as a callable and as a folder, and the refusal of one that does not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lib.bridge.architectures import build_denoiser
from lib.bridge.bundle import Bridge, check_compatible
from lib.bridge.diffusion import Schedule
from lib.bridge.geometry import Geometry, modality_mean, normalise
from lib.bridge.samplers import sample
from lib.clip.text_space import TextSpace

RawText = Callable[..., torch.Tensor]


@pytest.fixture
def bridge(raw_text: RawText, space: TextSpace, schedule: Schedule) -> Bridge:
    torch.manual_seed(0)
    architecture = {"kind": "mlp", "width": 32, "depth": 1}
    denoiser = build_denoiser(architecture, 16, schedule, 5.0)
    torch.nn.init.normal_(denoiser.outlet[1].weight, std=0.05)
    geometry = Geometry(modality_mean(raw_text(400, 16)), modality_mean(raw_text(400, 16, seed=1)))
    return Bridge(denoiser, architecture, geometry, schedule, space, provenance={"weights": {"kind": "raw"}})


def test_call_is_centre_sample_normalise(bridge: Bridge, raw_text: RawText) -> None:
    features = raw_text(7, 16, seed=2)
    x0 = sample(
        bridge.denoiser, bridge.geometry.vision(features), bridge.schedule, entry_step=600, num_steps=6, scale=5.0
    )
    torch.testing.assert_close(bridge(features), normalise(x0))
    torch.testing.assert_close(bridge(features).norm(dim=1), torch.ones(7))


def test_batched_equals_single_in_any_chunk(bridge: Bridge, raw_text: RawText) -> None:
    features = raw_text(23, 16, seed=2)
    expected = torch.cat([bridge(features[i : i + 1]) for i in range(23)])
    for chunk in (1, 5, 23, 4096):
        torch.testing.assert_close(replace(bridge, chunk=chunk)(features), expected, atol=1e-5, rtol=0)
    assert bridge(features[:0]).shape == (0, 16)


def test_wrong_dimension_is_refused(bridge: Bridge, raw_text: RawText) -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 32\), expected \[N, 16\]"):
        bridge(raw_text(3, 32))
    with pytest.raises(ValueError, match="vision mean: found shape"):
        bridge.with_vision_mean(modality_mean(raw_text(30, 32)))


def test_bridged_rows_are_not_bridged_again(bridge: Bridge, raw_text: RawText) -> None:
    centred = bridge.geometry.vision(raw_text(400, 16, seed=1))
    with pytest.raises(ValueError, match="transformed before"):
        bridge(centred)
    with pytest.raises(ValueError, match="transformed before"):
        bridge(5 * centred)


def test_frozen_weights_pass_gradients_to_the_features(bridge: Bridge, raw_text: RawText) -> None:
    features = raw_text(4, 16, seed=2)
    assert not bridge(features).requires_grad
    features.requires_grad_()
    bridge(features)[:, 0].sum().backward()
    assert features.grad.norm() > 0 and all(p.grad is None for p in bridge.denoiser.parameters())


@pytest.mark.parametrize("with_vision_mean", [True, False])
def test_round_trip(bridge: Bridge, raw_text: RawText, tmp_path: Path, with_vision_mean: bool) -> None:
    mean = bridge.geometry.vision_mean
    if not with_vision_mean:
        bridge = replace(bridge, geometry=replace(bridge.geometry, vision_mean=None))
    bridge.with_sampler(entry_step=300, num_steps=4, solver="reference").save(tmp_path)
    loaded = Bridge.load(tmp_path)
    assert (loaded.entry_step, loaded.num_steps, loaded.solver) == (300, 4, "reference")
    assert loaded.text_space == bridge.text_space and loaded.provenance == bridge.provenance
    assert not loaded.denoiser.training
    if not with_vision_mean:
        with pytest.raises(ValueError, match="holds no vision mean"):
            loaded(raw_text(3, 16))
        loaded = loaded.with_vision_mean(mean)
    expected = bridge.with_vision_mean(mean).with_sampler(entry_step=300, num_steps=4, solver="reference")
    features = raw_text(5, 16, seed=2)
    assert torch.equal(loaded(features), expected(features))


def test_impossible_walks_are_refused(bridge: Bridge) -> None:
    for settings, message in (
        ({"solver": "heun"}, "bridge.solver: found 'heun', expected one of sphere_2m, reference"),
        ({"entry_step": 1001}, "entry_step <= 1000"),
        ({"entry_step": 5}, "found entry_step 5 and num_steps 6"),
        ({"solver": "reference", "entry_step": 100, "num_steps": 600}, "num_steps is the number of network"),
    ):
        with pytest.raises(ValueError, match=message):
            bridge.with_sampler(**settings)


def test_altered_files_are_refused(bridge: Bridge, tmp_path: Path) -> None:
    bridge.save(tmp_path)
    weights = tmp_path / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + b"x")
    with pytest.raises(ValueError, match="weights.safetensors: found sha256"):
        Bridge.load(tmp_path)
    weights.write_bytes(content)
    path = tmp_path / "bridge.json"
    for old, new, message in (
        ('"dim": 16', '"dim": 32', "bridge.json: found dim 32, expected 16"),
        ('"N-mu-N-scale/v1"', '"N-scale/v0"', "found transform"),
        ('"adaptation": "none"', '"adaptation": "ezhoi"', "found text space id"),
    ):
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=message):
            Bridge.load(tmp_path)
        path.write_text(text)
    with pytest.raises(FileNotFoundError, match="run notebook 03"):
        Bridge.load(tmp_path / "absent")


def test_matching_bridge_is_accepted(bridge: Bridge, space: TextSpace) -> None:
    assert check_compatible(bridge, space, 16, center="own", scale=5.0) is False
    assert check_compatible(bridge, space, 16, allow_mismatch=True) is False


def test_mismatches_are_refused_with_both_sides(bridge: Bridge, space: TextSpace) -> None:
    adapted = replace(space, adaptation="ezhoi:0123")
    with pytest.raises(ValueError) as error:
        check_compatible(bridge, adapted, 16, command="make run CONFIG=adapted.yaml")
    for part in (space.id, adapted.id, "'none'", "'ezhoi:0123'", "make run CONFIG=adapted.yaml", "allow_text_space"):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="bridge.center: the bridge has 'own', the classifier 'text'"):
        check_compatible(bridge, space, 16, center="text")
    with pytest.raises(ValueError, match="bridge.scale: the bridge has 5.0, the classifier 4.0"):
        check_compatible(bridge, space, 16, scale=4.0)
    assert check_compatible(bridge, adapted, 16, allow_mismatch=True) is True
    with pytest.raises(ValueError, match="dimension: the bridge has 16, the classifier 32"):
        check_compatible(bridge, adapted, 32, allow_mismatch=True)
