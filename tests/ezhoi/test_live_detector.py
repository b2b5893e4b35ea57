"""DETR inside training: two views of one augmented image, live = cached where nothing is random."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import DetrForObjectDetection

from lib.clip.load import load_clip
from lib.clip.tokens import encode_image
from lib.clip.tokens import preprocess as clip_preprocess
from lib.data.descriptions import ClassTexts
from lib.data.hico_det import HoiDataset, HoiImage
from lib.data.vocabulary import Vocabulary
from lib.detection.detr import load_detr, preprocess
from lib.detection.proposals import propose
from lib.detection.table import detect_images
from lib.detection.train import tiny_config
from lib.ezhoi.batches import HoiSamples, as_fractions, collate, pad_views
from lib.ezhoi.classes import scored_classes
from lib.ezhoi.live_detector import DetectorView, build_live_detector
from lib.ezhoi.model import build_ezhoi
from lib.ezhoi.pairs import Instances
from lib.ezhoi.train import train_ezhoi
from lib.features.extract import extract_features
from lib.features.store import FeatureStore
from lib.settings import EzHoiSettings

VOCABULARY = Vocabulary(("person", "ball", "kite"), ("hold", "throw"), np.array([1, 1, 2]), np.array([0, 1, 0]))
CLASSES = scored_classes(VOCABULARY)
RULE = {"nms_iou": 0.5, "score_threshold": 0.2, "min_instances": 3, "max_instances": 15}
SETTINGS = EzHoiSettings(epochs=1, batch_size=3, detections="live", log_every=1)
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def clip():
    return load_clip("random:configs/clip/tiny-clip.json", seed=1)


@pytest.fixture(scope="module")
def detr(tmp_path_factory):
    """An untrained tiny DETR with dropout whose queries differ; classes are named otherwise and in another order."""
    folder = tmp_path_factory.mktemp("detr")
    torch.manual_seed(1)
    config = tiny_config(("Kite", "tree", "person", "ball"), queries=12)
    config.dropout = 0.1
    network = DetrForObjectDetection(config).eval()
    with torch.no_grad():
        for name, value in network.named_parameters():
            if value.ndim == 2 and "backbone" not in name:
                value *= 10  # fresh weights give every query the same answer
        torch.nn.init.normal_(network.model.query_position_embeddings.weight, std=3.0)
        head, states = network.class_labels_classifier, network(torch.randn(1, 3, 96, 120)).last_hidden_state
        head.bias.copy_(-head.weight @ states[0].mean(0))  # classes that differ between queries
    network.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"size": {"shortest_edge": 96, "longest_edge": 160}, "resample": 3})
    )
    return load_detr(folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory, clip):
    """Six pictures of two shapes with a blue person and a red thing."""
    folder, rng, images = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0), []
    for i in range(6):
        width, height = (120, 96) if i % 2 else (100, 110)
        pixels = np.full((height, width, 3), 90, np.uint8)
        x, y = rng.integers(5, 40, 2)
        human, thing = [x, y, x + 20, y + 40], [x + 25, y + 10, x + 45, y + 30]
        pixels[human[1] : human[3], human[0] : human[2]] = (30, 30, 220)
        pixels[thing[1] : thing[3], thing[0] : thing[2]] = (220, 30, 30)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        hoi = i % 3
        rows = [np.array([value]) for value in (hoi, VOCABULARY.hoi_object[hoi], VOCABULARY.hoi_verb[hoi])]
        boxes = [np.array([box], np.float32) for box in (human, thing)]
        images.append(HoiImage(folder / f"{i}.png", (width, height), *boxes, *rows))
    paths = [image.path for image in images]
    extract_features(
        lambda batch: encode_image(clip, batch), paths, [path.name for path in paths], folder / "store", {"test": 1},
        preprocess=clip_preprocess(clip), batch_size=6, shard_size=6,
    )  # fmt: skip
    return HoiDataset(folder / "none.json", "train", VOCABULARY, tuple(images)), FeatureStore.open(folder / "store")


def samples(world, clip, detr, augment=SETTINGS):
    data, store = world
    return HoiSamples(data, None, store, clip.spec.image_size, CLASSES, augment, 7, DetectorView.of(detr))


def live(detr, clip, **options):
    return build_live_detector(detr, VOCABULARY.objects, size=clip.spec.image_size, human=0, rule=RULE, **options)


def same(found: Instances, expected: Instances):
    for name in ("count", "n_human", "labels"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.boxes, expected.boxes, atol=1e-3, rtol=0)


def test_live_detections_of_the_plain_image_are_the_cached_ones(tmp_path, world, clip, detr):
    data, _ = world
    table = detect_images(detr, [image.path for image in data.images], tmp_path, 1).in_label_space(VOCABULARY.objects)
    plain, labels = samples(world, clip, detr, augment=None), set()
    for i, image in enumerate(data.images):
        cached = propose(*table.of(i), human=0, **RULE)
        boxes = as_fractions(cached.boxes, image.size).clamp(0, 1) * clip.spec.image_size
        found = live(detr, clip)(*collate([plain[i]]).views)
        same(found, Instances.collate([(boxes, cached.scores, cached.labels, cached.n_human)]))
        labels |= set(found.labels.flatten().tolist())
    assert len(labels) > 1 and 0 in labels  # `tree` is left out, the rest is renumbered


def test_padding_is_masked(world, clip, detr):
    """Sizes differ in a batch: each image's mask covers its own pixels and boxes are fractions of those."""
    plain = samples(world, clip, detr, augment=None)
    views = [plain[i].view for i in range(2)]
    assert [tuple(view.shape[1:]) for view in views] == [(105, 96), (96, 120)]
    batch = pad_views(views)
    assert batch.pixels.shape == (2, 3, 105, 120) and batch.valid.sum((1, 2)).tolist() == [105 * 96, 96 * 120]
    for slot, view in enumerate(views):
        assert torch.equal(batch.pixels[slot, :, : view.shape[1], : view.shape[2]], view)
        assert not batch.pixels[slot, :, ~batch.valid[slot]].any()
    masked = live(detr, clip)(*batch)
    unmasked = live(detr, clip)(batch.pixels, torch.ones_like(batch.valid))
    assert masked.boxes.shape != unmasked.boxes.shape or not torch.equal(masked.boxes, unmasked.boxes)


