"""Results of a run for other eyes and other programs."""

import numpy as np
import pandas as pd
import pytest

from lib.data.hico_det import read_hico_det
from lib.data.stick_world import WorldSettings, render_world
from lib.errors import FoundExpected
from lib.evaluation.foreign import read_mat_cache
from lib.evaluation.hico_annotation import read_annotation
from lib.evaluation.hico_det import BOX_COLUMNS
from lib.evaluation.prediction_table import read_predictions
from lib.stages import inputs, results


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run without a model, but with the predictions of a method: every annotated pair, score falling."""
    folder = tmp_path_factory.mktemp("results")
    render_world(folder / "world", WorldSettings(train_images=6, test_images=5))
    truth = read_hico_det(folder / "world/instances_test2015.json", folder / "world", "test").truth()
    table = pd.DataFrame(np.concatenate([truth["boxes_h"], truth["boxes_o"]], axis=1), columns=list(BOX_COLUMNS))
    table = table.assign(image=truth["image"], hoi=truth["hoi"], score=np.linspace(1, 0.1, len(table)))
    settings = [f"data.root={folder / 'world'}", "data.images=images/{split}2015"]
    inputs.open_run("configs/tiny.yaml", str(folder / "run"), settings)
    path = folder / "run/predictions/frozen_clip/predictions.parquet"
    path.parent.mkdir(parents=True)
    table.to_parquet(path)
    return folder, table


def command(made, what, target, *more):
    return results.main([what, str(made[0] / "run"), str(target), "--method", "frozen_clip", *more])


def test_exports_read_back(made, tmp_path, capsys):
    folder, table = made
    assert command(made, "export", tmp_path / "ours.parquet") == 0 and command(made, "export", tmp_path / "cache") == 0
    assert "export of frozen_clip" in capsys.readouterr().out
    annotation = read_annotation(folder / "world/instances_test2015.json")
    again = read_predictions(tmp_path / "ours.parquet")
    pd.testing.assert_frame_equal(again, table[list(again.columns)], check_dtype=False)
    cached = read_mat_cache(tmp_path / "cache", annotation).sort_values("score", ascending=False, ignore_index=True)
    pd.testing.assert_frame_equal(cached, again, check_dtype=False, atol=1e-6)
    assert command(made, "export", tmp_path / "ppdm.json") == 1  # COCO's object ids: not this world's
    assert "names COCO objects" in capsys.readouterr().err


def test_figure_and_class_table(made, tmp_path):
    assert command(made, "figure", tmp_path / "pr.png") == 0 and command(made, "classes", tmp_path / "ap.csv") == 0
    classes = pd.read_csv(tmp_path / "ap.csv")
    assert set(classes["ap"].dropna()) == {100.0} and classes["num_gt"].sum() == len(made[1])
    assert (tmp_path / "pr.png").stat().st_size > 10_000


def test_beside_published(made):
    cfg, run = inputs.open_run(str(made[0] / "run/config.yaml"), str(made[0] / "run"))
    table = results.beside(cfg, run, "frozen_clip", "ViT-B/16")
    assert table.loc[0, ["method", "full"]].tolist() == ["frozen_clip, this run", 100.0] and len(table) > 5


def test_unknown_method_and_run(made, tmp_path, capsys):
    cfg, run = inputs.open_run(str(made[0] / "run/config.yaml"), str(made[0] / "run"))
    with pytest.raises(FoundExpected, match=r"no method 'bridge', expected one of \['ezhoi', 'frozen_clip'\]"):
        results.predictions(cfg, run, "bridge")
    assert results.main(["figure", str(tmp_path / "absent"), str(tmp_path / "x.png")]) == 1
    assert "config.yaml: found no file" in capsys.readouterr().err
