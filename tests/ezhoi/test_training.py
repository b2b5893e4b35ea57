"""Training: deterministic samples, resume = uninterrupted, augmentation keeps boxes on their things."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from lib.clip.load import load_clip
from lib.clip.tokens import encode_image, preprocess
from lib.config import EzHoiSettings
from lib.data.hico_det import HoiDataset, HoiImage
from lib.data.vocabulary import Vocabulary
from lib.detection.proposals import Proposals
from lib.ezhoi import train as training
from lib.ezhoi.batches import (
    HoiSamples,
    as_fractions,
    clip_to,
    collate,
    crop_proposals,
    crop_window,
    mirror,
)
from lib.ezhoi.classes import scored_classes
from lib.ezhoi.model import build_ezhoi
from lib.ezhoi.predict import PairTable, hoi_predictions, predict_pairs
from lib.features.extract import extract_features
from lib.features.store import FeatureStore

VOCABULARY = Vocabulary(("person", "ball", "kite"), ("hold", "throw"), np.array([1, 1, 2]), np.array([0, 1, 0]))
CLASSES = scored_classes(VOCABULARY)
VALID = CLASSES.valid()
SETTINGS = EzHoiSettings(epochs=2, batch_size=4, text_prompts="prefix", log_every=1)


@pytest.fixture(scope="module")
def clip():
    return load_clip("random:configs/clip/tiny-clip.json", seed=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory, clip):
    """Ten pictures with a blue person and a red thing; proposals are the true boxes and a stray one."""
    folder = tmp_path_factory.mktemp("pictures")
    rng, images, proposals = np.random.default_rng(0), [], []
    for i in range(10):
        pixels = np.full((96, 120, 3), 90, np.uint8)
        x, y = rng.integers(5, 40, 2)
        human, thing = [x, y, x + 20, y + 40], [x + 25, y + 10, x + 45, y + 30]
        pixels[human[1] : human[3], human[0] : human[2]] = (30, 30, 220)
        pixels[thing[1] : thing[3], thing[0] : thing[2]] = (220, 30, 30)
        path = folder / f"{i}.png"
        Image.fromarray(pixels).save(path)
        hoi = i % 3
        rows = [np.array([value]) for value in (hoi, VOCABULARY.hoi_object[hoi], VOCABULARY.hoi_verb[hoi])]
        boxes = [np.array([box], np.float32) for box in (human, thing)]
        images.append(HoiImage(path, (120, 96), *boxes, *rows))
        found = torch.tensor([human, thing, [80, 5, 100, 20]])
        labels = torch.tensor([0, int(rows[1][0]), 1])
        proposals.append(Proposals(as_fractions(found, (120, 96)), torch.tensor([0.9, 0.8, 0.4]), labels, 1))
    data = HoiDataset(folder / "none.json", "train", VOCABULARY, tuple(images))
    paths = [image.path for image in images]
    extract_features(
        lambda batch: encode_image(clip, batch), paths, [path.name for path in paths], folder / "store", {"test": 1},
        preprocess=preprocess(clip), batch_size=4, shard_size=4,
    )  # fmt: skip
    return data, proposals, FeatureStore.open(folder / "store")


def samples(world, clip, augment=SETTINGS):
    data, proposals, store = world
    return HoiSamples(data, proposals, store, clip.spec.image_size, CLASSES, augment=augment, seed=7)


def model(clip):
    torch.manual_seed(2)
    return build_ezhoi(clip, VOCABULARY, ["arm up", "arm back", "line in hand"], SETTINGS)


def weights(trained):
    return {name: value.clone() for name, value in trained.state_dict().items()}


def test_an_interrupted_training_ends_where_the_whole_one_does(tmp_path, clip, world, monkeypatch):
    whole = model(clip)
    first = training.train_ezhoi(whole, samples(world, clip), VALID, SETTINGS, tmp_path / "a", seed=3, device="cpu")

    class Killed(Exception):
        pass

    loader = training._loader
    monkeypatch.setattr(
        training,
        "_loader",
        lambda s, t, seed, epoch: loader(s, t, seed, epoch) if epoch == 0 else (_ for _ in ()).throw(Killed),
    )
    with pytest.raises(Killed):
        training.train_ezhoi(model(clip), samples(world, clip), VALID, SETTINGS, tmp_path / "b", seed=3, device="cpu")
    monkeypatch.undo()
    resumed = model(clip)
    second = training.train_ezhoi(resumed, samples(world, clip), VALID, SETTINGS, tmp_path / "b", seed=3, device="cpu")
    assert first == second
    left, right = weights(whole), weights(resumed)
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_training_learns_the_seen_pairs(tmp_path, clip, world):
    settings = replace(SETTINGS, epochs=12, batch_size=5, flip=0.0, crop=0.0, jitter=0.0)
    info = training.train_ezhoi(
        model(clip), samples(world, clip, settings), VALID, settings, tmp_path, seed=0, device="cpu"
    )
    assert info["loss_last_epoch"] < 0.7 * info["loss_first_epoch"]


def test_unseen_entries_get_no_gradient(clip, world):
    """With only `hold kite` seen, nothing may be learnt from balls."""
    built = model(clip)
    data, proposals, store = world
    balls = [i for i in range(10) if i % 3 != 2]
    part = replace(data, images=tuple(data[i] for i in balls))
    batch = collate(
        [HoiSamples(part, [proposals[i] for i in balls], store, clip.spec.image_size, CLASSES)[i] for i in range(4)]
    )
    terms = training.training_loss(built, batch, CLASSES.valid([2]), SETTINGS)
    terms["loss"].backward()
    assert terms["positives"] == 0 and terms["loss"] == 0
    assert all(p.grad is None or not p.grad.any() for p in built.parameters())


def test_a_non_finite_loss_names_the_images(tmp_path, clip, world):
    broken = model(clip)
    with torch.no_grad():
        broken.logit_scale_HO.fill_(float("nan"))
    with pytest.raises(training.NonFiniteLoss, match=r"\d\.png"):
        training.train_ezhoi(broken, samples(world, clip), VALID, SETTINGS, tmp_path, seed=0, device="cpu")


def test_samples_depend_on_seed_epoch_and_index_alone(clip, world):
    one, two = samples(world, clip), samples(world, clip)
    two[5]  # an earlier draw changes nothing
    assert all(torch.equal(a, b) for a, b in zip(one[3][1:3], two[3][1:3], strict=True))
    two.epoch = 1
    assert not torch.equal(one[3][1], two[3][1])


def test_flip_and_crop_keep_boxes_on_their_things(clip, world):
    """The red thing's mean colour inside its box stays red under every augmentation."""
    augmented = samples(world, clip, replace(SETTINGS, flip=0.5, crop=1.0, jitter=0.0))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    checked = 0
    for epoch in range(4):
        augmented.epoch = epoch
        for i in range(10):
            _, pixels, _, _, (_, boxes_o, *_) = augmented[i]
            for x1, y1, x2, y2 in boxes_o.round().int().tolist():
                if x2 - x1 > 4 and y2 - y1 > 4:
                    inside = pixels[:, y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].mean((1, 2)) * std + mean
                    assert inside[0] > 0.75 and inside[2] < 0.25
                    checked += 1
    assert checked > 25