def test_dropout_changes_detections_and_ends_with_the_call(world, clip, detr):
    batch = collate([samples(world, clip, detr, augment=None)[i] for i in range(3)])
    still, shaken = live(detr, clip), live(detr, clip, dropout=True)
    assert torch.equal(still(*batch.views).scores, still(*batch.views).scores)
    torch.manual_seed(0)
    first = shaken(*batch.views)
    assert not detr.model.training and not first.boxes.requires_grad
    torch.manual_seed(0)
    same(shaken(*batch.views), first)
    second = shaken(*batch.views)
    assert first.scores.shape != second.scores.shape or not torch.equal(first.scores, second.scores)


def test_the_view_of_a_test_image_is_the_cached_one(world, clip, detr):
    data, _ = world
    plain = samples(world, clip, detr, augment=None)
    for i, image in enumerate(data.images):
        assert torch.equal(plain[i].view, preprocess(detr, Image.open(image.path)))


def test_training_sizes_are_the_published_ones_relative_to_the_detector():
    view, image = DetectorView(800, 1333, "bicubic"), Image.new("RGB", (60, 50))
    rng = np.random.default_rng(0)
    assert {min(view(image, rng).shape[1:]) for _ in range(120)} == set(range(480, 801, 32))
    assert min(view(image).shape[1:]) == 800
    wide = Image.new("RGB", (500, 100))
    assert max(view(wide).shape[1:]) <= 1335
    assert {min(DetectorView(128, 160, "bilinear")(image, rng).shape[1:]) for _ in range(120)} == {
        round(128 * side / 800) for side in range(480, 801, 32)
    }


