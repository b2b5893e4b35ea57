"""The bridge as a callable and as a folder, and the refusal of one that does not fit."""

from __future__ import annotations

import json
import warnings
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
from lib.bridge.self_test import TextProbes
from lib.bridge.text_bank import TextBank
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
        bridge.denoiser, bridge.geometry.vision(features), bridge.schedule, entry_step=600, num_steps=12, scale=5.0
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
        ({"entry_step": 5, "num_steps": 6}, "found entry_step 5 and num_steps 6"),
        ({"solver": "reference", "entry_step": 100, "num_steps": 600}, "num_steps is the number of network"),
    ):
        with pytest.raises(ValueError, match=message):
            bridge.with_sampler(**settings)


def test_entry_step_alone_caps_the_evaluations(bridge: Bridge) -> None:
    assert (bridge.with_sampler(entry_step=4).entry_step, bridge.with_sampler(entry_step=4).num_steps) == (4, 4)
    assert bridge.with_sampler(entry_step=400).num_steps == 12
    assert bridge.with_sampler(entry_step=4).with_sampler(entry_step=400).num_steps == 4


def edit(folder: Path, *changes: tuple[str, str]) -> None:
    """Replace text in bridge.json, each once at least."""
    path = folder / "bridge.json"
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([('"dim": 16', '"dim": 32')], "found dim 32, expected 16"),
        ([('"N-mu-N-scale/v1"', '"N-scale/v0"')], "found transform 'N-scale/v0', expected"),
        ([('"cosine-s0.008-beta0.999"', '"linear"')], "found schedule 'linear'"),
        ([('"objective": "x0"', '"objective": "noise"')], "found objective 'noise', expected 'x0'"),
        ([('"schema": 2', '"schema": 1')], "found schema 1, expected 2"),
        ([('"scale": 5.0', '"scale": 4.0')], "found scale '4', expected '5, the length of the states"),
        ([('"adaptation": "none"', '"adaptation": "ezhoi"')], "found text space id"),
        ([('"schema": 2', '"schema": 2 ')], None),
    ],
)
def test_edited_records_are_refused(bridge: Bridge, tmp_path: Path, changes: list, message: str | None) -> None:
    bridge.save(tmp_path)
    edit(tmp_path, *changes)
    if message is None:
        assert Bridge.load(tmp_path).verify() is None
        return
    with pytest.raises(ValueError, match=message) as error:
        Bridge.load(tmp_path)
    assert "mend" in str(error.value)


def test_all_mismatches_are_printed_at_once(bridge: Bridge, tmp_path: Path) -> None:
    bridge.save(tmp_path)
    edit(tmp_path, ('"objective": "x0"', '"objective": "v"'), ('"N-mu-N-scale/v1"', '"N/v0"'))
    for name in ("weights", "means", "probes"):
        content = (tmp_path / f"{name}.safetensors").read_bytes()
        (tmp_path / f"{name}.safetensors").write_bytes(content[:-1] + b"x")
    with pytest.raises(ValueError, match="5 parts do not belong together") as error:
        Bridge.load(tmp_path)
    for part in (
        "objective 'v'",
        "transform",
        "sha256 of weights",
        "sha256 of means",
        "sha256 of probes",
        "lib.bridge",
    ):
        assert part in str(error.value)
    with pytest.raises(FileNotFoundError, match="run notebook 03"):
        Bridge.load(tmp_path / "absent")


def swap(folder: Path, other: Path, name: str) -> None:
    """Put another bundle's file into `folder` and its digests into the record, as a careless tool would."""
    ours, theirs = (json.loads((place / "bridge.json").read_text()) for place in (folder, other))
    ours["files"][name] = theirs["files"][name]
    if name == "means":
        ours["means"] = theirs["means"]
    (folder / "bridge.json").write_text(json.dumps(ours))
    (other / f"{name}.safetensors").replace(folder / f"{name}.safetensors")


def test_swapped_weights_fail_the_self_test(bridge: Bridge, tmp_path: Path) -> None:
    """Averaged weights in the place of raw ones, with every digest in order (spec §7.2)."""
    bridge.save(tmp_path / "raw")
    with torch.no_grad():
        for parameter in bridge.denoiser.parameters():
            parameter.mul_(1.01)
    bridge.save(tmp_path / "ema")
    swap(tmp_path / "raw", tmp_path / "ema", "weights")
    with pytest.raises(ValueError, match="denoiser self-test .*radii off"):
        Bridge.load(tmp_path / "raw")


def test_mean_of_other_texts_is_refused(bridge: Bridge, bank: TextBank, raw_text: RawText, tmp_path: Path) -> None:
    with_probes = replace(bridge, probes=TextProbes.of(bank))
    with_probes.save(tmp_path / "right")
    assert Bridge.load(tmp_path / "right").probes.sentences == with_probes.probes.sentences
    other = modality_mean(raw_text(400, 16, seed=5).roll(1, dims=1))
    replace(with_probes, geometry=Geometry(other)).save(tmp_path / "wrong")
    swap(tmp_path / "right", tmp_path / "wrong", "means")
    with pytest.raises(ValueError, match="text mean 'a mean that leaves its own texts 0"):
        Bridge.load(tmp_path / "right")


def test_a_detector_that_overwrites_the_bridge_is_found(bridge: Bridge, tmp_path: Path) -> None:
    bridge.save(tmp_path)
    loaded = Bridge.load(tmp_path)
    holder = torch.nn.Module()
    holder.bridge = loaded  # what the fork does with the module; here it is no module, so nothing of it is saved
    assert holder.state_dict() == {}
    loaded.verify()
    loaded.denoiser.load_state_dict({key: value + 0.01 for key, value in loaded.denoiser.state_dict().items()})
    with pytest.raises(ValueError, match="denoiser self-test"):
        loaded.verify()


