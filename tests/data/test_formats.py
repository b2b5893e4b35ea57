"""Every circulating form and version of one data set becomes the same HoiDataset."""

import gzip
import json
from dataclasses import replace

import hico_writers as writers
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from lib.data.annotation_file import AnnotationError, MissingAnnotationError
from lib.data.dataset import HoiDataset
from lib.data.formats import find_annotations, read_dataset
from lib.data.hico_classes import COCO91, FACTS, OFFICIAL, coco80_of_coco91
from lib.data.hico_det import read_hico_det
from lib.data.hico_mat import read_anno_mat, read_hico_mat
from lib.data.hoia import read_hoia
from lib.data.images import read_image
from lib.data.vcoco import read_vcoco
from lib.data.vcoco_gupta import read_vcoco_gupta
from lib.ezhoi.pairs import Instances, PairTargets, assign_labels, enumerate_pairs


def same(a: HoiDataset, b: HoiDataset) -> None:
    assert [image.path for image in a.images] == [image.path for image in b.images]
    assert [image.size for image in a.images] == [image.size for image in b.images]
    assert (a.vocabulary.objects, a.vocabulary.verbs) == (b.vocabulary.objects, b.vocabulary.verbs)
    np.testing.assert_array_equal(a.vocabulary.hoi_of, b.vocabulary.hoi_of)
    for one, two in zip(a.images, b.images, strict=True):
        for name in ("boxes_h", "boxes_o", "hoi", "object", "verb"):
            left, right = getattr(one, name), getattr(two, name)
            np.testing.assert_array_equal(left, right, err_msg=f"{one.name} {name}")
            assert left.dtype == right.dtype and left.shape == right.shape


@pytest.fixture
def photos(tmp_path):
    return writers.photographs(tmp_path / "images", writers.small())


# ---------------------------------------------------------------- HICO-DET


def test_the_small_file_by_hand(tmp_path, photos):
    data = read_hico_det(writers.write_json(tmp_path / "a.json", writers.small()), photos, "train")
    first = data[0]
    assert [data.vocabulary.hoi_name(hoi) for hoi in first.hoi] == ["hold bicycle", "ride bicycle"]
    assert first.boxes_h.tolist() == [[2, 2, 30, 47], [1, 2, 30, 48]] and first.object.tolist() == [1, 1]
    assert (len(data), data.annotated.tolist(), data[1].boxes_o.shape) == (4, [0, 2, 3], (0, 4))
    assert data.vocabulary is OFFICIAL
    assert data.version.startswith("instance JSON, objects in COCO-80 order, sizes as stated")
    counts = data.summary()
    assert [counts[name] for name in ("images", "images_without_rows", "rows", "pairs")] == [4, 1, 6, 5]
    assert (counts["rows_person_as_object"], counts["rows_no_interaction"]) == (2, 1)
    assert (counts["hoi_classes"], counts["hoi_classes_present"]) == (600, 5)


@pytest.mark.parametrize("name", writers.VERSIONS)
@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_versions_of_the_instance_file(tmp_path, photos, name, suffix):
    expected = read_hico_det(writers.write_json(tmp_path / "a.json", writers.small()), photos, "train")
    version = writers.VERSIONS[name](writers.small())
    found = read_hico_det(writers.write_json(tmp_path / f"b{suffix}", version), photos, "train")
    same(found, expected)
    assert ("alphabetical order, converted" in found.version) == ("alphabetical" in name)
    assert ("sizes from the photographs" in found.version) == ("no sizes" in name)
    assert ("with lists of rare" in found.version) == ("rare" in name)
    assert ("converted to the official ones" in found.version) == ("HOI ids" in name)


def test_the_other_forms(tmp_path, photos):
    content = writers.small()
    expected = read_hico_det(writers.write_json(tmp_path / "a.json", content), photos, "train")
    same(read_hoia(writers.write_json(tmp_path / "h.json", writers.hoia(content)), photos, "train"), expected)
    same(read_hico_mat(writers.bbox_mat(tmp_path / "anno_bbox.mat", content), photos, "train"), expected)


def test_a_table_of_its_own_with_hico_names_keeps_its_ids(tmp_path, photos):
    content = writers.small()
    content["correspondence"] = [row for row in content["correspondence"] if row[0] < 599]
    data = read_hico_det(writers.write_json(tmp_path / "a.json", writers.alphabetical(content)), photos, "train")
    assert data.vocabulary.num_hois == 599 and data.vocabulary.objects == OFFICIAL.objects
    assert data[0].object.tolist() == [1, 1] and "HOI ids of its own correspondence" in data.version


