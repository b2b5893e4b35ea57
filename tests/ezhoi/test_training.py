"""Training: exact steps and resume, what stops it, deterministic samples, boxes that stay on their things."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook

from lib.clip.load import load_clip
from lib.clip.tokens import encode_image, preprocess
from lib.data.descriptions import ClassTexts, Difference
from lib.data.hico_det import HoiDataset, HoiImage
from lib.data.vocabulary import Vocabulary
from lib.detection.proposals import Proposals
from lib.engine.loop import NonFiniteLoss
from lib.ezhoi import batches as batching
from lib.ezhoi import train as training
from lib.ezhoi.adapters import DecoderLayer
from lib.ezhoi.batches import HoiSamples, as_fractions, clip_to, collate, crop_proposals, crop_window, mirror
from lib.ezhoi.classes import scored_classes
from lib.ezhoi.model import build_ezhoi
from lib.ezhoi.predict import PairTable, hoi_predictions, predict_pairs
from lib.features.extract import extract_features
from lib.features.store import FeatureStore
from lib.runs import read_jsonl
from lib.settings import EzHoiSettings

VOCABULARY = Vocabulary(("person", "ball", "kite"), ("hold", "throw"), np.array([1, 1, 2]), np.array([0, 1, 0]))
TEXTS = ClassTexts(["arm up", "arm back", "line in hand"], {2: Difference(0, ["It is on a line."])})
CLASSES = scored_classes(VOCABULARY)
VALID = CLASSES.valid()
SETTINGS = EzHoiSettings(epochs=2, batch_size=4, text_prompts="prefix", log_every=1)
STILL = replace(SETTINGS, flip=0.0, crop=0.0, jitter=0.0, roi_dropout=0.0)


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


def model(clip, settings=SETTINGS, unseen=()):
    torch.manual_seed(2)
    return build_ezhoi(clip, VOCABULARY, TEXTS, unseen, settings)


def without_dropout(built):
    for part in built.modules():
        if isinstance(part, DecoderLayer):
            part.dropout.p = part.multihead_attn.dropout = 0.0
            if part.has_self_attention:
                part.self_attn.dropout = 0.0
    built.roi_dropout = 0.0
    return built


def train(built, given, settings, folder, **options):
    return training.train_ezhoi(built, given, VALID, settings, folder, seed=3, device="cpu", **options)


def weights(trained):
    return {name: value.clone() for name, value in trained.state_dict().items()}


@pytest.mark.parametrize("options", [{}, {"accumulate": 2, "batch_size": 2, "ema": 0.9}])
def test_an_interrupted_training_ends_where_the_whole_one_does(tmp_path, clip, world, monkeypatch, options):
    settings = replace(SETTINGS, **options)
    whole = model(clip)
    first = train(whole, samples(world, clip), settings, tmp_path / "a")

    class Killed(Exception):
        pass

    class Cut(torch.utils.data.DataLoader):
        """Dies in the middle of the second epoch."""

        def __iter__(self):
            for number, batch in enumerate(super().__iter__()):
                if self.dataset.epoch == 1 and number == 2:
                    raise Killed
                yield batch

    monkeypatch.setattr(training, "DataLoader", Cut)
    with pytest.raises(Killed):
        train(model(clip), samples(world, clip), settings, tmp_path / "b")
    monkeypatch.undo()
    resumed = model(clip)
    second = train(resumed, samples(world, clip), settings, tmp_path / "b")
    assert first == second
    left, right = weights(whole), weights(resumed)
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert read_jsonl(tmp_path / "a" / "history.jsonl") == read_jsonl(tmp_path / "b" / "history.jsonl")


def test_training_learns_the_seen_pairs(tmp_path, clip, world):
    settings = replace(STILL, epochs=12, batch_size=5, roi_dropout=0.2, semantic_weight=0.0)
    info = train(model(clip), samples(world, clip, settings), settings, tmp_path)
    assert info["loss_last_epoch"] < 0.7 * info["loss_first_epoch"]


def test_no_epochs_keep_the_weights(tmp_path, clip, world):
    built = model(clip)
    before = weights(built)
    info = train(built, samples(world, clip), replace(SETTINGS, epochs=0), tmp_path)
    assert info == {"trainable_parameters": sum(p.numel() for p in built.parameters())}
    assert all(torch.equal(value, before[name]) for name, value in built.state_dict().items())
    assert not list(tmp_path.iterdir())


def test_gathered_batches_make_the_step_of_one_large_batch(tmp_path, clip, world):
    """Ten images at once, or as 4 + 4 + 2: the same parts of the loss, gradients and weights after the step."""
    once, gathered = replace(STILL, epochs=1, batch_size=10), replace(STILL, epochs=1, batch_size=4, accumulate=3)
    built = [without_dropout(model(clip, unseen=[2])) for _ in range(2)]
    gradients, terms = [], []
    for one, settings in zip(built, (once, gathered), strict=True):
        given = samples(world, clip, settings)
        parts = [range(i, min(i + settings.batch_size, 10)) for i in range(0, 10, settings.batch_size)]
        batch = [collate([given[i] for i in part]) for part in parts]
        terms.append(training.backward_step(one.train(), batch, VALID, settings))
        gradients.append({name: p.grad.clone() for name, p in one.named_parameters() if p.grad is not None})
        one.zero_grad()
        train(one, given, settings, tmp_path / str(settings.batch_size))
    assert terms[0]["positives"] == terms[1]["positives"] == 10 and terms[0]["pairs"] == terms[1]["pairs"] == 20
    for name in ("loss", "interaction", "semantic"):
        assert terms[0][name] > 0 and float(terms[1][name]) == pytest.approx(float(terms[0][name]), rel=1e-5)
    assert gradients[0].keys() == gradients[1].keys()
    for name, value in gradients[0].items():
        assert (gradients[1][name] - value).norm() <= 1e-5 * value.norm() + 1e-6, name
    left, right = (weights(one) for one in built)
    assert not torch.equal(left["vis_fuse.0.weight"], weights(model(clip))["vis_fuse.0.weight"])
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, rtol=0, atol=1e-5, msg=name)
    lines = [read_jsonl(tmp_path / name / "history.jsonl")[0] for name in ("10", "4")]
    assert lines[0]["loss"] == pytest.approx(lines[1]["loss"], rel=1e-5)


def test_averaged_weights_are_the_result(tmp_path, clip, world):
    settings, walk = replace(SETTINGS, ema=0.5), []
    hook = register_optimizer_step_post_hook(
        lambda optimiser, *_: walk.append([p.detach().clone() for g in optimiser.param_groups for p in g["params"]])
    )
    averaged = model(clip)
    train(averaged, samples(world, clip), settings, tmp_path)
    hook.remove()
    expected = walk[0]  # the first update copies
    for n, step in enumerate(walk[1:], start=1):
        decay = min(1 - (1 + n) ** (-2 / 3), 0.5)
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, step, strict=True)]
    found = [*averaged.vis_parameters(), *averaged.head_parameters()]
    assert len(walk) == 6
    for value, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(value.detach(), wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("still", ["lr_vit", "lr_head"])
def test_each_group_has_its_own_learning_rate(tmp_path, clip, world, still):
    built = model(clip, unseen=[2])
    vis, head = ([p.detach().clone() for p in group] for group in (built.vis_parameters(), built.head_parameters()))
    train(built, samples(world, clip), replace(SETTINGS, epochs=1, **{still: 0.0}), tmp_path)
    moved = [
        any(not torch.equal(old, new) for old, new in zip(olds, news, strict=True))
        for olds, news in ((vis, built.vis_parameters()), (head, built.head_parameters()))
    ]
    assert moved == [still != "lr_vit", still != "lr_head"]


def test_unseen_entries_get_no_gradient(clip, world):
    """With only `hold kite` seen, nothing may be learnt from balls."""
    built = model(clip)
    data, proposals, store = world
    balls = [i for i in range(10) if i % 3 != 2]
    part = replace(data, images=tuple(data[i] for i in balls))
    batch = collate(
        [HoiSamples(part, [proposals[i] for i in balls], store, clip.spec.image_size, CLASSES)[i] for i in range(4)]
    )
    terms = training.training_loss(built, batch, CLASSES.valid([2]), replace(SETTINGS, semantic_weight=0.0))
    terms["loss"].backward()
    assert terms["positives"] == 0 and terms["loss"] == 0
    assert all(p.grad is None or not p.grad.any() for p in built.parameters())


def test_the_semantic_part_counts_while_the_text_is_live(clip, world):
    batch = collate([samples(world, clip, STILL)[i] for i in range(4)])
    live = model(clip, unseen=[2]).eval()
    on, off = (
        training.training_loss(live, batch, VALID, replace(STILL, semantic_weight=weight)) for weight in (150.0, 0.0)
    )
    expected = 150 * live.text.semantic_loss(live.text(), batch.targets.hoi)
    assert on["semantic"] > 0 and torch.allclose(on["semantic"], expected) and off["semantic"] == 0
    assert torch.allclose(on["loss"], off["loss"] + expected)
    constant = replace(STILL, text_prompts="off")
    assert training.training_loss(model(clip, constant), batch, VALID, constant)["semantic"] == 0


@pytest.mark.parametrize("people", [0, 1])
def test_images_without_pairs_are_trained_through(tmp_path, clip, world, people):
    """Nobody, or one person and nothing else, in half the images (and in whole batches): zero loss, no stop."""
    data, proposals, store = world
    rest = 1 - people
    alone = [p._replace(**{name: getattr(p, name)[rest : 2 * rest + people] for name in ("boxes", "scores", "labels")},
                        n_human=people) for p in proposals]  # fmt: skip
    mixed = [alone[i] if i < 6 else proposals[i] for i in range(10)]
    given = HoiSamples(data, mixed, store, clip.spec.image_size, CLASSES, augment=SETTINGS, seed=7)
    empty = collate([given[i] for i in range(4)])
    built = model(clip)
    terms = training.training_loss(built, empty, VALID, replace(SETTINGS, semantic_weight=0.0))
    terms["loss"].backward()
    assert terms["loss"] == 0 and terms["pairs"] == 0
    assert all(p.grad is None or not p.grad.any() for p in built.parameters())
    info = train(model(clip), given, replace(SETTINGS, batch_size=1, accumulate=2), tmp_path)
    assert np.isfinite(info["loss_last_epoch"])


def test_a_non_finite_loss_names_the_parts_and_leaves_the_weights(tmp_path, clip, world):
    broken = model(clip)
    with torch.no_grad():
        broken.logit_scale_HO.fill_(float("nan"))
    before = weights(broken)
    with pytest.raises(NonFiniteLoss, match=r"(?s)'interaction': nan.*inputs .* are finite.*\d\.png"):
        train(broken, samples(world, clip), SETTINGS, tmp_path)
    after = broken.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if name != "logit_scale_HO")


@pytest.mark.parametrize("paired", [True, False], ids=["with pairs", "without pairs"])
def test_a_broken_feature_stops_before_the_weights_move(tmp_path, clip, world, paired):
    """Even where the image has no pair and the loss itself stays finite: its gradient would not."""
    data, proposals, store = world

    class Broken:
        ids, prefetch = store.ids, store.prefetch

        def __getitem__(self, row):
            patches, cls = store[row]
            return (patches * float("nan") if row == 4 else patches), cls

    proposals = list(proposals)
    if not paired:
        proposals[4] = proposals[4]._replace(n_human=0)
    settings = replace(SETTINGS, epochs=1)
    given = HoiSamples(data, proposals, Broken(), clip.spec.image_size, CLASSES, augment=settings, seed=7)
    built, seen = model(clip), []
    hook = register_optimizer_step_post_hook(lambda *_: seen.append(weights(built)))
    with pytest.raises(NonFiniteLoss, match=r"not finite: \['4\.png'\].*not touched.*no epoch"):
        train(built, given, settings, tmp_path)
    hook.remove()
    last = seen[-1] if seen else weights(model(clip))
    assert all(torch.equal(last[name], value) for name, value in built.state_dict().items())


def test_bfloat16_counts_labels_exactly(tmp_path, clip, world):
    """17 x 17 pairs on one annotation: 289 positives, which bfloat16 would round to 288."""
    settings, (data, proposals, store) = replace(SETTINGS, precision="bf16"), world
    crowd = [0] * 17 + [1] * 17
    many = [Proposals(*(getattr(p, name)[crowd] for name in ("boxes", "scores", "labels")), 17) for p in proposals]
    batch = collate([HoiSamples(data, many, store, clip.spec.image_size, CLASSES)[0]])
    assert training.training_loss(model(clip), batch, VALID, settings)["positives"] == 289
    info = train(model(clip), samples(world, clip), settings, tmp_path)
    assert np.isfinite(info["loss_last_epoch"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp16"}, "ezhoi.precision: found 'fp16', expected fp32 or bf16"),
        ({"detections": "live"}, "ezhoi.detections: found live with detector=False"),
        ({"detections": "fresh"}, "ezhoi.detections: found 'fresh', expected cached or live"),
        ({"ema": 1.0}, "found a decay of 1.0"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, clip, world, options, message):
    with pytest.raises(ValueError, match=message):
        train(model(clip), samples(world, clip), replace(SETTINGS, **options), tmp_path)


def test_every_epoch_has_its_own_order(clip, world):
    orders = [
        np.concatenate(sum(training._steps(samples(world, clip), SETTINGS, *key), [])).tolist()
        for key in ((3, 0), (3, 0), (3, 1), (4, 0))
    ]
    assert orders[0] == orders[1] and orders[0] != orders[2] and orders[0] != orders[3]
    assert all(sorted(order) == list(range(10)) for order in orders)


def test_images_kept_in_memory_change_nothing(clip, world, monkeypatch):
    kept = samples(world, clip)
    first = [kept[i].image for i in range(10)]
    assert len(kept._decoded) == 10 and all(torch.equal(kept[i].image, first[i]) for i in range(10))
    monkeypatch.setattr(batching, "KEPT_BYTES", 10 * 3 * 96 * 120 - 1)
    fresh = samples(world, clip)
    assert fresh._decoded is None and all(torch.equal(fresh[i].image, first[i]) for i in range(10))


def test_samples_depend_on_seed_epoch_and_index_alone(clip, world):
    one, two = samples(world, clip), samples(world, clip)
    two[5]  # an earlier draw changes nothing
    assert torch.equal(one[3].image, two[3].image) and torch.equal(one[3].memory, two[3].memory)
    two.epoch = 1
    assert not torch.equal(one[3].image, two[3].image)


def test_flip_and_crop_keep_boxes_on_their_things(clip, world):
    """The red thing's mean colour inside its box stays red under every augmentation."""
    augmented = samples(world, clip, replace(SETTINGS, flip=0.5, crop=1.0, jitter=0.0))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    checked = 0
    for epoch in range(4):
        augmented.epoch = epoch
        for i in range(10):
            sample = augmented[i]
            pixels, boxes_o = sample.image, sample.targets[1]
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
    given = HoiSamples(data, proposals, store, clip.spec.image_size, CLASSES)
    table = predict_pairs(model(clip), given, batch_size=3, workers=0, device="cpu")
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
