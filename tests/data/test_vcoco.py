"""V-COCO: the reader, its classes, and their English."""

import json

import numpy as np
import pytest
from PIL import Image

from lib.data.hico_det import AnnotationError
from lib.data.vcoco import read_vcoco, vcoco_vocabulary
from lib.data.vocabulary import VCOCO_GERUNDS, Vocabulary

SMALL = {
    "images": [9, 12, 30],
    "classes": ["hold obj", "hit instr", "hit obj"],
    "objects": ["background", "person", "tennis racket", "sports ball"],
    "action_to_object": [[3, 2, 1], [2], [3]],
    "annotations": [
        {"boxes_h": [[0.0, 0.5, 20.25, 30.0]] * 3, "boxes_o": [[5, 5, 9.5, 9.5]] * 2 + [[40, 1, 64, 48]],
         "actions": [1, 0, 2], "objects": [2, 2, 3], "file_name": "COCO_val2014_000000000009.jpg"},
        {"boxes_h": [], "boxes_o": [], "actions": [], "objects": [], "file_name": "COCO_val2014_000000000012.jpg"},
        {"boxes_h": [[1, 2, 3, 4]], "boxes_o": [[1, 2, 3, 4]], "actions": [0], "objects": [1],
         "file_name": "COCO_val2014_000000000030.jpg"},
    ],
}  # fmt: skip


@pytest.fixture
def write(tmp_path):
    """Writes the small file and its photographs (64 x 48) below `images/val2014`."""
    folder = tmp_path / "images" / "val2014"
    folder.mkdir(parents=True)
    for record in SMALL["annotations"]:
        Image.new("RGB", (64, 48)).save(folder / record["file_name"])

    def save(change=None):
        content = json.loads(json.dumps(SMALL))
        if change:
            change(content)
        path = tmp_path / "instances_vcoco_test.json"
        path.write_text(json.dumps(content))
        return path

    return save


def test_rows_boxes_and_ids(write, tmp_path):
    data = read_vcoco(write(), tmp_path / "images", "test")
    vocabulary = data.vocabulary
    assert vocabulary.objects == ("person", "tennis_racket", "sports_ball")
    assert vocabulary.verbs == ("hold_obj", "hit_instr", "hit_obj")
    pairs = list(zip(vocabulary.hoi_object.tolist(), vocabulary.hoi_verb.tolist(), strict=True))
    assert pairs == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 2)]  # ascending (object, class)
    first = data[0]
    assert (first.object.tolist(), first.verb.tolist(), first.hoi.tolist()) == ([1, 1, 2], [1, 0, 2], [2, 1, 4])
    assert first.boxes_h.tolist() == [[0.0, 0.5, 20.25, 30.0]] * 3 and first.size == (64, 48)
    assert first.boxes_h.dtype == np.float32 and first.boxes_o[2].tolist() == [40, 1, 64, 48]
    assert (len(data), data.annotated.tolist(), data[1].boxes_o.shape) == (3, [0, 2], (0, 4))
    assert data.hoi_counts.tolist() == [1, 1, 1, 0, 1]
    assert vocabulary.person == 0 and (data.split, data.source.name) == ("test", "instances_vcoco_test.json")


def test_photographs_in_the_folder_itself_or_below(write, tmp_path):
    path = write()
    above, beside = (read_vcoco(path, tmp_path / folder, "test") for folder in ("images", "images/val2014"))
    assert above[0].path == beside[0].path == tmp_path / "images" / "val2014" / "COCO_val2014_000000000009.jpg"
    with pytest.raises(FileNotFoundError, match=r"000000000009\.jpg: found no such file(?s:.*)data\.images"):
        read_vcoco(path, tmp_path, "test")


