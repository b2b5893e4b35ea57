"""The embeddings table: round trip, selection, centred text, refusals."""

import numpy as np
import pandas as pd
import pytest

from lib.analysis.embeddings import EmbeddingTable, compare, normalised
from lib.errors import FoundExpected


def test_round_trip_keeps_rows_vectors_and_info(make_table, tmp_path):
    table = make_table(30)
    table.info["note"] = {"a": 1}
    again = EmbeddingTable.load(table.save(tmp_path / "embeddings"))
    pd.testing.assert_frame_equal(again.frame, table.frame, check_dtype=False)
    np.testing.assert_array_equal(again.vectors, table.vectors)
    assert again.info == {"note": {"a": 1}}
    assert [path.name for path in (tmp_path / "embeddings").iterdir()] == ["embeddings.parquet"]


def test_select_and_sample_keep_rows_with_their_vectors(make_table):
    table = make_table(40, classes=6)
    assert len(table.select("raw")) == 40
    assert len(table.select(["raw", "bridged"])) == 80
    assert set(table.select(modality="text").frame["state"]) == {"text"}
    raw = table.select("raw")
    np.testing.assert_array_equal(raw.vectors, table.vectors[(table.frame["state"] == "raw").to_numpy()])
    drawn = table.sample(10, seed=3)
    points = [set(drawn.select(state).frame["point"]) for state in ("raw", "centred", "bridged")]
    assert points[0] == points[1] == points[2] and len(points[0]) == 10
    assert len(drawn.select("text")) == 6
    assert set(table.sample(10, seed=4).select("raw").frame["point"]) != points[0]


def test_centred_text_is_own_mean_centred_unless_given(make_table):
    table = make_table(5, classes=4)
    text = normalised(table.select("text").vectors)
    expected = normalised(text - text.mean(0))
    np.testing.assert_allclose(table.texts_for("bridged").vectors, expected, atol=1e-6)
    np.testing.assert_array_equal(table.texts_for("raw").vectors, table.select("text").vectors)

    given = table.select("text").frame.assign(state="text_centred")
    own = np.eye(4, table.vectors.shape[1], dtype=np.float32)
    table = EmbeddingTable(pd.concat([table.frame, given], ignore_index=True), np.concatenate([table.vectors, own]))
    np.testing.assert_array_equal(table.texts_for("centred").vectors, own)


def test_gaps_of_concatenated_frames_are_filled(make_table):
    table = make_table(4)
    text = table.select("text").frame
    assert table.frame["image"].dtype.kind == "i" and (text["image"] == -1).all()
    assert table.frame["correct"].dtype == bool and not text["correct"].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, v: (f.drop(columns="verb"), v), "found no column \\['verb'\\]"),
        (lambda f, v: (f, v[:-1]), "expected one row"),
        (lambda f, v: (f.assign(state="middling"), v), "found states \\['middling'\\]"),
        (lambda f, v: (f.assign(point=0), v), "stands there twice"),
        (lambda f, v: (f, np.where(np.arange(len(v))[:, None] == 2, np.nan, v)), "vector 2 holds a value"),
    ],
)
def test_a_wrong_table_is_refused(make_table, change, message):
    table = make_table(6)
    with pytest.raises(ValueError, match=message):
        EmbeddingTable(*change(table.frame, table.vectors))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="embeddings.parquet"):
        EmbeddingTable.load(tmp_path)


def test_states_before_the_detector_have_texts_of_their_own(make_table):
    table = make_table(5, classes=4)
    frame = table.frame.replace({"state": {"raw": "adapted"}})
    frozen = table.select(["text", "raw"])
    own = frozen.frame.replace({"state": {"text": "text_raw"}})
    both = EmbeddingTable(pd.concat([frame, own]), np.concatenate([table.vectors, 2 + frozen.vectors]))
    assert both.states == ["raw", "adapted", "centred", "bridged"]
    assert [both.text_state(state) for state in both.states] == ["text_raw", "text", "text_centred", "text_centred"]
    np.testing.assert_array_equal(both.texts_for("raw").vectors, 2 + table.select("text").vectors)
    np.testing.assert_array_equal(both.texts_for("adapted").vectors, table.select("text").vectors)


def test_tables_of_several_runs_stand_side_by_side(make_table, tmp_path):
    tables = {"one": make_table(6, classes=4), "two": make_table(6, classes=4, seed=1)}
    both = EmbeddingTable.load(compare(tables).save(tmp_path))
    assert both.sources == ["one", "two"] and len(both) == 2 * (3 * 6 + 2 * 4)
    for name, table in tables.items():
        own = both.source(name)
        np.testing.assert_array_equal(own.select("bridged").vectors, table.select("bridged").vectors)
        # each run's texts are centred by their own mean
        np.testing.assert_allclose(own.texts_for("bridged").vectors, table.texts_for("bridged").vectors, atol=1e-6)
    with pytest.raises(FoundExpected, match="no source 'three'"):
        both.source("three")
    with pytest.raises(FoundExpected, match="widths {'one': 48, 'wide': 64}"):
        compare({"one": tables["one"], "wide": make_table(6, dim=64)})


def test_a_table_of_an_older_build_is_told_apart(make_table, tmp_path):
    make_table(3).frame.to_parquet(tmp_path / "embeddings.parquet")
    with pytest.raises(FoundExpected, match=r"recompute=\[embeddings\]"):
        EmbeddingTable.load(tmp_path)
