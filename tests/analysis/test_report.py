"""report.html: complete, self-contained, honest; text of the run is escaped."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from lib.analysis.figures import results_table_figure
from lib.analysis.page import PREVIEW_WIDTH, preview
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


def pictures(html):
    """Every embedded image, decoded, with the address of the link around it."""
    found, links = [], []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attributes):
            attributes = dict(attributes)
            if tag == "a":
                links.append(attributes["href"])
            elif tag == "img":
                head, _, data = attributes["src"].partition(",")
                assert head == "data:image/webp;base64"
                found.append((Image.open(io.BytesIO(base64.b64decode(data))), links[-1] if links else ""))

        def handle_endtag(self, tag):
            if tag == "a":
                links.pop()

    Reader().feed(html)
    return found


def photograph(width, height, transparent=False):
    """Smooth shapes under a little noise: as little use to a palette as a photograph."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 90) + np.cos(y / (70 + 9 * c)) for c in range(3)], -1)
    pixels = np.clip(127 + 60 * waves + np.random.default_rng(0).normal(0, 4, waves.shape), 0, 255).astype(np.uint8)
    if transparent:
        pixels = np.dstack([pixels, np.where(x < width // 2, 0, 255).astype(np.uint8)])
    return Image.fromarray(pixels)


def test_the_report_holds_results_pictures_settings_and_an_honest_verdict(run):
    page = write_report(run).read_text()
    for expected in ("11.25", "30.50", "21.75", "0.125", "0.610", "8 min 32 s", "torch 2", "seed: 0"):
        assert expected in page, expected
    assert "The bridge does not help." in page and "verdict bad" in page
    (shown, link), original = *pictures(page), Image.open(run / "figures/results.png").convert("RGB")
    assert link == "figures/results.png" and np.array_equal(shown, original)  # a chart of few colours loses nothing
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


def test_a_picture_adds_little_and_links_to_its_file(run):
    before = len(write_report(run).read_bytes())
    photograph(2600, 700).save(run / "figures/wide photo #1.png")
    size = (run / "figures/wide photo #1.png").stat().st_size
    page = write_report(run).read_text()
    assert size > 2_000_000 and len(page.encode()) - before < 250_000  # 4/3 of the preview, for base64
    assert len(page.encode()) - before < size / 10
    (small, link), (shown, _) = sorted(pictures(page), key=lambda each: -each[0].width)
    assert small.size == (PREVIEW_WIDTH, round(PREVIEW_WIDTH * 700 / 2600)) and shown.width < PREVIEW_WIDTH
    assert (run / unquote(link)).samefile(run / "figures/wide photo #1.png") and "#" not in link
    wanted = np.asarray(photograph(2600, 700).resize(small.size, Image.Resampling.LANCZOS), dtype=float)
    assert np.abs(np.asarray(small, dtype=float) - wanted).mean() < 4  # of 255: the same picture


def test_a_picture_elsewhere_is_embedded_without_a_link_and_on_white(tmp_path):
    path = tmp_path / "elsewhere/half.png"
    path.parent.mkdir()
    photograph(300, 100, transparent=True).save(path)
    for folder in (None, tmp_path / "run"):
        [(image, link)] = pictures(preview(path, "Half", folder))
        assert link == "" and image.size == (300, 100) and np.asarray(image)[:, :140].min() >= 250
