"""Projections: one joint fit, deterministic by seed, parameters stored."""

import json

import numpy as np
import pytest

from lib.analysis.embeddings import EmbeddingTable, normalised
from lib.analysis.projections import CAVEAT, caveat, project


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


@pytest.mark.parametrize("method", ["tsne", "umap"])
def test_a_seed_fixes_the_picture(method, make_table):
    table = make_table(20, classes=8, dim=16)
    lines: list[str] = []
    first = project(table, [method], seed=1, perplexity=8, neighbours=6, progress=lines.append)
    again = project(table, [method], seed=1, perplexity=8, neighbours=6)
    np.testing.assert_array_equal(coordinates(first, method), coordinates(again, method))
    assert np.isfinite(coordinates(first, method)).all() and len(lines) == 1


def test_parameters_are_stored_and_cut_to_what_the_points_allow(make_table, tmp_path):
    table = project(make_table(4, classes=4, dim=8), ["pca", "tsne"], seed=2, perplexity=50)
    saved = json.loads((table.save(tmp_path) / "embeddings.json").read_text())["projections"]
    assert saved["tsne"] == {"seed": 2, "points": 20, "perplexity": pytest.approx(19 / 3)}
    assert len(saved["pca"]["explained_variance"]) == 2
    again = EmbeddingTable.load(tmp_path)
    assert again.methods == ["pca", "tsne"]
    np.testing.assert_array_equal(coordinates(again, "tsne"), coordinates(table, "tsne"))


def test_an_unknown_method_is_named(make_table):
    with pytest.raises(ValueError, match="pcaa"):
        project(make_table(5), ["pcaa"])


def test_the_caveat_stands_under_neighbour_embeddings():
    assert caveat("tsne") == caveat("umap") == CAVEAT and "distances between islands mean nothing" in CAVEAT.lower()
    assert caveat("pca") != CAVEAT
