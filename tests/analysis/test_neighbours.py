"""Neighbours in the original space: brute force, within and across modalities."""

import numpy as np
import pytest

from lib.analysis.embeddings import EmbeddingTable, compare, normalised
from lib.analysis.neighbours import nearest_rows, outcome_columns, with_neighbours


def test_neighbours_by_brute_force_and_round_trip(make_table, tmp_path):
    table = with_neighbours(make_table(30, classes=6), k=4)
    frame, unit = table.frame, normalised(table.vectors)
    for row in (10, 70):  # a raw and a bridged pair
        state = frame.loc[row, "state"]
        for column, candidates in (
            ("near_vision", frame.index[(frame["state"] == state) & (frame.index != row)]),
            ("near_text", frame.index[frame["state"] == table.text_state(state)]),
        ):
            cosine = unit[candidates] @ unit[row]
            best = candidates[np.argsort(-cosine)[:4]]
            assert frame.loc[row, column] == frame.loc[best, "point"].tolist()
            np.testing.assert_allclose(frame.loc[row, f"{column}_cosine"], unit[best] @ unit[row], atol=1e-4)
    again = EmbeddingTable.load(table.save(tmp_path)).frame
    assert [list(line) for line in again["near_text"]] == frame["near_text"].tolist()


def test_texts_have_neighbours_too_and_no_row_is_its_own(make_table):
    table = with_neighbours(make_table(12, classes=5), k=3)
    texts = table.select(["text", "text_centred"]).frame
    assert (texts["near_vision"].map(len) == 3).all() and (texts["near_text"].map(len) == 3).all()
    assert not any(point in near for point, near in zip(texts["point"], texts["near_text"], strict=True))
    assert (table.select("raw").frame["near5"].map(len) == 3).all()


def test_nearest_rows_agree_with_the_columns(make_table):
    table = with_neighbours(make_table(20, classes=6), k=3)
    row = int(table.select("centred").frame.index[0]) + len(table.select(["text", "raw"]))
    assert table.frame.loc[row, "state"] == "centred"
    for modality in ("vision", "text"):
        found = nearest_rows(table, row, modality, 3)
        assert found["point"].tolist() == table.frame.loc[row, f"near_{modality}"]
        assert found["cosine"].is_monotonic_decreasing
    with pytest.raises(ValueError, match="smell"):
        nearest_rows(table, row, "smell")


def test_runs_do_not_look_into_each_other(make_table):
    both = with_neighbours(compare({"a": make_table(15, classes=5), "b": make_table(15, classes=5, seed=3)}), k=2)
    alone = with_neighbours(make_table(15, classes=5, seed=3).with_centred_text(), k=2)
    assert both.source("b").frame["near_text"].tolist() == alone.frame["near_text"].tolist()


def test_margins_and_movements_by_hand(make_table):
    table = outcome_columns(make_table(25, classes=6).with_centred_text())
    bridged, centred = table.select("bridged"), table.select("centred")
    cosine = normalised(bridged.vectors) @ normalised(table.texts_for("bridged").vectors).T
    hoi = bridged.frame["hoi_id"].to_numpy()
    own = cosine[np.arange(25), hoi]
    cosine[np.arange(25), hoi] = -9
    np.testing.assert_allclose(bridged.frame["true_cosine"], own, atol=1e-5)
    np.testing.assert_allclose(bridged.frame["margin"], own - cosine.max(1), atol=1e-5)
    moved = 1 - (normalised(centred.vectors) * normalised(bridged.vectors)).sum(1)
    np.testing.assert_allclose(bridged.frame["moved"], moved, atol=1e-5)
    assert centred.frame["moved"].isna().all() and table.select("text").frame["margin"].isna().all()
