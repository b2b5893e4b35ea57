"""Malformed inputs of the whole project: each is refused by an error that names file, found, expected and mend."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hico_writers as writers
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from lib.clip.load import load_clip
from lib.clip.released import convert_openai
from lib.data.captions import read_captions
from lib.data.formats import find_annotations
from lib.data.hico_det import read_hico_det
from lib.data.hico_mat import read_hico_mat
from lib.data.hoia import read_hoia
from lib.data.images import image_sizes, read_image
from lib.data.restricted_pickle import read_pickle
from lib.data.vcoco import read_vcoco
from lib.data.vcoco_gupta import read_vcoco_gupta
from lib.data.zero_shot import unseen_hois
from lib.defr.labels import read_labels
from lib.detection.detr import load_detr
from lib.detection.json_cache import import_json_cache
from lib.detection.table import DetectionTable
from lib.errors import FoundExpected
from lib.evaluation.foreign import read_hoia as read_ppdm
from lib.evaluation.foreign import read_mat_cache
from lib.evaluation.hico_annotation import read_annotation
from lib.evaluation.hico_det import hico_det_ap
from lib.evaluation.prediction_table import read_predictions
from lib.evaluation.recognition import main as recognition
from lib.evaluation.recognition import read_array
from lib.evaluation.recognition import read_labels as score_labels
from lib.evaluation.vcoco_annotation import read_truth
from lib.evaluation.vcoco_records import read_role_predictions
from lib.ezhoi.released_format import read_released
from lib.features.legacy import read_legacy
from lib.features.store import FeatureStore

CASES: list[tuple[str, str, str, Callable[[Path], Any]]] = []


def case(where: str, found: str) -> Callable:
    """Register a case: a function of a folder that must raise an error whose place ends in `where`."""

    def register(read: Callable[[Path], Any]) -> Callable:
        CASES.append((read.__name__, where, found, read))
        return read

    return register


# ---------------------------------------------------------------- HICO-DET instance files


def hico(folder: Path, change: Callable[[dict], Any] | None = None, form: Callable = read_hico_det) -> Any:
    """Read the small instance file after a change of its content."""
    content = writers.small()
    if change is not None:
        change(content)
    return form(writers.write_json(folder / "instances.json", content), folder, "train")


@case("instances_train2015.json", "no file, nor anno_bbox.mat")
def no_annotations_at_all(folder):
    find_annotations(folder, "hico", "train")


@case("instances.json", r"an empty file \(0 bytes\)")
def annotations_of_zero_bytes(folder):
    (folder / "instances.json").touch()
    read_hico_det(folder / "instances.json", folder, "train")


@case("instances.json", "broken JSON")
def annotations_cut_off(folder):
    path = writers.write_json(folder / "instances.json", writers.small())
    path.write_bytes(path.read_bytes()[:-40])
    read_hico_det(path, folder, "train")


@case("instances.json.gz", "broken JSON")
def zipped_annotations_cut_off(folder):
    path = writers.write_json(folder / "instances.json.gz", writers.small())
    path.write_bytes(path.read_bytes()[:-40])
    read_hico_det(path, folder, "train")


@case("top level", r"no key \['correspondence'\]")
def missing_key(folder):
    hico(folder, lambda content: content.pop("correspondence"))


@case("HICO_train2015_00000003.jpg", r"no key \['verb'\]")
def missing_list_of_an_image(folder):
    hico(folder, lambda content: content["annotation"][2].pop("verb"))


@case("HICO_train2015_00000001.jpg", "lists of unequal length {'boxes_h': 2, 'boxes_o': 2, 'hoi': 1")
def lists_of_unequal_length(folder):
    hico(folder, lambda content: content["annotation"][0]["hoi"].pop())


@case("instances.json", "lists of unequal length {'annotation': 4, 'filenames': 3, 'size': 4}")
def fewer_names_than_images(folder):
    hico(folder, lambda content: content["filenames"].pop())


@case("instances.json", r"file name HICO_train2015_00000001.jpg more than once \(1 such")
def duplicated_file_name(folder):
    hico(folder, lambda content: content["filenames"].__setitem__(1, content["filenames"][0]))


def box(image: int, key: str, row: int, value: Any) -> Callable[[dict], None]:
    return lambda content: content["annotation"][image][key].__setitem__(row, value)


@case(r"HICO_train2015_00000001.jpg, boxes_o\[1\]", r"box \[10.0, 21.0, 65.0, 48.0\]")
def box_outside_the_image(folder):
    hico(folder, box(0, "boxes_o", 1, [10, 21, 65, 48]))


@case(r"HICO_train2015_00000003.jpg, boxes_h\[0\]", r"box \[0.0, 1.0, 20.0, 40.0\]")
def box_that_counts_from_zero(folder):
    hico(folder, box(2, "boxes_h", 0, [0, 1, 20, 40]))


@case(r"boxes_h\[0\]", r"box \[20.0, 1.0, 3.0, 40.0\]")
def box_turned_inside_out(folder):
    hico(folder, box(2, "boxes_h", 0, [20, 1, 3, 40]))


@case(r"boxes_h\[0\]", r"box \[nan, ")
def box_with_nan(folder):
    hico(folder, box(2, "boxes_h", 0, [float("nan"), 1, 20, 40]))


@case(r"HICO_train2015_00000003.jpg, boxes_h\[0\]", r"\[1, 2, 3\]")
def box_of_three_numbers(folder):
    hico(folder, box(2, "boxes_h", 0, [1, 2, 3]))


@case(r"HICO_train2015_00000004.jpg, verb\[0\]", "'wear'")
def verb_by_name(folder):
    hico(folder, box(3, "verb", 0, "wear"))


@case("HICO_train2015_00000004.jpg, row 0", "HOI id 600")
def unknown_hoi_id(folder):
    hico(folder, box(3, "hoi", 0, 600))


@case("HICO_train2015_00000004.jpg, row 0", r"\(hoi, object, verb\) = ")
def row_of_another_object_order(folder):
    hico(folder, box(3, "object", 0, writers.ALPHABETICAL.index("tie")))


@case("objects", "airplane, apple ... with ids that count person, bicycle")
def names_and_ids_in_different_orders(folder):
    hico(folder, lambda content: content.update(objects=list(writers.ALPHABETICAL)))


@case("correspondence", r"600 rows, largest \[599, 79, 200\]")
def table_with_an_unknown_verb(folder):
    hico(folder, lambda content: content["correspondence"][5].__setitem__(2, 200))


@case("HICO_train2015_00000001.jpg", "no such file")
def no_sizes_and_no_photographs(folder):
    hico(folder, lambda content: content.pop("size"))


@case("zero_shot.json", "no setting 'unseen_nouns'")
def unknown_zero_shot_setting(folder):
    (folder / "zero_shot.json").write_text('{"settings": {"unseen_verb": {"unseen_hoi": [1]}}}')
    unseen_hois("unseen_nouns", folder)


# ---------------------------------------------------------------- the other forms


@case("hoia.json", "a dict")
def hoia_that_is_an_instance_file(folder):
    read_hoia(writers.write_json(folder / "hoia.json", writers.small()), folder, "train")


@case("HICO_train2015_00000003.jpg", "labels that point past its boxes")
def hoia_label_without_box(folder):
    content = writers.hoia(writers.small())
    content[2]["hoi_annotation"][0]["subject_id"] = 7
    read_hoia(writers.write_json(folder / "hoia.json", content), folder, "test")


@case("HICO_train2015_00000003.jpg", "a label from category 1 to category 12")
def hoia_category_that_coco_never_used(folder):
    content = writers.hoia(writers.small())
    writers.photographs(folder, writers.small())
    content[2]["annotations"][1]["category_id"] = 12
    read_hoia(writers.write_json(folder / "hoia.json", content), folder, "train")


@case("anno_bbox.mat", "no readable MATLAB file")
def matlab_file_cut_off(folder):
    path = writers.bbox_mat(folder / "anno_bbox.mat", writers.small())
    path.write_bytes(path.read_bytes()[:200])
    read_hico_mat(path, folder, "train")


@case("anno_bbox.mat", r"the variables \['bbox_train'\]")
def matlab_file_without_the_split(folder):
    read_hico_mat(writers.bbox_mat(folder / "anno_bbox.mat", writers.small()), folder, "test")


def vcoco(folder: Path, **changes: Any) -> None:
    (folder / "val2014").mkdir()
    Image.new("RGB", (64, 48)).save(folder / "val2014" / "COCO_val2014_000000000009.jpg")
    record = dict(boxes_h=[[0, 0, 9, 9]], boxes_o=[[5, 5, 9, 9]], actions=[0], objects=[2])
    content = dict(images=[9], classes=["hold obj"], objects=["background", "person", "bat"], action_to_object=[[2]])
    content["annotations"] = [record | {"file_name": "COCO_val2014_000000000009.jpg"} | changes]
    read_vcoco(writers.write_json(folder / "instances_vcoco_test.json", content), folder, "test")


@case("COCO_val2014_000000000009.jpg, row 0", "class 0 with object 0")
def vcoco_row_with_background_as_object(folder):
    vcoco(folder, objects=[0])


@case(r"boxes_o\[0\]", r"box \[5.0, 5.0, 640.0, 480.0\]")
def vcoco_boxes_of_unresized_photographs(folder):
    vcoco(folder, boxes_o=[[5, 5, 640, 480]])


@case("top level", "a list")
def vcoco_original_read_as_instances(folder):
    read_vcoco(writers.write_json(folder / "vcoco_test.json", [{"action_name": "hold"}]), folder, "test")


@case("instances_vcoco_all_2014.json", "no file")
def vcoco_original_without_boxes(folder):
    read_vcoco_gupta(writers.write_json(folder / "vcoco_test.json", []), folder, "test")


@case("vcoco_test.json", "roles that differ in")
def vcoco_original_with_actions_missing(folder):
    action = dict(action_name="hold", role_name=["agent", "obj"], image_id=[], ann_id=[], label=[], role_object_id=[])
    content = {"vcoco": [action], "coco": {"images": [], "annotations": []}}
    read_vcoco_gupta(writers.write_json(folder / "vcoco_test.json", content), folder, "test")


@case("captions.json", "entries without caption")
def captions_of_another_json(folder):
    read_captions(writers.write_json(folder / "captions.json", {"annotations": [{"bbox": [1, 2, 3, 4]}]}))


@case("captions.txt", "no sentence")
def captions_without_a_sentence(folder):
    (folder / "captions.txt").write_text("\n \n")
    read_captions(folder / "captions.txt")


@case("anno.mat", "no readable MATLAB file")
def recognition_labels_cut_off(folder):
    (folder / "anno.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(80))
    read_labels(folder / "anno.mat", "train")


@case("anno.mat", "no readable MATLAB file")
def recognition_truth_cut_off(folder):
    (folder / "anno.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(80))
    score_labels(folder / "anno.mat")


@case("labels.npz", r"with values \[7\]")
def recognition_labels_of_other_values(folder):
    np.savez(folder / "labels.npz", files_test=np.array(["a.jpg"]), labels_test=np.full((1, 600), 7))
    read_labels(folder / "labels.npz", "test")


# ---------------------------------------------------------------- photographs


def photo(folder: Path, data: bytes) -> Path:
    (folder / "a.jpg").write_bytes(data)
    return folder / "a.jpg"


def jpeg() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


@case("a.jpg", "a damaged or truncated image")
def truncated_jpeg(folder):
    read_image(photo(folder, jpeg()[:900]))


@case("a.jpg", r"an empty file \(0 bytes\)")
def photograph_of_zero_bytes(folder):
    read_image(photo(folder, b""))


@case("a.jpg", "no known image format")
def photograph_that_is_a_web_page(folder):
    image_sizes([photo(folder, b"<html>not found</html>")])


# ---------------------------------------------------------------- pickles and checkpoints


class Malicious:
    def __reduce__(self) -> tuple:
        return os.mkdir, (f"{os.environ['TRAP']}",)


def put(path: Path, content: Any) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    return path


@case("a.pkl", r"an empty file \(0 bytes\)")
def zero_byte_pickle(folder):
    read_pickle(put(folder / "a.pkl", b""))


@case("a.pkl", "a pickle that calls posix.mkdir")
def malicious_pickle(folder):
    read_pickle(put(folder / "a.pkl", {"text_mean": Malicious()}))


@case("a.pkl", "a file that is no whole pickle")
def pickle_cut_off(folder):
    read_pickle(put(folder / "a.pkl", pickle.dumps(np.zeros(99))[:-50]))


@case("a_clip.pkl", "a pickle that calls posix.mkdir")
def malicious_feature_pickle(folder):
    read_legacy(put(folder / "a_clip.pkl", Malicious()))


@case("a_clip.pkl", "9 tokens")
def feature_pickle_of_another_clip(folder):
    read_legacy(put(folder / "a_clip.pkl", torch.zeros(9, 4)), tokens=16)


@case("records.pkl", "a pickle that calls posix.mkdir")
def malicious_vcoco_predictions(folder):
    read_role_predictions(put(folder / "records.pkl", [Malicious()]), None)


@case("records.pkl", "a record that lacks the key 'person_box'")
def vcoco_predictions_without_a_box(folder):
    read_role_predictions(put(folder / "records.pkl", [{"image_id": 1}]), None)


@case("ViT-B-16.pt", "a file that cannot be read as tensors")
def clip_archive_cut_off(folder):
    convert_openai(put(folder / "ViT-B-16.pt", b"PK\x03\x04" + bytes(90)), folder / "out")


@case("ckpt.pt", "posix.mkdir")
def malicious_ezhoi_checkpoint(folder):
    torch.save({"model_state_dict": Malicious()}, folder / "ckpt.pt")
    read_released(folder / "ckpt.pt")


@case("models/clip", "no folder")
def clip_folder_that_is_missing(folder):
    load_clip(f"local-dir:{folder}/models/clip")


@case("config.json", "no file")
def detector_folder_without_files(folder):
    load_detr(folder)


# ---------------------------------------------------------------- tables, stores, predictions


@case("manifest.json", "no file")
def detections_without_manifest(folder):
    DetectionTable.open(folder)


def cached(folder: Path, **content: Any) -> None:
    data = hico(folder)
    for image in data.images:
        entry = dict(boxes=[[1, 1, 9, 9]], scores=[0.9], labels=[0]) | content
        (folder / f"{Path(image.name).stem}.json").write_text(json.dumps(entry))
    import_json_cache(folder, data, folder / "out", labels="coco80")


@case(r"HICO_train2015_0000000\d.json", "1 boxes, 2 scores, 1 labels")
def detection_cache_of_unequal_length(folder):
    cached(folder, scores=[0.9, 0.8])


@case(r"HICO_train2015_0000000\d.json", "not finite")
def detection_cache_with_nan(folder):
    cached(folder, scores=[float("nan")])


@case("manifest.json", "no")
def feature_store_without_manifest(folder):
    FeatureStore.open(folder)


def table(folder: Path, **changes: Any) -> Path:
    columns = {f"{who}_{side}": [1.0] for who in "ho" for side in ("x1", "y1", "x2", "y2")}
    rows = pd.DataFrame(columns | {"image_id": [0], "hoi_id": [1], "score": [0.5]} | changes)
    rows.drop(columns=[name for name in changes if changes[name] is None]).to_parquet(folder / "p.parquet")
    return folder / "p.parquet"


def scored(folder: Path, **changes: Any) -> None:
    truth = read_annotation(writers.write_json(folder / "instances.json", writers.small())).truth
    hico_det_ap(read_predictions(table(folder, **changes)), truth, 600)


@case("p.parquet", "score of row 0 is nan")
def predictions_with_nan_score(folder):
    scored(folder, score=[float("nan")])


@case("p.parquet", "hoi ids 600..600")
def predictions_of_another_vocabulary(folder):
    scored(folder, hoi_id=[600])


@case("p.parquet", r"those for \['x1o'\] are missing")
def predictions_without_a_column(folder):
    scored(folder, o_x1=None)


@case("p.parquet", "not a readable parquet file")
def predictions_that_are_no_parquet(folder):
    read_predictions(put(folder / "p.parquet", b"image_id,hoi_id,score\n"))


@case("detections_01.mat", "not a MATLAB file")
def matlab_cache_of_text(folder):
    put(folder / "detections_01.mat", b"text")
    read_mat_cache(folder, read_annotation(writers.write_json(folder / "instances.json", writers.small())))


@case("HICO_train2015_00000001.jpg", "a hoi_prediction that points past")
def ppdm_prediction_without_box(folder):
    claim = dict(subject_id=0, object_id=3, category_id=1, score=0.5)
    entry = dict(predictions=[dict(bbox=[0, 0, 9, 9], category_id=1)], hoi_prediction=[claim])
    path = writers.write_json(folder / "ppdm.json", [entry | {"file_name": "HICO_train2015_00000001.jpg"}])
    read_ppdm(path, read_annotation(writers.write_json(folder / "instances.json", writers.small())))


@case("vcoco_test.json", "people and objects by COCO id without boxes")
def vcoco_truth_without_coco(folder):
    read_truth(writers.write_json(folder / "vcoco_test.json", []))


@case("scores.npz", r"an unreadable array|not a readable npz")
def recognition_scores_of_pickled_objects(folder):
    np.savez(folder / "scores.npz", score=np.array([{"a": 1}], object))
    read_array(folder / "scores.npz", ("score",))


# ---------------------------------------------------------------- the test


@pytest.mark.parametrize(("name", "where", "found", "read"), CASES, ids=[name for name, *_ in CASES])
def test_the_error_names_file_found_expected_and_mend(tmp_path, monkeypatch, name, where, found, read):
    monkeypatch.setenv("TRAP", str(tmp_path / "trap"))
    with pytest.raises(FoundExpected) as caught:
        read(tmp_path)
    error = caught.value
    assert not (tmp_path / "trap").exists()
    assert str(tmp_path) in str(error.where)
    assert re.search(rf"{where}$", str(error.where)), error.where
    assert re.search(found, error.found), error.found
    assert error.expected and error.mend
    assert all(part in str(error) for part in (f"{error.where}: found ", ", expected ", "\n  mend: "))
    again = pickle.loads(pickle.dumps(error))  # it comes out of a worker whole
    assert str(again) == str(error)


def test_nan_scores_of_recognition_are_named_by_the_command(tmp_path, capsys):
    np.savez(tmp_path / "scores.npz", score=np.full((2, 3), np.nan))
    np.savez(tmp_path / "labels.npz", label=np.ones((2, 3), int))
    assert recognition([str(tmp_path / "scores.npz"), "--labels", str(tmp_path / "labels.npz")]) == 1
    told = capsys.readouterr().err
    assert all(part in told for part in ("scores.npz: found score of image 0, class 0 is nan", "expected", "mend:"))
