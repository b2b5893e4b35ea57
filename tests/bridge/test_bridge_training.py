"""Training: it learns, it resumes to the same numbers, and it refuses what does not belong together."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lib.bridge.bundle import Bridge
from lib.bridge.diffusion import BUCKETS
from lib.bridge.text_bank import TextBank
from lib.bridge.training import closed_form_bridge, split_texts, train_bridge
from lib.engine.ema import Ema
from lib.runs import read_jsonl
from lib.settings import BridgeSettings

SETTINGS = BridgeSettings(
    width=32, depth=2, steps=60, batch=32, lr=3e-3, held_out=0.1, log_every=7, validate_every=20, entry_step=300
)


def test_learns_the_bank_better_than_no_data(bank: TextBank, tmp_path: Path) -> None:
    metrics = train_bridge(bank, replace(SETTINGS, steps=400, validate_every=200), tmp_path)
    history = read_jsonl(tmp_path / "loss.jsonl")
    assert history[-1]["step"] == 400 and history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert metrics[f"val_{metrics['weights']}"] == min(metrics["val_raw"], metrics["val_ema"]) == metrics["val_all"]
    assert {"val_t0-49", "val_t800-999", "val_closed_form"} <= metrics.keys()
    assert (metrics["rows"], metrics["held_out_rows"]) == (360, 40)

    bridge = Bridge.load(tmp_path)
    assert bridge.provenance["weights"] == {"kind": metrics["weights"], "step": 400}
    assert bridge.provenance["training"]["val_loss"]["all"] == metrics["val_all"]
    assert (bridge.entry_step, bridge.text_space) == (300, bank.space)


VP = replace(SETTINGS, variant="vp", solver="dpm_2m")


@pytest.mark.parametrize(("stop_at", "settings"), [(14, SETTINGS), (20, SETTINGS), (35, SETTINGS), (35, VP)])
def test_resumed_equals_uninterrupted(bank: TextBank, tmp_path: Path, stop_at: int, settings: BridgeSettings) -> None:
    expected = train_bridge(bank, settings, tmp_path / "whole", seed=3)

    def stop(step: int, steps: int, line: dict[str, float]) -> None:
        if step >= stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_bridge(bank, settings, tmp_path / "cut", seed=3, progress=stop)
    resumed = train_bridge(bank, settings, tmp_path / "cut", seed=3)
    whole, cut = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    assert resumed | {"seconds": 0} == expected | {"seconds": 0}
    assert read_jsonl(tmp_path / "whole" / "loss.jsonl") == read_jsonl(tmp_path / "cut" / "loss.jsonl")


def test_two_processes_make_the_steps_of_one(in_ranks, bank: TextBank, tmp_path: Path) -> None:
    settings = replace(SETTINGS, batch=9, steps=12, validate_every=6)  # shares of 5 and 4 rows
    one = train_bridge(bank, settings, tmp_path / "one")
    first, second = in_ranks(2, train_bridge, bank, settings, tmp_path / "two")
    assert first | {"seconds": 0} == second | {"seconds": 0}
    assert first["loss_train"] == pytest.approx(one["loss_train"], rel=1e-5)
    left, right = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, rtol=0, atol=1e-5)
    assert len(read_jsonl(tmp_path / "two" / "loss.jsonl")) == len(read_jsonl(tmp_path / "one" / "loss.jsonl"))


def test_seed_changes_the_result_and_not_the_global_stream(bank: TextBank, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    losses = [train_bridge(bank, SETTINGS, tmp_path / str(seed), seed=seed)["loss_train"] for seed in (0, 1)]
    assert torch.equal(torch.rand(3), expected)
    assert losses[0] != losses[1]


def test_unet_and_plain_recipe_run(bank: TextBank, tmp_path: Path) -> None:
    plain = replace(SETTINGS, denoiser="unet1d", steps=2, batch=4, ema=0.0, lr_decay="constant", held_out=0.0)
    metrics = train_bridge(bank, plain, tmp_path)
    assert metrics["weights"] == "raw" and "val_raw" not in metrics
    assert Bridge.load(tmp_path).architecture["kind"] == "unet1d"


def test_vp_learns_is_recorded_and_refuses_the_solvers_of_the_sphere(bank: TextBank, tmp_path: Path) -> None:
    metrics = train_bridge(bank, replace(VP, steps=400, validate_every=200), tmp_path)
    history = read_jsonl(tmp_path / "loss.jsonl")
    assert history[-1]["loss"] < 0.8 * history[0]["loss"] and metrics["val_all"] > 0
    bridge = Bridge.load(tmp_path).with_center("text")
    assert bridge.architecture["variant"] == "vp" and bridge(bank.vectors[:3]).isfinite().all()
    with pytest.raises(
        ValueError, match="bridge.solver: found sphere_2m, .* trained as vp; mend: bridge.solver=dpm_2m"
    ):
        bridge.with_sampler(solver="sphere_2m")(bank.vectors[:3])
    with pytest.raises(ValueError, match="bridge.solver: found sphere_2m, .* trained as vp"):
        train_bridge(bank, replace(VP, solver="sphere_2m"), tmp_path / "other")
    with pytest.raises(ValueError, match="found a checkpoint of other texts or settings"):
        train_bridge(bank, replace(VP, variant="sphere"), tmp_path)


def test_history_holds_the_held_out_loss_of_every_bucket(bank: TextBank, tmp_path: Path) -> None:
    train_bridge(bank, SETTINGS, tmp_path)
    validated = [row for row in read_jsonl(tmp_path / "loss.jsonl") if "val_all" in row]
    assert [row["step"] for row in validated] == [20, 40, 60]
    names = {f"val_t{low}-{high - 1}" for low, high in zip(BUCKETS[:-1], BUCKETS[1:], strict=True)}
    assert all(names <= row.keys() for row in validated)


def test_bfloat16_trains_float32_weights_close_to_float32_training(bank: TextBank, tmp_path: Path) -> None:
    kinds = {precision: replace(SETTINGS, precision=precision) for precision in ("float32", "bfloat16")}
    metrics = {name: train_bridge(bank, settings, tmp_path / name) for name, settings in kinds.items()}
    losses = [found["loss_train"] for found in metrics.values()]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.02)
    weights = load_file(tmp_path / "bfloat16" / "weights.safetensors")
    assert all(value.dtype == torch.float32 for value in weights.values())


def test_checkpoint_of_other_texts_or_settings_is_refused(bank: TextBank, tmp_path: Path) -> None:
    train_bridge(bank, SETTINGS, tmp_path)
    train_bridge(bank, replace(SETTINGS, entry_step=100), tmp_path)  # how it is walked does not shape the weights
    for other_bank, settings in (
        (bank, replace(SETTINGS, scale=4.0)),
        (replace(bank, vectors=bank.vectors * 2), SETTINGS),
    ):
        with pytest.raises(ValueError, match=r"checkpoints: found a checkpoint of other texts or settings"):
            train_bridge(other_bank, settings, tmp_path)


def test_non_finite_loss_stops(bank: TextBank, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"mend: lower bridge.lr \(now 1e\+20\)"):
        train_bridge(bank, replace(SETTINGS, lr=1e20), tmp_path)


def test_wrong_settings_name_the_choices(bank: TextBank, tmp_path: Path) -> None:
    for name, value, message in (
        ("denoiser", "unet", "mlp, unet1d"),
        ("lr_decay", "step", "cosine or constant"),
        ("precision", "float16", "float32, bfloat16"),
        ("held_out", 1.0, "from 0 to below 1"),
        ("center", "both", "own, text, none"),
    ):
        with pytest.raises(ValueError, match=f"bridge.{name}: found .*{message}"):
            train_bridge(bank, replace(SETTINGS, **{name: value}), tmp_path / name)
    with pytest.raises(ValueError, match="found a decay of 1.0, expected from 0 .* to below 1"):
        train_bridge(bank, replace(SETTINGS, ema=1.0), tmp_path / "ema")


def test_equal_texts_stay_on_one_side() -> None:
    labels = [f"text {i % 10}" for i in range(100)]
    train, held_out = split_texts(labels, 0.25, seed=0)
    sides = [{labels[i] for i in rows.tolist()} for rows in (train, held_out)]
    assert len(train) + len(held_out) == 100 and not sides[0] & sides[1]
    assert len(sides[1]) == math.ceil(2.5)
    assert len(split_texts(labels, 0.0, 0)[1]) == 0
    assert len(split_texts(["same"] * 5, 0.5, 0)[1]) == 0  # nothing to learn from would be left


def test_ema_copies_then_warms_up_then_averages() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    ema = Ema(model, decay=0.9, every=2, after=4)
    seen = []
    for value in range(1, 9):
        torch.nn.init.constant_(model.weight, float(value))
        ema.update(model)
        seen.append(float(ema.model.weight))
    at_6 = 1 - 2 ** (-2 / 3)  # one call beyond the copies
    at_8 = 1 - 4 ** (-2 / 3)
    sixth = at_6 * 4 + (1 - at_6) * 6
    assert seen[1::2] == pytest.approx([2, 4, sixth, at_8 * sixth + (1 - at_8) * 8], rel=1e-5)


def test_closed_form_bridge_snaps_to_its_texts_and_survives_the_folder(bank: TextBank, tmp_path: Path) -> None:
    bridge = closed_form_bridge(bank, replace(SETTINGS, entry_step=50, center="text"))
    bridged = bridge(bank.vectors * 3)  # a text of the bank, louder, is its own nearest text
    torch.testing.assert_close(bridged, bridge.geometry.text(bank.vectors), atol=1e-3, rtol=0)
    bridge.save(tmp_path)
    loaded = Bridge.load(tmp_path)
    assert torch.equal(loaded(bank.vectors), bridge(bank.vectors))
    assert loaded.provenance["weights"]["kind"] == "closed form" and loaded.provenance["corpus"]["count"] == 400
