"""Provenance, cost and the comparison page, on runs made here through `Run.artifact`."""

import json

import pytest

from lib.analysis import compare
from lib.analysis.page import duration, picture, size
from lib.analysis.palette import drawing, save_figure
from lib.analysis.provenance import (
    boxes_of,
    cost_section,
    graph_of,
    layers,
    provenance_section,
    read_nodes,
    without_detours,
)
from lib.config import load_config
from lib.errors import FoundExpected
from lib.runs import Run


def make_run(folder, epochs, full):
    """world -> features/train, features/test -> ezhoi -> pairs -> predictions/a; pairs also from features."""
    run = Run(folder, load_config("tests/micro.yaml", [f"ezhoi.epochs={epochs}"]))

    def artifact(kind, settings, *parents):
        return run.artifact(kind, settings, lambda path: (path / "x").write_bytes(b"1" * 1000) and {}, parents)

    world = artifact("world", {})
    train, test = artifact("features/train", {}, world, "f" * 16), artifact("features/test", {}, world)
    ezhoi = artifact("ezhoi", {"epochs": epochs}, train)
    pairs = artifact("pairs", {}, ezhoi, test, train)
    artifact("predictions/a", {}, pairs)
    run.record("ezhoi", mAP_full=full, mAP_unseen=full - 2, mAP_seen=full + 1)
    run.record("clip", mAP_full=10.0)
    with drawing((3, 2)) as figure:
        figure.subplots().plot([0, epochs])
    save_figure(figure, folder / "figures" / "02_loss.png", "Loss.")
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    return [make_run(folder / "a", 1, 30.0), make_run(folder / "b", 2, 31.0)]


def test_artefacts_are_read_with_their_parents_and_cost(runs):
    nodes = {node.kind: node for node in read_nodes(runs[0].root)}
    assert nodes["pairs"].parents == ("ezhoi", "features/test", "features/train") and nodes["pairs"].outside == 0
    assert nodes["features/train"].parents == ("world",) and nodes["features/train"].outside == 1
    assert nodes["ezhoi"].bytes > 1000 and nodes["ezhoi"].peak_memory > 10**7 and nodes["ezhoi"].seconds >= 0
    assert nodes["ezhoi"].gpu_memory != nodes["ezhoi"].gpu_memory or nodes["ezhoi"].gpu_memory >= 0


def test_the_graph_of_boxes(runs):
    boxes = boxes_of(read_nodes(runs[0].root))
    graph = graph_of(boxes)
    assert set(boxes) == {"world", "features", "ezhoi", "pairs", "predictions"}
    assert graph["pairs"] == {"ezhoi", "features"}
    assert without_detours(graph) == {
        "world": set(), "features": {"world"}, "ezhoi": {"features"}, "pairs": {"ezhoi"}, "predictions": {"pairs"},
    }  # fmt: skip
    rows = layers(without_detours(graph))
    assert rows == [["world"], ["features"], ["ezhoi"], ["pairs"], ["predictions"]]


def test_boxes_are_split_where_sharing_would_draw_a_circle(tmp_path):
    run = Run(tmp_path)
    make = lambda kind, *parents: run.artifact(kind, {}, lambda path: {}, parents)  # noqa: E731
    captions = make("bridge/captions")
    ezhoi = make("ezhoi", captions)
    make("bridge/adapted", ezhoi)
    assert set(boxes_of(read_nodes(tmp_path))) == {"bridge/captions", "ezhoi", "bridge/adapted"}


def test_wide_layers_are_broken_and_boxes_stand_near_their_children():
    graph = {name: set() for name in "abcdefg"} | {"late": set(), "x": {"a"}, "y": {"x", "late"}}
    rows = layers(graph)
    assert max(map(len, rows)) <= 5 and sorted(name for row in rows for name in row) == sorted(graph)
    level = {name: i for i, row in enumerate(rows) for name in row}
    assert level["a"] < level["x"] < level["y"] and level["late"] == level["x"]  # pulled down beside x


def test_sections_of_a_run(runs, tmp_path):
    page = provenance_section(runs[0].root)
    assert page.count("<rect") == 5 and page.count("<path") == 4 and "files or weights" in page
    cost = cost_section(runs[0].root)
    assert "together" in cost and "predictions/a" in cost
    for empty in (provenance_section(tmp_path), cost_section(tmp_path)):
        assert "No artefact yet" in empty


def test_the_comparison_page(runs, tmp_path, capsys):
    out = tmp_path / "page.html"
    assert compare.main([str(runs[0].root), str(runs[1].root), "--out", str(out)]) == 0
    assert "Best full mAP: b 31.00 (EZ-HOI), a 30.00 (EZ-HOI). b leads by 1.0 points" in capsys.readouterr().out
    page = out.read_text()
    assert "<code>ezhoi.epochs</code></th><td class=left><code>1</code></td><td class=left><code>2</code></td>" in page
    assert "data.world" not in page.partition("Settings that differ")[2].partition("Cost")[0]
    assert '<td class="left">b</td><td><b>31.00</b></td>' in page and "+1.00" in page
    assert "The runs part at ezhoi;" in page
    assert page.count("data:image/png") == 3 and (tmp_path / "page.png").is_file()  # results, and the loss of both
    assert "not comparable with them" in page and "CMMP" in page  # published numbers, told apart
    assert 'src="http' not in page and 'href="http' not in page


def test_runs_of_different_settings_have_no_published_numbers_beside(runs, tmp_path):
    config = (runs[1].root / "config.yaml").read_text()
    other = tmp_path / "a"
    other.mkdir()
    (other / "config.yaml").write_text(config.replace("zero_shot: unseen_verb", "zero_shot: rare_first"))
    (other / "metrics.json").write_text(json.dumps({"ezhoi/mAP_full": 30.1}))
    page = compare.write_comparison([runs[0].root, other], tmp_path / "x.html").read_text()
    assert "different zero-shot settings" in page
    names = [run.name for run in compare.read_runs([runs[0].root, other])]
    assert len(set(names)) == 2 and all("/a" in name for name in names)  # two folders called a
    assert "No clear leader" in page


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    with pytest.raises(FoundExpected, match=r"found no metrics.json, expected a run folder\n  mend: run its notebooks"):
        compare.read_runs([tmp_path])
    assert compare.main([str(tmp_path)]) == 2
    assert "no metrics.json" in capsys.readouterr().err


def test_words_for_numbers(runs):
    assert [duration(s) for s in (0.04, 48, 351, 10920, float("nan"))] == [
        "0.0 s",
        "48 s",
        "5 min 51 s",
        "3 h 02 min",
        "–",
    ]
    assert [size(n) for n in (740e3, 15.6e6, 3.21e9, float("nan"))] == ["740 kB", "15.6 MB", "3.2 GB", "–"]
    path = runs[0].root / "figures" / "02_loss.png"
    assert len(picture(path, width=40)) < len(picture(path))
