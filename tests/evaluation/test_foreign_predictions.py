"""Predictions of other programs: box frames by hand, round trips, damage."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.io import loadmat

from lib.data.hico_classes import FACTS
from lib.evaluation.foreign import COCO91, main, read_hoia, read_mat_cache, write_hoia, write_mat_cache
from lib.evaluation.hico_annotation import read_annotation
from lib.evaluation.hico_det import PREDICTION_COLUMNS
from lib.evaluation.prediction_table import read_predictions

BOXES = list(PREDICTION_COLUMNS[1:9])


@pytest.fixture(scope="module")
def annotation(tmp_path_factory):
    """Four images without a pair, HICO-DET's table of classes."""
    path = tmp_path_factory.mktemp("hico") / "a.json"
    rows = {"boxes_h": [], "boxes_o": [], "hoi": [], "object": [], "verb": []}
    table = [[hoi, FACTS["hoi_object"][hoi], FACTS["hoi_verb"][hoi]] for hoi in range(600)]
    path.write_text(json.dumps({
        "annotation": [rows] * 4, "filenames": [f"{i}.jpg" for i in range(4)],
        "objects": [str(i) for i in range(80)], "verbs": [str(i) for i in range(117)], "correspondence": table,
    }))  # fmt: skip
    return read_annotation(path)


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0, 50, (60, 8)) + np.tile([0, 0, 60, 60], 2)
    numbers = {"image": rng.integers(0, 3, 60), "hoi": rng.integers(0, 600, 60), "score": rng.random(60)}
    return pd.DataFrame(boxes, columns=BOXES).assign(**numbers)[list(PREDICTION_COLUMNS)]


def assert_same(found, expected):
    order = ["hoi", "image", "score"]
    a, b = (t.sort_values(order).reset_index(drop=True) for t in (found, expected))
    pd.testing.assert_frame_equal(a, b, check_dtype=False, rtol=0, atol=1e-9)


def test_matlab_cache(tmp_path, annotation, table):
    write_mat_cache(tmp_path, table, annotation)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"detections_{i:02d}.mat" for i in range(1, 81)]
    assert_same(read_mat_cache(tmp_path, annotation), table)
    row = table.iloc[0]
    thing = FACTS["hoi_object"][int(row["hoi"])]
    cells = loadmat(tmp_path / f"detections_{thing + 1:02d}.mat")["all_boxes"]
    place = [hoi for hoi in range(600) if FACTS["hoi_object"][hoi] == thing].index(int(row["hoi"]))
    stored = cells[place, int(row["image"])]
    stored = stored[np.argmin(abs(stored[:, 8] - row["score"]))]
    np.testing.assert_allclose(stored[:4], row[BOXES[:4]].to_numpy(float) - [0, 0, 1, 1])  # last pixel
    assert cells[0, 3].shape == (0, 0)


def test_damaged_matlab_cache(tmp_path, annotation, table):
    with pytest.raises(FileNotFoundError, match="detections_01.mat"):
        read_mat_cache(tmp_path, annotation)
    (tmp_path / "detections_01.mat").write_bytes(b"no")
    with pytest.raises(ValueError, match="not a MATLAB file"):
        read_mat_cache(tmp_path, annotation)


def test_hoia_by_hand(tmp_path, annotation):
    hoi = 153  # an object other than people, so that two categories occur
    verb, thing = FACTS["hoi_verb"][hoi], FACTS["hoi_object"][hoi]
    entry = {
        "file_name": "2.jpg",
        "predictions": [
            {"bbox": [1, 2, 3, 4], "category_id": int(COCO91[thing])},
            {"bbox": [5, 6, 7, 8], "category_id": "1\n"},
        ],
        "hoi_prediction": [{"subject_id": 1, "object_id": 0, "category_id": verb + 1, "score": 0.5}],
    }
    (tmp_path / "p.json").write_text(json.dumps([entry]))
    found = read_hoia(tmp_path / "p.json", annotation)
    expected = pd.DataFrame([[2, 5, 6, 7, 8, 1, 2, 3, 4, hoi, 0.5]], columns=list(PREDICTION_COLUMNS))
    pd.testing.assert_frame_equal(found, expected, check_dtype=False)
    grown = read_hoia(tmp_path / "p.json", annotation, inclusive=True)
    assert grown[BOXES].to_numpy().tolist() == [[5, 6, 8, 9, 1, 2, 4, 5]]


def test_hoia_round_trip(tmp_path, annotation, table):
    for inclusive in (False, True):
        write_hoia(tmp_path / "p.json", table, annotation, inclusive)
        assert_same(read_hoia(tmp_path / "p.json", annotation, inclusive), table)
    content = json.loads((tmp_path / "p.json").read_text())
    assert [entry["file_name"] for entry in content] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert sum(len(entry["hoi_prediction"]) for entry in content) == 60 and content[3]["predictions"] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file_name": "x.jpg"}, "'x.jpg'"),
        ({"hoi_prediction": [{"subject_id": 0, "object_id": 7, "category_id": 1, "score": 1}]}, "points past"),
        ({"hoi_prediction": [{"subject_id": 0, "object_id": 0, "category_id": 118, "score": 1}]}, "verbs 1..118"),
        ({"predictions": [{"bbox": [0, 0, 1, 1], "category_id": 12}]}, r"objects \[12\]"),
    ],
)
def test_damaged_hoia(tmp_path, annotation, change, message):
    entry = {"file_name": "0.jpg", "predictions": [{"bbox": [0, 0, 1, 1], "category_id": 1}], "hoi_prediction": []}
    (tmp_path / "p.json").write_text(json.dumps([entry | change]))
    with pytest.raises(ValueError, match=message):
        read_hoia(tmp_path / "p.json", annotation)


def test_coco_ids():
    assert len(COCO91) == 80 and COCO91[[0, 79]].tolist() == [1, 90] and 12 not in COCO91


def test_command(tmp_path, annotation, table, capsys):
    source, cache, back = (str(tmp_path / name) for name in ("a.parquet", "cache", "b.parquet"))
    table.to_parquet(source)
    files = ["--annotations", str(annotation.source)]
    assert main([source, cache, *files]) == 0 and main([cache, back, *files]) == 0
    assert "hoi_id" in pd.read_parquet(back).columns
    assert_same(read_predictions(back), table)
    assert main([source, back, *files]) == 1
    assert "exactly one must be .parquet" in capsys.readouterr().err
