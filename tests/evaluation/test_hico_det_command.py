"""`python -m lib.evaluation.hico_det` on the complete HICO-DET test annotation against a slow literal reference."""

import gzip
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lib.data.hico_classes import FACTS
from lib.evaluation.hico_annotation import read_annotation
from lib.evaluation.hico_det import PROTOCOLS, hico_det_ap, precision_recall
from lib.evaluation.hico_det_command import main
from lib.evaluation.prediction_table import LONG_NAMES, read_predictions

SHARED = Path(__file__).parents[3] / "shared"
REAL = SHARED / "data/real/instances_test2015.json.gz"
SMALL = SHARED / "data/real/instances_test2015_200.json"
KNOWN = SHARED / "facts/hico_test_known_object.json"
BOXES = [f"{who}_{side}" for who in "ho" for side in ("x1", "y1", "x2", "y2")]
needs_real = pytest.mark.skipif(not REAL.is_file(), reason="shared/data/real (HICO-DET test annotation) is not here")


@pytest.fixture(scope="module")
def annotation():
    return read_annotation(REAL)


@pytest.fixture(scope="module")
def detections(annotation):
    """62,161 rows: jittered ground truth, of which some change class or image; long column names."""
    rng = np.random.default_rng(5)
    truth, n = annotation.truth, 62_161
    source = rng.integers(0, len(truth["hoi"]), n)
    boxes = np.concatenate((truth["boxes_h"], truth["boxes_o"]), 1)[source]
    sides = np.tile(boxes[:, [2, 3, 6, 7]] - boxes[:, [0, 1, 4, 5]], 2)[:, [0, 1, 0, 1, 2, 3, 2, 3]]
    boxes += rng.normal(0, 0.1, boxes.shape) * sides
    kind = rng.random(n)
    hoi = np.where(kind < 0.3, rng.integers(0, 600, n), truth["hoi"][source])
    image = np.where(kind > 0.95, rng.integers(0, annotation.num_images, n), truth["image"][source])
    score = rng.permutation(n).astype(np.float32) / n + 0.3 * (kind >= 0.3)  # no two equal within a class, nearly
    return pd.DataFrame(boxes.astype(np.float32), columns=BOXES).assign(image_id=image, hoi_id=hoi, score=score)


def overlap(a, b):
    def iou(p, q):
        w, h = min(p[2], q[2]) - max(p[0], q[0]), min(p[3], q[3]) - max(p[1], q[1])
        shared = max(w, 0) * max(h, 0)
        return shared / ((p[2] - p[0]) * (p[3] - p[1]) + (q[2] - q[0]) * (q[3] - q[1]) - shared)

    return min(iou(a[:4], b[:4]), iou(a[4:], b[4:]))


@pytest.fixture(scope="module")
def compared(detections):
    """Straight from the file: per class rows (score, image, best overlap, its pair), number of pairs, empty images."""
    content = json.loads(gzip.decompress(REAL.read_bytes()))
    pairs, total = defaultdict(list), np.zeros(600, int)
    for image, rows in enumerate(content["annotation"]):
        for human, thing, hoi in zip(rows["boxes_h"], rows["boxes_o"], rows["hoi"], strict=True):
            corner = [(x1 - 1, y1 - 1, x2, y2) for x1, y1, x2, y2 in (human, thing)]
            pairs[image, hoi].append((*corner[0], *corner[1]))
            total[hoi] += 1
    ranked = defaultdict(list)
    for *box, image, hoi, score in detections[[*BOXES, "image_id", "hoi_id", "score"]].itertuples(index=False):
        m, g = max(((overlap(box, pair), -g) for g, pair in enumerate(pairs[image, hoi])), default=(0, 0))
        ranked[hoi].append((score, image, m, g))
    return ranked, total, set(content["empty"])


