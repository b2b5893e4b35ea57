"""V-COCO role and agent AP: hand-made cases, a slow literal reference, both annotation styles."""

import gzip
import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lib.evaluation.foreign import role_table
from lib.evaluation.vcoco import main, report, vcoco_ap
from lib.evaluation.vcoco_annotation import ACTION_OF_ROLE, ACTIONS, ROLES, RoleTruth, read_truth
from lib.evaluation.vcoco_records import from_records, merged, read_role_predictions, write_records

SHARED = Path(__file__).parents[3] / "shared"
SEVEN = SHARED / "data/eval/vcoco_seven_gt.json.gz"
VAL600 = SHARED / "data/eval/vcoco_val600_gt.json.gz"
REAL = SHARED / "data/real"
needs_data = pytest.mark.skipif(not VAL600.is_file(), reason="shared/data/eval (V-COCO ground truth) is not here")

NAN = float("nan")
SILENT = [NAN] * 5
PERSON, OTHER, FAR = [0, 0, 99, 99], [200, 0, 299, 99], [500, 500, 520, 520]
THING = [50, 50, 149, 149]
HOLD, HIT = list(ACTIONS).index("hold"), list(ACTIONS).index("hit")


def truth_of(*people):
    """One image, id 1; a person is (box, annotated, {action: {role: box}})."""
    label = np.zeros((len(people), 26), bool)
    boxes = np.full((len(people), 25, 4), NAN)
    for p, (_, _, actions) in enumerate(people):
        for action, roles in actions.items():
            label[p, list(ACTIONS).index(action)] = True
            for role, box in roles.items():
                boxes[p, ROLES.index(f"{action}_{role}")] = box
    person_boxes = np.array([person[0] for person in people], float)
    annotated = np.array([person[1] for person in people])
    return RoleTruth(np.array([1]), np.array([0]), np.array([len(people)]), person_boxes, annotated, label, boxes)


def record(person=PERSON, image=1, **stated):
    silent = {role: SILENT for role in ROLES} | {f"{action}_agent": NAN for action in ACTIONS}
    return silent | {"image_id": image, "person_box": person} | stated


def aps(truth, *records):
    return report(vcoco_ap(from_records(list(records), "test"), truth))


@pytest.mark.parametrize(
    ("box", "s1", "s2"),
    [
        ([0, 0, 0, 0], 1, 1),
        ([NAN] * 4, 1, 1),
        ([0, 0, 0.1, 0.1], 0, 1),
        (THING, 0, 1),
        ([0, 0, NAN, NAN], 0, 1),
    ],
)
def test_role_without_a_box(box, s1, s2):
    scores = aps(truth_of((PERSON, True, {"hold": {}})), record(hold_obj=[*box, 0.5]))
    assert (scores["role_s1"]["hold_obj"], scores["role_s2"]["hold_obj"]) == (s1, s2)


def test_role_with_a_box_needs_it_in_both_scenarios():
    truth = truth_of((PERSON, True, {"hold": {"obj": THING}}))
    for box, expected in ((THING, 1), ([0, 0, 0, 0], 0), ([NAN] * 4, 0), (FAR, 0)):
        scores = aps(truth, record(hold_obj=[*box, 0.5]))
        assert scores["role_s1"]["hold_obj"] == scores["role_s2"]["hold_obj"] == expected


def test_overlap_counts_pixels_and_one_half_is_enough():
    truth = truth_of((PERSON, True, {"hold": {"obj": [0, 0, 9, 9]}}))  # 10 x 10 pixels
    half = aps(truth, record(hold_obj=[0, 0, 9, 4, 0.5]))
    less = aps(truth, record(hold_obj=[0, 0, 9, 3.99, 0.5]))
    assert half["role_s1"]["hold_obj"] == 1 and less["role_s1"]["hold_obj"] == 0