def test_names_in_one_order_and_ids_in_the_other_are_refused(tmp_path, photos):
    for content, objects in (
        (writers.small(), list(writers.ALPHABETICAL)),
        (writers.alphabetical(writers.small()), list(OFFICIAL.objects)),
    ):
        path = writers.write_json(tmp_path / "a.json", content | {"objects": objects})
        with pytest.raises(AnnotationError, match="ids that count(.|\n)*do not mix annotation versions"):
            read_hico_det(path, photos, "train")


def test_hoia_leaves_broken_training_images_out(tmp_path, photos):
    content = writers.hoia(writers.small())
    content[2]["hoi_annotation"][0]["object_id"] = 9
    path = writers.write_json(tmp_path / "h.json", content)
    data = read_hoia(path, photos, "train")
    assert len(data) == 3 and "1 images with broken labels left out" in data.version
    with pytest.raises(AnnotationError, match="point past its boxes"):
        read_hoia(path, photos, "test")


def test_many_connections_and_single_structs_of_matlab(tmp_path, photos):
    content = writers.small()
    content["annotation"][3] = {
        "boxes_h": [[1, 1, 9, 9], [2, 2, 9, 9], [3, 3, 9, 9]], "boxes_o": [[4, 4, 9, 9], [5, 5, 9, 9], [6, 6, 9, 9]],
        **{key: [value[0]] * 3 for key, value in content["annotation"][3].items() if not key.startswith("boxes")},
    }  # fmt: skip
    expected = read_hico_det(writers.write_json(tmp_path / "a.json", content), photos, "train")
    same(read_hico_mat(writers.bbox_mat(tmp_path / "anno_bbox.mat", content), photos, "train"), expected)


def test_pairs_by_overlap_give_multi_hot_targets(tmp_path, photos):
    data = read_hico_det(writers.write_json(tmp_path / "a.json", writers.small()), photos, "train")
    first, pair = data[0].pairs()  # two rows, IoU about 0.9, hold and ride
    assert (first.tolist(), pair.tolist()) == ([0], [0, 0])
    verbs = np.zeros((len(first), 117), int)
    verbs[pair, data[0].verb] = 1
    assert [data.vocabulary.verbs[i] for i in np.flatnonzero(verbs[0])] == ["hold", "ride"]
    box_h, box_o = (torch.from_numpy(boxes[:1]) for boxes in (data[0].boxes_h, data[0].boxes_o))
    found = Instances.collate([(torch.cat([box_h, box_o]), torch.ones(2), torch.tensor([0, 1]), 1)])
    rows = (torch.from_numpy(values) for values in (data[0].boxes_h, data[0].boxes_o, data[0].verb, data[0].hoi))
    targets = assign_labels(found, enumerate_pairs(found), PairTargets(torch.zeros(2, dtype=torch.long), *rows), 117)
    assert targets.tolist() == verbs.tolist()  # a detected pair gets both labels too
    assert data[2].pairs()[1].tolist() == [0, 1, 2]  # swapped roles and another object class stay apart
    assert data[1].pairs()[0].tolist() == []


def test_numberings_of_objects(shared):
    rows = json.loads((shared / "facts" / "hico_objects.json").read_text())["objects"]
    assert tuple(row["name"] for row in rows) == OFFICIAL.objects == tuple(FACTS["objects"])
    assert [row["coco91_id"] for row in rows] == COCO91.tolist()
    assert [writers.ALPHABETICAL.index(row["name"]) for row in rows] == [row["hico_alpha_id"] for row in rows]
    assert coco80_of_coco91(np.array([1, 90, 12, 0, 91])).tolist() == [0, 79, -1, -1, -1]
    hois = json.loads((shared / "facts" / "hico_hoi.json").read_text())["hoi"]
    assert [(row["object_id"], row["verb_id"]) for row in hois] == list(
        zip(OFFICIAL.hoi_object.tolist(), OFFICIAL.hoi_verb.tolist(), strict=True)
    )


