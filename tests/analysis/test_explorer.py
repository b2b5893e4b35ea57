"""The explorer reacts to its controls and to its panes, without a browser."""

import base64
import io

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from lib.analysis.explorer import Explorer
from lib.analysis.palette import SPLIT_COLOUR
from lib.analysis.projections import project
from lib.analysis.scene import scenes
from lib.analysis.view import View, ViewError
from lib.errors import FoundExpected


def load(index: int, split: str) -> Image.Image:
    return Image.new("RGB", (120, 100), (index, 90, 90))


@pytest.fixture
def table(make_table):
    return project(make_table(30, classes=12), ["pca", "tsne"])


@pytest.fixture
def explorer(table, tmp_path) -> Explorer:
    return Explorer(scenes([table], ["demo"]), load, folder=tmp_path)


def points(explorer: Explorer, pane: int = 0) -> np.ndarray:
    return explorer.panes[pane].widget.points


def test_the_state_slider_moves_the_points(explorer):
    explorer.widget()
    before = points(explorer).copy()
    explorer.state.value = "raw"
    after = points(explorer)
    assert before.shape == after.shape and not np.allclose(before[:, :2], after[:, :2])
    low, high = explorer.scene.limits("pca").T
    expected = 2 * (explorer.scene.coordinates("raw", "pca") - low) / (high - low) - 1
    np.testing.assert_allclose(after[:, :2], expected, atol=1e-6)
    assert "vision, raw" in explorer.titles[0].value and explorer.panes[0].widget.transition_points
    explorer.play.value = 1
    assert explorer.state.value == "centred"


def test_colours_follow_the_menu_and_the_legend_says_what_they_mean(explorer):
    for name in (value for _, value in explorer.colour.options):
        explorer.colour.value = name
        shown = len(explorer.panes[0].widget.color)
        assert explorer.legend.value.count("<i style") + explorer.legend.value.count("<b style") == shown, name
    explorer.colour.value = "split"
    assert "unseen" in explorer.legend.value
    pane, unseen = explorer.panes[0], explorer.scene.frame["unseen"].to_numpy()
    coded = points(explorer)[:, {"valueA": 2, "valueB": 3}[pane.widget.color_by]].astype(int)
    shown = np.array(pane.widget.color)[coded]
    assert to_hex(shown[unseen][0]) == SPLIT_COLOUR["unseen"].lower() and len(np.unique(shown[unseen], axis=0)) == 1


def test_a_selection_reaches_the_dataframe_the_pictures_and_every_pane(explorer):
    explorer.layout.value = "side"
    assert len(explorer.panes) == 3
    explorer.panes[1].widget.selection = np.array([4, 2], dtype="uint32")
    assert explorer.selected["point"].tolist() == ["4", "2"]
    assert all(pane.widget.selection.tolist() == [4, 2] for pane in explorer.panes)
    assert [item["row"] for item in explorer.gallery.items] == [4, 2]
    assert explorer.gallery.items[0]["src"].startswith("data:image/jpeg") and "<img" in explorer.card.value
    assert "2 pairs" in explorer.summary.value and len(explorer.near.items) == 6


def test_a_selection_can_be_set_from_code_and_kept(explorer, tmp_path):
    explorer.selected = ["7", "3"]
    assert explorer.panes[0].widget.selection.tolist() == [7, 3]
    path = explorer.save_selection("mine.csv")
    assert path == tmp_path / "mine.csv" and pd.read_csv(path)["point"].tolist() == [7, 3]
    pd.testing.assert_frame_equal(pd.read_parquet(explorer.save_selection("mine.parquet")), explorer.selected)
    explorer.selected = explorer.selected.head(1)
    assert explorer.selected["point"].tolist() == ["7"]
    explorer.clear.click()
    assert not len(explorer.selected) and "Nothing selected" in explorer.summary.value
    with pytest.raises(FoundExpected, match="csv"):
        explorer.save_selection("mine.txt")
    with pytest.raises(ViewError, match="nearest"):
        explorer.selected = ["no such point"]


def test_search_selects_and_flies_there(explorer):
    explorer.search.value = "sit on"
    found = explorer.selected
    assert len(found) and set(found["verb"]) == {"sit on"} and f"{len(found)} found" in explorer.found.value
    assert sorted(explorer.panes[0].widget.zoom_to.tolist()) == explorer.scene.search("sit on").tolist()
    explorer.search.value = "zebra"
    assert "nothing found" in explorer.found.value and not len(explorer.selected)


