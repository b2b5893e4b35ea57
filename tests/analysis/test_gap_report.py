"""The report over states and splits, and what it says about good, useless and collapsed bridges."""

import numpy as np
import pandas as pd
import pytest

from lib.analysis.embeddings import EmbeddingTable, normalised
from lib.analysis.gap_report import METRICS, gap_changes, gap_metrics, gap_report, gap_table
from lib.analysis.summary import findings, text_summary, verdict
from lib.settings import AnalysisSettings

SETTINGS = AnalysisSettings(bootstrap=60)


@pytest.fixture
def report(make_table):
    return gap_report(make_table(), SETTINGS)


def value(report: pd.DataFrame, state: str, metric: str, split: str = "all") -> float:
    row = report[(report["state"] == state) & (report["metric"] == metric) & (report["split"] == split)]
    return float(row["value"].iloc[0])


def test_every_state_split_and_metric_is_there(report):
    assert len(report) == 3 * 3 * len(METRICS)
    assert value(report, "raw", "separability") == 1.0 and value(report, "raw", "centroid_gap") > 0.8
    assert value(report, "centred", "centroid_gap") < 0.05
    assert value(report, "bridged", "gt_margin") > value(report, "centred", "gt_margin")
    counts = report.groupby("split")["n_vision"].first()
    assert counts["seen"] + counts["unseen"] == counts["all"] == 240
    texts = report.groupby("split")["n_text"].first()
    assert texts["seen"] + texts["unseen"] == texts["all"] == 24


def test_intervals_hold_their_value_and_class_metrics_rank_against_all_classes(report):
    given = report.dropna(subset="low")
    assert {"gt_margin", "recall@1", "centroid_gap", "paired_cosine"} <= set(given["metric"])
    rows = given[~given["metric"].isin(["centroid_gap"])]  # a norm of a mean is biased upwards under resampling
    assert ((rows["low"] <= rows["value"] + 1e-9) & (rows["value"] <= rows["high"] + 1e-9)).all()
    weight = report[(report["state"] == "raw") & (report["metric"] == "recall@1")].set_index("split")
    mixed = (weight.loc[["seen", "unseen"], "value"] * weight.loc[["seen", "unseen"], "n_vision"]).sum() / 240
    assert mixed == pytest.approx(weight.loc["all", "value"])


def test_raw_is_compared_with_raw_text_and_the_rest_with_centred_text(make_table):
    table = make_table(60)
    frame, vectors = table.frame, table.vectors.copy()
    # raw, centred and bridged vision replaced by the text of their own space: everything coincides
    for state in ("raw", "centred", "bridged"):
        text = table.texts_for(state)
        rows = (frame["state"] == state).to_numpy()
        vectors[rows] = text.vectors[frame.loc[rows, "hoi_id"].to_numpy()]
    report = gap_report(EmbeddingTable(frame, vectors), SETTINGS)
    for state in ("raw", "centred", "bridged"):
        assert value(report, state, "paired_cosine") == pytest.approx(1, abs=1e-5)
        assert value(report, state, "rmg") == pytest.approx(0, abs=1e-5)
        assert value(report, state, "recall@1") == 1


def test_the_same_seed_gives_the_same_report_and_pairs_of_no_class_are_left_out(make_table):
    table = make_table(120)
    small = AnalysisSettings(bootstrap=20, max_pairs=50, seed=5)
    pd.testing.assert_frame_equal(gap_report(table, small), gap_report(table, small))
    stranger = table.frame.assign(hoi_id=table.frame["hoi_id"].where(table.frame["point"] % 2 == 0, -1))
    stranger.loc[stranger["modality"] == "text", "hoi_id"] = table.select("text").frame["hoi_id"].to_numpy()
    assert gap_report(EmbeddingTable(stranger, table.vectors), SETTINGS)["n_vision"].max() == 60


def test_several_labels_of_a_pair_count(make_table):
    table = make_table(30, classes=6)
    other = (table.frame["hoi_id"] + 1) % 6
    several = table.frame.assign(hoi_ids=[[a, b] for a, b in zip(table.frame["hoi_id"], other, strict=True)])
    report = gap_report(EmbeddingTable(several, table.vectors), SETTINGS)
    assert np.isfinite(value(report, "raw", "second_label_rank"))
    assert value(report, "raw", "recall@1") >= value(gap_report(table, SETTINGS), "raw", "recall@1")


