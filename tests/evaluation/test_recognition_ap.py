"""HICO recognition mAP: hand-made cases, a literal reference on the real labels, the command."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from lib.evaluation.average_precision import INTEGRATIONS, average_precision
from lib.evaluation.recognition import FEW_SHOT, main, oriented, read_labels, recognition_ap, recognition_means

LABELS = Path(__file__).parents[3] / "shared/data/eval/hico_image_labels_test.npz"


def column(*values):
    return np.array(values)[:, None]


def test_ambiguous_images_are_removed_and_unknown_ones_are_negative():
    scores, labels = column(0.9, 0.8, 0.7, 0.6), column(0, -2, -1, 1)
    assert recognition_ap(scores, labels)[0] == pytest.approx(1 / 3)
    assert recognition_ap(scores, labels, known_object=True)[0] == pytest.approx(1 / 2)
    assert recognition_ap(scores, column(0, -2, 0, -1)).tolist() == [0]  # no positive


def test_the_meters():
    """Labels 1 0 1 of 2: precision 1, 1/2, 2/3; recall 1/2, 1/2, 1."""
    positive = np.array([True, False, True])
    values = {name: average_precision(positive, 2, name)[0] for name in INTEGRATIONS}
    assert values["11-point"] == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert values["all-point"] == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert values["int"] == values["auc"] == 0.5  # the last step of recall is lost
    three = np.array([True, False, True, True])  # precision 1, 1/2, 2/3, 3/4
    assert average_precision(three, 3, "int")[0] == pytest.approx((1 + 3 / 4) / 3)
    assert average_precision(three, 3, "auc")[0] == pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 3)
    assert average_precision(np.array([True]), 1, "int") == (0, 1)
    with pytest.raises(ValueError, match="integration 'voc'"):
        average_precision(positive, 2, "voc")


def test_real_labels_against_the_literal_rule():
    if not LABELS.is_file():
        pytest.skip("the HICO test labels (shared/data/eval) are not here")
    labels = read_labels(LABELS).T
    scores = np.random.default_rng(0).random(labels.shape) + 0.3 * (labels == 1)
    assert (labels == 1).sum() == 20_268 and (labels == 0).sum() == 7_872
    for c in (0, 57, 311, 599):
        for known in (False, True):
            kept = labels[:, c] != 0
            if known:
                kept &= labels[:, c] != -2
            hit = (labels[kept, c] == 1)[np.argsort(-scores[kept, c])]
            recall, precision = np.cumsum(hit) / hit.sum(), np.cumsum(hit) / np.arange(1, len(hit) + 1)
            grid = [k / 10 if k != 3 else 0.30000000000000004 for k in range(11)]
            expected = sum(max(precision[recall >= t], default=0) for t in grid) / 11
            found = recognition_ap(scores[:, [c]], labels[:, [c]], known_object=known)[0]
            assert found == pytest.approx(expected, abs=1e-12)


def test_few_shot_groups():
    assert [len(classes) for classes in FEW_SHOT.values()] == [49, 125, 162]
    assert set(FEW_SHOT["few_1"]) <= set(FEW_SHOT["few_5"]) <= set(FEW_SHOT["few_10"])
    means = recognition_means(np.arange(4) / 4, np.ones(4), {"few_1": [0, 2]})
    assert means == {"mAP_full": 0.375, "mAP_known_object": 1, "mAP_few_1": 0.25}


def test_command(tmp_path, capsys):
    rng = np.random.default_rng(1)
    labels = rng.choice([-1, 0, 1, np.nan], (3, 40))  # classes first and NaN, as in anno.mat
    savemat(tmp_path / "anno.mat", {"anno_test": labels})
    scores = rng.random((40, 3)).astype(np.float32)
    np.savez(tmp_path / "s.npz", scores=scores)
    (tmp_path / "few.json").write_text(json.dumps({"note": "x", "few_1": [1]}))
    command = [str(tmp_path / "s.npz"), "--labels", str(tmp_path / "anno.mat"), "--json", str(tmp_path / "o.json")]
    assert main([*command, "--few", str(tmp_path / "few.json")]) == 0
    assert "few_1" in capsys.readouterr().out
    result = json.loads((tmp_path / "o.json").read_text())
    turned = np.nan_to_num(labels.T, nan=-2).astype(int)
    np.testing.assert_allclose(result["ap"], recognition_ap(scores, turned))
    np.testing.assert_allclose(result["ap_known_object"], recognition_ap(scores, turned, known_object=True))
    assert result["mAP_few_1"] == pytest.approx(result["ap"][1])


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros((4, 3)), np.zeros((4, 2), int), "expected the same"),
        (np.full((4, 3), np.nan), np.ones((4, 3), int), "score of image 0, class 0 is nan"),
        (np.zeros((4, 3)), np.full((4, 3), 2), "expected only"),
    ],
)
def test_bad_input_is_refused(tmp_path, capsys, scores, labels, message):
    with pytest.raises(ValueError, match=message):
        recognition_ap(scores, labels)
    np.savez(tmp_path / "s.npz", score=scores)
    np.savez(tmp_path / "l.npz", label=labels)
    assert main([str(tmp_path / "s.npz"), "--labels", str(tmp_path / "l.npz")]) == 1
    assert message in capsys.readouterr().err


def test_labels_are_turned_only_where_that_fits():
    labels = np.arange(6).reshape(2, 3)
    assert oriented(labels, np.zeros((2, 3))) is labels
    assert oriented(labels, np.zeros((3, 2))).tolist() == labels.T.tolist()


def test_pickled_arrays_are_not_read(tmp_path, capsys):
    np.savez(tmp_path / "s.npz", score=np.array([{"a": 1}], object))
    assert main([str(tmp_path / "s.npz"), "--labels", str(tmp_path / "s.npz")]) == 1
    assert "error" in capsys.readouterr().err
