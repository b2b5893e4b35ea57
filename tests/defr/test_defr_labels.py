"""Label matrices, oversampling, few-shot groups (spec defr.md §1, §6.1, §17.5)."""

import numpy as np
import pytest
from scipy.io import savemat

from lib.data.hico_det import HoiDataset, HoiImage
from lib.data.vocabulary import Vocabulary
from lib.defr.labels import (
    LabelError,
    RecognitionLabels,
    few_shot,
    labels_of_pairs,
    oversampled,
    read_labels,
    save_labels,
)

VALUES = np.array([[1, -1, 0], [-2, -2, 1]], np.int8)


def test_three_matrices():
    labels = RecognitionLabels(("a", "b"), VALUES)
    assert labels.positive.tolist() == [[True, False, False], [False, False, True]]
    assert labels.known_object.tolist() == [[True, True, False], [False, False, True]]
    assert labels.certain.tolist() == [[True, True, False], [True, True, True]]


def test_anno_mat_and_our_file(tmp_path):
    raw = VALUES.T.astype(np.float64)
    raw[raw == -2] = np.nan
    names = np.array(["x.jpg", "y.jpg"], object)[:, None]
    savemat(tmp_path / "anno.mat", {"list_train": names, "anno_train": raw})
    labels = read_labels(tmp_path / "anno.mat", "train")
    assert labels.files == ("x.jpg", "y.jpg") and np.array_equal(labels.values, VALUES)
    save_labels(tmp_path / "labels.npz", test=labels)
    again = read_labels(tmp_path / "labels.npz", "test")
    assert again.files == labels.files and np.array_equal(again.values, VALUES) and again.values.dtype == np.int8
    with pytest.raises(LabelError, match="train"):
        read_labels(tmp_path / "labels.npz", "train")
    save_labels(tmp_path / "bad.npz", test=RecognitionLabels(("x",), np.array([[7]], np.int8)))
    with pytest.raises(LabelError, match="values \\[7\\]"):
        read_labels(tmp_path / "bad.npz", "test")


def test_labels_of_annotated_pairs(tmp_path):
    vocabulary = Vocabulary(("person", "ball", "kite"), ("hold", "throw"), np.array([1, 1, 2]), np.array([0, 1, 0]))
    box = np.zeros((1, 4), np.float32)
    one = HoiImage(tmp_path / "a.png", (9, 9), box, box, np.array([1]), np.array([1]), np.array([1]))
    none = HoiImage(tmp_path / "b.png", (9, 9), box[:0], box[:0], *[np.zeros(0, np.int64)] * 3)
    labels = labels_of_pairs(HoiDataset(tmp_path, "train", vocabulary, (one, none)))
    assert labels.files == ("a.png", "b.png")
    assert labels.values.tolist() == [[-1, 1, -2], [-2, -2, -2]]


def test_oversampling_by_hand():
    positive = np.zeros((12, 4), bool)
    positive[:1, 0] = True  # 1 positive: ceil(4 / 1) - 1 = 3 copies
    positive[1:3, 1] = True  # 2 positives: 1 copy, which the published rule drops
    positive[:12, 2] = True  # plenty
    assert oversampled(positive, 4).tolist() == [*range(12), 0, 0, 0]  # class 3 has none at all
    assert oversampled(positive, 1).tolist() == [*range(12)]
    assert oversampled(positive[:, 2:], 4).tolist() == [*range(12)]  # nothing to append
    assert (oversampled(positive, 5)[12:] == [0] * 4 + [1] * 2 + [2] * 2).all()


def test_few_shot_groups():
    positive = np.zeros((12, 3), bool)
    positive[:1, 0], positive[:5, 1], positive[:, 2] = True, True, True
    groups = few_shot(positive)
    assert {name: ids.tolist() for name, ids in groups.items()} == {"few_1": [0], "few_5": [0, 1], "few_10": [0, 1]}
    assert few_shot(positive[:, 2:]) == {}
