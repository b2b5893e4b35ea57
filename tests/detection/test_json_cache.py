"""Detections of other programs: label spaces, frames, round trip, damage."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.data.annotation_file import AnnotationError
from lib.data.hico_det import read_hico_det
from lib.detection.detr import DetectorError
from lib.detection.json_cache import import_json_cache, main, write_json_cache
from lib.detection.oracle import oracle_detections
from lib.detection.released import COCO_CLASSES, ROWS_OF_92
from lib.detection.table import DetectionTable

OBJECTS = ["dog", "person", "kite"]


@pytest.fixture
def dataset(tmp_path):
    rows = {"boxes_h": [[1, 1, 50, 100]], "boxes_o": [[61, 41, 100, 80]], "hoi": [0], "object": [0], "verb": [0]}
    content = {
        "filenames": ["a.jpg", "b.jpg"], "size": [[200, 100], [60, 40]], "objects": OBJECTS, "verbs": ["pet"],
        "correspondence": [[0, 0, 0]], "empty": [1], "annotation": [rows, {key: [] for key in rows}],
    }  # fmt: skip
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return read_hico_det(tmp_path / "instances.json", tmp_path, "test")


def cached(folder, labels=(0, 0, 16), **change):
    """A cache with a file of the first image: two people, a dog."""
    boxes = [[0, 0, 50, 100], [5.5, 0, 50, 99], [60, 40, 100, 80]]
    content = {"boxes": boxes, "scores": [0.9, 0.4, 0.8], "labels": list(labels)} | change
    folder.mkdir(exist_ok=True)
    (folder / "a.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("space", "labels"),
    [("coco80", (0, 0, 16)), ("coco91", (1, 1, 18)), ("hico", (49, 49, 28)), ("annotations", (1, 1, 0))],
)
def test_label_spaces(dataset, tmp_path, space, labels):
    table = import_json_cache(cached(tmp_path / "cache", labels), dataset, tmp_path / "table", space)
    assert [table.labels[label] for label in table.of(0).labels] == ["person", "person", "dog"]
    assert table.in_label_space(OBJECTS).of(0).labels.tolist() == [1, 1, 0]
    assert table.of(0).boxes[1].tolist() == [5.5, 0, 50, 99] and table.of(0).scores[2] == np.float32(0.8)
    assert len(table.of(1).boxes) == 0 and table.num_images == 2  # an image without pairs needs no file
    assert DetectionTable.open(tmp_path / "table").manifest["detector"]["labels"] == space
    assert set(table.rows["name"]) == {"a.jpg"}


def test_alphabetical_space_is_that_of_the_facts(shared):
    objects = json.loads((shared / "facts/hico_objects.json").read_text())["objects"]
    names = {entry["name"]: entry["hico_alpha_id"] for entry in objects}
    assert sorted(names, key=names.get) == sorted(COCO_CLASSES)
    coco91 = {entry["name"]: entry["coco91_id"] for entry in objects}
    assert [coco91[name] for name in COCO_CLASSES] == ROWS_OF_92[:-1]


@pytest.mark.parametrize(
    ("wrong", "labels", "right"),
    [("coco80", (49, 49, 28), "hico"), ("coco91", (49, 49, 18), "hico"), ("hico", (0, 0, 16), "coco80")],
)
def test_a_wrong_label_space_is_noticed(dataset, tmp_path, wrong, labels, right):
    with pytest.raises(DetectorError, match=f"(?s)label .* most often, people in .*{right}.*mend: set labels to"):
        import_json_cache(cached(tmp_path / "cache", labels), dataset, tmp_path / "table", wrong)
    assert not (tmp_path / "table").exists()


def test_boxes_of_the_resized_image(dataset, tmp_path):
    boxes = [[0, 0, 200, 400], [22, 0, 200, 396], [240, 160, 400, 320]]
    folder = cached(tmp_path / "cache", boxes=boxes, size=[400, 800])  # [height, width], four times the original
    found = import_json_cache(folder, dataset, tmp_path / "table").of(0).boxes
    assert found.tolist() == [[0, 0, 50, 100], [5.5, 0, 50, 99], [60, 40, 100, 80]]
    with pytest.raises(DetectorError, match=r"boxes up to x 400, y 400, .*inside the image of 200 x 100"):
        import_json_cache(folder, dataset, tmp_path / "table", frame="original")
    with pytest.raises(DetectorError, match="no key `size`"):
        import_json_cache(cached(tmp_path / "other"), dataset, tmp_path / "table", frame="resized")


def test_round_trip(dataset, tmp_path):
    table = oracle_detections(dataset, tmp_path / "table", jitter=0.1)
    write_json_cache(table, dataset, tmp_path / "cache")
    assert {path.name for path in Path(tmp_path / "cache").iterdir()} == {"a.json", "b.json"}
    again = import_json_cache(tmp_path / "cache", dataset, tmp_path / "again", "annotations")
    for image in range(2):
        assert all(torch.equal(a, b) for a, b in zip(again.of(image), table.of(image), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [0.9, 0.4]}, "3 boxes, 2 scores, 3 labels"),
        ({"scores": [0.9, 0.4, float("nan")]}, "not finite"),
        ({"boxes": [[0, 0, 1]]}, "boxes .n x 4."),
        ({"labels": [0, 0, 80]}, r"labels \[80\]"),
        ({"labels": [0, 0, -1]}, r"labels \[-1\]"),
        ({"boxes": [[0, 0, 50, 100], [0, 0, 50, 140], [60, 40, 100, 80]]}, "inside the image of 200 x 100"),
    ],
)
def test_damaged_files_are_named(dataset, tmp_path, change, message):
    with pytest.raises(DetectorError, match=f"(?s){message}.*mend"):
        import_json_cache(cached(tmp_path / "cache", **change), dataset, tmp_path / "table")


def test_unused_coco_ids_are_refused(dataset, tmp_path):
    with pytest.raises(DetectorError, match=r"labels \[12\]"):
        import_json_cache(cached(tmp_path / "cache", (1, 1, 12)), dataset, tmp_path / "table", "coco91")


def test_missing_and_broken_files(dataset, tmp_path):
    with pytest.raises(DetectorError, match="found no folder"):
        import_json_cache(tmp_path / "absent", dataset, tmp_path / "table")
    (cached(tmp_path / "cache") / "a.json").write_text('{"boxes": [')
    with pytest.raises(AnnotationError, match=r"a\.json: found broken JSON"):
        import_json_cache(tmp_path / "cache", dataset, tmp_path / "table")
    (tmp_path / "cache/a.json").unlink()
    with pytest.raises(DetectorError, match=r"no file for 1 of 2 images: a\.json"):
        import_json_cache(tmp_path / "cache", dataset, tmp_path / "table")
    with pytest.raises(DetectorError, match="'coco81', expected coco80"):
        import_json_cache(tmp_path / "cache", dataset, tmp_path / "table", "coco81")


def test_command(dataset, tmp_path, capsys):
    arguments = [str(cached(tmp_path / "cache")), str(tmp_path / "table"), "--annotations", str(dataset.source)]
    assert main(arguments) == 0
    assert "3 boxes on 2 images" in capsys.readouterr().out
    assert main([*arguments, "--labels", "coco91"]) == 1
    assert "labels [0]" in capsys.readouterr().err
