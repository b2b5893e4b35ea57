"""report.html: complete, self-contained, honest; text of the run is escaped."""

import base64
import json
import re

import pytest

from lib.analysis.figures import results_table_figure
from lib.analysis.palette import save_figure
from lib.analysis.report import text_summary, write_report

METRICS = {
    "frozen_clip/mAP_full": 11.25,
    "ezhoi/mAP_full": 30.5,
    "ezhoi/mAP_unseen": 21.75,
    "ezhoi/mAP_seen": 33.0,
    "ezhoi/ms_per_pair": 0.125,
    "bridge/mAP_full": 27.0,
    "bridge/mAP_unseen": 20.0,
    "bridge/mAP_seen": 29.0,
    "gap/raw/rmg": 0.61,
    "gap/centred/rmg": 0.36,
    "gap/bridged/max_cosine": 0.87,
    "demo/seconds": 512.0,
}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    (tmp_path / "config.yaml").write_text("seed: 0\nname: <tag> & more\n")
    (tmp_path / "environment.json").write_text(json.dumps({"python": "3.11", "packages": {"torch": "2"}, "cuda": []}))
    save_figure(results_table_figure(METRICS), tmp_path / "figures/results.png", "Loss of <b>mAP</b>")
    return tmp_path


def test_the_report_holds_results_pictures_settings_and_an_honest_verdict(run):
    page = write_report(run).read_text()
    for expected in ("11.25", "30.50", "21.75", "0.125", "0.610", "8 min 32 s", "torch 2", "seed: 0"):
        assert expected in page, expected
    assert "The bridge does not help." in page and "verdict bad" in page
    data = re.search(r'src="data:image/png;base64,([^"]+)"', page)
    assert data and base64.b64decode(data[1]) == (run / "figures/results.png").read_bytes()
    assert "Loss of &lt;b&gt;mAP&lt;/b&gt;" in page and "&lt;tag&gt; &amp; more" in page and "<tag>" not in page
    assert not re.search(r'(src|href)="https?:', page) and "<script" not in page
    assert (run / "summary_report.txt").read_text() == text_summary(METRICS)


def test_missing_parts_are_said_to_be_missing(tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    page = write_report(tmp_path).read_text()
    for expected in ("No mAP recorded yet", "No figures yet", "config.yaml is missing", "environment.json is missing"):
        assert expected in page
    with pytest.raises(FileNotFoundError, match="make run"):
        write_report(tmp_path / "nowhere")
