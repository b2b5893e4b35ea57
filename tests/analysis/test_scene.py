"""A scene is the table turned around: same row, same pair in every state; shares and neighbours by brute force."""

import numpy as np
import pandas as pd
import pytest

from lib.analysis.colouring import COLOURINGS, available, colouring
from lib.analysis.embeddings import EmbeddingTable, normalised
from lib.analysis.projections import project
from lib.analysis.scene import Scene, scenes
from lib.analysis.similarity import class_matrix, own_share
from lib.analysis.view import View, ViewError, arrow_ends, panels
from lib.errors import FoundExpected


@pytest.fixture
def scene(make_table) -> Scene:
    return Scene(project(make_table(40, classes=6), ["pca"]), "one")


def shuffled(table: EmbeddingTable, seed: int = 1) -> EmbeddingTable:
    order = np.random.default_rng(seed).permutation(len(table))
    return EmbeddingTable(table.frame.iloc[order], table.vectors[order], table.info)


def test_a_row_is_the_same_point_in_every_state(make_table):
    table = project(make_table(40, classes=6), ["pca"])
    scene = Scene(shuffled(table))
    assert (scene.pairs, scene.texts) == (40, 6) and scene.states == ["raw", "centred", "bridged"]
    for state in scene.states:
        found = scene.table.frame.iloc[scene.rows[state]]
        assert found["point"].astype(str).tolist() == scene.frame["point"].tolist()
        assert set(found["state"]) == {state, "text" if state == "raw" else "text_centred"}
        np.testing.assert_array_equal(scene.coordinates(state, "pca"), found[["pca_x", "pca_y"]].to_numpy())


def test_a_pair_without_one_of_its_states_is_left_out(make_table):
    table = project(make_table(20, classes=4), ["pca"])
    gone = (table.frame["state"] == "bridged") & (table.frame["point"] == 7)
    assert "7" not in Scene(table.where(~gone)).frame["point"].tolist()[:20] and Scene(table.where(~gone)).pairs == 19


def test_hits_predictions_and_neighbours_are_those_of_the_original_space(scene):
    vision, text = scene.table.select("bridged"), scene.table.texts_for("bridged")
    cosine = normalised(vision.vectors) @ normalised(text.vectors).T
    nearest = text.frame["hoi_id"].to_numpy()[cosine.argmax(1)]
    own = nearest == vision.frame["hoi_id"].to_numpy()
    assert scene.hits("bridged") == pytest.approx(own.mean())
    rows = np.array([3, 5, 8, 42])  # the last is a text: it is not counted
    assert scene.hits("bridged", rows) == pytest.approx(own[rows[:3]].mean())
    best = scene.predictions(5, "bridged", 3)
    np.testing.assert_allclose(best["score"], np.sort(cosine[5])[::-1][:3], atol=1e-5)
    assert best["true"].tolist() == [name == scene.frame["hoi"][5] for name in best["hoi"]]
    unit = normalised(vision.vectors)
    by_hand = np.argsort(-(unit @ unit[5]))[1:5]
    assert scene.neighbours(5, "bridged", 4)["row"].tolist() == by_hand.tolist()
    assert len(scene.neighbours(41, "bridged", 99)) == 40  # of a text: every pair


def test_outcome_and_movement(make_table):
    perfect = Scene(make_table(60, classes=8, bridge=1.0))
    pair = perfect.frame.iloc[:60]
    before = perfect.margins("centred") > 0
    assert pair["outcome"].tolist() == np.where(before, "right before and after", "gained").tolist()
    assert (pair["margin_change"] > 0).all() and perfect.hits("bridged") == 1
    assert perfect.movers(3).tolist() == np.argsort(-pair["moved"], kind="stable")[:3].tolist()
    one = perfect.table.where(~perfect.table.frame["state"].isin(["centred", "bridged"]))
    alone = Scene(one)
    assert alone.before == alone.after == "raw" and not len(alone.movers(5)) and "moved" not in available(alone)


def test_search_takes_beginnings_of_all_words_and_whole_numbers(scene):
    hoi = scene.frame["hoi"].str.replace("_", " ")
    expected = np.flatnonzero(hoi.str.contains("sit on"))
    assert len(expected) and scene.search("SIT_ON").tolist() == expected.tolist()
    assert set(scene.frame["image"][scene.search("image:1")]) == {1}
    assert len(scene.search("text")) == 6 and not len(scene.search("  ")) and not len(scene.search("zebra"))
    assert scene.frame["unseen"][scene.search("unseen")].all()