def literal_ap(compared, *, strict=True, skip_empty=True, grid=None, area=False, known=None):
    """Detection by detection (spec §5.1, §5.2, §5.6); no code of the library."""
    ranked, total, empty = compared
    aps = []
    for hoi in range(600):
        taken, labels = set(), []
        for _, image, m, g in sorted(ranked[hoi], key=lambda entry: -entry[0]):
            if (skip_empty and image in empty) or (known is not None and image not in known[FACTS["hoi_object"][hoi]]):
                continue
            labels.append((m > 0.5 if strict else m >= 0.5) and (image, g) not in taken)
            if labels[-1]:
                taken.add((image, g))
        hits = np.cumsum(labels)
        precision, recall = hits / np.arange(1, len(labels) + 1), hits / total[hoi]
        if area:
            aps.append(sum(precision[k:].max() / total[hoi] for k in np.flatnonzero(labels)))
        else:
            aps.append(sum(max(precision[recall >= t], default=0) for t in grid) / 11)
    return np.array(aps)


MATLAB = [0.0, 0.1, 0.2, 0.30000000000000004, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


@needs_real
@pytest.mark.parametrize(
    ("arguments", "literal"),
    [
        ([], {"grid": MATLAB}),
        (["--protocol", "official"], {"grid": MATLAB, "strict": False, "skip_empty": False}),
        (["--protocol", "arange"], {"grid": np.arange(0, 1.1, 0.1)}),
        (["--protocol", "all-point"], {"area": True}),
        (["--known-object", str(KNOWN)], {"grid": MATLAB, "known": KNOWN}),
    ],
)
def test_class_aps_equal_the_literal_rule(tmp_path, detections, compared, arguments, literal, capsys):
    detections.to_parquet(tmp_path / "detections.parquet")
    out = tmp_path / "ap.json"
    assert main([str(tmp_path / "detections.parquet"), "--annotations", str(REAL), "--json", str(out), *arguments]) == 0
    assert "rare" in capsys.readouterr().out
    if "known" in literal:
        listed = json.loads(KNOWN.read_text())["images_of_object"]
        literal = literal | {"known": {int(thing): set(images) for thing, images in listed.items()}}
    scores = json.loads(out.read_text())
    expected = literal_ap(compared, **literal)
    np.testing.assert_allclose(scores["ap"], expected, rtol=0, atol=1e-9)
    rare = np.isin(np.arange(600), FACTS["rare"])
    assert scores["mAP_full"] == pytest.approx(expected.mean(), abs=1e-9)
    assert scores["mAP_rare"] == pytest.approx(expected[rare].mean(), abs=1e-9)
    assert scores["mAP_non_rare"] == pytest.approx(expected[~rare].mean(), abs=1e-9)
    assert scores["mAP_unseen"] is None and 0.2 < scores["mAP_full"] < 0.8
    assert scores["num_classes"] == {"full": 600, "unseen": 0, "seen": 0, "rare": 138, "non_rare": 462}


@needs_real
def test_both_namings_and_zero_shot(tmp_path, detections, capsys):
    long, ours = tmp_path / "long.parquet", tmp_path / "ours.parquet"
    detections.to_parquet(long)
    detections.rename(columns=LONG_NAMES).to_parquet(ours)
    pd.testing.assert_frame_equal(read_predictions(long), read_predictions(ours))
    assert LONG_NAMES["h_x1"] == "x1h" and LONG_NAMES["o_y2"] == "y2o"
    out = tmp_path / "ap.json"
    table = tmp_path / "classes.csv"
    extra = ["--zero-shot", "unseen_verb", "--json", str(out), "--per-class", str(table)]
    assert main([str(ours), "--annotations", str(REAL), *extra]) == 0
    scores = json.loads(out.read_text())
    assert scores["num_classes"]["unseen"] == 84 and scores["num_classes"]["seen"] == 516
    assert (84 * scores["mAP_unseen"] + 516 * scores["mAP_seen"]) / 600 == pytest.approx(scores["mAP_full"])
    assert "unseen" in capsys.readouterr().out
    classes = pd.read_csv(table)
    assert len(classes) == 600 and (~classes["seen"]).sum() == 84 and classes["name"][0] == "board airplane"
    np.testing.assert_allclose(classes["ap"] / 100, scores["ap"])


@needs_real
def test_classes_without_ground_truth_are_null(tmp_path, detections):
    detections = detections.assign(image_id=detections["image_id"] % 200)
    detections.to_parquet(tmp_path / "d.parquet")
    out = tmp_path / "ap.json"
    assert main([str(tmp_path / "d.parquet"), "--annotations", str(SMALL), "--json", str(out)]) == 0
    scores = json.loads(out.read_text())
    assert sum(value is None for value in scores["ap"]) == 600 - 471
    assert scores["num_classes"]["full"] == 471
    assert scores["mAP_full"] == pytest.approx(np.mean([value for value in scores["ap"] if value is not None]))


@needs_real
def test_alphabetical_object_order_is_recognised(tmp_path, annotation):
    content = json.loads(SMALL.read_text())
    order = sorted(range(80), key=lambda thing: content["objects"][thing])
    place = {thing: index for index, thing in enumerate(order)}
    content["objects"] = [content["objects"][thing] for thing in order]
    content["correspondence"] = [[hoi, place[thing], verb] for hoi, thing, verb in content["correspondence"]]
    path = tmp_path / "alphabetical.json"
    path.write_text(json.dumps(content))
    turned = read_annotation(path)
    assert turned.objects[0] == "airplane" and turned.coco_object.tolist() == FACTS["hoi_object"]
    known = tmp_path / "known.json"
    known.write_text(json.dumps({"0": [3], "airplane": [5, 7]}))  # COCO id of person; a name
    allowed = turned.known_object(known)
    assert np.flatnonzero(allowed.any(1)).tolist() == [*range(10), *range(160, 170)]
    assert np.flatnonzero(allowed[0]).tolist() == [5, 7] and np.flatnonzero(allowed[160]).tolist() == [3]


def test_protocols_differ_where_they_should():
    """One pair; its detection overlaps by exactly one half on the human and has an inclusive end."""
    truth = {"image": np.array([0]), "hoi": np.array([0])}
    truth |= {key: np.array([[0.0, 0, 10, 10]]) for key in ("boxes_h", "boxes_o")}
    half = pd.DataFrame([[0, 0, 10, 5, 0, 0, 10, 10]], columns=list(LONG_NAMES)[2:]).rename(columns=LONG_NAMES)
    half = half.assign(image=0, hoi=0, score=0.5)
    values = {name: hico_det_ap(half, truth, 1, protocol=name).ap[0] for name in PROTOCOLS}
    assert values == {"pocket": 0, "official": 1, "all-point": 0, "arange": 0, "qpic": 1}
    pixel = half.assign(y2h=4.4)  # 10 x 4.4; one pixel more: 11 x 5.4 against 100 in common 54, union 105.4
    assert hico_det_ap(pixel, truth, 1, protocol="official").ap[0] == 0
    assert hico_det_ap(pixel, truth, 1, protocol="qpic").ap[0] == 1
    with pytest.raises(ValueError, match="protocol 'voc'"):
        hico_det_ap(half, truth, 1, protocol="voc")


def test_precision_recall_curve():
    truth = {"image": np.array([0, 1]), "hoi": np.array([0, 0])}
    truth |= {key: np.array([[0.0, 0, 10, 10]] * 2) for key in ("boxes_h", "boxes_o")}
    box = [0, 0, 10, 10] * 2
    table = pd.DataFrame([box, [20, 20, 30, 30] * 2, box], columns=[LONG_NAMES[name] for name in BOXES])
    table = table.assign(image=[0, 0, 1], hoi=0, score=[0.2, 0.9, 0.8])
    curve = precision_recall(table, hico_det_ap(table, truth, 1), 0)
    assert curve["score"].tolist() == [0.9, 0.8, 0.2]
    assert curve["recall"].tolist() == [0, 0.5, 1] and curve["precision"].tolist() == [0, 0.5, 2 / 3]


@pytest.fixture
def tiny(tmp_path):
    """One image, one pair of one class, and a detection of it."""
    content = {
        "annotation": [{"boxes_h": [[1, 1, 10, 10]], "boxes_o": [[1, 1, 10, 10]], "hoi": [0]}],
        "filenames": ["a.jpg"], "objects": ["ball"], "verbs": ["hold"], "correspondence": [[0, 0, 0]], "empty": [],
    }  # fmt: skip
    table = pd.DataFrame([[0.0, 0, 10, 10] * 2], columns=BOXES).assign(image_id=0, hoi_id=0, score=0.5)
    return tmp_path, content, table


def run(folder, content, table, *extra):
    (folder / "a.json").write_text(content if isinstance(content, str) else json.dumps(content))
    table.to_parquet(folder / "p.parquet")
    return main([str(folder / "p.parquet"), "--annotations", str(folder / "a.json"), *extra])


def test_a_data_set_of_ones_own(tiny, capsys):
    assert run(*tiny) == 0
    out = capsys.readouterr().out
    assert "full       100.00" in out and "  rare" not in out
    (tiny[0] / "rare.json").write_text("[0]")
    assert run(*tiny, "--rare", str(tiny[0] / "rare.json"), "--cap", "1", "--empty-images", "count") == 0
    assert "  rare       100.00" in capsys.readouterr().out
    listed = tiny[1] | {"rare": []}
    assert run(tiny[0], listed, tiny[2]) == 0
    assert "non_rare   100.00" in capsys.readouterr().out
    (tiny[0] / "train.json").write_text(json.dumps(tiny[1]))  # one training row: rare
    assert run(*tiny, "--rare", str(tiny[0] / "train.json")) == 0
    assert "  rare       100.00" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, t: (c, t.assign(image_id=4)), "images 0..4, expected 0..0"),
        (lambda c, t: (c, t.assign(hoi_id=1)), "another vocabulary"),
        (lambda c, t: (c, t.assign(score=np.nan)), "score of row 0 is nan"),
        (lambda c, t: (c, t.drop(columns="o_x1")), r"['x1o'] are missing"),
        (lambda c, t: (json.dumps(c)[:50], t), "broken JSON"),
        (lambda c, t: ({**c, "annotation": []}, t), "lists of unequal length {'annotation': 0, 'filenames': 1}"),
        (lambda c, t: ({k: v for k, v in c.items() if k != "verbs"}, t), "no key ['verbs']"),
        (lambda c, t: ({**c, "annotation": [c["annotation"][0] | {"hoi": []}]}, t), "'hoi': 0"),
        (lambda c, t: ({**c, "annotation": [c["annotation"][0] | {"hoi": [3]}]}, t), "hoi ids 3..3"),
    ],
)
def test_what_is_wrong_is_said(tiny, capsys, change, message):
    folder, content, table = tiny
    assert run(folder, *change(content, table)) == 1
    assert message in capsys.readouterr().err


def test_damaged_and_missing_files(tiny, capsys):
    folder, content, table = tiny
    assert run(*tiny, "--zero-shot", "unseen_noun") == 1
    assert "expected one of ['default', 'non_rare_first'" in capsys.readouterr().err
    run(folder, content, table)
    capsys.readouterr()
    (folder / "p.parquet").write_bytes(b"not parquet")
    assert main([str(folder / "p.parquet"), "--annotations", str(folder / "a.json")]) == 1
    assert "not a readable parquet" in capsys.readouterr().err
    assert main([str(folder / "absent.parquet"), "--annotations", str(folder / "a.json")]) == 1
    assert "found no file" in capsys.readouterr().err
    (folder / "known.json").write_text(json.dumps({"0": [0, 12]}))
    assert run(*tiny, "--known-object", str(folder / "known.json")) == 1
    assert "indices below its 1 images" in capsys.readouterr().err