def test_both_views_and_the_annotations_follow_one_augmentation(world, clip, detr):
    """The red thing is red inside its box in the CLIP view and in the detector's, under flips and crops."""
    given, checked = samples(world, clip, detr, replace(SETTINGS, flip=0.5, crop=1.0, jitter=0.0)), 0
    for epoch in range(6):
        given.epoch = epoch
        for i in range(6):
            sample = given[i]
            for box in sample.targets[1] / clip.spec.image_size:
                for pixels in (sample.image, sample.view):
                    frame = torch.tensor(pixels.shape[:0:-1]).repeat(2)
                    x1, y1, x2, y2 = (box * frame).round().int().tolist()
                    if x2 - x1 > 6 and y2 - y1 > 6:
                        inside = pixels[:, y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].mean((1, 2)) * STD + MEAN
                        assert inside[0] > 0.75 and inside[2] < 0.25
                        checked += 1
    assert checked > 50


def test_jitter_reaches_both_views(world, clip, detr):
    plain = samples(world, clip, detr, replace(SETTINGS, flip=0.0, crop=0.0, jitter=0.0))[0]
    shaken = samples(world, clip, detr, replace(SETTINGS, flip=0.0, crop=0.0, jitter=0.4))[0]
    means = [[view.mean((1, 2)) for view in (sample.image, sample.view)] for sample in (plain, shaken)]
    assert (means[0][0] - means[1][0]).abs().max() > 0.05
    torch.testing.assert_close(means[1][0], means[1][1], atol=0.03, rtol=0)  # the same colours in both


@pytest.mark.parametrize("dropout", [False, True])
def test_an_epoch_runs_and_resumes(tmp_path, world, clip, detr, dropout):
    settings = replace(SETTINGS, epochs=2, detector_dropout=dropout)

    def train(settings, folder):
        torch.manual_seed(2)
        built = build_ezhoi(clip, VOCABULARY, ClassTexts(["arm up", "arm back", "line"], {}), [], settings)
        info = train_ezhoi(
            built, samples(world, clip, detr), CLASSES.valid(), settings, tmp_path / folder, seed=3, device="cpu",
            detector=live(detr, clip, dropout=settings.detector_dropout),
        )  # fmt: skip
        return info, built.state_dict()

    whole, expected = train(settings, "whole")
    train(replace(settings, epochs=1), "cut")
    resumed, found = train(settings, "cut")
    assert whole == resumed and np.isfinite(whole["loss_last_epoch"])
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_workers_carry_the_view_but_not_the_detector(world, clip, detr):
    given = samples(world, clip, detr)
    assert len(pickle.dumps(given.detector_view)) < 500
    alone = next(iter(DataLoader(given, 3, collate_fn=collate)))
    worked = next(iter(DataLoader(given, 3, collate_fn=collate, num_workers=1)))
    assert torch.equal(alone.views.pixels, worked.views.pixels) and torch.equal(alone.images, worked.images)


def test_what_does_not_belong_together_is_refused(tmp_path, world, clip, detr):
    with pytest.raises(ValueError, match=r"found detector classes .*'tree'.*expected some of \['cup'\]"):
        build_live_detector(detr, ["cup"], size=64, human=0, rule=RULE)
    data, store = world
    with pytest.raises(ValueError, match="neither proposals nor a detector_view"):
        HoiSamples(data, None, store, 64, CLASSES)
    model = build_ezhoi(clip, VOCABULARY, ClassTexts(["arm up", "arm back", "line"], {}), [], SETTINGS)
    given = samples(world, clip, detr)
    for settings, detector, message in (
        (SETTINGS, None, "found live with detector=False and samples.detector_view=True, expected both True"),
        (replace(SETTINGS, detections="cached"), live(detr, clip), "found cached with detector=True"),
    ):
        with pytest.raises(ValueError, match=message):
            train_ezhoi(model, given, CLASSES.valid(), settings, tmp_path, seed=0, device="cpu", detector=detector)
