"""The embedded world: formats, determinism, long tail, zero-shot rules."""

import itertools
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from lib.data.descriptions import read_descriptions
from lib.data.stick_labels import FREQUENCY, HOIS, OBJECTS, VERBS, correspondence, zero_shot_splits
from lib.data.stick_objects import make_item
from lib.data.stick_person import FOREARM, UPPER_ARM
from lib.data.stick_poses import compose
from lib.data.stick_shapes import bounds, disc, move, poly
from lib.data.stick_world import (
    WorldSettings,
    annotate,
    draw_scene,
    render_world,
    sample_detection_scenes,
    sample_pretraining_scenes,
    scene_boxes,
    world_scene,
)

SMALL = WorldSettings(seed=3, train_images=12, test_images=6)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    ticks = []
    render_world(folder, SMALL, ticks.append)
    assert ticks == [1] * 18
    return folder


@pytest.fixture(scope="module")
def labels():
    """Annotations of a half-size world without drawing: {split: list of annotation dicts}."""
    settings = WorldSettings(train_images=1200, test_images=400)
    counts = {"train": settings.train_images, "test": settings.test_images}
    return {
        split: [annotate(world_scene(settings, split, i), np.random.default_rng(i)) for i in range(count)]
        for split, count in counts.items()
    }


def load(path):
    return json.loads(path.read_text())


def class_counts(annotations):
    return np.bincount([hoi for rows in annotations for hoi in rows["hoi"]], minlength=len(HOIS))


def verbs(ids):
    return {HOIS[hoi][0] for hoi in ids}


def objects(ids):
    return {HOIS[hoi][1] for hoi in ids}


def iou(a, b):
    wide = min(a[2], b[2]) - max(a[0], b[0]) + 1
    high = min(a[3], b[3]) - max(a[1], b[1]) + 1
    both = max(wide, 0) * max(high, 0)
    return both / (sum((c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)) - both)


def test_vocabulary_follows_hico():
    assert OBJECTS[0] == "person" and sorted(VERBS) == VERBS and "no_interaction" in VERBS
    assert 50 <= len(HOIS) <= 65 and 14 <= len(VERBS) <= 18
    runs = [obj for obj, _ in itertools.groupby(obj for _, obj in HOIS)]
    assert len(runs) == len(set(runs)) == len(OBJECTS) - 1  # each object owns one contiguous range
    for obj in FREQUENCY:
        own = [verb for verb, o in HOIS if o == obj]
        assert own[-1] == "no_interaction" and own[:-1] == sorted(own[:-1])


@pytest.mark.parametrize("split", ["train", "test"])
def test_hico_file(world, split):
    data = load(world / f"instances_{split}2015.json")
    count = SMALL.train_images if split == "train" else SMALL.test_images
    assert len(data["annotation"]) == len(data["filenames"]) == len(data["size"]) == count
    assert data["correspondence"] == correspondence()
    triplets = {tuple(row) for row in data["correspondence"]}
    for index, (rows, name, size) in enumerate(zip(data["annotation"], data["filenames"], data["size"], strict=True)):
        assert name == f"HICO_{split}2015_{index + 1:08d}.jpg"
        with Image.open(world / "images" / f"{split}2015" / name) as image:
            assert image.mode == "RGB" and list(image.size) == size == [160, 128]
        assert len({len(rows[key]) for key in ("boxes_h", "boxes_o", "hoi", "object", "verb")}) == 1
        assert triplets.issuperset(zip(rows["hoi"], rows["object"], rows["verb"], strict=True))
        for box in rows["boxes_h"] + rows["boxes_o"]:
            assert all(isinstance(value, int) for value in box)
            assert 1 <= box[0] < box[2] <= size[0] and 1 <= box[1] < box[3] <= size[1]
    assert data["empty"] == [i for i, rows in enumerate(data["annotation"]) if not rows["hoi"]]


