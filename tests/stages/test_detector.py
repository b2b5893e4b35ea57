"""The detector stage with every way to train: live DETR, from other weights, HOI classes, descriptors, a bridge."""

import numpy as np
import pytest
import torch

from lib.ezhoi.predict import PairTable
from lib.ezhoi.weights import WeightsError, read_record
from lib.runs import Artifact
from lib.stages import bridging, detector, inputs, sweep

LIMITS = (
    "data.train_limit=24", "data.validation_images=8", "data.test_limit=10", "data.world.train_images=170",
    "ezhoi.epochs=1", "ezhoi.preset=released",
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    sweep.prepare("tests/micro.yaml", folder, LIMITS)
    return folder


def run(root, name, *overrides):
    point = sweep.Point(name, {}, 0, (*LIMITS, *overrides))
    plan = sweep.Sweep("tests/micro.yaml", list(LIMITS), "ezhoi", [point])
    scores = sweep.run_point(plan, root, point, torch.get_num_threads())["ezhoi"]
    assert 0 <= scores["mAP_full"] <= 100
    return root / name


@pytest.fixture(scope="module")
def released(root):
    return run(root, "released")


VARIANTS = {
    "live": ["ezhoi.detections=live"],
    "hoi": ["ezhoi.classes=hoi"],
    "descriptors": ["ezhoi.act_descriptors=true", "ezhoi.text_adapter=true"],
    "unseen": ["ezhoi.preset=prefix_unseen", "ezhoi.ema=0.9", "ezhoi.accumulate=2", "ezhoi.batch_size=8"],
    "bf16": ["ezhoi.precision=bf16", "ezhoi.regions=HO+U", "data.zero_shot=default"],
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_way_to_train(root, name):
    folder = run(root, name, *VARIANTS[name])
    table = PairTable.load(folder / "pairs" / "test")
    assert len(table.frame) > 0 and np.isfinite(table.logits).all()
    hois = len(inputs.dataset(*opened(root, name, *VARIANTS[name]), "test").vocabulary.class_sentences())
    assert (table.logits.shape[1] == hois) == (name == "hoi")


def opened(root, name, *overrides):
    return inputs.open_run("tests/micro.yaml", str(root / name), (*LIMITS, *overrides))


def test_weights_can_be_evaluated_as_they_are(root, released):
    folder = run(root, "again", f"ezhoi.init_from={released / 'ezhoi'}", "ezhoi.epochs=0")
    first, second = (PairTable.load(path / "pairs" / "test") for path in (released, folder))
    assert np.array_equal(first.logits, second.logits)
    assert "loss_last_epoch" not in Artifact.load(folder / "ezhoi").info


def test_fine_tuning_starts_from_the_weights(root, released):
    folder = run(root, "tuned", f"ezhoi.init_from={released / 'ezhoi'}", "ezhoi.lr_vit=0", "ezhoi.lr_head=1e-12")
    first, second = (PairTable.load(path / "pairs" / "test") for path in (released, folder))
    assert np.allclose(first.logits, second.logits, atol=1e-4)


def test_weights_of_another_model_are_refused(root, released):
    with pytest.raises(WeightsError, match="tensors of another model"):
        run(root, "wrong", f"ezhoi.init_from={released / 'ezhoi'}", "ezhoi.text_adapter=true")
    assert read_record(released / "ezhoi")["settings"]["text_prompts"] == "off"


def test_a_bridge_inside_training(root, released):
    cfg, opened_run = opened(root, "released", "bridge.steps=30", "text_bank.max_texts=100")
    bridging.text_bank(cfg, opened_run, "captions")
    bridge = bridging.bridge(cfg, opened_run, "captions").path
    settings = [f"ezhoi.bridge={bridge}", "ezhoi.bridge_steps=[2]", "bridge.entry_step=100"]
    folder = run(root, "bridged", *settings)
    table = PairTable.load(folder / "pairs" / "test")
    cfg, bridged_run = opened(root, "bridged", *settings)
    scale = detector.load_ezhoi(cfg, bridged_run).logit_scale_HO.item()
    assert np.abs(table.logits).max() <= scale / 2 + 1e-5  # cosines: both sides are unit vectors
    assert (np.abs(np.linalg.norm(table.features, axis=1) - 1) > 1e-3).any()  # the raw features are kept
    off = detector.evaluation_bridge(cfg, bridged_run)
    assert off.geometry.vision_mean is not None and off.entry_step == 100
    cfg.ezhoi.bridge_eval = "none"
    assert detector.evaluation_bridge(cfg, bridged_run) is None


def test_a_caption_bridge_is_refused_for_live_text(root, released):
    bridge = root / "released" / "bridge" / "captions"
    with pytest.raises(ValueError, match="does not fit the classifier"):
        run(root, "refused", f"ezhoi.bridge={bridge}", "ezhoi.preset=prefix")
