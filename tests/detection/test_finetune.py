"""Training a DETR on the boxes of a HOI data set: samples, classes kept, resume, padding, the stage."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import DetrForObjectDetection

from lib.config import load_config
from lib.data.stick_world import WorldSettings, render_world
from lib.detection.detr import DetectorError, load_detr
from lib.detection.finetune import box_losses, finetune, save_detr, start_from
from lib.detection.losses import Boxes
from lib.detection.samples import BoxBatch, BoxSamples, collate, flipped
from lib.detection.train import tiny_config
from lib.detection.truth import TrueBoxes
from lib.runs import Run
from lib.settings import DetectorTrainSettings
from lib.stages import inputs, train_detector

CLASSES = ("person", "kite", "dog")


@pytest.fixture
def start(tmp_path):
    """A random tiny DETR of other classes."""
    torch.manual_seed(0)
    folder = tmp_path / "start"
    DetrForObjectDetection(tiny_config(("dog", "zebra", "person"), queries=5)).save_pretrained(folder)
    size = {"shortest_edge": 64, "longest_edge": 96}
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": size, "resample": 2}))
    return folder


@pytest.fixture
def pictures(tmp_path):
    """Five images with a bright square, and its box; the fourth has none."""
    paths, truth = [], []
    for index, (width, height) in enumerate([(80, 64), (64, 64), (100, 70), (80, 64), (70, 90)]):
        pixels = np.zeros((height, width, 3), np.uint8)
        left, top = 5 + 6 * index, 4 + 5 * index
        pixels[top : top + 30, left : left + 20, index % 3] = 255
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(pixels).save(paths[-1])
        boxes = torch.tensor([[left, top, left + 20.0, top + 30.0]])[: index != 3]
        truth.append(TrueBoxes(paths[-1].name, boxes, torch.tensor([index % 3])[: index != 3]))
    return paths, truth


def samples_of(pictures, augment="none", **more):
    return BoxSamples(*pictures, 64, 96, "bilinear", augment, **more)


def test_plain_sample_is_what_the_detector_sees(pictures, start):
    pixels, boxes, labels, index = samples_of(pictures)[2]
    assert pixels.shape == (3, 64, 91) and labels.tolist() == [2] and index == 2
    torch.testing.assert_close(boxes, torch.tensor([[27 / 100, 29 / 70, 0.2, 30 / 70]]))
    from lib.detection.detr import preprocess

    with Image.open(pictures[0][2]) as image:
        torch.testing.assert_close(pixels, preprocess(load_detr(start), image))


@pytest.mark.parametrize("augment", ["flip", "detr"])
def test_boxes_follow_the_pixels(pictures, augment):
    """The bright square lies where the box says, whatever was flipped, cropped and resized."""
    samples = samples_of(pictures, augment, seed=1)
    sizes, starts = set(), set()
    for samples.epoch in range(25):
        for index in (0, 1, 2, 4):
            pixels, boxes, labels, _ = samples[index]
            assert len(boxes) == len(labels) <= 1
            sizes.add(tuple(pixels.shape[1:]))
            bright = (pixels[index % 3] > 0).nonzero().float()
            if not len(boxes):
                assert len(bright) == 0
                continue
            centre, side = boxes[0, :2], boxes[0, 2:]
            frame = torch.tensor(pixels.shape[:0:-1])
            low, high = (centre - side / 2) * frame, (centre + side / 2) * frame
            torch.testing.assert_close(bright.min(0).values.flip(0), low, atol=2, rtol=0)
            torch.testing.assert_close(bright.max(0).values.flip(0) + 1, high, atol=2, rtol=0)
            starts.add(round(float(low[0] / frame[0]), 1))
    assert len(sizes) == 4 if augment == "flip" else len(sizes) > 20
    assert len(starts) > 4


def test_samples_depend_on_seed_epoch_and_index_alone(pictures):
    one, other = samples_of(pictures, "detr", epoch=2), samples_of(pictures, "detr", epoch=2)
    other[4], other[0]
    assert torch.equal(one[1][0], other[1][0])
    assert any(one[1][0].shape != samples_of(pictures, "detr", epoch=epoch)[1][0].shape for epoch in range(6))


def test_flip():
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 6))
    mirrored, boxes = flipped(image, np.array([[1.0, 0, 3, 2]]))
    assert boxes.tolist() == [[3, 0, 5, 2]]
    assert np.asarray(mirrored)[:, 3:5].tolist() == np.asarray(image)[:, 2:0:-1].tolist()


def test_classes_of_equal_name_keep_their_outputs(start):
    old = DetrForObjectDetection.from_pretrained(start, local_files_only=True).class_labels_classifier
    new = start_from(start, CLASSES).class_labels_classifier
    assert new.weight.shape == (4, 128)
    for row, source in ((0, 2), (2, 0), (3, 3)):  # person, dog, background
        assert torch.equal(new.weight[row], old.weight[source]) and new.bias[row] == old.bias[source]
    assert not any(torch.equal(new.weight[1], row) for row in old.weight)
    with pytest.raises(DetectorError, match="(?s)found no config.json.*lib.detection.released"):
        start_from(start.parent, CLASSES)


def test_loss_of_a_padded_batch_is_that_of_its_images(start, pictures):
    """Masked pixels and padded targets add nothing (learned positions: the grid does not shift)."""
    model = start_from(start, CLASSES).eval()
    loaded = [samples_of(pictures)[index] for index in (0, 1)]
    both = box_losses(model, collate(loaded))
    assert set(both) == {"class", "box", "giou"} and all(value.requires_grad for value in both.values())
    wide = collate(loaded)
    padded = BoxBatch(
        wide.pixels, wide.mask,
        Boxes(torch.nn.functional.pad(wide.targets.boxes, (0, 0, 0, 2)),
              torch.nn.functional.pad(wide.targets.labels, (0, 2), value=-1)),
        wide.index,
    )  # fmt: skip
    again = box_losses(model, padded)
    assert all(torch.allclose(both[name], again[name]) for name in both)
    empty = box_losses(model, collate([samples_of(pictures)[3]]))  # nothing to find
    assert empty["box"] == 0 and empty["giou"] == 0 and empty["class"] > 0


RECIPE = DetectorTrainSettings(
    epochs=3, batch_size=2, lr=1e-3, lr_backbone=1e-4, lr_step=2, augment="flip", log_every=1
)


def test_training_finds_the_squares_and_writes_a_detector(start, pictures, tmp_path):
    model = start_from(start, CLASSES)
    frozen = model.model.backbone.model.state_dict()
    stem = next(iter(frozen))
    before = {name: value.clone() for name, value in frozen.items()}
    recipe = DetectorTrainSettings(epochs=25, batch_size=5, lr=1e-3, lr_backbone=1e-3, lr_step=20, augment="none")
    found = finetune(model, samples_of(pictures), recipe, tmp_path / "made", seed=0)
    assert found["loss_last_epoch"] < 0.7 * found["loss_first_epoch"]
    after = model.model.backbone.model.state_dict()
    assert torch.equal(after[stem], before[stem]) and any((after[name] != before[name]).any() for name in after)
    save_detr(model, start, tmp_path / "made")
    loaded = load_detr(tmp_path / "made")
    assert loaded.labels == CLASSES and (loaded.short_side, loaded.long_side) == (64, 96)
    batch = collate([samples_of(pictures)[0]])
    with torch.no_grad():
        assert torch.equal(loaded.model(batch.pixels).logits, model(batch.pixels).logits)
    assert sorted(path.name for path in (tmp_path / "made").glob("*.json")) == [
        "config.json",
        "preprocessor_config.json",
    ]


def test_resumed_equals_uninterrupted(start, pictures, tmp_path, monkeypatch):
    def train(folder):
        torch.manual_seed(0)  # the row of the class that the start does not know
        model = start_from(start, CLASSES)
        finetune(model, samples_of(pictures, "flip"), RECIPE, tmp_path / folder, seed=3)
        return model.state_dict()

    whole = train("whole")
    monkeypatch.setattr("lib.engine.loop.Progress.step", _stop_after(4))
    with pytest.raises(KeyboardInterrupt):
        train("cut")
    monkeypatch.undo()
    resumed = train("cut")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert (tmp_path / "whole/history.jsonl").read_text() == (tmp_path / "cut/history.jsonl").read_text()


def _stop_after(count):
    from lib.engine.progress import Progress

    original, calls = Progress.step, []

    def step(self, *arguments, **values):
        calls.append(1)
        if len(calls) > count:
            raise KeyboardInterrupt
        return original(self, *arguments, **values)

    return step


@pytest.mark.parametrize(
    ("change", "augment", "message"),
    [({"precision": "fp16"}, "none", "precision: found 'fp16'"), ({}, "cutout", "augment: found 'cutout'")],
)
def test_unknown_settings_are_refused(start, pictures, tmp_path, change, augment, message):
    recipe = DetectorTrainSettings(**change)
    with pytest.raises(DetectorError, match=message):
        finetune(start_from(start, CLASSES), samples_of(pictures, augment), recipe, tmp_path, seed=0)


def test_bfloat16_gives_nearly_the_same_loss(start, pictures):
    model, batch = start_from(start, CLASSES).eval(), collate([samples_of(pictures)[index] for index in (0, 1)])
    full, half = box_losses(model, batch), box_losses(model, batch, bf16=True)
    assert all(value.dtype == torch.float32 for value in half.values())
    assert sum(half.values()).item() == pytest.approx(sum(full.values()).item(), rel=0.05)
    assert sum(half.values()).item() != sum(full.values()).item()


def test_stage(tmp_path, start, capsys):
    render_world(tmp_path / "world", WorldSettings(train_images=6, test_images=3))
    settings = [
        f"data.root={tmp_path / 'world'}", "data.images=images/{split}2015", f"detector.source={start}",
        "detector.train.epochs=1", "detector.train.augment=none",
    ]  # fmt: skip
    arguments = ["--config", "configs/tiny.yaml", "--run", str(tmp_path / "run"), *settings]
    assert train_detector.main(arguments) == 0
    assert f"detector.source={tmp_path / 'run/detr'}" in capsys.readouterr().out
    cfg = load_config("configs/tiny.yaml", settings)
    vocabulary = inputs.dataset(cfg, Run(tmp_path / "run"), "train").vocabulary
    assert load_detr(tmp_path / "run/detr").labels == vocabulary.objects
    assert train_detector.main([*arguments, "detector.source=oracle"]) == 1
    assert "found oracle, expected the folder of a DETR" in capsys.readouterr().err
