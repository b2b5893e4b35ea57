"""Seven real COCO photos through notebook 01 with a full-size ViT-B/16 (random weights, and it says so)."""

import json

import numpy as np
import pytest
from transformers import DetrForObjectDetection

from lib.detection.table import DetectionTable
from lib.detection.train import tiny_config
from lib.engine import batch
from lib.features.store import FeatureStore


def hico_layout(shared, root):
    """Write the photos' V-COCO rows as HICO-DET instance files (1-based inclusive boxes, person first in `objects`)."""
    real = shared / "data" / "real"
    vcoco = json.loads((real / "instances_vcoco_test_7.json").read_text())
    objects = [name.replace(" ", "_") for name in vcoco["objects"][1:]]
    verbs = [name.replace(" ", "_") for name in vcoco["classes"]]
    pairs = sorted(
        {(o - 1, v) for row in vcoco["annotations"] for o, v in zip(row["objects"], row["actions"], strict=True)}
    )
    sizes = {
        row["id"]: [row["width"], row["height"]]
        for row in json.loads((real / "instances_coco_7.json").read_text())["images"]
    }
    annotation = []
    for row in vcoco["annotations"]:
        boxes = {
            key: np.round(np.array(row[key]).reshape(-1, 4) + [1, 1, 0, 0]).astype(int).tolist()
            for key in ("boxes_h", "boxes_o")
        }
        ids = [[o - 1, v] for o, v in zip(row["objects"], row["actions"], strict=True)]
        hois = [pairs.index((o, v)) for o, v in ids]
        annotation.append(boxes | {"hoi": hois, "object": [o for o, _ in ids], "verb": [v for _, v in ids]})
    content = {
        "filenames": [row["file_name"] for row in vcoco["annotations"]], "annotation": annotation,
        "size": [sizes[image] for image in vcoco["images"]], "objects": objects, "verbs": verbs,
        "correspondence": [[hoi, o, v] for hoi, (o, v) in enumerate(pairs)], "empty": [],
    }  # fmt: skip
    for split in ("train", "test"):
        (root / f"instances_{split}2015.json").write_text(json.dumps(content))
    return objects, real / "images" / "val2014"


@pytest.fixture
def run(shared, tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    objects, photos = hico_layout(shared, root)
    DetrForObjectDetection(tiny_config(objects)).save_pretrained(tmp_path / "detr")
    size = {"shortest_edge": 320, "longest_edge": 533}
    (tmp_path / "detr" / "preprocessor_config.json").write_text(json.dumps({"size": size, "resample": 3}))
    folder = tmp_path / "run"
    overrides = [
        f"data.root={root}", f"data.images={photos}", "data.zero_shot=default",
        "clip.source=random:ViT-B-16-quickgelu", "clip.batch_size=4",
        f"detector.source={tmp_path / 'detr'}", "detector.batch_size=1",
    ]  # fmt: skip
    assert batch.main(["run", "tests/micro.yaml", "--run", str(folder), "--notebooks", "00-01", *overrides]) == 0
    return folder


def test_real_photos_pass_notebook_01(run):
    assert not (run / "00_tiny_world.ipynb").exists()  # there is a data set: nothing to render
    store = FeatureStore.open(run / "features" / "test")
    assert len(store) == 7 and store.shape == (196, 512) and store.errors == []
    patches, cls = store.batch(range(7))
    assert patches.isfinite().all() and cls.isfinite().all() and patches.std() > 0
    table = DetectionTable.open(run / "detections" / "test")
    assert table.num_images == 7 and len(table.rows) > 0
    assert "random weights" in (run / "01_feature_extraction.ipynb").read_text()
