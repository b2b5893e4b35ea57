"""Training: schedule, resume, processes, samples, detection, public checkpoints (spec defr.md §6-§11, §17)."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from lib.clip.load import load_clip
from lib.data.hico_det import read_hico_det
from lib.data.stick_world import render_world
from lib.defr import train as training
from lib.defr.detect import COLUMNS, detect_pairs
from lib.defr.labels import few_shot, labels_of_pairs, oversampled
from lib.defr.model import build_defr
from lib.defr.pairs import box_pairs
from lib.defr.pictures import Frame, RecognitionImages, evaluation_view, frame_of
from lib.defr.predict import predict_logits, recognition_scores
from lib.defr.released import ReleasedError, load_released
from lib.defr.text import language_rows
from lib.defr.train import restart_cosine, train_defr
from lib.detection.table import Detections, DetectionTable
from lib.engine.distributed import processes
from lib.engine.loop import NonFiniteLoss
from lib.evaluation.hico_det import hico_det_ap
from lib.runs import read_jsonl
from lib.settings import DefrSettings, WorldSettings
from lib.stages.tiny_models import unpack_clip

FRAME = Frame(64, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
SETTINGS = DefrSettings(
    image_size=64, head="rand", epochs=2, restart_epochs=2, batch_size=4, lr=1e-3, min_samples=3, log_every=1
)


@pytest.fixture(scope="module")
def images_of(tmp_path_factory):
    """Ten pictures of three colours, one of them rare; returns the maker of their data set."""
    folder, paths, values = tmp_path_factory.mktemp("colours"), [], []
    rng = np.random.default_rng(0)
    for i in range(10):
        label = 2 if i == 9 else i % 2
        pixels = rng.integers(0, 60, (20, 30, 3)).astype(np.uint8)
        pixels[4:16, 5:25, label] = 230
        paths.append(folder / f"{i}.png")
        Image.fromarray(pixels).save(paths[-1])
        values.append([1 if c == label else -1 for c in range(3)])
    labels = np.array(values, np.int8)

    def make(augment=SETTINGS, order=None):
        return RecognitionImages(paths, labels, FRAME, order=order, augment=augment, seed=5)

    return make


@pytest.fixture(scope="module")
def clip():
    return load_clip("random:configs/clip/tiny-clip.json", seed=1)


@pytest.fixture
def build(clip):
    return lambda settings=SETTINGS: build_defr(settings, 3, clip=clip, seed=0)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_schedule():
    starts = [restart_cosine(1 + 100 * epoch, 100, 5) for epoch in range(10)]
    assert starts[:5] == pytest.approx([1, 0.905, 0.655, 0.345, 0.095], abs=1e-3) and starts[5:] == starts[:5]
    assert restart_cosine(0, 100, 5) == 1 and restart_cosine(500, 100, 5) < 1e-4  # the tail outlives the restart
    assert restart_cosine(501, 100, 5) == 1


def test_resume_equals_uninterrupted(build, images_of, tmp_path):
    positive = images_of().labels.numpy() == 1
    images = images_of(order=oversampled(positive, SETTINGS.min_samples))
    assert len(images) == 12
    whole = build()
    result = train_defr(whole, images, SETTINGS, tmp_path / "whole", seed=1, device="cpu")
    assert result["loss_last_epoch"] < result["loss_first_epoch"]
    cut = build()
    train_defr(cut, images, replace(SETTINGS, epochs=1), tmp_path / "cut", seed=1, device="cpu")
    again = build()
    assert train_defr(again, images, SETTINGS, tmp_path / "cut", seed=1, device="cpu") == result
    assert torch.equal(weights(again), weights(whole)) and not torch.equal(weights(cut), weights(whole))
    rows = [read_jsonl(tmp_path / name / "history.jsonl") for name in ("whole", "cut")]
    assert rows[0] == rows[1] and [row["step"] for row in rows[0]] == [1, 2, 3, 4, 5, 6]
    assert rows[0][0]["lr"] == rows[0][1]["lr"] == SETTINGS.lr and 0 <= rows[0][0]["positive_share"] <= 1


def test_evaluation_comes_at_the_end_of_cycles(build, images_of, tmp_path):
    settings, calls = replace(SETTINGS, epochs=3), []

    def evaluate(model):
        assert not model.training
        calls.append(1)
        return {"mAP_full": 0.5}

    train_defr(build(), images_of(), settings, tmp_path, seed=1, device="cpu", evaluate=evaluate)
    rows = [row for row in read_jsonl(tmp_path / "history.jsonl") if "mAP_full" in row]
    assert len(calls) == 2 and [row["epoch"] for row in rows] == [2, 3]


@pytest.mark.parametrize("loss", ["bce", "wbce", "focal", "sign"])
def test_every_loss_trains(build, images_of, tmp_path, loss):
    settings = replace(
        SETTINGS,
        loss=loss,
        ignore_ambiguous=loss == "sign",
        head="rand-linear",
        log_scale=0.0,
        epochs=4,
        restart_epochs=4,
    )
    result = train_defr(build(), images_of(), settings, tmp_path, seed=1, device="cpu")
    assert result["loss_last_epoch"] < result["loss_first_epoch"]


def test_weighted_bce_counts_copies(images_of, monkeypatch):
    order = np.array([*range(10), 9, 9])
    seen = {}
    monkeypatch.setattr(training, "build_loss", lambda name, **given: seen.update(given))
    training._loss(replace(SETTINGS, loss="wbce"), images_of(order=order), torch.device("cpu"))
    assert seen["positive_weight"].tolist() == pytest.approx([7 / 5, 8 / 4, 9 / 3])


def test_a_broken_step_leaves_the_weights(build, images_of, tmp_path):
    model, images = build(), images_of()
    with torch.no_grad():
        model.head.logit_scale.fill_(torch.inf)
    before = weights(model)
    with pytest.raises(NonFiniteLoss, match=r"its images: .*png.*weights were not"):
        train_defr(model, images, SETTINGS, tmp_path, seed=1, device="cpu")
    assert torch.equal(weights(model), before)


def _train_and_score(images, clip, folder):
    model = build_defr(SETTINGS, 3, clip=clip, seed=processes()[0])  # other rows: those of the first process count
    result = train_defr(model, images(), SETTINGS, folder, seed=1, device="cpu")
    return weights(model), result, predict_logits(model, images(augment=None), batch_size=3)


def test_two_processes_make_the_step_of_one(clip, images_of, in_ranks, tmp_path):
    """9 images in batches of 4: nothing is left for the second process in the last step, and all images are seen."""

    def images(augment=SETTINGS):
        return images_of(augment=augment, order=np.arange(9))

    alone = copy.deepcopy(clip)  # its tower is trained
    one, result, logits = _train_and_score(images, alone, tmp_path / "one")
    first, second = in_ranks(2, _train_and_score, images, clip, tmp_path / "two")
    assert torch.equal(first[0], second[0]) and first[1] == second[1] and np.array_equal(first[2], second[2])
    assert first[1] == pytest.approx(result, rel=1e-4) and np.allclose(first[2], logits, atol=1e-2)
    rows = [read_jsonl(tmp_path / name / "history.jsonl") for name in ("one", "two")]
    for key in ("loss", "positive_share"):
        assert [row[key] for row in rows[1]] == pytest.approx([row[key] for row in rows[0]], rel=1e-4)


def test_samples_depend_on_seed_epoch_and_position_alone(images_of):
    images = images_of(order=np.array([3, 3]))
    torch.manual_seed(0)
    first, copy = images[0][1], images[1][1]
    torch.manual_seed(1)
    assert torch.equal(images[0][1], first) and not torch.equal(copy, first)
    state = torch.get_rng_state()
    images.epoch = 1
    assert not torch.equal(images[0][1], first) and torch.equal(torch.get_rng_state(), state)
    still = images_of(augment=replace(SETTINGS, flip=0.0, jitter=0.0, crop=1.0))
    plain = images_of(augment=None)
    assert torch.equal(still[3][1], plain[3][1]) and plain[3][0] == 3 and plain[3][2].tolist() == [-1, 1, -1]


def test_palette_images_are_squashed_before_rgb():
    image = Image.fromarray((np.indices((20, 30)).sum(0) % 2 * 200).astype(np.uint8)).convert("P")
    expected = image.resize((64, 64), Image.Resampling.NEAREST).convert("RGB")
    assert torch.equal(evaluation_view(FRAME)(image), evaluation_view(FRAME)(expected))


def test_scores_in_order_and_percent(build, images_of):
    model, images = build(), images_of(augment=None)
    logits = predict_logits(model, images, batch_size=3)
    with torch.no_grad():
        assert np.allclose(logits[7], model.eval()(images[7][1][None]).numpy(), atol=1e-4)
    values = images.labels.numpy()
    found = recognition_scores(np.where(values == 1, 1.0, 0.0), values, few_shot(values == 1))
    assert found == pytest.approx(
        dict(mAP_full=100, mAP_known_object=100, mAP_few_1=100, mAP_few_5=100, mAP_few_10=100)
    )


# ---------------------------------------------------------------- the stick world


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    render_world(folder, WorldSettings(seed=3, train_images=120, test_images=60))
    unpack_clip(folder / "clip")
    splits = {
        split: read_hico_det(folder / f"instances_{split}2015.json", folder / "images" / f"{split}2015", split)
        for split in ("train", "test")
    }
    return load_clip(f"local-dir:{folder / 'clip'}"), splits


def test_language_beats_random_after_one_epoch(world, tmp_path):
    clip, splits = world
    vocabulary = splits["train"].vocabulary
    settings = DefrSettings(epochs=1, restart_epochs=1, batch_size=16, lr=3e-5, image_size=128, min_samples=1)
    found = {}
    for head in ("clip", "rand"):
        chosen = replace(settings, head=head)
        language = language_rows(chosen, vocabulary, clip)
        model = build_defr(chosen, vocabulary.num_hois, clip=clip, language=language, seed=0)
        frame = frame_of(model.tower)
        sets = {}
        for split, data in splits.items():
            labels = labels_of_pairs(data)
            paths = [record.path for record in data.images]
            sets[split] = RecognitionImages(
                paths, labels.values, frame, augment=chosen if split == "train" else None, seed=0
            )
        train_defr(model, sets["train"], chosen, tmp_path / head, seed=0, device="cpu")
        logits = predict_logits(model, sets["test"], batch_size=16)
        found[head] = recognition_scores(logits, sets["test"].labels.numpy())["mAP_full"]
    assert found["clip"] > found["rand"] + 15


@pytest.mark.parametrize("mode", ["block", "released", "none"])
def test_detection_on_true_boxes(world, mode):
    clip, splits = world
    data = splits["test"].subset(6)
    vocabulary, objects, rows = data.vocabulary, list(data.vocabulary.objects), []
    for index, record in enumerate(data.images):
        boxes = [(box, vocabulary.person) for box in record.boxes_h]
        boxes += list(zip(record.boxes_o, record.object.tolist(), strict=True))
        rows += [[index, record.name, *map(float, box), 0.9, label] for box, label in boxes]
    frame = pd.DataFrame(rows, columns=["image", "name", "x1", "y1", "x2", "y2", "score", "label"])
    frame["label"] = len(objects) - 1 - frame["label"]  # a table in another order of classes
    table = DetectionTable(frame, {"images": len(data), "labels": objects[::-1]})
    settings = DefrSettings(image_size=128, mask_mode=mode)
    language = language_rows(settings, vocabulary, clip)
    model = build_defr(settings, vocabulary.num_hois, clip=clip, language=language)
    found = detect_pairs(model, data, table, settings)
    assert list(found.columns) == COLUMNS and set(found["image"]) == set(range(6))
    result = hico_det_ap(found, data.truth(), vocabulary.num_hois)
    shown = np.unique(data.truth()["hoi"])
    assert np.nanmean(result.ap[shown]) > 0.5  # boxes and objects are true, only the verb is open


def test_pairs_of_an_image():
    boxes = torch.tensor([[0.0, 0, 9, 9], [20, 20, 30, 30], [20, 20, 30, 31], [50, 50, 60, 60], [0, 0, 9, 9]])
    scores, labels = torch.tensor([0.5, 0.9, 0.8, 0.1, 0.6]), torch.tensor([1, 1, 1, 0, 0])
    pairs = box_pairs(Detections(boxes, scores, labels), person=1)
    # row 2 falls to NMS, row 3 to its score; humans 1 and 0 come by score, then the object 4
    assert pairs.human.tolist() == [1, 1, 0, 0] and pairs.object.tolist() == [0, 4, 1, 4]
    nobody = box_pairs(Detections(boxes, scores, torch.zeros(5).long()), person=1)
    assert nobody.human.shape == nobody.object.shape == (0,)


# ---------------------------------------------------------------- public checkpoints


def test_public_checkpoint_fits_exactly_or_not_at_all(build, tmp_path):
    source, file = build(), tmp_path / "checkpoint_0010.pt"
    names = {"tower.visual.": "visual_encoder.visual.", "head.": ""}
    state = {}
    for name, value in source.state_dict().items():
        ours = next(prefix for prefix in names if name.startswith(prefix))
        state[f"module.{names[ours]}{name.removeprefix(ours)}"] = value
    torch.save({"epoch": 10, "model_state_dict": state, "optimizer_state_dict": {}}, file)
    other = build_defr(SETTINGS, 3, clip=load_clip("random:configs/clip/tiny-clip.json", seed=9), seed=4)
    assert load_released(file, other) == 10 and torch.equal(weights(other), weights(source))
    with pytest.raises(ReleasedError, match="defr.image_size"):
        load_released(file, build(replace(SETTINGS, image_size=96)))
    with pytest.raises(ReleasedError, match="1 missing.*1 unknown|missing"):
        load_released(file, build(replace(SETTINGS, head="rand-linear")))
    torch.save({"weights": 1}, file)
    with pytest.raises(ReleasedError, match="model_state_dict"):
        load_released(file, source)
