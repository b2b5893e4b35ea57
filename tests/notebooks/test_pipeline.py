"""Every notebook through papermill on a micro world; recorded metrics; a second run that reuses everything."""

import json
import math

import pytest

from lib.engine import batch
from lib.runs import Artifact, Run, read_jsonl

ARTIFACTS = [
    "world", "models", "features/train", "features/test", "detections/train", "detections/test", "ezhoi", "pairs/fit",
    "pairs/test", "predictions/frozen_clip", "predictions/clip_crops", "text_bank/captions",
    "text_bank/adapted", "bridge/captions",
    "bridge/adapted", "predictions/bridges", "embeddings", "gap", "recognition_labels",
    "defr/language_sign", "defr/language_bce", "defr/random_sign", "defr/random_bce",
    "recognition/language_sign", "recognition/random_bce", "recognition/untrained", "defr_detections/block",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "micro"
    assert batch.main(["run", "tests/micro.yaml", "--run", str(folder)]) == 0
    return Run(folder)


def test_every_notebook_was_executed(run):
    books = sorted(path.name for path in run.root.glob("*.ipynb"))
    assert [name[:2] for name in books] == ["00", "01", "02", "03", "04", "05", "06"]
    for name in books:
        cells = json.loads((run.root / name).read_text())["cells"]
        assert all(cell["execution_count"] for cell in cells if cell["cell_type"] == "code")


def test_every_artefact_is_complete(run):
    assert [Artifact.load(run.root / kind).kind for kind in ARTIFACTS] == ARTIFACTS


def test_metrics_are_recorded(run):
    metrics = run.metrics
    for method in ("frozen_clip", "ezhoi", "centred", "bridge", "wrong_order"):
        for group in ("full", "unseen", "seen"):
            assert 0 <= metrics[f"{method}/mAP_{group}"] <= 100
    assert metrics["wrong_order/text_space_mismatch"] is True
    assert metrics["bridge/text_space_mismatch"] is False
    assert metrics["micro/seconds"] > 0
    assert math.isfinite(metrics["gap/raw/centroid_gap"])
    for variant in ("language_sign", "language_bce", "random_sign", "random_bce", "untrained"):
        assert 0 <= metrics[f"defr/{variant}/recognition_full"] <= 100
    assert 0 <= metrics["defr/detection_block/full"] <= 100
    assert metrics["defr/language_sign/rows_mean_cosine"] > metrics["defr/random_bce/rows_mean_cosine"]


def test_pictures_report_and_log(run):
    assert (run.root / "report.html").stat().st_size > 50_000
    assert {path.stem for path in (run.root / "figures").glob("*.png")} >= {
        "00_world",
        "02_loss",
        "04_results",
        "05_gap",
        "06_few_shot",
        "06_attention",
        "06_labels",
    }
    assert json.loads((run.root / "status.json").read_text())["state"] == "finished"
    assert {row["event"] for row in read_jsonl(run.root / "log.jsonl")} >= {"made"}


def test_a_second_run_reuses_everything(run):
    before = {kind: (run.root / kind / "artifact.json").read_bytes() for kind in ARTIFACTS}
    lines = len(read_jsonl(run.root / "log.jsonl"))
    metrics = run.metrics
    assert batch.main(["run", "tests/micro.yaml", "--run", str(run.root)]) == 0
    assert len(read_jsonl(run.root / "log.jsonl")) == lines  # every notebook was finished
    assert batch.main(["run", "tests/micro.yaml", "--run", str(run.root), "--again"]) == 0
    assert before == {kind: (run.root / kind / "artifact.json").read_bytes() for kind in ARTIFACTS}
    assert {row["event"] for row in read_jsonl(run.root / "log.jsonl")[lines:]} == {"reused"}
    same = [key for key in metrics if key.startswith(("ezhoi/", "bridge/mAP", "gap/", "defr/"))]
    assert {key: metrics[key] for key in same} == {key: run.metrics[key] for key in same}


def test_other_settings_in_the_same_folder_are_refused(run, capfd):
    assert batch.main(["run", "tests/micro.yaml", "--run", str(run.root), "--notebooks", "02", "ezhoi.epochs=2"]) == 1
    assert "ezhoi.epochs: on disk 1, asked for 2" in capfd.readouterr().err
