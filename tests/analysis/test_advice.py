"""Advice: the judgement follows the rankings, a collapse is never a success, every note has its threshold."""

import numpy as np
import pytest

from lib.analysis import advice
from lib.analysis.advice import advise, collapse, judgement
from lib.analysis.embeddings import EmbeddingTable, normalised
from lib.analysis.gap_report import changes_of, gap_metrics, measure, report_of
from lib.analysis.summary import text_summary, verdict
from lib.settings import AnalysisSettings

SETTINGS = AnalysisSettings(bootstrap=60)


def numbers(table: EmbeddingTable) -> dict[str, float]:
    measured = measure(table, SETTINGS)
    return gap_metrics(report_of(measured), changes_of(measured, "centred", "bridged"))


def with_bridged(table: EmbeddingTable, vectors: np.ndarray) -> EmbeddingTable:
    rows = (table.frame["state"] == "bridged").to_numpy()
    changed = table.vectors.copy()
    changed[rows] = vectors
    return EmbeddingTable(table.frame, changed)


def change(**values: tuple[float, float, float]) -> dict[str, float]:
    found = {}
    for name, (middle, low, high) in values.items():
        key = f"gap/change/{name.replace('_at_', '@')}"
        found |= {key: middle, f"{key}_low": low, f"{key}_high": high}
    return found


def test_a_good_bridge_improves_and_a_bad_one_hurts(make_table):
    assert judgement(numbers(make_table(bridge=0.6))).level == "improves"
    assert judgement(numbers(make_table(bridge=-0.6))).level == "hurts"


@pytest.mark.parametrize("spread", [0.0, 0.01])
def test_every_point_on_one_text_is_a_collapse_not_a_success(make_table, spread):
    table = make_table()
    noise = spread * np.random.default_rng(0).normal(size=(240, table.vectors.shape[1]))
    metrics = numbers(with_bridged(table, normalised(table.texts_for("bridged").vectors[3] + noise)))
    # what a label-free report reads as success
    assert metrics["gap/bridged/max_cosine"] > metrics["gap/centred/max_cosine"]
    assert metrics["gap/bridged/text_distance"] < metrics["gap/centred/text_distance"]
    assert judgement(metrics).level == "collapse" and judgement(metrics).tone == "bad"
    assert "collapses" in verdict(metrics | {"ezhoi/mAP_full": 30.0, "bridge/mAP_full": 31.0}).text
    assert "[collapse]" in text_summary(metrics)


def test_one_text_a_class_is_no_collapse(make_table):
    table = make_table(bridge=1.0)  # every point on its own class text: few points, but the right ones
    assert collapse(numbers(table)) is None


def test_a_bridge_that_does_nothing_is_marginal(make_table):
    table = make_table()
    metrics = numbers(with_bridged(table, table.select("centred").vectors))
    found = judgement(metrics)
    assert found.level == "marginal" and "no clear change" in found.text and found.try_next


@pytest.mark.parametrize(
    ("recall", "level"),
    [
        ((0.02, 0.005, 0.03), "improves"),
        ((0.02, -0.001, 0.04), "marginal"),  # the interval holds zero
        ((0.009, 0.005, 0.012), "marginal"),  # certain, and too small
        ((-0.02, -0.03, -0.01), "hurts"),
        ((-0.02, -0.05, 0.01), "marginal"),
    ],
)
def test_a_change_counts_when_it_is_certain_and_large(recall, level):
    assert judgement(change(recall_at_1=recall, class_map=(0.0, -0.01, 0.01))).level == level


def test_gains_and_losses_cancel():
    found = judgement(change(recall_at_1=(0.02, 0.01, 0.03), class_map=(-0.02, -0.03, -0.01)))
    assert found.level == "marginal" and "cancel" in found.text


def test_nothing_measured_gives_no_advice():
    assert advise({"ezhoi/mAP_full": 30.0}) == [] and judgement({}) is None


# note -> (metrics just over its threshold, metrics just under it)
QUIET = change(recall_at_1=(0.0, -0.01, 0.01), class_map=(0.0, -0.01, 0.01))
CASES = {
    advice.fooled_cosine: (
        {"gap/centred/max_cosine": 0.3, "gap/bridged/max_cosine": 0.4, "gap/centred/paired_cosine": 0.1,
         "gap/bridged/paired_cosine": 0.149},
        {"gap/bridged/paired_cosine": 0.151},
    ),
    advice.better_baseline: (
        {"gap/bridged/recall@1": 0.5, "gap/baseline:ridge/recall@1": 0.521, "gap/baseline:identity/recall@1": 0.1},
        {"gap/baseline:ridge/recall@1": 0.519},
    ),
    advice.centring_did_it: (
        {"gap/adapted/centroid_gap": 1.0, "gap/centred/centroid_gap": 0.19, "gap/bridged/centroid_gap": 0.0},
        {"gap/centred/centroid_gap": 0.21},
    ),
    advice.off_centre: (
        {"gap/centred/centroid_gap": 0.16, "gap/bridged/centroid_gap": 0.1}, {"gap/centred/centroid_gap": 0.14},
    ),
    advice.still_apart: (
        {"gap/centred/separability_auc": 1.0, "gap/bridged/separability_auc": 0.91},
        {"gap/bridged/separability_auc": 0.89},
    ),
    advice.smoothed: (
        {"gap/centred/neighbour_preservation": 0.8, "gap/bridged/neighbour_preservation": 0.59},
        {"gap/bridged/neighbour_preservation": 0.61},
    ),
    advice.unseen_lose: (
        change(**{"recall_at_1_unseen": (-0.02, -0.03, -0.01), "recall_at_1_seen": (0.0, -0.01, 0.01)}),
        change(**{"recall_at_1_unseen": (-0.02, -0.03, 0.01)}),
    ),
    advice.wrong_space: ({"bridge/text_space_mismatch": 1.0}, {"bridge/text_space_mismatch": 0.0}),
    advice.too_few: (change(recall_at_1=(0.0, -0.021, 0.021)), change(recall_at_1=(0.0, -0.019, 0.019))),
}  # fmt: skip


def test_every_note_has_a_case():
    assert set(CASES) == set(advice.NOTES)


@pytest.mark.parametrize("note", CASES, ids=lambda note: note.__name__)
def test_a_note_appears_over_its_threshold_only(note):
    over, under = CASES[note]
    found = note(QUIET | over)
    assert found and found.text and found.try_next
    assert found in advise(QUIET | over)
    assert note(QUIET | over | under) is None
    assert note({}) is None


def test_the_settings_that_advice_names_exist(make_table):
    import re

    from lib.config import describe

    cases = [note(QUIET | over) for note, (over, _) in CASES.items()]
    cases += [judgement(change(recall_at_1=values)) for values in ((0.1, 0.05, 0.2), (-0.1, -0.2, -0.05), (0, -1, 1))]
    named = {key for found in cases for line in found.try_next for key in re.findall(r"\b[a-z_]+\.[a-z_]+\b", line)}
    assert named and named <= {name for name, *_ in describe()}
