"""Sweeps: points of a grid as ordinary runs that share what they can, one table over the seeds."""

import json
import math

import pandas as pd
import pytest

from lib.analysis.seeds import paired_differences, summarise_seeds
from lib.config import ConfigError, load_config
from lib.engine import locks
from lib.runs import Artifact, Run
from lib.stages import bridging, sweep
from lib.stages.measures import chosen_metrics

LIMITS = "data.train_limit=24, data.validation_images=8, data.test_limit=10"
FILE = """
config: tests/micro.yaml
overrides: [{limits}]
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
        path.write_text(FILE.format(broken=broken, limits=LIMITS))
        return path

    return write


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """World, models, features and detections, made once for all sweeps here."""
    folder = tmp_path_factory.mktemp("sweeps")
    sweep.prepare("tests/micro.yaml", folder, LIMITS.split(", "))
    return folder / "shared"


@pytest.fixture
def root(shared, tmp_path):
    """Folder of a sweep that finds what its points share."""

    def make(name="run"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "shared").symlink_to(shared)
        return tmp_path / name

    return make


def test_a_sweep_runs_every_point_once(sweep_file, root, tmp_path, capsys):
    # the second variant fails in training, after its settings were accepted
    path = sweep_file("ezhoi.regions=nothing")
    root()
    with pytest.raises(RuntimeError, match=r"2 of 4 points failed\n  broken-default-seed0: .*regions"):
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
    said = capsys.readouterr().out
    assert "released" in said and "2 of 4 points were done before" in said
    page = (tmp_path / "run" / "sweep.html").read_text()
    assert "broken" in page and "data:image/png" in page and "http" not in page
    assert Run(tmp_path / "run").read_status()["state"] == "finished"


def test_bridges_are_measured_on_every_detector(root, tmp_path):
    root()
    (tmp_path / "sweep.yaml").write_text(
        "config: tests/micro.yaml\nmeasure: bridges\nseeds: [0]\n"
        f'overrides: [{LIMITS}, "evaluation.entry_steps=[100]", "evaluation.step_budgets=[1]"]\n'
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


FOUR = f"""
config: tests/micro.yaml
overrides: [{LIMITS}]
variants:
  - [ezhoi.lr_head=1e-3]
  - [ezhoi.lr_head=1e-2]
seeds: 2
cpus: 1
"""


def test_processes_and_ray_give_the_same_table(root, tmp_path, monkeypatch):
    """Four points on two local processes, and again through a Ray of this machine."""
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "four.yaml").write_text(FOUR)
    tables = {}
    for place in ("processes", "ray"):
        folder = root(place)
        assert sweep.main([str(tmp_path / "four.yaml"), "--run", str(folder), "--jobs", "2", "--on", place]) == 0
        tables[place] = (folder / "points.csv").read_text(), (folder / "summary.csv").read_text()
    assert tables["processes"] == tables["ray"]
    rows = pd.read_csv(tmp_path / "ray" / "points.csv")
    assert rows["variant"].tolist() == ["lr_head=1e-3"] * 2 + ["lr_head=1e-2"] * 2
    assert rows["seed"].tolist() == [0, 1] * 2
    assert rows["mAP_full"].nunique() > 1  # the settings arrived


def test_points_share_inputs_only_where_the_settings_agree():
    common = load_config("tests/micro.yaml")
    for change in ("data.zero_shot=default", "ezhoi.epochs=9", "detector.nms_iou=0.4"):
        assert sweep.shares_inputs(common, load_config("tests/micro.yaml", [change]))
    for change in ("data.world.seed=3", "clip.source=random:ViT-B-32", "detector.source=weights/x"):
        assert not sweep.shares_inputs(common, load_config("tests/micro.yaml", [change]))


def test_metrics_of_notebooks_become_a_table():
    recorded = {"ezhoi/mAP_full": 3.0, "gap/raw/margin": 0.5, "gap/note": "x", "a/seconds": 2}
    found = chosen_metrics(recorded, ["*/mAP_*", "gap/*"])
    assert found == {"ezhoi": {"mAP_full": 3.0}, "gap/raw": {"margin": 0.5}}


def test_a_sweep_over_notebooks(root, tmp_path):
    """One notebook as the measure: any setting, any recorded number."""
    root()
    (tmp_path / "sweep.yaml").write_text(
        "config: tests/micro.yaml\nmeasure: notebooks\nnotebooks: '01'\nmetrics: ['proposals/*']\nseeds: [0]\n"
        f"overrides: [{LIMITS}]\ngrid: {{detector.min_instances: [3, 5]}}\n"
    )
    sweep.run_sweep(tmp_path / "sweep.yaml", tmp_path / "run")
    points = pd.read_csv(tmp_path / "run" / "points.csv")
    assert points["min_instances"].tolist() == [3, 5] and len(list(points)) > 4
    status = json.loads((tmp_path / "run" / "base-5-seed0" / "status.json").read_text())
    assert status["state"] == "finished" and list(status["notebooks"]) == ["01_feature_extraction"]


def test_two_sweeps_do_not_share_a_folder(sweep_file, tmp_path, monkeypatch, capsys):
    with locks.hold(tmp_path / "run", "another sweep"):
        monkeypatch.setenv(locks.HELD, "")
        assert sweep.main([str(sweep_file()), "--run", str(tmp_path / "run")]) == 3
    assert "another sweep since" in capsys.readouterr().err


def test_groups_without_a_value_stay(tmp_path):
    table = pd.DataFrame({"variant": ["a", "a"], "seed": [0, 1], "mAP_full": [1.0, 3.0], "mAP_unseen": [math.nan] * 2})
    row = summarise_seeds(table).iloc[0]
    assert row["mAP_full_mean"] == 2 and row["mAP_full_std"] == pytest.approx(math.sqrt(2))
    assert math.isnan(row["mAP_unseen_mean"])


def test_mistakes_are_found_before_anything_runs(sweep_file, tmp_path):
    with pytest.raises(ConfigError, match=r"did you mean 'ezhoi.epochs'"):
        sweep.read_sweep(sweep_file("ezhoi.epoch=3"))
    with pytest.raises(ConfigError, match="found no sweep file"):
        sweep.read_sweep(tmp_path / "nothing.yaml")
    double = tmp_path / "double.yaml"
    double.write_text("config: tests/micro.yaml\nseeds: [0, 0]\n")
    with pytest.raises(ConfigError, match=r"points of the same name \['base-seed0'\]"):
        sweep.read_sweep(double)
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
    found = paired_differences(pd.DataFrame(rows), "ezhoi").set_index("method")
    assert found["verdict"].to_dict() == {"wide": "no difference", "helps": "helps", "hurts": "hurts"}
    assert found.loc["wide", "difference"] == pytest.approx(2)
    assert found.loc["wide", "high"] == pytest.approx(2 + 4.3027 / 3**0.5, abs=1e-3)
    one = paired_differences(pd.DataFrame(rows[:2]), "ezhoi")
    assert one["verdict"].tolist() == ["one seed"]