def test_records_of_unlabelled_people_vanish():
    truth = truth_of((OTHER, False, {}), (PERSON, True, {"hold": {"obj": THING}}))
    on_other = record(OTHER, hold_obj=[*THING, 0.9], hold_agent=0.9)
    nowhere = record(FAR, hold_obj=[*THING, 0.8], hold_agent=0.8)  # overlaps nobody: goes to the first person
    right = record(hold_obj=[*THING, 0.5], hold_agent=0.5)
    scores = aps(truth, on_other, nowhere, right)
    assert scores["role_s1"]["hold_obj"] == 1 and scores["agent"]["hold"] == 1
    swapped = truth_of((PERSON, True, {"hold": {"obj": THING}}), (OTHER, False, {}))
    assert aps(swapped, nowhere, right)["role_s1"]["hold_obj"] == 0.5
    elsewhere = record(image=2, hold_obj=[*THING, 0.9])
    assert aps(truth, elsewhere, right)["role_s1"]["hold_obj"] == 1


def test_duplicates_are_false_positives_and_the_better_score_wins():
    truth = truth_of((PERSON, True, {"hold": {"obj": THING}}), (OTHER, True, {"hold": {"obj": THING}}))
    first, again = record(hold_obj=[*THING, 0.9]), record(hold_obj=[*THING, 0.8])
    other = record(OTHER, hold_obj=[*THING, 0.7])
    # labels 1 0 1 of 2: area = 1/2 + 1/2 * 2/3
    assert aps(truth, other, again, first)["role_s1"]["hold_obj"] == pytest.approx(0.5 + 1 / 3, abs=1e-12)
    # a wrong box of better score does not take the person
    missed = record(hold_obj=[*FAR, 0.95])
    assert aps(truth, missed, first)["role_s1"]["hold_obj"] == pytest.approx(0.5 * 0.5, abs=1e-12)


def test_two_roles_of_an_action_share_the_positives():
    truth = truth_of((PERSON, True, {"hit": {"instr": THING}}), (OTHER, True, {"hit": {"obj": THING}}))
    scores = aps(truth, record(hit_instr=[*THING, 0.5]), record(OTHER, hit_instr=[0, 0, 0, 0, 0.4]))
    assert scores["num_positives"]["hit"] == 2
    assert scores["role_s1"]["hit_instr"] == 1 and scores["role_s1"]["hit_obj"] == 0
    assert scores["role_s1"]["hold_obj"] is None and scores["agent"]["hit"] is None  # no positive; nothing stated


def test_means_leave_out_point_and_what_has_no_positive():
    truth = truth_of((PERSON, True, {"hold": {"obj": THING}, "point": {"instr": THING}, "sit": {}}))
    scores = aps(truth, record(hold_obj=[*THING, 0.5], sit_agent=0.5))
    assert scores["mAP_role_s1_24"] == pytest.approx(1 / 2) and scores["mAP_role_s1_25"] == pytest.approx(1 / 3)
    assert scores["mAP_agent"] == pytest.approx(1 / 3)


# ---------------------------------------------------------------- literal reference


