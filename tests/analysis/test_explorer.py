"""The explorer reacts to its controls, without a browser."""

import plotly.graph_objects as go
import pytest
from PIL import Image
from plotly.callbacks import Points

from lib.analysis import explorer as module
from lib.analysis.explorer import GapExplorer


@pytest.fixture
def explorer(make_table):
    return GapExplorer(make_table(30, classes=12), load_image=lambda i: Image.new("RGB", (120, 100), (i, 90, 90)))


def names(explorer: GapExplorer) -> list[str]:
    return [trace.name for trace in explorer.figure.data]


def test_controls_change_the_traces(explorer):
    explorer.view()
    assert isinstance(explorer.figure, go.FigureWidget)
    explorer.colour_by.value = "split"
    assert names(explorer) == ["seen", "unseen", "text, centred"]
    assert sum(len(trace.x) for trace in explorer.figure.data[:2]) == 30
    explorer.states.value = ("raw", "bridged")
    assert names(explorer)[-2:] == ["text", "text, centred"] and "seen (raw)" in names(explorer)
    explorer.colour_by.value = "modality"
    assert names(explorer)[:2] == ["vision, raw", "vision, bridged"]
    for colouring in ("verb", "object", "hoi", "correct"):
        explorer.colour_by.value = colouring
        assert sum(len(trace.x) for trace in explorer.figure.data) == 2 * 30 + 2 * 12


def test_recompute_fits_what_is_missing_and_uses_the_slider(explorer):
    before = tuple(explorer.figure.data[0].x)
    explorer.method.value = "tsne"
    assert "press" in explorer.message.value and tuple(explorer.figure.data[0].x) == before
    assert explorer.perplexity.layout.display == "" and explorer.neighbours.layout.display == "none"
    explorer.perplexity.value = 7
    explorer.recompute.click()
    assert explorer.message.value == "" and tuple(explorer.figure.data[0].x) != before
    assert explorer.table.info["projections"]["tsne"]["perplexity"] == 7
    assert "islands" in explorer.figure.layout.annotations[0].text
    explorer.method.value = "pca"
    assert tuple(explorer.figure.data[0].x) == before


def test_a_click_shows_the_pair_and_its_picture(explorer):
    trace = explorer.figure.data[0]
    explorer._clicked(trace, Points(point_inds=[1], trace_name=trace.name), None)
    assert explorer.selected["hoi"] == trace.customdata[1][1] and explorer.selected["hoi"] in explorer.details.value
    assert bytes(explorer.picture.value).startswith(b"\x89PNG") and explorer.picture.layout.display == ""
    text = explorer.figure.data[-1]
    explorer._clicked(text, Points(point_inds=[0], trace_name=text.name), None)
    assert explorer.selected["modality"] == "text" and explorer.picture.layout.display == "none"


def test_without_widget_support_a_plain_figure_is_shown(make_table, monkeypatch):
    shown = []
    monkeypatch.setattr(module, "display", shown.append)
    monkeypatch.setattr(module, "_figure_widget", go.Figure)
    explorer = GapExplorer(make_table(10, classes=4))
    explorer.colour_by.value = "split"
    explorer.view()
    assert len(shown) == 2 and names(explorer)[-1] == "text, centred"
