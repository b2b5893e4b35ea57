"""Figures: what is drawn is what was computed; every figure writes a PNG and, where asked, its caption."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lib.analysis.figures import loss_curve, metric_bars, results_from_metrics, results_table_figure, similarity_matrix
from lib.analysis.gap_report import gap_report
from lib.analysis.interactive import interactive_html, scatter_traces
from lib.analysis.palette import CLASSES, categories, save_figure
from lib.analysis.pictures import draw_pairs, patch_similarity_map
from lib.analysis.projections import project
from lib.analysis.scatter import projection_panels, state_panel
from lib.settings import AnalysisSettings


def texts(fig) -> str:
    return " ".join(text.get_text() for text in fig.findobj(lambda a: hasattr(a, "get_text")))


def test_projection_panels_show_every_point_and_say_what_may_not_be_read(make_table, tmp_path):
    table = project(make_table(40, classes=6), ["pca", "tsne"])
    fig = projection_panels(table, "tsne", "split", links=4)
    assert len(fig.axes) == 3
    for ax in fig.axes:
        drawn = sum(len(c.get_offsets()) for c in ax.collections)
        assert drawn == 40 + 6 and len(ax.lines) == 4
    assert "Distances between islands mean nothing" in texts(fig)
    path = save_figure(fig, tmp_path / "tsne.png", "caption")
    assert path.read_bytes().startswith(b"\x89PNG") and (tmp_path / "tsne.txt").read_text() == "caption\n"
    assert "arrows" in texts(state_panel(table, "tsne")).lower()
    with pytest.raises(ValueError, match="compute it with"):
        projection_panels(table, "umap")


def test_metric_bars_draw_the_reported_values(make_table):
    report = gap_report(make_table(60), AnalysisSettings(bootstrap=20))
    fig = metric_bars(report, ["recall@1", "gt_margin"])
    shown = [patch.get_height() for patch in fig.axes[0].patches]
    expected = report[(report["metric"] == "recall@1") & (report["split"] == "all")]["value"]
    np.testing.assert_allclose(shown, expected)


def test_similarity_matrix_counts_the_diagonal(make_table):
    table = make_table(200, classes=5, bridge=1.0)
    fig = similarity_matrix(table, "bridged")
    matrix = fig.axes[0].images[0].get_array()
    np.testing.assert_allclose(np.diag(matrix), 1, atol=1e-5)
    assert "100%" in texts(fig)


def test_loss_curve_draws_each_named_term():
    history = [{"step": i, "loss": 1 / (i + 1), "focal": 0.5, "note": "x"} for i in range(50)]
    fig = loss_curve(history, "EZ-HOI")
    assert [ax.get_title(loc="left").split(":")[0] for ax in fig.axes] == ["loss", "focal"]
    np.testing.assert_array_equal(fig.axes[0].lines[0].get_xdata(), np.arange(50))
    with pytest.raises(ValueError, match="at least one number"):
        loss_curve([{"step": 1}])


def test_results_figure_orders_methods_and_marks_what_is_missing():
    metrics = {"bridge/mAP_full": 31.0, "ezhoi/mAP_full": 30.0, "ezhoi/mAP_unseen": 20.0, "mine/mAP_seen": 5.0}
    frame = results_from_metrics(metrics | {"gap/raw/rmg": 1.0})
    assert list(frame.index) == ["ezhoi", "bridge", "mine"] and np.isnan(frame.loc["bridge", "unseen"])
    shown = texts(results_table_figure(metrics))
    assert "31.00" in shown and "not measured" in shown and "EZ-HOI + bridge" in shown
    with pytest.raises(ValueError, match="mAP_full"):
        results_table_figure({})


def test_pairs_are_drawn_in_score_order_with_the_rest_counted():
    image = Image.new("RGB", (80, 60), "grey")
    boxes = np.array([[5, 5, 20, 50], [30, 10, 60, 40], [1, 1, 9, 9]], dtype=float)
    fig = draw_pairs(image, boxes, boxes[::-1], ["low", "high", "mid"], [0.1, 0.9, 0.5], limit=2)
    shown = texts(fig)
    assert shown.index("high") < shown.index("mid") and "and 1 more" in shown and "low" not in shown
    first = fig.axes[0].patches[1].get_bbox().extents
    np.testing.assert_allclose(first, [30, 10, 60, 40])
    with pytest.raises(ValueError, match="expected as many of each"):
        draw_pairs(image, boxes, boxes, ["one"])


def test_patch_map_is_the_cosine_to_the_token():
    patches = np.random.default_rng(0).normal(size=(6, 5))
    fig = patch_similarity_map(np.zeros((20, 30, 3), np.uint8), patches, 4, grid=(2, 3))
    heat = fig.axes[1].images[1].get_array()
    unit = patches / np.linalg.norm(patches, axis=1, keepdims=True)
    np.testing.assert_allclose(heat.ravel(), unit @ unit[4], atol=1e-6)
    mark = fig.axes[0].patches[0]  # token 4: second row, second column of cells of 10 x 10
    np.testing.assert_allclose([mark.get_x(), mark.get_y(), mark.get_width()], [9.5, 9.5, 10])
    with pytest.raises(ValueError, match="grid"):
        patch_similarity_map(np.zeros((20, 30, 3), np.uint8), patches, 0)


def test_colours_name_many_classes_apart():
    looks = categories(pd.Series([f"verb {i}" for i in range(30)]))
    assert len({(look.colour, look.marker) for look in looks[:-1]}) == 3 * len(CLASSES)
    assert looks[-1].value == "other"


def test_the_html_stands_alone(make_table, tmp_path):
    table = project(make_table(20, classes=4), ["pca"])
    page = interactive_html(table, tmp_path / "pca.html", "pca").read_text()
    assert "<script src=" not in page and "vision, bridged" in page
    drawn = sum(len(trace.x) for trace in scatter_traces(table, "pca", ["raw", "bridged"], "verb"))
    assert drawn == 2 * 20 + 2 * 4