def literal(content, records):
    """§5.7 step by step over the s-gupta file; returns role_s1, role_s2, agent."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["coco"]["images"]}
    boxes, people = {}, {}
    for row in content["coco"]["annotations"]:
        width, height = sizes[row["image_id"]]
        x, y, w, h = row["bbox"]
        x2, y2 = x + max(0, w - 1), y + max(0, h - 1)
        x, x2 = (min(max(value, 0), width - 1) for value in (x, x2))
        y, y2 = (min(max(value, 0), height - 1) for value in (y, y2))
        if row["area"] > 0 and x2 > x and y2 > y:
            boxes[row["id"]] = (x, y, x2, y2)
            if row["category_id"] == 1:
                people.setdefault(row["image_id"], []).append(row["id"])
    agents = set(content["vcoco"][0]["ann_id"])

    def iou(p, q):
        w, h = min(p[2], q[2]) - max(p[0], q[0]) + 1, min(p[3], q[3]) - max(p[1], q[1]) + 1
        shared = max(w, 0) * max(h, 0)
        area = sum((b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (p, q))
        return shared / (area - shared)

    def area_under(labels, positives):
        hits = np.cumsum(labels)
        recall = np.concatenate(([0], hits / positives, [1]))
        precision = np.concatenate(([0], hits / np.arange(1, len(labels) + 1), [0]))
        for k in range(len(precision) - 2, -1, -1):
            precision[k] = max(precision[k], precision[k + 1])
        return sum((recall[k + 1] - recall[k]) * precision[k + 1] for k in range(len(recall) - 1))

    def ap(action, role, scenario):
        name = action["action_name"]
        doing = {a for a, y in zip(action["ann_id"], action["label"], strict=True) if y and a in boxes}
        count = len(action["ann_id"])
        held = {}
        if role:
            start = action["role_name"].index(role) * count
            ids = action["role_object_id"][start : start + count]
            held = {a: boxes.get(o) for a, o in zip(action["ann_id"], ids, strict=True)}
        if not doing:
            return NAN
        ranked = []
        for entry in records:
            value = entry[f"{name}_{role}"] if role else [0, 0, 0, 0, entry[f"{name}_agent"]]
            if not np.isnan(value[4]):
                ranked.append((value[4], entry, value[:4]))
        covered, labels = set(), []
        for _, entry, box in sorted(ranked, key=lambda item: -item[0]):
            here = people.get(entry["image_id"], [])
            if not here:
                continue
            overlaps = [iou(boxes[a], entry["person_box"]) for a in here]
            v = max(overlaps)
            agent = here[overlaps.index(v)]
            if agent not in agents:
                continue
            if not role:
                u = 1
            elif held.get(agent) is None:
                u = 1 if scenario == 2 or all(x == 0 for x in box) or all(np.isnan(x) for x in box) else 0
            else:
                u = 0 if np.isnan(box).any() else iou(held[agent], box)
            labels.append(agent in doing and v >= 0.5 and u >= 0.5 and agent not in covered)
            if labels[-1]:
                covered.add(agent)
        return area_under(labels, len(doing))

    actions = {action["action_name"]: action for action in content["vcoco"]}
    s1, s2 = (
        {f"{name}_{role}": ap(actions[name], role, scenario) for name, roles in ACTIONS.items() for role in roles}
        for scenario in (1, 2)
    )
    return s1, s2, {name: ap(actions[name], None, 0) for name in ACTIONS}


def random_records(truth, count, seed):
    rng = np.random.default_rng(seed)
    image_of = np.repeat(truth.images, truth.count)
    records = []
    for person in rng.integers(0, len(truth.boxes), count):
        entry = {"image_id": int(image_of[person]), "person_box": (truth.boxes[person] + rng.normal(0, 9, 4)).tolist()}
        for action in ACTIONS:
            entry[f"{action}_agent"] = float(rng.random()) if rng.random() < 0.9 else NAN
        for r, role in enumerate(ROLES):
            kind, box = rng.random(), truth.role_boxes[person, r]
            if kind < 0.15:
                box = np.zeros(4)
            elif kind < 0.3:
                box = np.full(4, NAN)
            elif np.isnan(box[0]) or kind < 0.5:
                box = np.array([10, 10, 90, 90.0]) + rng.uniform(0, 200)
            else:
                box = box + rng.normal(0, 9, 4)
            score = NAN if rng.random() < 0.2 else rng.random() + (0.5 if truth.label[person, ACTION_OF_ROLE[r]] else 0)
            entry[role] = [*box.tolist(), score]
        records.append(entry)
    return records


@needs_data
@pytest.mark.parametrize("path", [SEVEN, VAL600], ids=["seven", "val600"])
def test_equals_the_literal_rule(tmp_path, path, capsys):
    truth = read_truth(path)
    records = random_records(truth, 1500, seed=3)
    pkl, out = tmp_path / "records.pkl", tmp_path / "ap.json"
    pkl.write_bytes(pickle.dumps(records, protocol=2))
    assert main([str(pkl), "--annotations", str(path), "--json", str(out)]) == 0
    assert "mean over 24" in capsys.readouterr().out
    scores = json.loads(out.read_text())
    s1, s2, agent = literal(json.loads(gzip.decompress(path.read_bytes())), records)
    for name, expected in (("role_s1", s1), ("role_s2", s2), ("agent", agent)):
        assert scores[name].keys() == expected.keys()
        found = [NAN if value is None else value for value in scores[name].values()]
        np.testing.assert_allclose(found, list(expected.values()), rtol=0, atol=1e-9, err_msg=name)
        assert np.nanmax(found) > 0.05
    means = [np.nanmean([v for k, v in s1.items() if k != "point_instr"]), np.nanmean(list(s1.values()))]
    assert [scores["mAP_role_s1_24"], scores["mAP_role_s1_25"]] == pytest.approx(means)


@needs_data
def test_instance_file_with_coco_boxes_is_the_same_truth():
    """Labels of the seven-image file were rebuilt from the pair list; only an agent without any pair is not in it."""
    original = read_truth(SEVEN)
    pairs = read_truth(REAL / "instances_vcoco_test_7.json", REAL / "instances_coco_7.json")
    for name in ("images", "first", "count", "boxes", "label", "role_boxes"):
        np.testing.assert_allclose(getattr(pairs, name), getattr(original, name), rtol=0, atol=1e-9, err_msg=name)
    assert (original.annotated.sum(), pairs.annotated.sum()) == (11, 10)
    alone = read_truth(REAL / "instances_vcoco_test_7.json")
    assert len(alone.boxes) == 10 and alone.annotated.all() and len(alone.hoi_roles) == 236
    np.testing.assert_array_equal(alone.num_positives, original.num_positives)
    predictions = from_records(random_records(original, 300, seed=1), "test")
    expected = vcoco_ap(predictions, replace(original, annotated=pairs.annotated))
    np.testing.assert_array_equal(vcoco_ap(predictions, pairs).role_s1, expected.role_s1)


@needs_data
def test_table_pickle_and_fillers(tmp_path):
    truth = read_truth(VAL600)
    predictions = from_records(random_records(truth, 200, seed=2), "test")
    expected = report(vcoco_ap(predictions, truth))
    role_table(predictions).to_parquet(tmp_path / "said.parquet")
    write_records(tmp_path / "nan.pkl", predictions)
    for name in ("said.parquet", "nan.pkl"):
        assert report(vcoco_ap(read_role_predictions(tmp_path / name, truth), truth)) == expected, name
    write_records(tmp_path / "upt.pkl", predictions, "upt")
    filled = pickle.loads((tmp_path / "upt.pkl").read_bytes())
    stated = predictions.roles["hold_obj"].record
    silent = next(i for i in range(200) if i not in stated)
    assert filled[silent]["hold_obj"] == [0, 0, 0.1, 0.1, 0]
    assert all(len(entry) == 2 + 25 + 26 for entry in filled)
    table = read_role_predictions(tmp_path / "said.parquet", truth)
    packed = merged(table)
    assert len(table.image) > 5000 and len(packed.image) == 200 and packed.num_statements == table.num_statements
    assert report(vcoco_ap(packed, truth)) == expected


def test_merged_records_keep_repeated_roles_apart():
    first, again = record(hold_obj=[*THING, 0.9], sit_agent=0.5), record(hold_obj=[*FAR, 0.8])
    other = record(OTHER, hold_obj=[*FAR, 0.1], sit_agent=0.2)
    packed = merged(from_records([first, record(sit_instr=[*FAR, 0.3]), again, other], "test"))
    assert packed.boxes.tolist() == [PERSON, OTHER, PERSON]
    assert packed.roles["hold_obj"].record.tolist() == [0, 2, 1]
    assert packed.roles["sit_instr"].record.tolist() == [0] and packed.agents["sit"].record.tolist() == [0, 1]


@needs_data
def test_table_of_hoi_predictions(tmp_path):
    """Rows of our own pipeline: image and HOI indices of the instance file."""
    path = REAL / "instances_vcoco_test_7.json"
    content, truth = json.loads(path.read_text()), read_truth(path)
    pairs = sorted((thing, c) for c, things in enumerate(content["action_to_object"]) for thing in things)
    rows = []
    for image, entry in enumerate(content["annotations"]):
        for h, o, action, thing in zip(
            entry["boxes_h"], entry["boxes_o"], entry["actions"], entry["objects"], strict=True
        ):
            rows.append((*h, *o, image, pairs.index((thing, action)), 1.0))
    names = [f"{side}{who}" for who in "ho" for side in ("x1", "y1", "x2", "y2")]
    table = pd.DataFrame(rows, columns=[*names, "image", "hoi", "score"])
    table.to_parquet(tmp_path / "p.parquet")
    result = vcoco_ap(read_role_predictions(tmp_path / "p.parquet", truth), truth)
    known = ~np.isnan(truth.role_boxes[:, :, 0]).all(0)
    assert known.sum() == 9 and (result.role_s1[known] == 1).all()
    with pytest.raises(ValueError, match="HOI ids need instances_vcoco"):
        read_role_predictions(tmp_path / "p.parquet", read_truth(SEVEN))


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil"),))


class CacheTemplate(dict):
    """Stands for the class of that name in UPT's `utils`, whatever module the pickle names."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"image_id": 1}], "lacks the key 'person_box'"),
        ({"image_id": 1}, "expected a list of dictionaries"),
        ([record() | {"hold_obj": [1, 2, 3]}], "hold_obj of record 0 is"),
        ([record([NAN] * 4)], "person box of record 0"),
        ([Evil()], "nothing of it was run"),
        (b"", "nothing of it was run"),
    ],
)
def test_bad_records_are_refused(tmp_path, monkeypatch, capsys, content, message):
    monkeypatch.chdir(tmp_path)
    Path("r.pkl").write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=2))
    truth = {"annotations": [], "images": [], "classes": [], "action_to_object": []}
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        read_role_predictions("r.pkl", truth_of((PERSON, True, {})))
    assert not Path("evil").exists()
    Path("a.json").write_text(json.dumps({key: truth[key] for key in ("annotations", "images")}))
    assert main(["r.pkl", "--annotations", "a.json"]) == 1
    assert "expected the list of 26 actions" in capsys.readouterr().err