def test_changes_are_paired_whatever_the_row_order(make_table):
    table = make_table(80)
    changes = gap_changes(table, "centred", "bridged", SETTINGS).set_index(["split", "metric"])
    order = np.random.default_rng(0).permutation(len(table))
    shuffled = EmbeddingTable(table.frame.iloc[order], table.vectors[order])
    again = gap_changes(shuffled, "centred", "bridged", SETTINGS).set_index(["split", "metric"])
    pd.testing.assert_frame_equal(changes, again)
    margin = changes.loc[("all", "gt_margin")]
    assert margin["low"] > 0 and margin["change"] == pytest.approx(margin["after"] - margin["before"])


def test_flat_metrics_and_wide_table(report, make_table):
    flat = gap_metrics(report, gap_changes(make_table(), "centred", "bridged", SETTINGS))
    assert flat["gap/raw/centroid_gap"] == value(report, "raw", "centroid_gap")
    assert flat["gap/bridged/recall@1_unseen"] == value(report, "bridged", "recall@1", "unseen")
    assert flat["gap/change/gt_margin_low"] > 0 and all(np.isfinite(list(flat.values())))
    assert list(gap_table(report).columns) == ["raw", "centred", "bridged", "reading"]


def test_a_collapsed_bridge_is_called_a_collapse_not_a_success(make_table):
    table = make_table()
    bridged = (table.frame["state"] == "bridged").to_numpy()
    vectors = table.vectors.copy()
    noise = 0.01 * np.random.default_rng(0).normal(size=vectors.shape)
    vectors[bridged] = normalised(table.texts_for("bridged").vectors[3] + noise)[bridged]
    collapsed = EmbeddingTable(table.frame, vectors)
    metrics = gap_metrics(gap_report(collapsed, SETTINGS), gap_changes(collapsed, "centred", "bridged", SETTINGS))
    assert metrics["gap/bridged/max_cosine"] > metrics["gap/centred/max_cosine"]  # the fooled number says success
    metrics |= {"ezhoi/mAP_full": 30.0, "bridge/mAP_full": 30.2}
    assert verdict(metrics).tone == "bad" and "collapses" in verdict(metrics).text
    tones = [finding.tone for finding in findings(metrics)]
    assert "good" not in tones and tones.count("bad") >= 3


def test_a_bridge_that_pushes_away_is_said_to_hurt(make_table):
    table = make_table(bridge=-0.6)
    changes = gap_changes(table, "centred", "bridged", SETTINGS)
    metrics = gap_metrics(gap_report(table, SETTINGS), changes)
    falls = [finding for finding in findings(metrics) if "margin to best wrong class falls" in finding.text]
    assert falls and falls[0].tone == "bad"


@pytest.mark.parametrize(
    ("after", "tone", "words"),
    [
        ((31.0, 26.0, 32.0), "good", "helps"),
        ((30.1, 25.1, 31.1), "neutral", "no clear difference"),
        ((28.0, 25.0, 30.0), "bad", "does not help"),
        ((30.0, 27.0, 29.0), "neutral", "mixed"),
    ],
)
def test_the_verdict_follows_the_map(after, tone, words):
    metrics = {"ezhoi/mAP_full": 30.0, "ezhoi/mAP_unseen": 25.0, "ezhoi/mAP_seen": 31.0}
    metrics |= dict(zip(("bridge/mAP_full", "bridge/mAP_unseen", "bridge/mAP_seen"), after, strict=True))
    assert verdict(metrics).tone == tone and words in verdict(metrics).text
    assert words in text_summary(metrics)


@pytest.mark.parametrize("control", ["centred", "vision_control"])
def test_a_gain_that_comes_without_a_bridge_too_is_not_its_own(control):
    metrics = {"ezhoi/mAP_full": 30.0, "bridge/mAP_full": 31.0, f"{control}/mAP_full": 30.9}
    assert verdict(metrics).tone == "neutral" and "not the bridge's own" in verdict(metrics).text
    assert "(full +0.1)" in verdict(metrics).text and "helps" not in text_summary(metrics)
    assert "The bridge helps" in verdict(metrics | {f"{control}/mAP_full": 30.0}).text


def test_a_run_without_map_says_nothing_about_the_bridge(report):
    assert "says nothing about the bridge" in text_summary(gap_metrics(report))
    assert "mean max cosine" in text_summary(gap_metrics(report))