@pytest.mark.parametrize("split", ["train", "test"])
def test_coco_boxes_hold_every_annotated_thing(world, split):
    hico, coco = load(world / f"instances_{split}2015.json"), load(world / f"instances_boxes_{split}2015.json")
    assert [c["name"] for c in coco["categories"]] == OBJECTS
    assert [image["file_name"] for image in coco["images"]] == hico["filenames"]
    for image, rows in zip(coco["images"], hico["annotation"], strict=True):
        mine = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
        corners = [(a["category_id"], [x + 1, y + 1, x + w, y + h]) for a in mine for x, y, w, h in [a["bbox"]]]
        for a in mine:
            x, y, w, h = a["bbox"]
            assert min(x, y) >= 0 and min(w, h) > 0 and x + w <= 160.01 and y + h <= 128.01
        for box_h, box_o, obj in zip(rows["boxes_h"], rows["boxes_o"], rows["object"], strict=True):
            assert max(iou(box_h, box) for category, box in corners if category == 0) > 0.7
            assert max(iou(box_o, box) for category, box in corners if category == obj) > 0.7


def test_captions_and_descriptions(world):
    captions = load(world / "captions_train2015.json")
    per_image = Counter(entry["image_id"] for entry in captions["annotations"])
    assert set(per_image) == {image["id"] for image in captions["images"]} and min(per_image.values()) >= 2
    assert len({entry["id"] for entry in captions["annotations"]}) == len(captions["annotations"])
    texts = read_descriptions(world / "hoi_descriptions.txt", len(HOIS))
    assert all(obj.replace("_", " ") in text for text, (_, obj) in zip(texts, HOIS, strict=True))
    assert len(set(texts)) == len(HOIS)
    lines = (world / "hoi_descriptions.txt").read_text().splitlines()
    assert lines[0] == "1. A photo of a person holding a bicycle:" and lines[2] == ""


def test_rendering_is_deterministic_and_independent_of_the_count(world, tmp_path):
    render_world(tmp_path, WorldSettings(seed=3, train_images=4, test_images=2))
    for split, count in (("train", 4), ("test", 2)):
        few, many = (load(folder / f"instances_{split}2015.json") for folder in (tmp_path, world))
        assert few["annotation"] == many["annotation"][:count]
        for name in few["filenames"]:
            path = f"images/{split}2015/{name}"
            assert (tmp_path / path).read_bytes() == (world / path).read_bytes()
    captions = [load(folder / "captions_train2015.json")["annotations"] for folder in (tmp_path, world)]
    assert captions[0] == captions[1][: len(captions[0])]
    other = draw_scene(world_scene(WorldSettings(seed=4), "train", 0))
    assert np.asarray(other).tobytes() != np.asarray(draw_scene(world_scene(SMALL, "train", 0))).tobytes()


def test_long_tail_and_coverage(labels):
    train, test = class_counts(labels["train"]), class_counts(labels["test"])
    assert train.min() >= 1 and 5 <= (train < 10).sum() <= len(HOIS) // 3
    assert train.max() > 20 * np.sort(train)[5]
    assert test.min() >= 3
    assert test.max() / np.median(test) < train.max() / np.median(train)
    for split in labels.values():
        rows = np.array([len(image["hoi"]) for image in split])
        assert 1.5 < rows.mean() < 3.5 and 0 < (rows == 0).mean() < 0.05


def test_every_class_appears_in_a_short_test_split():
    settings = WorldSettings(test_images=len(HOIS))
    rows = [annotate(world_scene(settings, "test", i), np.random.default_rng(i)) for i in range(len(HOIS))]
    assert class_counts(rows).min() >= 1


def test_repeated_rows_are_boxed_again(labels):
    repeats = 0
    for rows in labels["test"] + labels["train"][:600]:
        pairs = list(zip(rows["boxes_h"], rows["boxes_o"], rows["object"], rows["hoi"], strict=True))
        assert len({(*h, *o) for h, o, _, _ in pairs}) == len(pairs)
        for (h1, o1, c1, y1), (h2, o2, c2, y2) in itertools.pairwise(pairs):
            second_label = y1 != y2 and c1 == c2 and iou(h1, h2) > 0.7 and iou(o1, o2) > 0.7
            if second_label:
                repeats += 1
                assert iou(h1, h2) >= 0.8 and iou(o1, o2) >= 0.8
    assert repeats > 100