def test_records_of_upts_class_take_its_fillers(tmp_path):
    entry = CacheTemplate(image_id=1, person_box=np.array(PERSON, np.float32), hold_obj=np.array([*THING, 0.5]))
    (tmp_path / "upt.pkl").write_bytes(pickle.dumps([entry], protocol=2))
    truth = truth_of((PERSON, True, {"hold": {"obj": THING}, "sit": {}}))
    scores = report(vcoco_ap(read_role_predictions(tmp_path / "upt.pkl", truth), truth))
    assert scores["role_s1"]["hold_obj"] == 1
    assert (scores["role_s1"]["sit_instr"], scores["role_s2"]["sit_instr"]) == (0, 1)  # the filler is not all zero
    assert scores["agent"]["sit"] == 1


def test_original_file_needs_coco_boxes(tmp_path):
    (tmp_path / "v.json").write_text("[]")
    with pytest.raises(ValueError, match="--coco instances_vcoco_all_2014.json"):
        read_truth(tmp_path / "v.json")
    (tmp_path / "c.json").write_text(json.dumps({"images": [], "annotations": []}))
    with pytest.raises(ValueError, match="expected the 26 of V-COCO"):
        read_truth(tmp_path / "v.json", tmp_path / "c.json")


@needs_data
def test_list_of_actions_with_separate_coco_file(tmp_path):
    content = json.loads(gzip.decompress(VAL600.read_bytes()))
    (tmp_path / "vcoco.json").write_text(json.dumps(content["vcoco"]))
    (tmp_path / "coco.json").write_text(json.dumps(content["coco"]))
    one, two = read_truth(VAL600), read_truth(tmp_path / "vcoco.json", tmp_path / "coco.json")
    np.testing.assert_array_equal(one.role_boxes, two.role_boxes)
    assert one.annotated.sum() == 959 and one.num_positives[HOLD] == 448 and one.num_positives[HIT] == 39
