"""Landscape along the gap vector, the way through the bridge, gains and losses of classes."""

import numpy as np
import pytest

from lib.analysis import gap
from lib.analysis.embeddings import normalised
from lib.analysis.movement import (
    LOGIT_SCALE,
    class_changes,
    cross_entropy,
    group_changes,
    landscape,
    trajectory_frame,
    trajectory_summary,
)
from lib.analysis.projections import project


def test_the_landscape_starts_at_the_state_and_closes_the_gap_at_one(make_table):
    table = make_table(120)
    found = landscape(table, shifts=[-0.5, 0.0, 0.5, 1.0], resamples=20)
    everything = found[found["split"] == "all"].set_index("shift")
    assert everything["centroid_gap"].is_monotonic_decreasing and everything.loc[1.0, "centroid_gap"] < 0.15
    raw, text = table.select("raw"), table.select("text")
    similarity = (normalised(raw.vectors) @ normalised(text.vectors).T).astype(float)
    truth = np.eye(len(text), dtype=bool)[raw.frame["hoi_id"]]
    assert everything.loc[0.0, "recall@1"] == pytest.approx(gap.recall_at(similarity, truth, 1).mean())
    assert everything.loc[0.0, "loss"] == pytest.approx(cross_entropy(similarity, truth).mean(), rel=1e-5)
    assert (everything["recall@1_low"] <= everything["recall@1_high"]).all()
    assert set(found["split"]) == {"all", "seen", "unseen"}


def test_cross_entropy_by_hand():
    similarity = np.array([[0.02, 0.0, 0.0]])
    expected = -np.log(np.exp(2.0) / (np.exp(2.0) + 2))
    assert cross_entropy(similarity, np.array([[True, False, False]]))[0] == pytest.approx(expected)
    # two true classes share the probability
    both = -np.log((np.exp(LOGIT_SCALE * 0.02) + 1) / (np.exp(2.0) + 2))
    assert cross_entropy(similarity, np.array([[True, True, False]]))[0] == pytest.approx(both)


@pytest.fixture
def way(make_table):
    """Half-way stations of centred pairs to their bridged ones, as a bridge of two evaluations would give."""
    table = project(make_table(40), ["gap", "pca"])
    ends = [normalised(table.select(state).vectors) for state in ("centred", "bridged")]
    path = np.stack([ends[0], normalised(sum(ends)), ends[1]])
    return table, trajectory_frame(table, table.select("centred").frame, [99, 40], path)


def test_the_way_begins_at_the_centred_points_and_ends_at_the_bridged_ones(way):
    table, frame = way
    assert len(frame) == 3 * 40 and list(frame["timestep"].unique()) == [99, 40, -1]
    for step, state in ((0, "centred"), (2, "bridged")):
        rows = frame[frame["step"] == step].set_index("point")
        points = table.select(state).frame.set_index("point")
        for column in ("gap_x", "gap_y", "pca_x", "pca_y"):
            np.testing.assert_allclose(rows[column], points[column].loc[rows.index], atol=1e-4, err_msg=column)
    assert (frame.loc[frame["step"] == 0, ["moved", "turned"]].abs() < 1e-6).all(axis=None)
    last = frame[frame["step"] == 2]
    assert (last["moved"] >= last["turned"] - 1e-6).all()
    assert last["true_cosine"].mean() > frame.loc[frame["step"] == 0, "true_cosine"].mean()


def test_the_summary_has_a_row_a_step_and_split(way):
    _, frame = way
    found = trajectory_summary(frame, resamples=20)
    everything = found[found["split"] == "all"]
    assert list(everything["step"]) == [0, 1, 2] and (everything["pairs"] == 40).all()
    expected = frame.groupby("step")["margin"].mean().to_numpy()
    np.testing.assert_allclose(everything["margin"], expected)
    assert ((everything["margin_low"] < expected) & (expected < everything["margin_high"])).all()


def test_classes_that_gain_and_lose_by_hand(make_table):
    table = make_table(60, classes=6)
    found = class_changes(table, "centred", "bridged").set_index("hoi_id")
    assert found["pairs"].sum() == 60 and found["ap_change"].is_monotonic_decreasing
    hoi = table.select("centred").frame["hoi_id"].to_numpy()
    texts = normalised(table.texts_for("centred").vectors)
    for state, end in (("centred", "before"), ("bridged", "after")):
        similarity = (normalised(table.select(state).vectors) @ texts.T).astype(float)
        ap = gap.class_ap(similarity, np.eye(6, dtype=bool)[hoi])
        for k in found.index:
            assert found.loc[k, f"ap_{end}"] == pytest.approx(ap[k])
            assert found.loc[k, f"recall_{end}"] == pytest.approx((similarity[hoi == k].argmax(1) == k).mean())


def test_groups_count_their_classes_and_pairs(make_table):
    classes = class_changes(make_table(200), "centred", "bridged")
    groups = group_changes(classes)
    for by in ("split", "frequency", "verb", "object"):
        part = groups[groups["by"] == by]
        assert part["classes"].sum() == len(classes) and part["pairs"].sum() == classes["pairs"].sum()
    seen = groups[(groups["by"] == "split") & (groups["group"] == "seen")].iloc[0]
    own = classes[~classes["unseen"]]
    assert seen["ap_change"] == pytest.approx(own["ap_change"].mean())
    assert seen["gained"] == (own["ap_change"] > 1e-9).sum()