def test_every_colouring_names_every_point(scene):
    for name in available(scene):
        found = colouring(scene, name, "bridged")
        assert len(found.code) == 46 and found.code.min() == 0 and found.code.max() == len(found.looks) - 1
        assert len({look.colour for look in found.looks}) == len(found.looks)
    by = colouring(scene, "split", "bridged")
    names = np.array([look.value for look in by.looks])[by.code]
    assert (names == np.where(scene.frame["unseen"], "unseen", "seen")).all()
    score = colouring(scene, "score", "bridged")
    value, pair = scene.column("score", "bridged")[:40], score.code[:40]
    assert score.ordered and (np.diff(pair[np.argsort(value)]) >= 0).all()
    assert [look.value for look in score.looks][score.code[-1]] == "class text"


def test_more_classes_than_colours_share_one_look(make_table):
    found = colouring(Scene(make_table(300, classes=40)), "hoi", "raw")
    assert len(found.looks) == 25 and found.looks[-1].value == "other"


def test_two_runs_share_their_rows(make_table):
    first, second = make_table(30, classes=5), make_table(30, classes=5, bridge=0.9)
    second = shuffled(second.where(second.frame["point"].ne(4) | second.frame["modality"].eq("text")))
    one, two = scenes([first, second], ["a", "b"])
    assert one.pairs == two.pairs == 29 and one.frame["point"].tolist() == two.frame["point"].tolist()
    far = EmbeddingTable(second.frame.assign(point=second.frame["point"].astype(str) + "x"), second.vectors)
    with pytest.raises(FoundExpected, match="no pair in common"):
        scenes([first, far], ["a", "b"])


def test_the_way_of_the_bridge_hides_pairs_that_were_not_kept(make_table):
    table = project(make_table(10, classes=3), ["pca"])
    way = pd.DataFrame({"point": [2, 2, 5, 5], "step": [0, 1, 0, 1], "pca_x": range(4), "pca_y": 0.0})
    scene = Scene(table, trajectory=way)
    assert scene.steps == 1 and scene.can_step("pca") and not scene.can_step("tsne")
    found = scene.step_coordinates(1, "pca")
    known = np.isfinite(found[:10]).all(1)
    assert np.flatnonzero(known).tolist() == [2, 5] and found[[2, 5], 0].tolist() == [1, 3]
    np.testing.assert_array_equal(found[10:], scene.coordinates("bridged", "pca")[10:])


def test_the_matrix_of_classes_is_the_cosine_of_their_means(scene):
    matrix = class_matrix(scene, "bridged", np.flatnonzero(scene.frame["hoi_id"] == 2))
    name = scene.classes.set_index("hoi_id")["hoi"].str.replace("_", " ")
    unit = scene.vectors("bridged")[:40][(scene.frame["hoi_id"] == 2)[:40]]
    mean = normalised(unit.mean(0, keepdims=True))[0]
    text = scene.vectors("bridged")[40:][(scene.frame["hoi_id"] == 4)[40:]][0]
    assert matrix.index.tolist() == [name[2]] and matrix.loc[name[2], name[4]] == pytest.approx(mean @ text, abs=1e-5)
    assert own_share(class_matrix(Scene(scene.table), "bridged")) > 0.5


def test_a_view_fills_in_and_refuses(scene, tmp_path):
    view = View(selection=("3",), arrows="selection").on(scene)
    assert view.state == "bridged" and view.states == ("raw", "centred", "bridged") and view.projection == "pca"
    assert View.load(view.save(tmp_path / "view.json")) == view
    start, end = arrow_ends(scene, view)
    np.testing.assert_array_equal(start[0], scene.coordinates("centred", "pca")[3])
    np.testing.assert_array_equal(end[0], scene.coordinates("bridged", "pca")[3])
    assert not len(arrow_ends(scene, View(arrows="none").on(scene))[0])
    assert [state for _, state, _ in panels([scene], View(layout="side").on(scene))] == scene.states
    for wrong in ({"colour": "verbs"}, {"state": "bridge"}, {"selection": ("900",)}, {"projection": "tsne"}):
        with pytest.raises(ViewError, match="nearest"):
            View(**wrong).on(scene)
    (tmp_path / "odd.json").write_text('{"color": "verb"}')
    with pytest.raises(ViewError, match="colour"):
        View.load(tmp_path / "odd.json")


def test_every_colouring_has_a_name():
    assert len(set(COLOURINGS.values())) == len(COLOURINGS)
