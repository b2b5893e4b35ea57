"""Every benchmark at micro size: it runs, its own check of equal results holds. No time is judged."""

import json
import sys

import numpy as np
import pytest
import torch

from benchmarks import (
    bridge,
    bridge_share,
    demo_rerun,
    extraction,
    ezhoi_evaluation,
    ezhoi_training,
    feature_store,
    growth,
    hico_det_evaluation,
    projections,
    run,
)
from benchmarks.measure import compare, timed
from lib.evaluation.hico_det import ApResult

CLIP = "--clip random:configs/clip/tiny-clip.json"
MICRO_BRIDGE = "--dim 32 --width 16 --depth 1"
MICRO = {
    feature_store: "--records 6 --reads 12 --cold-reads 6 --repeats 1",
    extraction: f"{CLIP} --images 2 --batch-size 2 --repeats 1",
    ezhoi_training: f"{CLIP} --images 2 --rows 117 --repeats 0 --precisions fp32,bf16",
    ezhoi_evaluation: f"{CLIP} --images 2 --batch-size 2 --rows 117 --repeats 0",
    bridge: f"{MICRO_BRIDGE} --training 20 --images 2 --repeats 0 --least 0.9",
    bridge_share: f"{MICRO_BRIDGE} --images 2 --height 64 --image-width 64 --repeats 1",
    hico_det_evaluation: "--images 40 --small 300 --large 900 --every 3 --repeats 0",
    projections: "--points 120 --dim 16",
}


@pytest.fixture
def started(monkeypatch, tmp_path, capsys):
    """`started(module, "--option 1")`: what its command printed, and its JSON."""

    def call(module, options):
        out = tmp_path / "out.json"
        monkeypatch.setattr(sys, "argv", [module.__name__, "--json", str(out), *options.split()])
        threads = torch.get_num_threads()
        module.main()
        torch.set_num_threads(threads)  # two of the scripts set it
        return capsys.readouterr().out, json.loads(out.read_text())

    return call


@pytest.mark.parametrize("module", MICRO, ids=lambda module: module.__name__.split(".")[-1])
def test_a_benchmark_runs_and_both_sides_agree(started, module):
    printed, found = started(module, MICRO[module])
    assert found["comparisons"] and "ratio" in printed
    for row in found["comparisons"]:
        assert row["name"] in printed and row["ratio"] > 0 and np.isfinite(row["ratio"])


def test_growth_fits_an_exponent_to_every_quantity(started):
    printed, found = started(growth, f"{CLIP} --scale 1 --rows 20 --dim 32 --width 16")
    assert len(found["growth"]) == 9
    assert all(np.isfinite(row["exponent"]) and len(row["seconds"]) == 3 for row in found["growth"])
    assert "HICO-DET evaluation" in printed


def test_the_exponent_is_the_slope_and_marks_what_grows_too_fast():
    square = growth.Growth("x", "n", [10, 20, 40], [1.0, 4.0, 16.0], [50.0, 100.0, 200.0])
    assert square.exponent == pytest.approx(2) and square.memory_exponent == pytest.approx(1) and square.steep
    assert not growth.Growth("x", "n", [10, 20, 40], [1.0, 4.0, 16.0], [5.0, 5.0, 5.0], quadratic=True).steep


def test_a_wrong_result_is_refused():
    """Each benchmark's own check, shown something else."""
    ours = (1.0, [torch.ones(4)])
    with pytest.raises(AssertionError, match="gradients are"):
        ezhoi_training.same_step("fp32", {})(ours, (1.0, [torch.tensor([1.0, 1.0, 1.0, -1.0])]))
    with pytest.raises(AssertionError, match="losses"):
        ezhoi_training.same_step("fp32", {})(ours, (1.1, ours[1]))
    with pytest.raises(AssertionError, match="mean cosine"):
        bridge.close_to(0.999, {})(torch.eye(3), torch.eye(3)[[1, 2, 0]])
    wrong = ApResult(*np.zeros((2, 1)), *np.ones((2, 1)), np.ones(3, bool), np.array([True, False, False]))
    with pytest.raises(AssertionError, match="1 labels differ"):
        hico_det_evaluation.same_labels(wrong, hico_det_evaluation.Found(np.zeros(3, bool), np.ones(3, bool), None))
    x = np.random.default_rng(0).standard_normal((100, 8))
    with pytest.raises(AssertionError, match="keeps"):
        projections.as_faithful(x, {})(np.random.default_rng(1).standard_normal((100, 2)), x[:, :2])


