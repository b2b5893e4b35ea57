"""The doctor on a small HICO-DET tree in the real formats: whole it is ready, each defect gives exactly its line."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DetrForObjectDetection

from lib.bridge.text_bank import caption_bank
from lib.bridge.training import closed_form_bridge
from lib.clip.load import load_clip
from lib.config import load_config
from lib.data.descriptions import template_descriptions
from lib.data.hico_classes import OFFICIAL
from lib.data.zero_shot import unseen_hois
from lib.detection.released import COCO_CLASSES
from lib.detection.train import tiny_config
from lib.runs import Run, write_json
from lib.settings import BridgeSettings
from lib.stages import doctor, doctor_costs, doctor_machine, inputs
from lib.stages.doctor_report import NOTE, OK, STOP, Finding, Report
from lib.stages.tiny_models import unpack_clip

IMAGES = {"train": 6, "test": 4}
SIZE = (64, 48)
SETTINGS = ("data.zero_shot=unseen_verb", "defr.image_size=96", "defr.batch_size=2", "ezhoi.preset=released",
            "ezhoi.batch_size=2")  # fmt: skip


def write_split(root, split):
    folder = root / f"hico_20160224_det/images/{split}2015"
    folder.mkdir(parents=True)
    names = [f"HICO_{split}2015_{number:08}.jpg" for number in range(1, IMAGES[split] + 1)]
    seen = np.setdiff1d(np.arange(600), unseen_hois("unseen_verb"))
    annotation = []
    for number, name in enumerate(names):
        Image.effect_noise(SIZE, 50).convert("RGB").save(folder / name)
        hoi = int(seen[number * 7])
        ids = {"hoi": [hoi], "object": [int(OFFICIAL.hoi_object[hoi])], "verb": [int(OFFICIAL.hoi_verb[hoi])]}
        annotation.append({"boxes_h": [[1, 1, 30, 48]], "boxes_o": [[20, 10, 64, 40]], **ids})
    annotation[-1] = {key: [] for key in annotation[-1]}
    table = np.column_stack([np.arange(600), OFFICIAL.hoi_object, OFFICIAL.hoi_verb])
    content = {
        "annotation": annotation, "filenames": names, "size": [list(SIZE)] * len(names), "empty": [len(names) - 1],
        "objects": OFFICIAL.objects, "verbs": OFFICIAL.verbs, "correspondence": table.tolist(),
    }  # fmt: skip
    write_json(root / f"instances_{split}2015.json", content)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A complete tree: data/ (HICO-DET's layout, texts, captions) and weights/ (CLIP, DETR of 80 classes)."""
    root = tmp_path_factory.mktemp("tree")
    for split in IMAGES:
        write_split(root / "data", split)
    blocks = (f"{i}. class\n   - Description: {text}\n\n" for i, text in enumerate(template_descriptions(OFFICIAL)))
    (root / "data/hico_HOI_descrip.txt").write_text("".join(blocks))
    unseen, words = unseen_hois("unseen_verb"), "The hands are higher. The body is lower."
    partner = int(np.setdiff1d(np.arange(600), unseen)[0])
    (root / "data/unseen_verb_diff.txt").write_text("".join(f"{hoi}, {partner}\n{words}\n" for hoi in unseen))
    write_json(root / "data/captions.json", {"annotations": [{"caption": f"person {i} on a bench"} for i in range(20)]})
    unpack_clip(root / "weights/clip")
    write_detr(root / "weights/detr", COCO_CLASSES)
    return root


def write_detr(folder, names):
    torch.manual_seed(0)
    DetrForObjectDetection(tiny_config(names, queries=5)).save_pretrained(folder)
    size = {"shortest_edge": 64, "longest_edge": 96}
    write_json(folder / "preprocessor_config.json", {"size": size, "resample": 3})


@pytest.fixture
def place(tree, tmp_path):
    """A copy of the data that a test may damage."""
    shutil.copytree(tree / "data", tmp_path / "data")
    return tmp_path


def examine(tree, place, *overrides, run=None, recompute=()):
    data = place / "data"
    settings = [
        f"data.root={data}", f"data.descriptions={data}/hico_HOI_descrip.txt",
        f"data.differences={data}/unseen_verb_diff.txt", f"text_bank.captions={data}/captions.json",
        f"clip.source=local-dir:{tree}/weights/clip", f"detector.source={tree}/weights/detr",
        *SETTINGS, *overrides,
    ]  # fmt: skip
    return doctor.examine(load_config(None, settings), run or place / "run", recompute=recompute)


def stops(report):
    return [each.name for each in report.findings if each.state == STOP]