def test_mirror_is_its_own_inverse():
    boxes = torch.tensor([[0.1, 0.2, 0.4, 0.9]])
    assert torch.allclose(mirror(mirror(boxes)), boxes)
    assert torch.allclose(mirror(boxes), torch.tensor([[0.6, 0.2, 0.9, 0.9]]))


def test_crop_drops_what_is_nearly_gone():
    window = torch.tensor([0.0, 0.0, 0.5, 1.0])
    boxes = torch.tensor([[0.1, 0.1, 0.3, 0.5], [0.46, 0.1, 0.96, 0.5], [0.44, 0.0, 0.64, 1.0]])
    found = crop_proposals(Proposals(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 0, 1]), 2), window)
    assert found.n_human == 1 and found.labels.tolist() == [0, 1]
    assert torch.allclose(found.boxes[0], clip_to(boxes[:1], window)[0])


def test_crop_windows_follow_the_published_sizes():
    rng = np.random.default_rng(0)
    for _ in range(200):
        x1, y1, x2, y2 = crop_window((640, 480), rng).tolist()
        assert 0 <= x1 < x2 <= 1 + 1e-6 and 0 <= y1 < y2 <= 1 + 1e-6
        assert y2 - y1 >= 384 / 600 - 1e-6  # the short side is at most 600


def test_predictions_are_pairs_times_valid_classes(tmp_path, clip, world):
    data, proposals, store = world
    table = predict_pairs(
        model(clip),
        HoiSamples(data, proposals, store, clip.spec.image_size, CLASSES),
        batch_size=3,
        workers=0,
        device="cpu",
    )
    assert len(table.frame) == 10 * 2  # one human, two other boxes
    assert table.labels.sum() == 10
    table.save(tmp_path)
    again = PairTable.load(tmp_path)
    assert again.frame.equals(table.frame) and np.array_equal(again.features, table.features)
    predictions = hoi_predictions(table.frame, table.logits, CLASSES, power=2.8)
    per_pair = np.where(table.frame["object"] == 1, 2, 1)
    assert len(predictions) == per_pair.sum()
    row = predictions.iloc[0]
    assert np.allclose(row[["x1h", "y1h", "x2h", "y2h"]].to_numpy(float), data[0].boxes_h[0], atol=1e-3)
    logit = torch.tensor(table.logits[0, VOCABULARY.hoi_verb[int(row["hoi"])]])
    assert row["score"] == pytest.approx(float(logit.sigmoid()) * (0.9 * 0.8) ** 2.8, rel=1e-5)


def test_memory_is_unit_length(clip, world):
    memory = collate([samples(world, clip)[0]]).memory
    assert torch.allclose(memory.norm(dim=-1), torch.ones(1, clip.spec.tokens), atol=1e-5)
    assert torch.allclose(F.normalize(memory, dim=-1), memory, atol=1e-5)
