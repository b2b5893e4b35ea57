"""Projections: exact ones are exact, maps are fixed by a seed, parameters are stored, new rows are placed."""

import numpy as np
import pytest

from lib.analysis import gap
from lib.analysis.embeddings import EmbeddingTable, compare, normalised
from lib.analysis.projections import CAVEAT, METHODS, caveat, linear_coordinates, project

SMALL = {"perplexity": 8, "neighbours": 6}


def coordinates(table: EmbeddingTable, method: str) -> np.ndarray:
    return table.frame[[f"{method}_x", f"{method}_y"]].to_numpy()


def test_pca_is_the_leading_singular_plane_of_all_states_and_texts(make_table):
    table = project(make_table(30), ["pca"])
    x = normalised(table.vectors).astype(float)
    x -= x.mean(0)
    singular = np.linalg.svd(x, compute_uv=False)
    spread = coordinates(table, "pca").astype(float)
    np.testing.assert_allclose(np.linalg.norm(spread, axis=0), singular[:2], rtol=1e-4)
    assert set(table.frame["state"]) == {"text", "text_centred", "raw", "centred", "bridged"}
    assert np.isfinite(spread).all()


def test_along_the_gap_axis_the_means_lie_one_centroid_gap_apart(make_table):
    table = project(make_table(50), ["gap"])
    x = table.frame.set_index("state")["gap_x"]
    v, t = (normalised(table.select(state).vectors) for state in ("raw", "text"))
    assert x["text"].mean() - x["raw"].mean() == pytest.approx(gap.centroid_gap(v, t), rel=1e-4)
    assert x["text"].mean() == pytest.approx(-x["raw"].mean(), abs=1e-5)
    assert abs(x["text_centred"].mean() - x["centred"].mean()) < 0.05
    # all that is left across the axis: no point is longer in the plane than in space
    assert (np.linalg.norm(coordinates(table, "gap"), axis=1) <= 1 + 1e-5).all()


@pytest.mark.parametrize("method", ["gap", "pca"])
def test_new_rows_are_placed_where_their_equals_lie(make_table, method, tmp_path):
    table = EmbeddingTable.load(project(make_table(20), [method]).save(tmp_path))
    bridged = table.select("bridged")
    placed = linear_coordinates(table, method, normalised(bridged.vectors))
    np.testing.assert_allclose(placed, coordinates(bridged, method), atol=1e-5)


@pytest.mark.parametrize("method", ["tsne", "umap"])
def test_a_seed_fixes_the_picture(method, make_table):
    table = make_table(20, classes=8, dim=16)
    lines: list[str] = []
    first = project(table, [method], seed=1, fit_pairs=14, progress=lines.append, **SMALL)
    again = project(table, [method], seed=1, fit_pairs=14, **SMALL)
    np.testing.assert_array_equal(coordinates(first, method), coordinates(again, method))
    assert np.isfinite(coordinates(first, method)).all() and lines
    assert len(np.unique(coordinates(first, method), axis=0)) > 60


def test_tsne_is_fitted_on_text_and_the_states_before_the_bridge(make_table):
    """A bridge of another quality changes nothing in the map of what came before it."""
    one, other = (
        project(make_table(20, classes=8, dim=16, bridge=b), ["tsne"], fit_states=["raw"], **SMALL) for b in (0.2, 0.9)
    )
    assert one.info["projections"]["tsne"]["fitted_on"] == ["raw", "text", "text_centred"]
    for state, same in (("raw", True), ("text", True), ("centred", True), ("bridged", False)):
        places = [coordinates(table.select(state), "tsne") for table in (one, other)]
        assert np.array_equal(*places) == same, state


def test_aligned_maps_are_tied_by_their_common_points(make_table, monkeypatch):
    """One map a (state, run), in an order in which neighbours share one of both."""
    made = {}

    class Recorder:
        def __init__(self, **settings):
            made["settings"] = settings

        def fit(self, slices, relations):
            made["relations"] = relations
            self.embeddings_ = [x[:, :2] + 10 * i for i, x in enumerate(slices)]
            return self

    monkeypatch.setattr("umap.AlignedUMAP", Recorder)
    one = make_table(30, classes=8, dim=16)
    table = project(
        compare({"a": one, "b": make_table(20, classes=8, dim=16)}), ["aligned_umap"], fit_pairs=25, **SMALL
    )
    middles = table.frame.groupby(["source", "state"])["aligned_umap_x"].mean().round(-1)
    order = [("a", "raw"), ("b", "raw"), ("b", "centred"), ("a", "centred"), ("a", "bridged"), ("b", "bridged")]
    assert [middles[key] for key in order] == [0, 10, 20, 30, 40, 50]
    # the text of centred and bridged vision lies in two maps: in their middle
    assert middles["a", "text_centred"] == pytest.approx(35, abs=5.1)
    # the 8 texts and the common pairs of a map and the next: those of the smaller run that were drawn, or all drawn
    drawn = [len(relation) - 8 for relation in made["relations"]]
    assert drawn[3] == 25 and {*drawn[:3], drawn[4]} == {drawn[0]} and 15 <= drawn[0] <= 20
    assert table.info["projections"]["aligned_umap"]["maps"] == 6
    assert np.isfinite(coordinates(table, "aligned_umap")).all() and made["settings"]["n_neighbors"] == 6


def test_parameters_are_stored_and_cut_to_what_the_points_allow(make_table, tmp_path):
    table = project(make_table(4, classes=4, dim=8), ["pca", "tsne"], seed=2, perplexity=50)
    again = EmbeddingTable.load(table.save(tmp_path))
    saved = again.info["projections"]
    assert saved["tsne"]["seed"] == 2 and saved["tsne"]["points"] == 20
    assert saved["tsne"]["perplexity"] == pytest.approx(15 / 3)  # raw, centred and both kinds of text: 16 points
    assert len(saved["pca"]["explained_variance"]) == 2
    assert again.methods == ["pca", "tsne"]
    np.testing.assert_array_equal(coordinates(again, "tsne"), coordinates(table, "tsne"))


def test_an_unknown_method_is_named(make_table):
    with pytest.raises(ValueError, match="pcaa"):
        project(make_table(5), ["pcaa"])


def test_the_caveat_stands_under_neighbour_embeddings():
    assert "distances between islands mean nothing" in CAVEAT.lower()
    assert {method: CAVEAT in caveat(method) for method in METHODS} == {
        "gap": False, "pca": False, "tsne": True, "umap": True, "aligned_umap": True,
    }  # fmt: skip