def test_weights_without_a_kind_are_not_saved(bridge: Bridge, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected which weights these are \(raw \| ema"):
        replace(bridge, provenance={}).save(tmp_path)


def test_the_text_mean_is_no_vision_mean(bridge: Bridge) -> None:
    with pytest.raises(ValueError, match=r"vision mean: found the text mean(.|\n)*set bridge.center=text"):
        bridge.with_vision_mean(bridge.geometry.text_mean)


def test_vision_mean_follows_the_features(bridge: Bridge, raw_text: RawText) -> None:
    start, rows = bridge.geometry.vision_mean, raw_text(50, 16, seed=3).requires_grad_()
    moved = bridge.track_vision_mean(rows, decay=0.9).geometry.vision_mean
    torch.testing.assert_close(moved, 0.9 * start + 0.1 * normalise(rows.detach()).mean(0))
    assert not moved.requires_grad
    assert torch.equal(bridge.track_vision_mean(rows[:0]).geometry.vision_mean, start)
    fresh = replace(bridge, geometry=replace(bridge.geometry, vision_mean=None)).track_vision_mean(rows)
    torch.testing.assert_close(fresh.geometry.vision_mean, modality_mean(rows.detach()))


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


@pytest.mark.parametrize(
    ("field", "theirs"),
    [
        ("clip_sha", "beef"),  # ViT-B/32 bridge on ViT-B/16 features, ViT-L/14 on L/14@336: same width, other weights
        ("activation", "quick_gelu"),  # another implementation of the same weights
        ("tokenizer", "clip-bpe-32"),
        ("template", "{}"),
        ("adaptation", "ezhoi:0123"),  # wrong order; a detector trained again has another number
    ],
)
def test_every_part_of_the_text_space_counts(bridge: Bridge, space: TextSpace, field: str, theirs: str) -> None:
    other = replace(space, **{field: theirs})
    with pytest.raises(ValueError, match=f"text space, {field}: the bridge has '{getattr(space, field)}'.*{theirs}"):
        check_compatible(bridge, other, 16)
    assert check_compatible(bridge, other, 16, allow_mismatch=True)


def test_depth_and_kind_of_weights_must_agree(bridge: Bridge, space: TextSpace) -> None:
    assert not check_compatible(bridge, space, 16, entry_step=600, weights="raw")
    with pytest.raises(ValueError, match="bridge.entry_step: the bridge has 600, the classifier 100"):
        check_compatible(bridge, space, 16, entry_step=100)
    with pytest.raises(ValueError, match="weights: the bridge has 'raw', the classifier 'ema'"):
        check_compatible(bridge, space, 16, weights="ema")


def test_another_text_tower_of_equal_name_is_found(bridge: Bridge, bank: TextBank, space: TextSpace) -> None:
    probed = replace(bridge, probes=TextProbes.of(bank))
    vector = dict(zip(bank.labels, bank.vectors, strict=True))
    tower = lambda sentences: torch.stack([vector[sentence] for sentence in sentences])  # noqa: E731
    assert not check_compatible(probed, space, 16, encode=tower)
    assert not check_compatible(probed, space, 16, encode=lambda sentences: 3 * tower(sentences))
    with pytest.raises(ValueError, match="vectors of the probe sentences: .*cosine 0.9"):
        check_compatible(probed, space, 16, encode=lambda sentences: tower(sentences) + 0.3)
    with pytest.raises(ValueError, match="cosine -1"):
        check_compatible(probed, space, 16, encode=lambda sentences: tower(sentences)[:, :8])


def test_class_list_reordered_or_cut_is_found(bridge: Bridge, bank: TextBank, space: TextSpace) -> None:
    classes = bank.labels[:5]
    probed = replace(bridge, probes=TextProbes.of(replace(bank, classes=tuple(classes))))
    assert not check_compatible(probed, space, 16, classes=classes)
    for other in (classes[::-1], classes[:4]):
        with pytest.raises(ValueError, match="class sentences, in order"):
            check_compatible(probed, space, 16, classes=other)


def test_texts_that_the_denoiser_does_not_know(bank: TextBank, space: TextSpace, schedule: Schedule) -> None:
    """The closed form over the bank knows the bank: other texts cost it more and are moved at t=0 (spec §7.3)."""
    geometry = Geometry(modality_mean(bank.vectors))
    architecture = {"kind": "prototype", "count": len(bank)}
    denoiser = build_denoiser(architecture, 16, schedule, 5.0)
    denoiser.prototypes.copy_(geometry.text(bank.vectors))
    bridge = Bridge(denoiser, architecture, geometry, schedule, space, probes=TextProbes.of(bank))
    assert not check_compatible(bridge, space, 16, text_rows=bank.vectors[:200])
    with pytest.raises(ValueError, match=r"denoising loss: .*times that(.|\n)*fixed points at t=0"):
        check_compatible(bridge, space, 16, text_rows=bank.vectors[:50].roll(3, dims=1))
    with pytest.raises(ValueError, match="transformed before"):
        check_compatible(bridge, space, 16, text_rows=geometry.text(bank.vectors))


def test_features_far_off_the_vision_mean_give_a_warning(bridge: Bridge, raw_text: RawText, space: TextSpace) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_compatible(bridge, space, 16, features=raw_text(300, 16, seed=4))
    with pytest.warns(UserWarning, match="off centre, expected 0.1 at most"):
        check_compatible(bridge, space, 16, features=raw_text(300, 16, seed=4).roll(1, dims=1))