def test_zero_shot_rules(labels, world):
    counts = class_counts(labels["train"])
    splits = zero_shot_splits(counts.tolist())
    everything = set(range(len(HOIS)))
    assert splits["default"] == []
    for name in ("rare_first", "non_rare_first"):
        seen = everything - set(splits[name])
        assert len(splits[name]) == 12
        assert verbs(seen) == set(VERBS) and objects(seen) == set(OBJECTS[1:])
    assert counts[splits["rare_first"]].sum() < 0.05 * counts.sum()
    assert counts[splits["non_rare_first"]].sum() > 0.3 * counts.sum()
    unseen_verb, unseen_object = set(splits["unseen_verb"]), set(splits["unseen_object"])
    assert not verbs(unseen_verb) & verbs(everything - unseen_verb) and "no_interaction" not in verbs(unseen_verb)
    assert not objects(unseen_object) & objects(everything - unseen_object)
    assert len(verbs(unseen_verb)) == 3 and len(objects(unseen_object)) == 2
    written = load(world / "zero_shot.json")["settings"]
    assert set(written) == {"default", "rare_first", "non_rare_first", "unseen_object", "unseen_verb"}
    assert written["unseen_verb"]["unseen_hoi"] == splits["unseen_verb"]


def test_pretraining_streams_are_apart_from_the_world():
    samples = list(sample_pretraining_scenes(0, 40))
    world_pictures = {
        draw_scene(world_scene(WorldSettings(), split, i)).tobytes() for split in ("train", "test") for i in range(4)
    }
    assert not world_pictures & {sample.image.tobytes() for sample in samples[:4]}
    for sample in samples:
        assert HOIS[sample.scene.pairs[0].hois[0]] == HOIS[sample.hoi_id]
        assert sample.caption[0].isupper() and sample.caption.endswith(".")
    again = next(sample_pretraining_scenes(0, 1))
    assert again.caption == samples[0].caption and again.image.tobytes() == samples[0].image.tobytes()
    for image, boxes, categories in sample_detection_scenes(0, 5):
        assert image.size == (160, 128) and len(boxes) == len(categories)


def test_drawn_figures_fill_their_boxes():
    """Oracle for the geometry: removing the figures from a scene changes pixels inside the boxes only."""
    scene = world_scene(WorldSettings(seed=1), "train", 5)
    drawn = np.asarray(draw_scene(scene), dtype=int)
    shapes = [group.shapes for group in scene.groups]
    for group in scene.groups:
        group.shapes = []
    changed = np.abs(np.asarray(draw_scene(scene), dtype=int) - drawn).sum(-1) > 60
    for group, kept in zip(scene.groups, shapes, strict=True):
        group.shapes = kept
    boxes, _ = scene_boxes(scene)
    inside = np.zeros_like(changed)
    for x1, y1, x2, y2 in boxes:
        cut = slice(max(int(y1) - 1, 0), int(y2) + 2), slice(max(int(x1) - 1, 0), int(x2) + 2)
        inside[cut] = True
        assert changed[cut].mean() > 0.1
    assert changed[inside].sum() > 0.97 * changed.sum()


def test_poses_reach_what_they_should_touch():
    """By the hands or the pelvis, in contact or not: what tells the verbs (and no_interaction) apart."""
    by_hand = {"carry", "hold", "hug", "lift", "push", "swing"}
    by_seat = {"sit_on", "lie_on", "ride", "jump", "stand_on"}
    apart = {"catch", "throw"}
    arm = UPPER_ARM + FOREARM
    for (verb, obj), seed in itertools.product(HOIS, range(4)):
        if verb == "no_interaction":
            continue
        rng = np.random.default_rng(seed)
        action = compose(verb, make_item(obj, rng), True, rng)
        x1, y1, x2, y2 = bounds(action.item.shapes)
        where, hand = f"{verb} {obj}", action.pose.hands[0]
        outside = max(x1 - hand.real, hand.real - x2, y1 - hand.imag, hand.imag - y2)
        assert y1 > -0.12, f"{where} sinks into the ground"
        if verb in by_hand:
            assert outside < 0.06 and abs(hand - action.pose.shoulder) < arm + 0.08, where
        if verb in by_seat:
            assert x1 < action.pose.pelvis.real < x2 and action.pose.pelvis.imag > y1 + 0.06, where
        if verb in apart:
            assert outside > 0.01, where


def test_shapes_move_and_measure():
    shapes = [poly((0, 0, 0), 0j, 2 + 0j, 2 + 1j), disc((0, 0, 0), 1 + 1j, 0.5)]
    assert bounds(shapes) == (0.0, 0.0, 2.0, 1.5)
    turned = move(shapes, turn=2j, shift=10, mirror=False)  # a quarter turn at twice the size
    assert bounds(turned) == pytest.approx((7.0, 0.0, 10.0, 4.0))
    assert bounds(move(shapes, mirror=True)) == (-2.0, 0.0, 0.0, 1.5)
