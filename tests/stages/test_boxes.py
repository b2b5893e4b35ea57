"""Where boxes come from (a detector, oracles, another program) and what the detector costs."""

import numpy as np
import pytest

from lib.detection.detr import DetectorError
from lib.detection.json_cache import write_json_cache
from lib.detection.table import DetectionTable
from lib.runs import StaleArtifactError
from lib.stages import boxes, detector, inputs

LIMITS = (
    "data.train_limit=12", "data.validation_images=0", "data.test_limit=8", "data.world.train_images=170",
    "ezhoi.epochs=1", "ezhoi.preset=released",
)  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A run with everything up to a trained EZ-HOI."""
    folder = str(tmp_path_factory.mktemp("boxes") / "run")
    cfg, run = opened(folder)
    inputs.world(cfg, run)
    inputs.models(cfg, run)
    for split in ("train", "test"):
        inputs.features(cfg, run, split)
        inputs.detections(cfg, run, split)
    detector.ezhoi(cfg, run)
    return folder


def opened(folder, *overrides):
    return inputs.open_run("tests/micro.yaml", str(folder), (*LIMITS, *overrides))


def table(run, kind="detections/test"):
    return DetectionTable.open(run.existing(kind).path)


def test_a_better_detector_leaves_more_within_reach(prepared):
    cfg, run = opened(prepared)
    limits = boxes.detector_limits(cfg, run)
    assert limits.index.tolist() == ["detector", "oracle", "oracle_jittered"]
    assert (limits.loc["oracle"] == 100).all() and (limits.loc["oracle_jittered"] == 100).all()
    assert limits.loc["detector", "mAP_if_perfect"] <= 100
    assert run.metrics["detector_limit/oracle_mAP"] == 100
    found = boxes.box_quality(cfg, run)
    assert 0 < found.means["AP"] <= found.means["AP50"] < 100
    assert run.metrics["boxes/test_AP50"] == found.means["AP50"]


def test_the_trained_model_on_other_boxes(prepared):
    cfg, run = opened(prepared)
    costs = boxes.detector_costs(cfg, run)
    assert costs.index.tolist() == ["detector", "oracle", "oracle_jittered"]
    detector.pairs(cfg, run, "test")
    assert costs["mAP_full"]["detector"] == pytest.approx(detector.ezhoi_scores(cfg, run)["mAP_full"])
    assert run.metrics["detector_cost/oracle_mAP_full"] == costs["mAP_full"]["oracle"]


def test_sources_of_the_runs_own_detections(prepared, tmp_path):
    world = (f"data.root={prepared}/world", "data.images=images/{split}2015")
    oracle = (*world, "detector.source=oracle_jittered")
    cfg, run = opened(tmp_path / "oracle", *oracle, "detector.jitter=0.05")
    inputs.detections(cfg, run, "test")
    jittered = table(run)
    data = inputs.dataset(cfg, run, "test")
    assert jittered.manifest["detector"]["jitter"] == 0.05 and jittered.num_images == len(data)
    assert len(inputs.proposals(cfg, run, data)) == len(data)
    with pytest.raises(DetectorError, match=r"detector\.source: found oracle_jittered, expected the folder of a DETR"):
        inputs.detector(cfg, run)
    with pytest.raises(StaleArtifactError, match="jitter: on disk 0.05, asked for 0.06"):
        inputs.detections(opened(tmp_path / "oracle", *oracle, "detector.jitter=0.06")[0], run, "test")

    write_json_cache(jittered, data, tmp_path / "cache/test")
    source = f"detector.source=json:{tmp_path}/cache/{{split}}"
    cfg, run = opened(tmp_path / "json", *world, source, "detector.labels=annotations")
    inputs.detections(cfg, run, "test")
    columns = ["image", "x1", "y1", "x2", "y2", "score", "label"]
    assert np.array_equal(table(run).rows[columns], jittered.rows[columns])
