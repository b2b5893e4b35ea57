"""Ranks of true classes by hand; the figures of notebook 04 and what their titles say."""

import pandas as pd
import pytest
import torch

from lib.analysis.bridge_figures import (
    grid_figure,
    grid_finding,
    interval_figure,
    second_label_figure,
    second_label_finding,
)
from lib.stages.bridge_study import _interval_row, label_ranks


def test_ranks_of_two_true_classes():
    scores = torch.tensor([[0.9, 0.8, 0.1, 0.0], [0.9, 0.8, 0.1, 0.0], [0.1, 0.2, 0.3, 0.4]])
    labels = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1], [1, 1, 0, 1]]).bool()
    ranks = label_ranks(scores, labels)  # (1, 2), (2, 4), (1, 3)
    assert ranks == {"pairs": 3, "both_on_top": pytest.approx(1 / 3), "first_rank": 1.0, "second_rank": 3.0}


def test_no_pair_with_two_classes_says_so():
    ranks = label_ranks(torch.zeros(0, 4), torch.zeros(0, 4).bool())
    assert ranks["pairs"] == 0 and ranks["second_rank"] != ranks["second_rank"]
    table = pd.DataFrame([{"denoiser": "trained", "entry_step": depth} | ranks for depth in (0, 50)])
    assert "No test pair has two true classes" in second_label_finding(table)


def test_an_interval_without_zero_is_a_verdict():
    ap, own = torch.tensor([0.5, 0.7]).numpy(), torch.tensor([0.4, 0.6]).numpy()
    drawn, steady = torch.linspace(59, 61, 101).numpy(), torch.full((101,), 50.0).numpy()
    assert _interval_row("bridge", "full", ap, drawn, own, steady)["verdict"] == "helps"
    assert _interval_row("bridge", "full", own, 2 * steady - drawn, ap, steady)["verdict"] == "hurts"
    assert _interval_row("bridge", "full", ap, drawn, ap, drawn)["verdict"] == "no difference"


def grid(best: float) -> pd.DataFrame:
    rows = [{"center": "own", "scale": 1.0, "entry_step": 0, "num_steps": 0, "fit_loss": 0.2, "alone_loss": 0.3}]
    for depth, steps, loss in ((50, 1, best), (50, 6, 0.25), (600, 1, 0.4), (600, 6, 0.5)):
        rows.append(rows[0] | {"entry_step": depth, "num_steps": steps, "fit_loss": loss, "alone_loss": loss + 0.1})
    return pd.DataFrame(rows)


def test_the_grid_says_whether_any_bridge_beats_none():
    assert grid_finding(grid(0.15)) == "A bridge of the grid beats centring with the own mean: 0.1500 against 0.2000"
    assert grid_finding(grid(0.21)).startswith("No bridge of the grid beats centring")
    figure = grid_figure(grid(0.15))
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.2500", "0.3500", "0.5000", "0.6000"]


def test_second_labels_that_fall_are_named():
    rows = [{"denoiser": name, "entry_step": depth, "pairs": 9, "both_on_top": 0.4, "second_rank": rank}
            for name in ("trained", "closed form") for depth, rank in ((0, 4), (50, 4), (600, 9))]  # fmt: skip
    assert second_label_finding(pd.DataFrame(rows)) == "The bridge pushes the second label of 9 pairs from rank 4 to 9"
    assert len(second_label_figure(pd.DataFrame(rows)).axes) == 2
    kept = pd.DataFrame(rows).query("entry_step < 100")
    assert second_label_finding(kept) == "Second labels of 9 pairs keep their rank (4, at worst 4)"


def test_intervals_are_drawn_a_panel_a_group():
    rows = [{"variant": "bridge", "group": group, "classes": 5, "difference": -1.0, "difference_low": -2.0,
             "difference_high": -0.5, "verdict": "hurts"} for group in ("full", "unseen")]  # fmt: skip
    figure = interval_figure(pd.DataFrame([rows[0] | {"variant": "ezhoi"}, *rows]))
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["full (5)", "unseen (5)"]
    assert figure.get_suptitle() == "On all classes the bridge hurts"