def test_a_share_of_the_work_counts_as_all_of_it():
    row = compare("half", lambda: 1, lambda: 1, lambda a, b: None, repeats=3, baseline_share=0.5)
    assert row.baseline_share == 0.5 and len(row.ours) == len(row.baseline) == 3
    once = compare("once", lambda: 1, lambda: 1, lambda a, b: None, repeats=0)
    assert len(once.ours) == len(once.baseline_cpu) == 1
    seconds, peaks = timed(lambda: None)
    assert seconds >= 0 and set(peaks) == {"peak_mb", "peak_gpu_mb"}


def test_the_literal_walk_is_the_reference_solver(tmp_path):
    """Image by image as in one batch."""
    settings = bridge.BridgeSettings(width=16, depth=1, steps=5, batch=8, num_steps=4)
    made = bridge.made_bridge(tmp_path, "cpu", 32, settings)
    features, owner = bridge.made_features(bridge.made_texts(32), 7), torch.tensor([0, 0, 0, 1, 1, 2, 2])
    literal = bridge.literal_walk(made, features, owner, 50, 50)
    torch.testing.assert_close(
        literal, made.with_sampler(solver="reference", entry_step=50, num_steps=50)(features), atol=1e-4, rtol=0
    )


def test_the_rerun_reads_the_seconds_of_a_finished_run(tmp_path):
    with pytest.raises(SystemExit, match="make demo"):
        demo_rerun.first_seconds(tmp_path)
    (tmp_path / "status.json").write_text('{"state": "finished"}')
    (tmp_path / "metrics.json").write_text('{"00_a/seconds": 2.5, "03_b/seconds": 4, "ezhoi/seconds": 100}')
    assert demo_rerun.first_seconds(tmp_path) == 6.5
    (tmp_path / "features").mkdir()
    (tmp_path / "features/artifact.json").write_text('{"fingerprint": "abc"}')
    assert demo_rerun.made(tmp_path) == {"features": "abc"}


def test_the_runner_chooses_judges_and_refuses(tmp_path, monkeypatch, capsys):
    names = [each.name for each, _ in run.chosen("", False, tmp_path)]
    assert "bridge" in names and "demo_rerun" not in names and "left out" in capsys.readouterr().out
    assert [each.name for each, _ in run.chosen("growth", True, tmp_path)] == ["growth"]
    with pytest.raises(SystemExit, match="nothing_such"):
        run.chosen("nothing_such", False, tmp_path)
    result = {"comparisons": [{"name": "step of 8 images", "ratio": 4.0}]}
    first = next(each for each in run.BENCHMARKS if each.name == "ezhoi_training")
    assert [run.verdicts(first, result, gpu)[0]["met"] for gpu in (False, True)] == [True, False]
    assert run.device_name({"cpu": "AMD EPYC", "cpu_count": 2, "cuda": []}, False) == "amd-epyc-2-cores"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["run", "--gpu", "--out", str(tmp_path)])
    assert run.main() == 2 and "no CUDA device" in capsys.readouterr().out


def test_the_runner_writes_one_file(tmp_path, monkeypatch, capsys):
    micro = run.Benchmark("hico_det_evaluation", MICRO[hico_det_evaluation], None, {"": (0.0, None)})
    broken = run.Benchmark("feature_store", "--records none")
    monkeypatch.setattr(run, "BENCHMARKS", (micro, broken))
    monkeypatch.setattr(sys, "argv", ["run", "--out", str(tmp_path), "--run", str(tmp_path)])
    assert run.main() == 1
    (path,) = tmp_path.glob("*.json")
    found = json.loads(path.read_text())
    assert [row["met"] for row in found["verdicts"]] == [True, True]
    assert "invalid int value" in found["benchmarks"]["feature_store"]["failed"]
    assert "failed: feature_store" in capsys.readouterr().out
