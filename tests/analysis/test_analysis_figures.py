"""Figures: what is drawn is what was computed; every figure writes a PNG and, where asked, its caption."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.quiver import Quiver
from PIL import Image

from lib.analysis.figures import loss_curve, metric_bars, results_from_metrics, results_table_figure, similarity_figure
from lib.analysis.gap_figures import class_figure, way_figure
from lib.analysis.gap_report import gap_report
from lib.analysis.interactive import view_html
from lib.analysis.palette import CLASSES, categories, save_figure
from lib.analysis.pictures import draw_pairs, patch_similarity_map
from lib.analysis.projections import project
from lib.analysis.scatter import draw_view
from lib.analysis.scene import Scene, scenes
from lib.analysis.thumbnails import Thumbnails
from lib.analysis.view import View, ViewError
from lib.settings import AnalysisSettings


def texts(fig) -> str:
    return " ".join(text.get_text() for text in fig.findobj(lambda a: hasattr(a, "get_text")))


def test_a_view_draws_every_point_and_says_what_may_not_be_read(make_table, tmp_path):
    scene = Scene(project(make_table(40, classes=6), ["pca", "tsne"]))
    fig = draw_view(scene, View(projection="tsne", colour="split", layout="side", arrows="movers", arrow_limit=5))
    assert len(fig.axes) == 3
    for ax in fig.axes:
        dots = sum(len(c.get_offsets()) for c in ax.collections if not isinstance(c, Quiver))
        assert dots == 40 + 6
    arrows = [c for ax in fig.axes for c in ax.collections if isinstance(c, Quiver)]
    assert len(arrows) == 1 and len(arrows[0].get_offsets()) == 5
    assert "Distances between islands mean nothing" in texts(fig)
    path = save_figure(fig, tmp_path / "tsne.png", "caption")
    assert path.read_bytes().startswith(b"\x89PNG") and (tmp_path / "tsne.txt").read_text() == "caption\n"
    with pytest.raises(ViewError, match="nearest"):
        draw_view(scene, View(projection="umap"))


def test_a_selection_is_ringed_and_two_runs_stand_side_by_side(make_table):
    both = scenes([make_table(20, classes=4), make_table(20, classes=4, bridge=0.9)], ["a", "b"])
    fig = draw_view(both, View(layout="runs", selection=("3", "5"), arrows="none"))
    rings = fig.axes[1].collections[-1]
    np.testing.assert_allclose(rings.get_offsets(), both[1].coordinates("bridged", "pca")[[3, 5]])
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["a: vision, bridged", "b: vision, bridged"]


def test_metric_bars_draw_the_reported_values(make_table):
    report = gap_report(make_table(60), AnalysisSettings(bootstrap=20))
    fig = metric_bars(report, ["recall@1", "gt_margin"])
    shown = [patch.get_height() for patch in fig.axes[0].patches]
    expected = report[(report["metric"] == "recall@1") & (report["split"] == "all")]["value"]
    np.testing.assert_allclose(shown, expected)


def test_similarity_matrix_counts_the_diagonal(make_table):
    fig = similarity_figure(Scene(make_table(200, classes=5, bridge=1.0)), "bridged")
    matrix = fig.axes[0].images[0].get_array()
    np.testing.assert_allclose(np.diag(matrix), 1, atol=1e-5)
    assert "100%" in texts(fig)


def test_ways_and_classes_draw_what_was_measured():
    splits = ("all", "seen", "unseen")
    numbers = {"recall@1": 0.1, "gt_margin": -0.1, "centroid_gap": 0.9, "margin": 0.2, "true_cosine": 0.3}
    shift = [{"split": s, "shift": x, **numbers, "recall@1": 0.2 * x} for s in splits for x in (0.0, 0.5, 1.0)]
    step = [{"split": s, "step": x, **numbers, "margin_low": 0.1, "margin_high": 0.4} for s in splits for x in range(3)]
    fig = way_figure(pd.DataFrame(shift), pd.DataFrame(step))
    assert "at best 20.0% (shift +1.0)" in texts(fig) and len(fig.axes) == 6
    np.testing.assert_allclose(fig.axes[0].lines[0].get_ydata(), [0, 0.1, 0.2])
    change = {"hoi": ["ride_on a", "b", "c", "d"], "ap_change": [0.1, -0.2, 0.0, np.nan], "pairs": [5, 6, 7, 8]}
    fig = class_figure(pd.DataFrame(change | {"unseen": [True, False, False, False], "rare": False}))
    assert "rises for 1 classes and falls for 1" in texts(fig) and "ride on a (5)" in texts(fig)
    assert fig.axes[1].patches[0].get_width() == pytest.approx(10)


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


def test_the_html_stands_alone_and_holds_the_view(make_table, tmp_path):
    table = project(make_table(20, classes=4), ["pca"])
    table.frame["hoi"] = table.frame["hoi"].where(table.frame["hoi_id"] != 1, "</script><b>odd</b>")
    scene = Scene(table, "a <run>")
    look = Thumbnails(scene.frame, lambda i, s: Image.new("RGB", (60, 60)))
    view = View(state="centred", colour="score", selection=("4",), arrows="selection")
    page = view_html(scene, view, tmp_path / "view.html", look, pictures=5).read_text()
    assert page.count("</script>") == 1 and "http" not in page and "a &lt;run&gt;" in page
    data = json.loads(re.search(r"const D = (.*);\n", page)[1].replace("<\\/", "</"))
    assert data["start"] == {"state": 1, "method": "pca", "colour": "score", "selected": [4]} and data["arrows"] == [4]
    assert len(data["points"]) == 24 and len(data["pictures"]) == 5 and "4" in data["pictures"]
    low, high = scene.limits("pca").T
    x, y = (scene.coordinates("raw", "pca")[7] - low) / (high - low)
    assert data["methods"]["pca"]["at"][0][7] == pytest.approx([x, 1 - y], abs=1e-4)
    assert all(len(each["code"]) == 24 for looks in data["colours"].values() for each in looks)
