"""The annotation reader, the vocabulary and the zero-shot splits."""

import gzip
import json

import numpy as np
import pytest

from lib.data.captions import read_captions
from lib.data.descriptions import read_descriptions
from lib.data.hico_det import AnnotationError, read_hico_det
from lib.data.vocabulary import GERUNDS, Vocabulary
from lib.data.zero_shot import unseen_hois

SMALL = {
    "filenames": ["a.jpg", "b.jpg", "c.jpg"],
    "size": [[100, 80], [60, 90], [50, 50]],
    "objects": ["person", "bicycle"],
    "verbs": ["hold", "ride"],
    "correspondence": [[0, 1, 0], [1, 1, 1]],
    "empty": [1],
    "annotation": [
        {"boxes_h": [[1, 1, 50, 80], [2, 1, 50, 79]], "boxes_o": [[10, 20, 100, 80]] * 2,
         "hoi": [0, 1], "object": [1, 1], "verb": [0, 1]},
        {"boxes_h": [], "boxes_o": [], "hoi": [], "object": [], "verb": []},
        {"boxes_h": [[5, 5, 20, 20]], "boxes_o": [[1, 1, 50, 50]], "hoi": [1], "object": [1], "verb": [1]},
    ],
}  # fmt: skip


def write(folder, change=None):
    content = json.loads(json.dumps(SMALL))
    if change:
        change(content)
    path = folder / "instances_train2015.json"
    path.write_text(json.dumps(content))
    return path


def test_boxes_become_zero_based_and_exclusive(tmp_path):
    data = read_hico_det(write(tmp_path), tmp_path / "images", "train")
    assert data[0].boxes_h.tolist() == [[0, 0, 50, 80], [1, 0, 50, 79]]
    assert data[0].boxes_o[0].tolist() == [9, 19, 100, 80]
    assert data[0].path == tmp_path / "images" / "a.jpg"
    assert data.annotated.tolist() == [0, 2]
    assert data.hoi_counts.tolist() == [1, 2]
    assert data.vocabulary.hoi_of.tolist() == [[-1, -1], [0, 1]]
    assert data.truth()["image"].tolist() == [0, 0, 2]


def test_unseen_rows_go_then_images_left_empty(tmp_path):
    data = read_hico_det(write(tmp_path), tmp_path, "train")
    assert [(image.name, image.hoi.tolist()) for image in data.without_hois([1])] == [("a.jpg", [0])]
    assert data.vocabulary.valid_verbs([0]).tolist() == [[False, False], [True, False]]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c["annotation"][2]["boxes_o"].__setitem__(0, [1, 1, 51, 50]), ["c.jpg", "boxes_o[0]", "50 x 50"]),
        (lambda c: c["annotation"][0]["boxes_h"].__setitem__(1, [0, 1, 50, 79]), ["a.jpg", "boxes_h[1]", "1-based"]),
        (lambda c: c["annotation"][0]["boxes_h"].__setitem__(1, [40, 1, 30, 79]), ["a.jpg", "boxes_h[1]"]),
        (lambda c: c["annotation"][0]["hoi"].append(1), ["a.jpg", "unequal length"]),
        (lambda c: c["annotation"][0]["verb"].__setitem__(0, 1), ["a.jpg", "row 0", "correspondence"]),
        (lambda c: c["annotation"][2]["hoi"].__setitem__(0, 7), ["c.jpg", "0..1"]),
        (lambda c: c.pop("verbs"), ["no key", "verbs"]),
    ],
)
def test_impossible_annotations_are_named(tmp_path, change, named):
    path = write(tmp_path, change)
    with pytest.raises(AnnotationError) as error:
        read_hico_det(path, tmp_path, "train")
    assert all(part in str(error.value) for part in [str(path), "found", "expected", "mend", *named])


def test_missing_annotations_say_what_to_set(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.root"):
        read_hico_det(tmp_path / "instances_test2015.json", tmp_path, "test")


def test_every_real_row_is_read(shared, tmp_path):
    source = shared / "data" / "real" / "instances_test2015.json.gz"
    path = tmp_path / "instances_test2015.json"
    path.write_bytes(gzip.decompress(source.read_bytes()))
    data = read_hico_det(path, tmp_path, "test")
    assert (len(data), len(data.annotated), int(data.hoi_counts.sum())) == (9658, 9546, 33405)
    assert (data.hoi_counts > 0).all()
    assert min(image.boxes_h.min(initial=0) for image in data.images) == 0


def test_the_600_labels_follow_the_published_rule(shared):
    """The facts word 44 labels better than the published rule; all others must agree."""
    rows = json.loads((shared / "facts" / "hico_hoi.json").read_text())["hoi"]
    objects, verbs = (
        [row["name"] for row in json.loads((shared / "facts" / f"hico_{kind}.json").read_text())[kind]]
        for kind in ("objects", "verbs")
    )
    vocabulary = Vocabulary(
        tuple(objects), tuple(verbs), np.array([r["object_id"] for r in rows]), np.array([r["verb_id"] for r in rows])
    )
    labels = [vocabulary.hoi_label(hoi) for hoi in range(600)]
    assert sum(label == row["label"] for label, row in zip(labels, rows, strict=True)) == 600 - 44
    assert set(verbs) == set(GERUNDS)
    assert vocabulary.class_sentences()[0] == "A photo of a person boarding an airplane."
    assert vocabulary.object_sentences()[-1] == "a photo of nothing"


def test_split_sizes():
    sizes = {name: len(unseen_hois(name)) for name in ("unseen_verb", "unseen_object", "rare_first", "non_rare_first")}
    assert sizes == {"unseen_verb": 84, "unseen_object": 100, "rare_first": 120, "non_rare_first": 120}
    assert len(unseen_hois("default")) == 0
    with pytest.raises(KeyError, match="expected one of"):
        unseen_hois("unseen_verbs")


def test_a_data_set_may_bring_its_own_splits(tmp_path):
    (tmp_path / "zero_shot.json").write_text('{"settings": {"unseen_verb": {"unseen_hoi": [3, 1]}}}')
    assert unseen_hois("unseen_verb", tmp_path).tolist() == [1, 3]


def test_captions_of_coco(shared):
    sentences = read_captions(shared / "data" / "real" / "captions_100.json")
    assert len(sentences) == 500


def test_captions_as_lines(tmp_path):
    (tmp_path / "c.txt").write_text("a  dog\n\n two cats \n")
    assert read_captions(tmp_path / "c.txt") == ["a dog", "two cats"]


def test_description_blocks(tmp_path):
    path = tmp_path / "d.txt"
    path.write_text(
        "1. A photo of a x:\n   - Description: legs apart\n\n2. A photo of a y:\n   - Description: arm up: high\n"
    )
    assert read_descriptions(path, 2) == ["legs apart", "arm up"]
    with pytest.raises(ValueError, match="found 2 description blocks, expected 3"):
        read_descriptions(path, 3)