def test_the_real_test_file_in_other_versions_and_its_counts(shared, tmp_path):
    path = shared / "data" / "real" / "instances_test2015.json.gz"
    content = json.loads(gzip.decompress(path.read_bytes()))
    expected = read_hico_det(path, tmp_path, "test")
    same(
        read_hico_det(writers.write_json(tmp_path / "a.json", writers.alphabetical(content)), tmp_path, "test"),
        expected,
    )
    same(
        read_hico_det(writers.write_json(tmp_path / "o.json", writers.other_hoi_ids(content)), tmp_path, "test"),
        expected,
    )
    counts = expected.summary()
    assert [counts[name] for name in ("images", "images_without_rows", "rows", "pairs")] == [9658, 112, 33405, 21733]
    assert (counts["rows_person_as_object"], counts["rows_no_interaction"]) == (516, 4295)
    assert counts["hoi_classes_present"] == 600
    truth = expected.truth()
    size = np.array([image.size for image in expected.images])[truth["image"]]
    for boxes in (truth["boxes_h"], truth["boxes_o"]):
        assert boxes.min() == 0 and (boxes[:, 2:] <= size).all() and (boxes[:, :2] < boxes[:, 2:]).all()
    assert sum((boxes[:, 2] == size[:, 0]).sum() for boxes in (truth["boxes_h"], truth["boxes_o"])) == 294
    assert sum((boxes[:, 3] == size[:, 1]).sum() for boxes in (truth["boxes_h"], truth["boxes_o"])) == 697


def test_two_hundred_real_images_as_matlab_and_as_hoia(shared, tmp_path):
    path = shared / "data" / "real" / "instances_test2015_200.json"
    content = json.loads(path.read_text())
    expected = read_hico_det(path, writers.photographs(tmp_path / "images", content), "test")
    by_hoi = replace(
        expected, images=tuple(image.rows(np.argsort(image.hoi, kind="stable")) for image in expected.images)
    )
    mat = read_hico_mat(writers.bbox_mat(tmp_path / "anno_bbox.mat", content, "test"), tmp_path / "images", "test")
    same(mat, by_hoi)
    merged = read_hoia(shared / "data" / "real" / "test_hico_200_rebuilt.json", tmp_path / "images", "test")
    assert [image.path for image in merged.images] == [image.path for image in expected.images]
    for one, two in zip(merged.images, expected.images, strict=True):
        assert set(one.hoi) == set(two.hoi) and len(one.hoi) <= len(two.hoi)
        assert {tuple(box) for box in one.boxes_h.tolist()} <= {tuple(box) for box in two.boxes_h.tolist()}
        assert {tuple(box) for box in one.boxes_o.tolist()} <= {
            tuple(box) for box in two.boxes_o.tolist() + two.boxes_h.tolist()
        }


# ---------------------------------------------------------------- V-COCO


@pytest.fixture
def gupta(shared):
    return shared / "data" / "eval"


def test_the_original_files_say_the_same_as_the_instance_file(shared, gupta, tmp_path):
    real = shared / "data" / "real"
    expected = read_vcoco(real / "instances_vcoco_test_7.json", real / "images", "test")
    content = json.loads(gzip.decompress((gupta / "vcoco_seven_gt.json.gz").read_bytes()))
    (tmp_path / "data" / "vcoco").mkdir(parents=True)
    one = writers.write_json(tmp_path / "data" / "vcoco" / "vcoco_test.json", content["vcoco"])
    writers.write_json(tmp_path / "data" / "instances_vcoco_all_2014.json", content["coco"])
    for found in (
        read_vcoco_gupta(one, real / "images", "test"),
        read_vcoco_gupta(gupta / "vcoco_seven_gt.json.gz", real / "images", "test"),
    ):
        same(found, expected)
    form, path = find_annotations(tmp_path / "data", "vcoco", "test")
    assert (form.kind, path) == ("vcoco_gupta", one)
    with pytest.raises(MissingAnnotationError, match="nor vcoco_trainval.json(.|\n)*fredzzhang/vcoco"):
        find_annotations(tmp_path / "data", "vcoco", "train")


def test_six_hundred_real_images_replay_the_published_rule(gupta, tmp_path):
    path = gupta / "vcoco_val600_gt.json.gz"
    data = read_vcoco_gupta(path, tmp_path, "train")
    content = json.loads(gzip.decompress(path.read_bytes()))
    boxes = {row["id"]: row["bbox"] for row in content["coco"]["annotations"]}
    expected = {image["id"]: [] for image in content["coco"]["images"]}
    for action in content["vcoco"]:
        count = len(action["label"])
        for place, role in enumerate(action["role_name"]):
            if role == "agent" or (action["action_name"], role) == ("point", "instr"):
                continue
            for i in range(count):
                thing = action["role_object_id"][place * count + i]
                if action["label"][i] == 1 and thing != 0:
                    x, y, w, h = boxes[thing]
                    expected[action["image_id"][i]].append((f"{action['action_name']}_{role}", [x, y, x + w, y + h]))
    ids = sorted({image for action in content["vcoco"] for image in action["image_id"]})
    assert len(data) == len(ids) == 600
    for image, key in zip(data.images, ids, strict=True):
        assert [data.vocabulary.verbs[verb] for verb in image.verb] == [name for name, _ in expected[key]]
        np.testing.assert_allclose(image.boxes_o, np.reshape([box for _, box in expected[key]], (-1, 4)), rtol=1e-6)
    assert int(data.hoi_counts.sum()) == sum(map(len, expected.values())) > 1000