def test_only_the_pairs_with_rows(write, tmp_path):
    every, present = (read_vcoco(write(), tmp_path / "images", "test", pairs=pairs) for pairs in ("all", "present"))
    assert present.vocabulary.num_hois == 4
    assert present.hoi_counts.tolist() == [1, 1, 1, 1]
    assert present[0].hoi.tolist() == [2, 1, 3]
    for old, new in zip(every.images, present.images, strict=True):
        names = [[d.vocabulary.hoi_name(hoi) for hoi in im.hoi] for d, im in ((every, old), (present, new))]
        assert names[0] == names[1]
    clean = every.vocabulary.valid_verbs(np.flatnonzero(every.hoi_counts))
    assert (clean == present.vocabulary.valid_verbs()).all()
    with pytest.raises(ValueError, match="'all'"):
        read_vcoco(write(), tmp_path / "images", "test", pairs="218")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c.pop("action_to_object"), ["no key ['action_to_object']"]),
        (lambda c: c["images"].pop(), ["2 `images` and 3 `annotations`"]),
        (lambda c: c["objects"].pop(0), ["background, person"]),
        (lambda c: c["action_to_object"].pop(), ["2 lists of objects"]),
        (lambda c: c["action_to_object"][0].append(4), ["objects 1..4", "1..3"]),
        (lambda c: c["action_to_object"][0].append(0), ["objects 0..3", "1..3"]),
        (lambda c: c["annotations"][0]["actions"].pop(), ["000000000009.jpg", "unequal length"]),
        (lambda c: c["annotations"][1].pop("objects"), ["000000000012.jpg", "no key ['objects']"]),
        (
            lambda c: c["annotations"][0]["objects"].__setitem__(2, 2),
            ["000000000009.jpg, row 2", "class 2 with object 2"],
        ),
        (lambda c: c["annotations"][2]["objects"].__setitem__(0, 0), ["000000000030.jpg, row 0", "object 0"]),
        (lambda c: c["annotations"][2]["actions"].__setitem__(0, 3), ["class 3"]),
        (lambda c: c["annotations"][0]["boxes_o"].__setitem__(2, [40, 1, 66, 48]), ["boxes_o[2]", "64 x 48"]),
        (lambda c: c["annotations"][0]["boxes_h"].__setitem__(1, [9, 1, 3, 48]), ["boxes_h[1]"]),
        (lambda c: c["annotations"][0]["boxes_h"].__setitem__(1, [-4, 1, 3, 48]), ["boxes_h[1]"]),
        (lambda c: c["annotations"][0]["boxes_h"].__setitem__(1, [float("nan"), 1, 3, 48]), ["boxes_h[1]", "nan"]),
    ],
)
def test_impossible_annotations_are_named(write, tmp_path, change, named):
    path = write(change)
    with pytest.raises(AnnotationError) as error:
        read_vcoco(path, tmp_path / "images", "test")
    assert all(part in str(error.value) for part in [str(path), "found", "expected", "mend", *named])


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.root"):
        read_vcoco(tmp_path / "none.json", tmp_path, "test")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(AnnotationError, match="broken JSON"):
        read_vcoco(tmp_path / "broken.json", tmp_path, "test")
    (tmp_path / "vcoco_test.json").write_text('[{"action_name": "hold"}]')
    with pytest.raises(AnnotationError, match="26 actions"):
        vcoco_vocabulary(tmp_path / "vcoco_test.json")


def test_a_file_that_is_no_photograph(write, tmp_path):
    path = write()
    (tmp_path / "images" / "val2014" / "COCO_val2014_000000000012.jpg").write_text("<html>")
    with pytest.raises(ValueError, match=r"000000000012\.jpg: found no known image format"):
        read_vcoco(path, tmp_path / "images", "test")


# ---------------------------------------------------------------- real rows and English


def test_seven_real_images(shared):
    real = shared / "data" / "real"
    data = read_vcoco(real / "instances_vcoco_test_7.json", real / "images", "test")
    assert (len(data), data.annotated.tolist(), int(data.hoi_counts.sum())) == (7, [1, 2, 3, 4, 5, 6], 23)
    assert data[0].name == "COCO_val2014_000000012448.jpg" and data[0].hoi.shape == (0,)
    names = [data.vocabulary.hoi_label(hoi)[len("a photo of a person ") :] for hoi in data[1].hoi]
    assert names == ["holding a mouse", "looking at a laptop", "working on a laptop"]
    sizes = {row["file_name"]: (row["width"], row["height"])
             for row in json.loads((real / "instances_coco_7.json").read_text())["images"]}  # fmt: skip
    assert {image.name: image.size for image in data.images} == sizes
    assert read_vcoco(data.source, real / "images", "test", pairs="present").vocabulary.num_hois == len(
        np.flatnonzero(data.hoi_counts)
    )


def test_the_236_pairs_and_their_sentences(shared):
    facts = json.loads((shared / "facts" / "vcoco_actions.json").read_text())
    vocabulary = vcoco_vocabulary(shared / "data" / "real" / "instances_vcoco_test_7.json")
    objects = json.loads((shared / "facts" / "hico_objects.json").read_text())["objects"]
    assert vocabulary.objects == tuple(row["name"] for row in objects)  # HICO-DET's names, so detectors agree
    assert [verb.replace("_", " ") for verb in vocabulary.verbs] == [
        row["name"].replace("_", " ") for row in facts["classes24"]
    ]
    pairs = zip(vocabulary.hoi_object + 1, vocabulary.hoi_verb, strict=True)
    assert [tuple(map(int, pair)) for pair in pairs] == [(row["object"], row["class_id"]) for row in facts["pairs236"]]
    labels = [vocabulary.hoi_label(hoi) for hoi in range(236)]
    assert labels == [f"a photo of a person {row['phrase']}" for row in facts["pairs236"]]
    assert len(set(vocabulary.class_sentences())) == 236
    assert vocabulary.class_sentences()[0] == "A photo of a person holding a person."


def test_names_with_blanks_read_the_same():
    verbs = tuple(VCOCO_GERUNDS)
    blanks = tuple(verb[::-1].replace("_", " ", 1)[::-1] for verb in verbs)  # `talk_on_phone instr`
    assert len(verbs) == 24 and "talk_on_phone instr" in blanks
    pairs = (np.zeros(24, np.int64), np.arange(24))
    under, blank = (Vocabulary(("knife", "person"), names, *pairs).class_sentences() for names in (verbs, blanks))
    assert under == blank and len(set(under)) == 24
    assert under[verbs.index("cut_instr")] == "A photo of a person cutting with a knife."
    assert under[verbs.index("cut_obj")] == "A photo of a person cutting a knife."