def only(report, name):
    """The one stop of a report."""
    assert stops(report) == [name], report.text()
    assert not report.ready
    (found,) = [each for each in report.findings if each.state == STOP]
    return found


def test_a_complete_tree_is_ready(tree, place):
    report = examine(tree, place)
    assert report.ready and stops(report) == [], report.text()
    found = {each.name: each for each in report.findings}
    assert found["annotations, train"].state == NOTE  # 6 images are not the published 38,118
    assert "6 images (1 without a pair), 5 rows, 600 classes" in found["annotations, train"].found
    assert "38,118 images (485 without a pair), 117,871 rows" in found["annotations, train"].expected
    assert "all 4 files there" in found["photographs, test"].found
    assert "84 of 600 classes unseen" in found["zero-shot split"].found
    assert "600 entries" in found["descriptions"].found and "84 entries" in found["differences"].found
    assert "20 distinct" in found["captions"].found
    assert found["CLIP"].state == found["detector"].state == OK
    assert not (place / "run").exists()  # looking leaves nothing behind


# ---------------------------------------------------------------- data


def no_annotations(data):
    (data / "instances_train2015.json").unlink()


def cut_annotations(data):
    file = data / "instances_test2015.json"
    file.write_text(file.read_text()[:-40])


def foreign_box(data):
    file = data / "instances_test2015.json"
    content = json.loads(file.read_text())
    content["annotation"][1]["boxes_h"][0] = [1, 1, 65, 48]
    file.write_text(json.dumps(content))


def no_photograph(data):
    (data / "hico_20160224_det/images/test2015/HICO_test2015_00000002.jpg").unlink()


def no_folder(data):
    shutil.rmtree(data / "hico_20160224_det/images/train2015")


def cut_photograph(data):
    file = data / "hico_20160224_det/images/train2015/HICO_train2015_00000001.jpg"
    file.write_bytes(file.read_bytes()[:200])


def resized_photograph(data):
    file = data / "hico_20160224_det/images/train2015/HICO_train2015_00000003.jpg"
    Image.open(file).resize((32, 24)).save(file)


def no_descriptions(data):
    (data / "hico_HOI_descrip.txt").unlink()


def short_descriptions(data):
    file = data / "hico_HOI_descrip.txt"
    file.write_text("\n".join(file.read_text().split("\n")[:-4]))


def other_differences(data):
    file = data / "unseen_verb_diff.txt"
    file.write_text(file.read_text().replace(f"{unseen_hois('unseen_verb')[0]}, ", "1, ", 1))


def no_captions(data):
    (data / "captions.json").unlink()


DEFECTS = {
    no_annotations: ("annotations, train", ["instances_train2015.json", "38,118 images", "comes from"]),
    cut_annotations: ("annotations, test", ["instances_test2015.json", "mend"]),
    foreign_box: ("annotations, test", ["HICO_test2015_00000002.jpg", "65"]),
    no_photograph: ("photographs, test", ["1 of 4 files", "HICO_test2015_00000002.jpg", "hico_20160224_det.tar.gz"]),
    no_folder: ("photographs, train", ["6 of 6 files", "hico_20160224_det.tar.gz"]),
    cut_photograph: ("photographs, train", ["HICO_train2015_00000001.jpg", "200 bytes"]),
    resized_photograph: ("photographs, train", ["32 x 24", "64 x 48"]),
    no_descriptions: ("descriptions", ["hico_HOI_descrip.txt", "ChelsieLei/EZ-HOI"]),
    short_descriptions: ("descriptions", ["599", "600"]),
    other_differences: ("differences", ["class 1 ("]),
    no_captions: ("captions", ["captions.json", "cocodataset.org"]),
}


@pytest.mark.parametrize("damage", DEFECTS, ids=lambda damage: damage.__name__)
def test_a_defect_of_the_data_is_its_own_line(tree, place, damage):
    damage(place / "data")
    name, named = DEFECTS[damage]
    only(report := examine(tree, place), name)
    text = " ".join(report.text(width=400).split())
    assert all(part in text for part in named), text


SETTINGS_AT_FAULT = {
    "zero-shot split": ["data.zero_shot=unseen_verbs"],
    "data.kind": ["data.kind=hicodet"],
    "device": ["device=cuda:63"],
    "memory, extraction": ["clip.batch_size=9000000"],
    "memory, training": ["ezhoi.batch_size=9000000"],
    "memory, recognition": ["defr.batch_size=90000000"],
    "image labels": ["defr.labels=anno.mat"],
    "DEFR, text model": ["defr.text_model=weights/no-bert"],
}


@pytest.mark.parametrize("name", SETTINGS_AT_FAULT)
def test_a_setting_at_fault_is_its_own_line(tree, place, name):
    found = only(examine(tree, place, *SETTINGS_AT_FAULT[name]), name)
    assert found.mend or name == "zero-shot split"


