"""Zero-shot settings: counts, published sizes, and both families of training filters."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lib.data import zero_shot
from lib.data.hico_det import HoiDataset, HoiImage, read_hico_det
from lib.data.vocabulary import Vocabulary
from lib.data.zero_shot import PUBLISHED, SETTINGS, filter_training, split_counts, unseen_hois, without_pairs

# 0 hold bicycle, 1 ride bicycle, 2 hold ball, 3 kick ball
VOCABULARY = Vocabulary(
    ("person", "bicycle", "sports_ball"), ("hold", "kick", "ride"), np.array([1, 1, 2, 2]), np.array([0, 2, 0, 1])
)
HUMAN, OBJECT = [0, 0, 10, 10], [20, 0, 30, 10]


def image(name, rows):
    """rows: (human box, object box, HOI id)."""
    hoi = np.array([row[2] for row in rows], np.int64)
    boxes = [np.array([row[i] for row in rows], np.float32).reshape(-1, 4) for i in (0, 1)]
    return HoiImage(Path(name), (100, 100), *boxes, hoi, VOCABULARY.hoi_object[hoi], VOCABULARY.hoi_verb[hoi])


def dataset(split, *images):
    return HoiDataset(Path("instances.json"), split, VOCABULARY, images)


PAIRS = dataset(
    "train",
    # one pair drawn twice (IoU 0.9 and 0.8), a second pair of the same classes elsewhere
    image("a", [(HUMAN, OBJECT, 1), ([0, 0, 9, 10], [20, 0, 28, 10], 0), ([50, 50, 60, 60], OBJECT, 0)]),
    image("b", [(HUMAN, OBJECT, 1), (HUMAN, OBJECT, 0)]),
    image("c", [(HUMAN, OBJECT, 2)]),
    image("d", []),
)


def names(data):
    return [(im.name, im.hoi.tolist()) for im in data.images]


def test_family_a_removes_rows():
    assert names(filter_training(PAIRS, [1])) == [("a", [0, 0]), ("b", [0]), ("c", [2])]


def test_the_mask_knows_seen_classes_in_training_and_all_at_test():
    seen = np.setdiff1d(np.arange(4), [1])
    train, test = VOCABULARY.valid_verbs(seen), VOCABULARY.valid_verbs()
    assert (train.sum(), test.sum()) == (3, 4)
    assert test[1, 2] and not train[1, 2]  # ride bicycle: no logit and no loss in training, competes at test


def test_family_b_removes_every_label_of_the_pair():
    found = filter_training(PAIRS, [1], by="pair")
    assert names(found) == [("a", [0]), ("c", [2])]
    assert found[0].boxes_h.tolist() == [[50, 50, 60, 60]]
    with pytest.raises(ValueError, match="found 'C', expected row"):
        filter_training(PAIRS, [1], by="C")


@pytest.mark.parametrize(
    ("human", "thing", "hoi", "same"),
    [
        ([0, 0, 5, 10], OBJECT, 0, True),  # IoU of humans exactly 0.5
        ([0, 0, 4.9, 10], OBJECT, 0, False),
        (HUMAN, [20, 0, 25, 10], 0, True),
        (HUMAN, [20, 0, 24.9, 10], 0, False),
        (HUMAN, OBJECT, 2, False),  # another object class
    ],
)
def test_a_pair_is_told_by_overlap_of_both_boxes_and_object_class(human, thing, hoi, same):
    data = dataset("train", image("a", [(HUMAN, OBJECT, 1), (human, thing, hoi)]))
    assert names(without_pairs(data, [1])) == ([] if same else [("a", [hoi])])


def test_counts_of_a_training_split():
    assert split_counts(PAIRS, [1]) == {
        "hoi_unseen": 1, "hoi_seen": 3, "verbs_unseen": 1, "objects_unseen": 0,
        "train_images_kept": 3, "train_images_dropped": 0, "train_rows_kept": 4, "train_rows_dropped": 2,
    }  # fmt: skip
    by_pair = split_counts(PAIRS, [1], by="pair")
    assert [by_pair[f"train_{name}"] for name in ("images_kept", "rows_kept", "rows_dropped")] == [2, 2, 4]
    counts = split_counts(PAIRS, np.array([2, 3]), "unseen_object")  # no HICO-DET: nothing published to hold against
    assert (counts["verbs_unseen"], counts["objects_unseen"]) == (1, 1)
    assert (counts["train_images_kept"], counts["train_images_dropped"]) == (2, 1)
    assert len(filter_training(PAIRS, [2, 3])) == 2


def test_counts_of_a_test_split():
    counts = split_counts(replace(PAIRS, split="test"), [0, 1])
    assert counts == {
        "hoi_unseen": 2, "hoi_seen": 2, "verbs_unseen": 1, "objects_unseen": 1,
        "test_rows_unseen": 5, "test_rows_seen": 1,
    }  # fmt: skip
    assert split_counts(PAIRS, [])["hoi_unseen"] == 0


@pytest.mark.parametrize("unseen", [[4], [-1, 0]])
def test_ids_of_another_data_set_are_refused(unseen):
    with pytest.raises(ValueError, match=r"outside 0\.\.3(?s:.*)mend: choose a split"):
        split_counts(PAIRS, unseen)


def test_sizes_of_the_published_splits():
    sizes = {name: len(unseen_hois(name)) for name in PUBLISHED}
    assert sizes == {"default": 0, "unseen_verb": 84, "unseen_object": 100, "rare_first": 120, "non_rare_first": 120,
                     **{f"uc{n}": 120 for n in range(5)}}  # fmt: skip
    assert set(SETTINGS) < set(PUBLISHED)


def test_an_unknown_split_names_the_valid_ones():
    with pytest.raises(KeyError) as error:
        unseen_hois("UV")
    assert all(repr(name) in str(error.value) for name in ("UV", *PUBLISHED))


def test_a_shipped_file_that_disagrees_is_refused(tmp_path, monkeypatch):
    content = json.loads(zero_shot.HICO_SPLITS.read_text())
    content["settings"]["unseen_verb"]["unseen_hoi"].pop()
    (tmp_path / "splits.json").write_text(json.dumps(content))
    monkeypatch.setattr(zero_shot, "HICO_SPLITS", tmp_path / "splits.json")
    assert len(unseen_hois("rare_first")) == 120
    with pytest.raises(ValueError, match=r"splits\.json, unseen_verb: found 83 unseen HOI classes, expected 84"):
        unseen_hois("unseen_verb")


def test_a_class_listed_twice_is_refused(tmp_path):
    (tmp_path / "zero_shot.json").write_text('{"settings": {"mine": {"unseen_hoi": [3, 1, 3]}}}')
    with pytest.raises(ValueError, match="found 1 classes twice"):
        unseen_hois("mine", tmp_path)


def test_counts_on_hico_det_are_the_published_ones(shared, tmp_path):
    path = tmp_path / "instances_test2015.json"
    path.write_bytes(gzip.decompress((shared / "data" / "real" / "instances_test2015.json.gz").read_bytes()))
    data = read_hico_det(path, tmp_path, "test")
    facts = json.loads((shared / "facts" / "hico_zero_shot.json").read_text())["settings"]
    for name, fact in facts.items():
        counts = split_counts(data, unseen_hois(name), name)
        assert counts["hoi_unseen"] == fact["n_unseen"] and counts["hoi_seen"] == fact["n_seen"]
        assert counts["verbs_unseen"] == len(fact["fully_unseen_verbs"])
        assert counts["objects_unseen"] == len(fact["fully_unseen_objects"])
        assert counts["test_rows_unseen"] == fact["test_pairs_unseen"]
        assert counts["test_rows_seen"] == 33405 - fact["test_pairs_unseen"]
    unseen = unseen_hois("unseen_verb")
    with pytest.raises(ValueError, match="found 83 hoi_unseen, expected 84 as published"):
        split_counts(data, unseen[1:], "unseen_verb")
    swapped = [*unseen[1:], next(hoi for hoi in range(600) if hoi not in unseen)]
    with pytest.raises(ValueError, match="found 19 verbs_unseen, expected 20"):
        split_counts(data, swapped, "unseen_verb")
    with pytest.raises(ValueError, match="test_rows_unseen, expected 836"):
        split_counts(data, [0, *unseen_hois("rare_first")[1:]], "rare_first")
    assert split_counts(data.subset(50), unseen, "unseen_verb")["test_rows_unseen"] > 0  # a part states no total
    assert split_counts(data, unseen[1:], "mine")["hoi_unseen"] == 83
    rare = unseen_hois("rare_first")
    a, b = (filter_training(data, rare, by) for by in ("row", "pair"))
    assert int(a.hoi_counts.sum()) == 33405 - 836 > int(b.hoi_counts.sum())
    assert not np.isin(np.flatnonzero(b.hoi_counts), rare).any()
