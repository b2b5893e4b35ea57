"""Precision on one recall grid by hand; the figure and the class groups it draws."""

import json

import numpy as np
import pandas as pd
import pytest

from lib.analysis.precision_recall import precision_recall_figure
from lib.evaluation.curves import RECALL, interpolated_precision
from lib.evaluation.hico_det import BOX_COLUMNS, hico_det_ap
from lib.evaluation.hico_det_command import main

BOX, FAR = [0.0, 0, 10, 10] * 2, [50.0, 50, 60, 60] * 2


@pytest.fixture
def scored():
    """Class 0: labels 0 1 1 of 4 pairs; class 1: no detection; class 2: no truth; class 3: its one pair."""
    truth = {"image": np.array([0, 1, 2, 3, 0, 0]), "hoi": np.array([0, 0, 0, 0, 1, 3])}
    truth |= {key: np.array([BOX[:4]] * 6) for key in ("boxes_h", "boxes_o")}
    table = pd.DataFrame([BOX, FAR, BOX, BOX, BOX], columns=list(BOX_COLUMNS))
    table = table.assign(image=[1, 0, 0, 0, 0], hoi=[0, 0, 0, 2, 3], score=[0.5, 0.9, 0.7, 1.0, 0.1])
    return table, hico_det_ap(table, truth, 4)


def test_curve_by_hand(scored):
    curves = interpolated_precision(*scored)
    assert curves.shape == (4, len(RECALL)) and np.isnan(curves[2]).all()
    assert (curves[0, :51] == 2 / 3).all() and (curves[0, 51:] == 0).all()  # 1/2 at recall 1/4, better at 1/2
    assert (curves[1] == 0).all() and (curves[3] == 1).all()


def test_figure_shows_groups_and_classes(scored):
    table, result = scored
    names = ["hold ball", "throw ball", "sit_on ball", "kick ball"]
    figure = precision_recall_figure(table, result, names, unseen=[3])
    left, right = figure.axes
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    means = 100 * result.ap[[0, 1]].mean()
    assert labels == [f"all classes (3): mAP {100 * np.nanmean(result.ap):.1f}", "unseen (1): mAP 100.0",
                      f"seen (2): mAP {means:.1f}"]  # fmt: skip
    mean = interpolated_precision(table, result)[[0, 1]].mean(0)
    assert any(np.array_equal(line.get_ydata(), mean) for line in left.get_lines())
    assert [text.get_text().split("\n")[0] for text in right.get_legend().get_texts()] == [
        "kick ball", "hold ball", "throw ball",
    ]  # fmt: skip
    assert "precision is 56 %" in figure.get_suptitle()  # (2/3 + 0 + 1) / 3 at half
    chosen = precision_recall_figure(table, result, names, rare=[0, 1], classes=[1])
    assert [text.get_text() for text in chosen.axes[1].get_legend().get_texts()] == ["throw ball\nAP 0.0, 1 pairs"]
    assert len(chosen.axes[0].get_legend().get_texts()) == 3
    nothing = hico_det_ap(table, {key: np.zeros((0, 4) if "box" in key else 0) for key in
                                  ("image", "hoi", "boxes_h", "boxes_o")}, 4)  # fmt: skip
    with pytest.raises(ValueError, match="found no class with ground truth"):
        precision_recall_figure(table, nothing, names)


def test_command_draws_and_compares(tmp_path, capsys):
    content = {
        "annotation": [{"boxes_h": [[1, 1, 10, 10]], "boxes_o": [[1, 1, 10, 10]], "hoi": [0]}],
        "filenames": ["a.jpg"], "objects": ["ball"], "verbs": ["hold"], "correspondence": [[0, 0, 0]], "empty": [],
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(content))
    settings = {"settings": {"uc0": {"unseen_hoi": [0]}, "unseen_verb": {"unseen_hoi": []}}}
    (tmp_path / "zero_shot.json").write_text(json.dumps(settings))
    table = pd.DataFrame([BOX], columns=list(BOX_COLUMNS)).assign(image=0, hoi=0, score=0.5)
    table.to_parquet(tmp_path / "p.parquet")
    files = [str(tmp_path / "p.parquet"), "--annotations", str(tmp_path / "a.json")]
    assert main([*files, "--figure", str(tmp_path / "pr.png"), "--published"]) == 0
    lines = capsys.readouterr().out.splitlines()
    ours = next(index for index, line in enumerate(lines) if line.split()[:2] == ["ours", "100.00"])
    assert lines[ours - 1].split()[:2] == ["method", "backbone"]  # the best of all
    assert (tmp_path / "pr.png").read_bytes()[:4] == b"\x89PNG"
    assert main([*files, "--published", "--zero-shot", "uc0"]) == 1
    assert "--published with --zero-shot uc0" in capsys.readouterr().err