# ---------------------------------------------------------------- models


def test_a_clip_that_is_not_there_names_the_archive_and_the_command(tree, place):
    found = only(examine(tree, place, f"clip.source=local-dir:{place}/ViT-B-16"), "CLIP")
    assert "openai/CLIP, file ViT-B-16.pt" in found.origin
    assert found.mend.endswith(f"python -m lib.clip.released ViT-B-16.pt {place}/ViT-B-16")


def test_an_archive_with_another_hash_is_refused(tree, place):
    (place / "ViT-B-16.pt").write_bytes(b"not the published one")
    found = only(examine(tree, place, f"clip.source=local-dir:{place}/ViT-B-16"), "CLIP, archive")
    assert "5806e77cd80f" in found.expected and "download it again" in found.mend


def test_dimensions_are_those_of_the_name(tree, place):
    shutil.copytree(tree / "weights/clip", place / "ViT-B-16")
    config = json.loads((place / "ViT-B-16/open_clip_config.json").read_text())
    write_json(place / "ViT-B-16/open_clip_config.json", config | {"name": "ViT-B-16"})
    found = only(examine(tree, place, f"clip.source=local-dir:{place}/ViT-B-16"), "CLIP")
    assert "embed_dim 128" in found.found and "embed_dim 512" in found.expected


def test_an_empty_source_is_refused_where_no_notebook_makes_the_tiny_models(tree, place):
    assert stops(examine(tree, place, "clip.source=''", "detector.source=''")) == ["CLIP", "detector"]


def test_a_detector_of_other_classes(tree, place):
    write_detr(place / "detr91", [f"LABEL_{number}" for number in range(91)])
    found = only(examine(tree, place, f"detector.source={place}/detr91"), "detector")
    assert "91 classes" in found.found and "lib.detection.released" in found.mend


def test_a_detector_that_knows_fewer_objects_is_a_note(tree, place):
    write_detr(place / "detr3", ["person", "bicycle", "dog"])
    report = examine(tree, place, f"detector.source={place}/detr3")
    (found,) = [each for each in report.findings if each.name == "detector"]
    assert report.ready and found.state == NOTE and "77 annotated objects" in found.found


def test_a_checkpoint_that_is_cut_short(tree, place):
    (place / "detr-r50-hicodet.pth").write_bytes(b"x" * 1000)
    found = only(examine(tree, place, f"detector.source={place}/detr-r50-hicodet"), "detector, checkpoint")
    assert "166 MB" in found.expected and "fredzzhang/upt" in found.origin


def test_boxes_of_other_sources(tree, place):
    report = examine(tree, place, "detector.source=oracle")
    assert report.ready and "upper bound" in report.text()
    for split, count in IMAGES.items():
        (place / f"boxes_{split}").mkdir()
        for number in range(1, count + 1):
            (place / f"boxes_{split}" / f"HICO_{split}2015_{number:08}.json").write_text("{}")
    assert examine(tree, place, f"detector.source='json:{place}/boxes_{{split}}'").ready
    (place / "boxes_test" / "HICO_test2015_00000003.json").unlink()
    only(examine(tree, place, f"detector.source='json:{place}/boxes_{{split}}'"), "detections, test")


def test_stores_made_elsewhere(tree, place):
    missing = examine(tree, place, f"features.source={place}/stores")
    assert stops(missing) == ["features, train", "features, test"]
    cfg = load_config(None, [f"data.root={place}/data", f"clip.source=local-dir:{tree}/weights/clip", *SETTINGS])
    run = Run(place / "elsewhere", cfg)
    for split in IMAGES:
        inputs.features(cfg, run, split)
    report = examine(tree, place, f"features.source={place}/elsewhere/features")
    assert report.ready and "6 images of tiny-clip" in report.text(width=400)


def test_weights_to_start_from(tree, place):
    (place / "ckpt.pt").write_bytes(b"x")
    assert "released import" in only(examine(tree, place, f"ezhoi.init_from={place}/ckpt.pt"), "EZ-HOI weights").mend
    clip = {"id": "ViT-B-16-5806e77c", "weights_sha256": "5806", "embed_dim": 512, "grid": 14}
    write_json(place / "weights/model.json", {"clip": clip, "rows": [1, 2], "settings": {}})
    found = only(examine(tree, place, f"ezhoi.init_from={place}/weights"), "EZ-HOI weights")
    assert "ViT-B-16-5806e77c (D = 512)" in found.found and "tiny-clip" in found.expected


