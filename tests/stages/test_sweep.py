"""Sweeps: points of a grid as ordinary runs that share what they can, one table over the seeds."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from lib.config import ConfigError
from lib.runs import Artifact
from lib.stages import bridging, sweep

FILE = """
config: tests/micro.yaml
overrides: [ezhoi.epochs=1, data.train_limit=24, data.validation_images=8, data.test_limit=10]
variants:
  released: [ezhoi.preset=released]
  broken: [{broken}]
grid:
  data.zero_shot: [default]
seeds: [0, 1]
"""


@pytest.fixture
def sweep_file(tmp_path):
    def write(broken="ezhoi.preset=prefix"):
        path = tmp_path / "sweep.yaml"
        path.write_text(FILE.format(broken=broken))
        return path

    return write


def test_a_sweep_runs_every_point_once(sweep_file, tmp_path, capsys):
    # the second variant fails in training, after its settings were accepted
    path = sweep_file("ezhoi.regions=nothing")
    with pytest.raises(RuntimeError, match=r"2 of 4 points failed.*regions"):
        sweep.run_sweep(path, tmp_path / "run")
    points = pd.read_csv(tmp_path / "run" / "points.csv")
    found = points[["variant", "zero_shot", "method", "seed"]].values.tolist()
    assert found == [["released", "default", "ezhoi", seed] for seed in (0, 1)]
    first = tmp_path / "run" / "released-default-seed0"
    assert (first / "features").resolve() == (tmp_path / "run" / "shared" / "features").resolve()
    written = (first / "ezhoi" / "artifact.json").stat().st_mtime_ns

    assert sweep.main([str(sweep_file()), "--run", str(tmp_path / "run")]) == 0
    assert (first / "ezhoi" / "artifact.json").stat().st_mtime_ns == written  # reused
    assert Artifact.load(tmp_path / "run" / "broken-default-seed1" / "pairs" / "test").info["images"] == 10
    summary = pd.read_csv(tmp_path / "run" / "summary.csv")
    assert summary["seeds"].tolist() == [2, 2]
    assert summary["mAP_full_mean"][0] == pytest.approx(points["mAP_full"].mean(), abs=0.006)
    assert summary["mAP_full_std"][0] == pytest.approx(points["mAP_full"].std(), abs=0.006)
    assert "released" in capsys.readouterr().out


def test_bridges_are_measured_on_every_detector(tmp_path):
    (tmp_path / "sweep.yaml").write_text(
        "config: tests/micro.yaml\nmeasure: bridges\nseeds: [0]\n"
        'overrides: ["evaluation.entry_steps=[100]", "evaluation.step_budgets=[1]", text_bank.max_texts=60]\n'
    )
    found = sweep.run_sweep(tmp_path / "sweep.yaml", tmp_path / "run")
    points = pd.read_csv(tmp_path / "run" / "points.csv")
    assert set(points["method"]) == {"ezhoi"} | {
        f"{name}{suffix}"
        for name in bridging.HEADLINE[1:]
        for suffix in ("", "_alone")
        if name + suffix != "ensemble_alone"
    }
    assert set(found["verdict"]) == {"one seed"}
    alone = points.set_index("method")["mAP_full"]
    row = found[(found["method"] == "prototype_alone") & (found["score"] == "mAP_full")].iloc[0]
    assert row["difference"] == pytest.approx(alone["prototype_alone"] - alone["ezhoi"], abs=2e-3)


def test_no_worker_outlives_a_killed_sweep(tmp_path):
    """The child starts a pool whose worker sleeps, tells its process id, and is killed."""
    code = (
        "import os, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from multiprocessing import get_context\n"
        "from lib.stages.sweep import _die_with_parent\n"
        "pool = ProcessPoolExecutor(1, mp_context=get_context('spawn'), initializer=_die_with_parent)\n"
        "print(pool.submit(os.getpid).result(), flush=True)\n"
        "pool.submit(time.sleep, 600)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as sweeper:
        worker = int(sweeper.stdout.readline())
        sweeper.kill()
    for _ in range(100):
        if not _alive(worker):
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail(f"worker {worker} was still alive 10 s after its parent was killed")


def _alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_groups_without_a_value_stay(tmp_path):
    table = pd.DataFrame({"variant": ["a", "a"], "seed": [0, 1], "mAP_full": [1.0, 3.0], "mAP_unseen": [math.nan] * 2})
    row = sweep.summarise_seeds(table).iloc[0]
    assert row["mAP_full_mean"] == 2 and row["mAP_full_std"] == pytest.approx(math.sqrt(2))
    assert math.isnan(row["mAP_unseen_mean"])


def test_mistakes_are_found_before_anything_runs(sweep_file, tmp_path):
    with pytest.raises(ConfigError, match=r"did you mean 'ezhoi.epochs'"):
        sweep.read_sweep(sweep_file("ezhoi.epoch=3"))
    with pytest.raises(ConfigError, match="found no sweep file"):
        sweep.read_sweep(tmp_path / "nothing.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("config: tests/micro.yaml\nseed: 3\n")
    with pytest.raises(ConfigError, match=r"found keys \['config', 'seed'\], expected config and seeds"):
        sweep.read_sweep(bad)


def test_the_shipped_sweep_is_readable():
    shipped = sweep.read_sweep("configs/sweeps/ezhoi_text.yaml")
    points = shipped.points
    assert shipped.config == "configs/tiny.yaml" and len(points) == 60 and len({point.name for point in points}) == 60
    rows = pd.read_csv("configs/sweeps/ezhoi_text.csv")
    assert set(rows["variant"]) <= {point.row["variant"] for point in points}
    assert rows["seeds"].eq(3).all() and rows["zero_shot"].nunique() == 5


def test_a_verdict_needs_an_interval_on_one_side_of_zero():
    """Differences 1, 2, 3: mean 2, half width 4.303 * 1 / sqrt(3) = 2.484. Differences 1.0, 1.1, 1.2: all above 0."""
    rows = []
    for seed in range(3):
        rows.append({"variant": "a", "method": "ezhoi", "seed": seed, "mAP_full": 10.0 + seed})
        rows.append({"variant": "a", "method": "wide", "seed": seed, "mAP_full": 11.0 + 2 * seed})
        rows.append({"variant": "a", "method": "helps", "seed": seed, "mAP_full": 11.0 + 1.1 * seed})
        rows.append({"variant": "a", "method": "hurts", "seed": seed, "mAP_full": 9.0 + seed})
    found = sweep.paired_differences(pd.DataFrame(rows), "ezhoi").set_index("method")
    assert found["verdict"].to_dict() == {"wide": "no difference", "helps": "helps", "hurts": "hurts"}
    assert found.loc["wide", "difference"] == pytest.approx(2)
    assert found.loc["wide", "high"] == pytest.approx(2 + 4.3027 / 3**0.5, abs=1e-3)
    one = sweep.paired_differences(pd.DataFrame(rows[:2]), "ezhoi")
    assert one["verdict"].tolist() == ["one seed"]