def test_hovering_shows_the_picture_and_the_card(explorer):
    pane = explorer.panes[0]
    pane.widget.hovering = 5
    picture = pane.frame.loc[5, "picture"]
    assert Image.open(io.BytesIO(base64.b64decode(picture.split(",")[1]))).format == "JPEG"
    assert explorer.scene.frame["hoi"][5].replace("_", " ") in explorer.card.value
    explorer.selected = ["7"]
    shown = explorer.card.value
    pane.widget.hovering = 6
    assert explorer.card.value == shown  # a selection stays in the panel
    explorer.near.clicked = explorer.near.items[0]["row"]
    assert explorer.card.value != shown and explorer.near.clicked == -1
    explorer.focus("7")
    assert explorer.card.value == shown


def test_text_has_a_card_without_a_picture(explorer):
    explorer.focus("text-0") if "text-0" in explorer.scene.row_of else explorer._choose(np.array([30]))
    assert "class sentence" in explorer.card.value and "<img" not in explorer.card.value


def test_arrows_are_drawn_where_the_movement_ends(explorer):
    def drawn() -> list[int]:
        return [len(pane.widget.annotations or []) for pane in explorer.panes]

    explorer.layout.value, explorer.arrows.value = "side", "movers"
    assert drawn() == [0, 0, 30]
    explorer.arrows.value = "selection"
    assert drawn() == [0, 0, 0]
    explorer.selected = ["1", "2", "3"]
    assert drawn() == [0, 0, 3]


def test_the_matrix_follows_the_selection_and_selects(explorer):
    explorer.tabs.selected_index = 1
    trace = explorer.heat.widget.data[0]
    every = len(trace.y)
    explorer.search.value = "ride"
    assert 0 < len(trace.y) < every and "selection" in explorer.heat.widget.layout.title.text
    explorer._class_clicked(trace.y[0])
    assert set(explorer.selected["hoi"].str.replace("_", " ")) == {trace.y[0]}


def test_steps_of_the_bridge_show_the_pairs_that_were_kept(table):
    points_kept = [1, 2, 3]
    way = pd.DataFrame([{"point": p, "step": s, "pca_x": s * 0.1, "pca_y": 0.0} for p in points_kept for s in range(4)])
    explorer = Explorer(scenes([table], ["demo"], trajectories=[way]))
    assert explorer.step.max == 3 and explorer.step.layout.display == ""
    explorer.step.value = 1
    assert explorer.panes[0].widget.filter.tolist() == [1, 2, 3, *range(30, 42)]
    assert "step 1 of 3" in explorer.titles[0].value
    explorer.state.value = "raw"
    assert explorer.panes[0].widget.filter is None
    explorer.projection.value = "tsne"
    assert explorer.step.layout.display == "none"


def test_two_runs_side_by_side(table, make_table):
    other = project(make_table(30, classes=12, bridge=0.9), ["pca", "tsne"])
    explorer = Explorer(scenes([table, other], ["one", "two"]))
    assert explorer.layout.value == "runs" and [t.value[3:6] for t in explorer.titles] == ["one", "two"]
    explorer.panes[1].widget.selection = np.array([9], dtype="uint32")
    assert explorer.panes[0].widget.selection.tolist() == [9]
    assert not np.allclose(points(explorer, 0)[:, :2], points(explorer, 1)[:, :2])


def test_what_is_shown_can_be_drawn_and_opened_again(explorer, table, tmp_path):
    explorer.selected, explorer.colour.value, explorer.state.value = ["3"], "outcome", "centred"
    view = explorer.view
    assert (view.state, view.colour, view.selection) == ("centred", "outcome", ("3",))
    assert "centred" in explorer.figure().axes[0].get_title(loc="left")
    assert explorer.html(tmp_path / "view.html").stat().st_size > 10_000
    again = Explorer(scenes([table], ["demo"]), view=View.load(explorer.save_view()))
    assert again.view == view


def test_a_table_without_images_or_projection_opens(make_table):
    explorer = Explorer(scenes([make_table(20, classes=4)], [""]))
    explorer.selected = ["1"]
    assert explorer.scene.methods and "<img" not in explorer.card.value
