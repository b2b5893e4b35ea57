"""A bridge inside training: forward values, what learns in each gradient mode, its schedule over the epochs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lib.bridge.architectures import build_denoiser
from lib.bridge.bundle import Bridge
from lib.bridge.diffusion import Schedule
from lib.bridge.geometry import Geometry, modality_mean
from lib.clip.load import load_clip
from lib.clip.text_space import TextSpace
from lib.clip.tokens import encode_image, preprocess
from lib.data.descriptions import ClassTexts
from lib.data.hico_det import HoiDataset, HoiImage
from lib.data.vocabulary import Vocabulary
from lib.detection.proposals import Proposals
from lib.ezhoi.batches import HoiSamples, as_fractions, collate
from lib.ezhoi.bridged import bridge_of_epoch, bridged_features, bridged_logits
from lib.ezhoi.classes import scored_classes
from lib.ezhoi.model import build_ezhoi
from lib.ezhoi.train import train_ezhoi, training_loss
from lib.features.extract import extract_features
from lib.features.store import FeatureStore
from lib.runs import read_jsonl
from lib.settings import EzHoiSettings

VOCABULARY = Vocabulary(("person", "ball", "kite"), ("hold", "throw"), np.array([1, 1, 2]), np.array([0, 1, 0]))
TEXTS = ClassTexts(["arm up", "arm back", "line in hand"], {})
CLASSES = scored_classes(VOCABULARY)
# a gain and up-projections away from zero, so that a gradient can reach every part at the first step
SETTINGS = EzHoiSettings(epochs=2, batch_size=3, adapter_gain_init=1.0, log_every=1, jitter=0.0, semantic_weight=0.0)


@pytest.fixture(scope="module")
def clip():
    return load_clip("random:configs/clip/tiny-clip.json", seed=1)


@pytest.fixture(scope="module")
def samples(tmp_path_factory, clip):
    folder, rng, images, proposals = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0), [], []
    boxes = np.array([[10, 10, 40, 80], [45, 20, 75, 50], [80, 60, 110, 90]], np.float32)
    for i in range(6):
        path = folder / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (96, 120, 3), dtype=np.uint8)).save(path)
        hoi = i % 3
        rows = [np.array([value]) for value in (hoi, VOCABULARY.hoi_object[hoi], VOCABULARY.hoi_verb[hoi])]
        images.append(HoiImage(path, (120, 96), boxes[:1], boxes[1:2], *rows))
        labels = torch.tensor([0, int(rows[1][0]), 1])
        proposals.append(Proposals(as_fractions(boxes, (120, 96)), torch.tensor([0.9, 0.8, 0.4]), labels, 1))
    paths = [image.path for image in images]
    extract_features(
        lambda batch: encode_image(clip, batch), paths, [path.name for path in paths], folder / "store", {"test": 1},
        preprocess=preprocess(clip), batch_size=6, shard_size=6,
    )  # fmt: skip
    data = HoiDataset(folder / "none.json", "train", VOCABULARY, tuple(images))
    return HoiSamples(
        data, proposals, FeatureStore.open(folder / "store"), clip.spec.image_size, CLASSES, SETTINGS, seed=7
    )


def raw_rows(count, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    common = 3 * torch.randn(dim, generator=torch.Generator().manual_seed(99))
    return common + torch.randn(count, dim, generator=generator)


@pytest.fixture(scope="module")
def bridge(clip):
    """An untrained denoiser whose output layer is not zero, with the means of made-up rows."""
    dim, schedule = clip.spec.embed_dim, Schedule.cosine()
    torch.manual_seed(0)
    architecture = {"kind": "mlp", "width": 32, "depth": 1}
    denoiser = build_denoiser(architecture, dim, schedule, 5.0)
    torch.nn.init.normal_(denoiser.outlet[1].weight, std=0.05)
    geometry = Geometry(modality_mean(raw_rows(400, dim, 0)), modality_mean(raw_rows(400, dim, 1).relu()))
    space = TextSpace("c0ffee", "gelu", "open_clip", "a photo of {}")
    return Bridge(denoiser, architecture, geometry, schedule, space, entry_step=300, num_steps=3)


def model(clip, settings=SETTINGS):
    torch.manual_seed(2)
    built = build_ezhoi(clip, VOCABULARY, TEXTS, [], settings)
    for name, value in built.named_parameters():
        if "up_proj" in name:
            torch.nn.init.normal_(value, std=0.02)
    return built


def test_all_modes_see_the_bridged_features(clip, bridge):
    features = raw_rows(7, clip.spec.embed_dim, 2).requires_grad_()
    expected = bridge(features)
    for grad in ("none", "straight_through", "full"):
        torch.testing.assert_close(bridged_features(features, bridge, grad), expected, atol=1e-6, rtol=0)
        assert bridged_features(features[:0], bridge, grad).shape == (0, features.shape[1])
    with pytest.raises(
        ValueError, match="ezhoi.bridge_grad: found 'half', expected one of none, straight_through, full"
    ):
        bridged_features(features, bridge, "half")


def test_the_gradient_of_each_mode(clip, bridge):
    """none: nothing; straight-through: that of the geometric transform; full: that of the walk."""
    weight = raw_rows(5, clip.spec.embed_dim, 3)

    def gradient(function):
        features = raw_rows(5, clip.spec.embed_dim, 2).requires_grad_()
        (function(features) * weight).sum().backward()
        return features.grad

    assert not bridged_features(raw_rows(5, clip.spec.embed_dim, 2).requires_grad_(), bridge, "none").requires_grad
    straight, full = (gradient(lambda f, g=g: bridged_features(f, bridge, g)) for g in ("straight_through", "full"))
    torch.testing.assert_close(straight, gradient(bridge.geometry.vision))
    torch.testing.assert_close(full, gradient(bridge))
    assert not torch.allclose(straight, full, rtol=0.1)


def test_logits_are_cosines_averaged_over_the_rows_of_a_class(clip, bridge):
    """Row by row as in the spec: f' . T'_r, mean over the class, times s/2."""
    features, rows = raw_rows(4, clip.spec.embed_dim, 2), raw_rows(3, clip.spec.embed_dim, 5)
    average = torch.tensor([[0.5, 0.0], [0.5, 0.0], [0.0, 1.0]])  # rows 0 and 1 speak for class 0
    found = bridged_logits(features, rows, average, torch.tensor(2.659), bridge, "none")
    cosines = bridge(features) @ bridge.geometry.text(rows).T
    torch.testing.assert_close(found[:, 0], 2.659 / 2 * (cosines[:, 0] + cosines[:, 1]) / 2)
    torch.testing.assert_close(found[:, 1], 2.659 / 2 * cosines[:, 2])
    assert found.abs().max() <= 2.659 / 2


VISUAL = {"prompts", "vision", "priors_downproj", "vis_fuse", "mem_adapter"}
LEARNS = {  # (text_prompts, bridge_grad) -> parts that get a gradient
    ("off", "none"): {"logit_scale_HO"},
    ("off", "straight_through"): {"logit_scale_HO"} | VISUAL,
    ("off", "full"): {"logit_scale_HO"} | VISUAL,
    ("prefix", "none"): {"logit_scale_HO", "text"},
    ("prefix", "straight_through"): {"logit_scale_HO", "text"} | VISUAL,
    ("prefix", "full"): {"logit_scale_HO", "text"} | VISUAL,
}


@pytest.mark.parametrize(("text", "grad"), LEARNS)
def test_what_learns(clip, samples, bridge, text, grad):
    settings = replace(SETTINGS, text_prompts=text, bridge_grad=grad)
    built = model(clip, settings).train()
    terms = training_loss(built, collate([samples[i] for i in range(6)]), CLASSES.valid(), settings, bridge=bridge)
    terms["loss"].backward()
    learning = {name for name, p in built.named_parameters() if p.grad is not None and p.grad.any()}
    assert {name.partition(".")[0] for name in learning} == LEARNS[text, grad]
    if grad != "none":  # not some, but every visual parameter
        silent = {name for name, _ in built.named_parameters() if name.partition(".")[0] in VISUAL} - learning
        assert not silent


def test_a_bridge_without_gradient_is_announced(tmp_path, clip, samples, bridge):
    settings = replace(SETTINGS, bridge_grad="none", epochs=1)
    with pytest.warns(UserWarning, match="no gradient reaches vision, prompts, priors_downproj, vis_fuse, mem_adapter"):
        train_ezhoi(
            model(clip, settings), samples, CLASSES.valid(), settings, tmp_path, seed=0, device="cpu", bridge=bridge
        )


def test_no_pair_is_no_error(clip, samples, bridge):
    batch = collate([samples[i] for i in range(2)])
    batch.instances.n_human.zero_()
    for grad in ("none", "straight_through", "full"):
        settings = replace(SETTINGS, bridge_grad=grad)
        terms = training_loss(model(clip), batch, CLASSES.valid(), settings, bridge=bridge)
        terms["loss"].backward()
        assert terms["loss"] == 0 and terms["pairs"] == 0


class Walks:
    """Stands for a bridge; writes down the evaluations of every call."""

    def __init__(self, bridge, calls):
        self.bridge, self.calls, self.geometry = bridge, calls, bridge.geometry

    def __call__(self, features):
        self.calls.append(self.bridge.num_steps)
        return self.bridge(features)

    def with_sampler(self, *, num_steps):
        return Walks(self.bridge.with_sampler(num_steps=num_steps), self.calls)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [([], [3, 3, 3, 3]), ([5], [5, 5, 5, 5]), ([1, 2], [1, 2, 2, 2]), ([1, 2, 3, 4, 5], [1, 2, 3, 4])],
)
def test_evaluations_follow_the_epochs(bridge, steps, expected):
    calls = []
    for epoch in range(4):
        bridge_of_epoch(Walks(bridge, calls), steps, epoch)(raw_rows(2, bridge.dim, 1))
    assert calls == expected


def test_an_interrupted_training_with_a_bridge_ends_where_the_whole_one_does(tmp_path, clip, samples, bridge):
    """Also: what it learnt with another schedule or without the bridge is something else."""
    settings = replace(SETTINGS, text_prompts="prefix", bridge_steps=[1, 4], ema=0.9, accumulate=2, batch_size=2)

    def train(settings, folder, given=bridge):
        built, calls = model(clip, settings), []
        walks = None if given is None else Walks(given, calls)
        info = train_ezhoi(
            built, samples, CLASSES.valid(), settings, tmp_path / folder, seed=3, device="cpu", bridge=walks
        )
        return info, {name: value.clone() for name, value in built.state_dict().items()}, calls

    whole = train(settings, "whole")
    assert whole[2] == [1, 1, 1, 4, 4, 4]
    train(replace(settings, epochs=1), "cut")
    resumed = train(settings, "cut")
    assert resumed[2] == [4, 4, 4] and resumed[0] == whole[0]
    assert all(torch.equal(whole[1][name], value) for name, value in resumed[1].items())
    assert read_jsonl(tmp_path / "whole" / "history.jsonl") == read_jsonl(tmp_path / "cut" / "history.jsonl")
    for other in (train(replace(settings, bridge_steps=[]), "other"), train(settings, "without", None)):
        assert not torch.equal(other[1]["vis_fuse.0.weight"], whole[1]["vis_fuse.0.weight"])