def test_the_list_of_images_adds_those_without_agents(gupta, tmp_path):
    content = json.loads(gzip.decompress((gupta / "vcoco_seven_gt.json.gz").read_bytes()))
    content["coco"]["images"].append({"id": 5, "file_name": "COCO_val2014_000000000005.jpg", "width": 9, "height": 9})
    path = writers.write_json(tmp_path / "vcoco_test.json", content)
    ids = [image["id"] for image in content["coco"]["images"]]
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "vcoco_test.ids").write_text("\n".join(map(str, ids)))
    data = read_vcoco_gupta(path, tmp_path, "test")
    assert (len(data), data[0].name, data[0].size) == (8, "COCO_val2014_000000000005.jpg", (9, 9))
    present = read_vcoco_gupta(path, tmp_path, "test", pairs="present")
    assert present.vocabulary.num_hois == len(np.flatnonzero(data.hoi_counts))


# ---------------------------------------------------------------- folders and photographs


def test_the_form_is_told_by_the_file(tmp_path):
    content = writers.small()
    writers.photographs(tmp_path / "hico_20160224_det" / "images" / "train2015", content)
    writers.write_json(tmp_path / "trainval_hico.json", writers.hoia(content))
    expected = read_dataset(tmp_path, "hico", "train")
    assert expected.version.startswith("HOIA")
    writers.bbox_mat(tmp_path / "hico_20160224_det" / "anno_bbox.mat", content)
    assert read_dataset(tmp_path, "hico", "train").version.startswith("official")
    writers.write_json(tmp_path / "instances_train2015.json.gz", writers.alphabetical(content))
    for kind, words in (("hico", "instance JSON"), ("hico_mat", "official"), ("hoia", "HOIA")):
        data = read_dataset(tmp_path, kind, "train")
        assert data.version.startswith(words)
        same(data, expected)
    with pytest.raises(MissingAnnotationError, match=r"instances_test2015.json: found no file, nor .*test_hico\.json"):
        find_annotations(tmp_path / "none", "hico", "test")
    with pytest.raises(ValueError, match="expected one of hico, vcoco, hico_json"):
        find_annotations(tmp_path, "coco", "test")


def test_photographs_of_every_mode_and_an_exif_orientation(tmp_path):
    """Sizes and pixels are those stored: no orientation is applied, as no annotation or published feature did."""
    content = writers.small()
    folder = writers.photographs(tmp_path / "images", content)
    exif = Image.Exif()
    exif[0x0112] = 6  # viewers turn it by 90 degrees
    for name, size, mode in zip(content["filenames"], content["size"], ("L", "CMYK", "1", "RGB"), strict=True):
        Image.new(mode, size).save(folder / name, "PNG" if mode == "1" else "JPEG", exif=exif)
    data = read_hico_det(writers.write_json(tmp_path / "a.json", writers.without_sizes(content)), folder, "train")
    assert [list(image.size) for image in data.images] == content["size"]
    for image in data.images:
        assert read_image(image.path).convert("RGB").size == image.size


@pytest.mark.parametrize("count", [1, 3])
def test_image_level_labels_of_matlab(tmp_path, count):
    raw = np.array([[1, 0, np.nan], [-1, 1, 1]])[:, :count]
    names = np.array([f"{i}.jpg" for i in range(count)], object)[:, None]
    savemat(tmp_path / "anno.mat", {"anno_test": raw, "list_test": names})
    found, labels = read_anno_mat(tmp_path / "anno.mat", "test")
    assert found == names[:, 0].tolist() and labels.dtype == np.int8
    assert labels.tolist() == [[1, -1], [0, 1], [-2, 1]][:count]


def test_an_empty_file_list(tmp_path):
    content = writers.small() | {"filenames": [], "size": [], "annotation": [], "empty": []}
    data = read_hico_det(writers.write_json(tmp_path / "a.json", content), tmp_path, "train")
    assert len(data) == 0 and data.hoi_counts.sum() == 0 and data.summary()["rows"] == 0
