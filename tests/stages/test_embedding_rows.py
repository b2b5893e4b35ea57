"""Rows of the embedding table: which pairs are kept, who scores them, what the five best are."""

import numpy as np
import pandas as pd
import pytest
import torch

from lib.errors import FoundExpected
from lib.ezhoi.predict import BOXES_H, BOXES_O, PairTable
from lib.stages.embeddings import Part, Scorer, class_rows, labelled_pairs
from lib.stages.extraction import _stacked

# two objects, three verbs; verb 2 is no HOI with object 1
HOI_OF = np.array([[0, 1, 2], [3, 4, -1]])
NAMES = np.array(["ride horse", "feed horse", "wash horse", "ride bike", "hold bike"])


@pytest.fixture
def pairs():
    frame = pd.DataFrame({"image": [0, 0, 2, 2], "object": [0, 1, 0, 1], "strength": [0.9, 0.5, 0.8, 0.4]})
    frame = frame.assign(**dict.fromkeys([*BOXES_H, *BOXES_O], 1.0))
    labels = np.array([[1, 0, 1], [0, 0, 1], [0, 0, 0], [0, 1, 0]], dtype=bool)
    logits = np.array([[0.0, 2.0, 1.0], [1.0, 0.0, 9.0], [0.0, 0.0, 0.0], [-1.0, 3.0, 9.0]], dtype=np.float32)
    return PairTable(frame, np.eye(4, dtype=np.float32), logits, labels)


def test_pairs_whose_label_is_no_hoi_with_their_object_are_left_out(pairs):
    frame = labelled_pairs(pairs, HOI_OF)
    assert frame.index.tolist() == [0, 3]  # pair 1 has verb 2 on object 1, pair 2 has no label
    assert frame["hoi_ids"].tolist() == [[0, 2], [4]] and frame["hoi_id"].tolist() == [0, 4]
    assert frame["point"].tolist() == ["pair-0-0", "pair-2-1"]  # image and place in it


def test_the_five_best_are_valid_with_the_object_and_carry_the_detectors_score(pairs):
    frame = labelled_pairs(pairs, HOI_OF)
    part = Part(frame, "adapted", torch.eye(4)[[0, 3]], Scorer(torch.from_numpy(pairs.logits[frame.index]), HOI_OF))
    rows = part.rows(NAMES, top=5, power=2.8)
    assert rows["top5"].tolist() == [["feed horse", "wash horse", "ride horse"], ["hold bike", "ride bike"]]
    expected = 0.9**2.8 / (1 + np.exp(-2.0))
    assert rows["score"][0] == pytest.approx(expected) and rows["top5_score"][0][0] == pytest.approx(expected, abs=1e-4)
    assert rows["correct"].tolist() == [False, True]  # `feed horse` is not annotated, `hold bike` is
    assert set(rows["modality"]) == {"vision"} and set(rows["state"]) == {"adapted"}
    assert len(Part(frame, "adapted", torch.eye(4), part.scorer).rows(NAMES, 1, 1.0)["top5"][0]) == 1


def test_texts_are_scored_by_nobody():
    class Data:
        vocabulary = type("V", (), {"num_hois": 5})

    rows = Part(class_rows(Data), "text", torch.eye(5)).rows(NAMES, 5, 1.0)
    assert rows["top5"].tolist() == [[]] * 5 and set(rows["modality"]) == {"text"} and "score" not in rows


def test_layers_that_are_padded_a_batch_are_refused_and_others_joined():
    assert _stacked("a", [torch.zeros(2, 3), torch.ones(1, 3)]).shape == (3, 3)
    with pytest.raises(FoundExpected, match="name a layer that gives a row a pair"):
        _stacked("a", [torch.zeros(2, 3, 4), torch.zeros(2, 5, 4)])