def test_a_bridge_of_another_text(tree, place):
    clip = load_clip(f"local-dir:{tree}/weights/clip")
    bank = caption_bank(clip, ["a person on a bench", "a dog", "a person with a kite"])
    closed_form_bridge(bank, BridgeSettings()).save(place / "bridge")
    assert examine(tree, place, f"ezhoi.bridge={place}/bridge").ready
    live = (f"ezhoi.bridge={place}/bridge", "ezhoi.preset=prefix")
    assert "adaptation" in only(examine(tree, place, *live), "bridge in training").found
    allowed = examine(tree, place, *live, "bridge.allow_text_space_mismatch=true")
    assert allowed.ready and allowed.counts[NOTE] > examine(tree, place).counts[NOTE]


# ---------------------------------------------------------------- machine and run folder


def test_a_full_disk(tree, place, monkeypatch):
    real = shutil.disk_usage(place)
    monkeypatch.setattr(doctor_machine.shutil, "disk_usage", lambda _: real._replace(free=1000))
    assert "still to write, of 1 MB free" in only(examine(tree, place), "disk").found


def test_a_package_that_is_missing(tree, place, monkeypatch):
    real = doctor_machine.metadata.version
    monkeypatch.setattr(doctor_machine.metadata, "version", lambda name: "0.1" if name == "safetensors" else real(name))
    assert "safetensors 0.1 (wanted >=" in only(examine(tree, place), "packages").found


def test_a_run_folder_that_cannot_be_written(tree, place):
    (place / "file").write_text("in the way")
    only(examine(tree, place, run=place / "file" / "run"), "run folder")


def test_what_an_earlier_run_left(tree, place):
    report = examine(tree, place)
    overrides = [f"data.root={place}/data", f"clip.source=local-dir:{tree}/weights/clip",
                 f"detector.source={tree}/weights/detr", *SETTINGS]  # fmt: skip
    cfg = load_config(None, overrides)
    run = Run(place / "run", cfg)
    inputs.features(cfg, run, "test")
    before = {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()}
    again = examine(tree, place)
    assert again.ready and "1 made with these settings will be reused" in again.text()
    replaced = examine(tree, place, "data.test_limit=3", recompute=["features/test"])
    assert replaced.ready and "asked to be made again: features/test" in replaced.text(width=400)
    found = only(examine(tree, place, "data.test_limit=3"), "earlier artefacts")
    assert "features/test was made otherwise: images: on disk 4, asked for 3" in found.found
    assert before == {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()}
    assert len(again.findings) == len(report.findings) + 1


def test_features_take_what_the_formula_says(tree, place):
    cfg = load_config(None, [f"data.root={place}/data", f"clip.source=local-dir:{tree}/weights/clip", *SETTINGS])
    run = Run(place / "run", cfg)
    folder = inputs.features(cfg, run, "test").path
    stored = sum(np.load(path).nbytes for path in folder.glob("*.npy"))
    sizes = doctor_costs.Sizes(6, 4, 600, 80, 117, 100, 6, 100)
    assert doctor_costs.disk(cfg, inputs.clip_model(cfg, run).spec, sizes)["features/test"] == stored


# ---------------------------------------------------------------- the report and the command


def test_the_report_in_words():
    lines = (
        Finding("one", OK, "here", part="data"),
        Finding("two", NOTE, "so so", "better", "", "do this", part="data"),
        Finding("three", STOP, "<nothing>", "something", "a page", "make it", ("03", "04", "06"), "models"),
    )
    report = Report("x.yaml -> runs/x", lines)
    assert report.verdict.startswith("not ready: 1 thing to mend before notebooks 03-04, 06, 1 check passed, 1 note")
    text = report.text()
    assert "✗ stop  three" in text and "comes from a page" in text and "\x1b" not in text
    assert "\x1b[1;31m✗ stop" in report.text(colour=True)
    html = report._repr_html_()
    assert "&lt;nothing&gt;" in html and "stop" in html and "note" in html
    assert report.limited(["01", "02"]).ready and len(report.limited(["01", "02"]).findings) == 2
    assert max(map(len, Report("t", (Finding("n", OK, "word " * 60),)).text(width=80).split("\n"))) <= 80


def test_the_command(tmp_path, capsys):
    run = str(tmp_path / "run")
    assert doctor.main(["configs/tiny.yaml", "--run", run, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ready"] and told["counts"][STOP] == 0
    assert doctor.main(["configs/hico_det_vitl14_336_default.yaml", "--run", run, "device=cpu"]) == 1
    text = capsys.readouterr().out
    assert "ViT-L-14-336px.pt" in text and text.rstrip().split("\n")[-1].startswith("not ready")
    assert doctor.main(["configs/tiny.yaml", "dataa.root=x"]) == 2
    assert not (tmp_path / "run").exists()
