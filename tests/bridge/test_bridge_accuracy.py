"""The accuracy table: columns recomputed by hand, counted calls, and the command."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lib.bridge.accuracy import accuracy_table, main
from lib.bridge.bundle import Bridge
from lib.bridge.geometry import normalise
from lib.bridge.samplers import sample
from lib.bridge.student import noised_texts, train_student
from lib.bridge.text_bank import TextBank
from lib.bridge.training import train_bridge
from lib.settings import BridgeSettings

SETTINGS = BridgeSettings(
    width=32, depth=2, steps=300, batch=64, lr=3e-3, validate_every=300, entry_step=60, student_pairs=400
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("accuracy")


@pytest.fixture
def trained(bank: TextBank, folder: Path) -> Bridge:
    if not (folder / "bridge" / "bridge.json").exists():
        train_bridge(bank, SETTINGS, folder / "bridge")
        bank.save(folder / "bank")
    return Bridge.load(folder / "bridge").with_center("text")


def test_columns_by_hand(trained: Bridge, bank: TextBank, folder: Path) -> None:
    texts = trained.geometry.text(bank.vectors)
    u = noised_texts(texts, 64, (0.5, 0.8))
    train_student(trained, replace(SETTINGS, steps=50), folder / "student", texts=bank.vectors)
    table = accuracy_table(trained, u, texts=texts, student=Bridge.load(folder / "student"), budgets=(3, 20, 100))
    rows = table.set_index("name")
    assert {"default", "student", "none (centring only)", "sphere_2m 3", "dpm_2m 20", "ddim 3", "literal"} <= {
        *rows.index
    }
    assert "sphere_2m 100" not in rows.index and not any(name.startswith("public") for name in rows.index)

    def walk(**settings: int | str) -> torch.Tensor:
        walked = sample(trained.denoiser, u, trained.schedule, entry_step=60, scale=5.0, **settings)
        return normalise(walked)

    reference = walk(num_steps=60, solver="reference")  # one at each timestep below the entry step
    for name, out in (("reference 3", walk(num_steps=3, solver="reference")), ("none (centring only)", u)):
        cosine = (out * reference).sum(1)
        assert rows.loc[name, "cosine_mean"] == pytest.approx(float(cosine.mean()), abs=1e-6)
        assert rows.loc[name, "cosine_p1"] == pytest.approx(np.quantile(cosine.double(), 0.01), abs=1e-6)
        flips = ((out @ texts.T).argmax(1) != (reference @ texts.T).argmax(1)).double().mean()
        assert rows.loc[name, "flips"] == pytest.approx(float(flips))
    assert dict(rows["calls"]) | {"literal": 60, "student": 1, "ddim 20": 20, "default": 12} == dict(rows["calls"])
    assert rows.loc["default", "share"] == pytest.approx(0.2) and rows.loc["literal", "cosine_p1"] == 1
    assert (rows.drop("none (centring only)")["us_per_row"] > 0).all()


def test_default_of_a_trained_denoiser_follows_the_literal_walk(trained: Bridge, bank: TextBank) -> None:
    """The claim of the default at a fiftieth of the calls; texts not seen in training, noised to enter at 600."""
    deep = trained.with_sampler(entry_step=600, num_steps=BridgeSettings().num_steps)
    u = noised_texts(trained.geometry.text(bank.vectors), 200, (0.6, 0.9))
    default = accuracy_table(deep, u, budgets=()).set_index("name").loc["default"]
    assert default["calls"] <= 12 and math.isnan(default["flips"])
    assert default["cosine_p1"] >= 0.999


def test_command(trained: Bridge, bank: TextBank, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    texts = ["--texts", str(folder / "bank")]
    np.save(tmp_path / "features.npy", bank.vectors.numpy() + np.float32(1))
    table = main([str(folder / "bridge"), str(tmp_path / "features.npy"), *texts, "--out", str(tmp_path / "a.csv")])
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "a.csv", keep_default_na=False), table, check_dtype=False)
    assert "400 inputs, entry step 60, features" in capsys.readouterr().out
    main([str(folder / "bridge"), *texts, "--rows", "32"])
    assert "32 inputs, entry step 60, noised texts" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([str(folder / "bridge")])
