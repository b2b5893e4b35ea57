"""Recognition stages: labels with gaps, variants, comparison, transfer to detection, the table over seeds."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from lib.analysis.attention import class_attention
from lib.analysis.recognition import by_examples, label_map, row_metrics
from lib.analysis.seeds import factor_differences
from lib.config import ConfigError, load_config
from lib.data.vocabulary import Vocabulary
from lib.defr.labels import ABSENT, AMBIGUOUS, POSITIVE, UNKNOWN, RecognitionLabels, few_shot, save_labels
from lib.defr.towers import ClipTower, TimmTower
from lib.settings import DEFR_VARIANTS, DefrSettings
from lib.stages import inputs, recognition, recognition_labels, sweep

LIMITS = ("data.train_limit=40", "data.test_limit=12", "data.world.train_images=170", "defr.images=16")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A run whose labels are written and whose first variant is trained and scored, as is the untrained start."""
    folder = tmp_path_factory.mktemp("recognition")
    cfg, run = inputs.open_run("tests/micro.yaml", str(folder), LIMITS)
    inputs.world(cfg, run)
    inputs.models(cfg, run)
    recognition_labels.labels(cfg, run)
    recognition.defr(cfg, run, "language_sign")
    for variant in ("language_sign", recognition.UNTRAINED):
        recognition.scores(cfg, run, variant)
    return cfg, run


# ---------------------------------------------------------------- labels


@pytest.fixture(scope="module")
def complete():
    """4000 images, objects 0 and 2 with 3 and 2 classes; an image shows object 0, 2 or both."""
    hoi_object = np.array([0, 0, 0, 2, 2])
    values = np.full((4000, 5), UNKNOWN, np.int8)
    values[:3000, :3] = [POSITIVE, ABSENT, ABSENT]
    values[2000:, 3:] = [ABSENT, POSITIVE]
    return RecognitionLabels(tuple(map(str, range(4000))), values), hoi_object


def test_gaps_in_training_labels(complete):
    labels, hoi_object = complete
    found = recognition_labels.with_gaps(labels, hoi_object, 3, "train", unknown=0.2, ambiguous=0.1).values
    seen = labels.values != UNKNOWN
    assert (found[~seen] == UNKNOWN).all()  # nothing is invented
    skipped = seen & (found == UNKNOWN)
    assert (skipped[:, 0] == skipped[:, 1]).all() and (skipped[:, 3] == skipped[:, 4]).all()  # whole objects at a time
    assert skipped[:3000, 0].mean() == pytest.approx(0.2, abs=0.03)
    verified = seen & ~skipped
    assert (found[verified] == AMBIGUOUS).mean() == pytest.approx(0.1, abs=0.02)
    assert (found[verified & (found != AMBIGUOUS)] == labels.values[verified & (found != AMBIGUOUS)]).all()


def test_test_images_are_verified_for_what_they_show(complete):
    labels, hoi_object = complete
    found = recognition_labels.with_gaps(labels, hoi_object, 3, "test", unknown=0.9, ambiguous=0.1).values
    assert ((found == UNKNOWN) == (labels.values == UNKNOWN)).all()
    assert (found[labels.values != UNKNOWN] == AMBIGUOUS).mean() == pytest.approx(0.1, abs=0.02)


def test_gaps_depend_on_seed_and_split_alone(complete):
    labels, hoi_object = complete
    first, again, other = (recognition_labels.with_gaps(labels, hoi_object, seed, "train").values for seed in (0, 0, 1))
    assert (first == again).all() and (first != other).any()
    assert (labels.values != AMBIGUOUS).all()  # the input stays


def test_the_runs_labels_have_all_four_values_and_a_long_tail(opened):
    cfg, run = opened
    train, test = (recognition.stored_labels(run, split) for split in ("train", "test"))
    assert train.values.shape == (16, 63) and test.values.shape == (12, 63)
    assert set(np.unique(train.values)) == {UNKNOWN, ABSENT, AMBIGUOUS, POSITIVE}
    assert list(train.files) == [image.name for image in inputs.dataset(cfg, run, "train").images[:16]]
    assert run.existing("recognition_labels").info["few"] == {
        name: len(ids) for name, ids in few_shot(train.positive).items()
    }
    table = recognition_labels.label_counts(run)
    assert table.loc["test", [name for name in table if name.endswith("%")]].sum() == pytest.approx(100)


def test_labels_from_a_file_may_name_images_without_a_pair(opened, tmp_path):
    cfg, run = opened
    folder = run.root / "world" / "images" / "train2015"
    extra = sorted(folder.iterdir())[60].name  # beyond data.train_limit
    given = {
        split: RecognitionLabels((extra,) if split == "train" else ("other.jpg",), np.ones((1, 63), np.int8))
        for split in ("train", "test")
    }
    save_labels(tmp_path / "given.npz", **given)
    cfg = replace(cfg, defr=replace(cfg.defr, labels=str(tmp_path / "given.npz")))
    other = type(run)(tmp_path / "run")
    (tmp_path / "run" / "world").symlink_to(run.root / "world")
    (tmp_path / "run" / "models").symlink_to(run.root / "models")
    recognition_labels.labels(cfg, other)
    model = recognition.new_model(cfg, other, cfg.defr)
    assert recognition.images(cfg, other, "train", model).paths == [
        other.root / "world" / "images" / "train2015" / extra
    ]


# ---------------------------------------------------------------- variants


def test_variants_change_start_and_loss_alone():
    base = DefrSettings(head="bert-linear", loss="wbce", lr=0.5)
    of = {name: recognition.variant_settings(base, name) for name in ("language_sign", "random_bce", "own")}
    assert of["own"] == base
    assert of["language_sign"] == replace(base, loss="sign")
    assert of["random_bce"] == replace(base, head="rand-linear", loss="bce")
    assert recognition.variant_settings(DefrSettings(head="rand"), "language_bce").head == "clip"
    with pytest.raises(ConfigError, match=r"defr.variants: found 'language_focal', expected some of \['own'"):
        recognition.variant_settings(base, "language_focal")
    two = replace(base, other_backbone="vit_tiny_patch16_224", other_weights="in21k.safetensors")
    assert recognition.variant_settings(two, "other_random_bce") == replace(
        two, head="rand-linear", loss="bce", backbone="vit_tiny_patch16_224", weights="in21k.safetensors"
    )
    with pytest.raises(ConfigError, match="found 'other_language_sign' but no defr.other_backbone"):
        recognition.variant_settings(base, "other_language_sign")


def test_a_trained_variant_differs_from_its_start_and_is_what_was_scored(opened):
    cfg, run = opened
    trained, start = (recognition.load_defr(cfg, run, name) for name in ("language_sign", recognition.UNTRAINED))
    assert np.abs(recognition.classifier_rows(trained) - recognition.classifier_rows(start)).max() > 1e-5
    data = recognition.images(cfg, run, "test", trained)
    with torch.inference_mode():
        single = trained(data[3][1][None])[0].numpy()
    np.testing.assert_allclose(recognition.stored_scores(run, "language_sign")[3], single, atol=1e-4)
    assert not (run.root / "defr" / "language_sign" / "checkpoints").exists()
    assert recognition.history(run, "language_sign").notna().all(axis=None)


def test_other_labels_make_trained_variants_stale(opened):
    cfg, run = opened
    before = recognition.defr(cfg, run, "language_sign").fingerprint
    cfg = replace(cfg, defr=replace(cfg.defr, workers=3, mask_mode="none", variants=["own"]))
    assert recognition.defr(cfg, run, "language_sign").fingerprint == before  # these change nothing
    with pytest.raises(RuntimeError, match=r"lr: on disk 0.0001, asked for 0.5"):
        recognition.defr(replace(cfg, defr=replace(cfg.defr, lr=0.5)), run, "language_sign")


def test_comparison_is_the_mean_of_the_classes(opened):
    cfg, run = opened
    compared = ["language_sign", recognition.UNTRAINED]
    table = recognition.comparison(cfg, run, compared)
    ap = recognition.class_ap(run, compared)
    few = few_shot(recognition.stored_labels(run, "train").positive)
    for name in compared:
        assert table.loc[name, "full"] == pytest.approx(ap[name].mean())
        assert table.loc[name, "few_1"] == pytest.approx(ap[name][few["few_1"]].mean())
        assert run.metrics[f"defr/{name}/recognition_full"] == table.loc[name, "full"]
    assert not any(name.endswith("/mAP_full") for name in run.metrics)  # those are detection's
    gains = recognition.class_gains(cfg, run, "language_sign")
    assert gains["gain"].is_monotonic_decreasing
    assert gains["gain"].mean() == pytest.approx(table["full"].diff().iloc[1] * -1)


def test_detection_from_the_detectors_boxes(opened):
    cfg, run = opened
    inputs.detections(cfg, run, "test")
    for mode in ("block", "none"):
        recognition.detections(cfg, run, "language_sign", mode)
    table = recognition.detection_scores(cfg, run, ("block", "none"))
    assert list(table) == ["full", "rare", "non_rare"] and table["full"].between(0, 100).all()
    found = {m: pd.read_parquet(run.root / "defr_detections" / m / "predictions.parquet") for m in ("block", "none")}
    assert len(found["block"]) == len(found["none"]) > 0
    assert not np.allclose(found["block"]["score"], found["none"]["score"], rtol=1e-3)


# ---------------------------------------------------------------- a look inside


@pytest.mark.parametrize("backbone", ["clip", "timm"])
def test_class_attention_is_that_of_the_last_block(backbone, opened):
    """Our map against the weights of the model's own attention module."""
    cfg, run = opened
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    if backbone == "clip":
        tower = ClipTower(inputs.clip_model(cfg, run), 64).eval()
        block, seen = tower.blocks[-1], []
        block.attn.register_forward_hook(
            lambda module, given, kwargs, _out: seen.append(kwargs | {"x": given}), with_kwargs=True
        )
        with torch.inference_mode():
            tower(pixels)
            q, k, v = seen[0]["x"] if seen[0]["x"] else (seen[0][name] for name in ("query", "key", "value"))
            _, expected = torch.nn.MultiheadAttention.forward(block.attn, q, k, v, need_weights=True)  # (B, 1+L, 1+L)
        expected = expected[:, 0, 1:]
    else:
        tower = TimmTower("vit_tiny_patch16_224", 64).eval()
        attention, taken = tower.vit.blocks[-1].attn, []
        attention.fused_attn = False  # so that the weights pass the dropout module
        attention.attn_drop.register_forward_hook(lambda _m, _i, out: taken.append(out))
        with torch.inference_mode():
            tower(pixels)
        expected = taken[0].mean(1)[:, 0, 1:]
    found = class_attention(tower, pixels)
    assert found.shape == (2, 4, 4) and (found.sum((1, 2)) < 1).all()
    torch.testing.assert_close(found.flatten(1), expected, atol=1e-5, rtol=1e-4)


VOCABULARY = Vocabulary(("a", "b"), ("x", "y"), np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))


def test_row_metrics_by_hand():
    # two orthogonal pairs of equal rows: of 6 pairs, 2 have cosine 1; every nearest row has the same object
    rows = np.array([[2, 0], [1, 0], [0, 1], [0, 3]], np.float32)
    found = row_metrics(rows, VOCABULARY, neighbours=1)
    assert found["mean_cosine"] == pytest.approx(1 / 3) and found["effective_rank"] == pytest.approx(2)
    assert found["object_purity"] == 1 and found["verb_purity"] == 0
    parallel = row_metrics(np.ones((4, 2), np.float32), VOCABULARY)
    assert parallel["mean_cosine"] == pytest.approx(1) and parallel["effective_rank"] == pytest.approx(1)


def test_label_map_refuses_rows_of_other_widths():
    with pytest.raises(ValueError, match="expected sets of one shape"):
        label_map({"a": np.eye(4), "b": np.ones((4, 3))}, VOCABULARY)


def test_groups_by_examples():
    table = by_examples({"m": np.array([10.0, 20, 40, 60, 0])}, np.array([0, 1, 5, 2, 70]), bins=(1, 5, 50))
    assert table.values.tolist() == [["0-1", 2, 15.0], ["2-5", 2, 50.0], ["51+", 1, 0.0]]


# ---------------------------------------------------------------- the table


def test_table_over_seeds(tmp_path, opened):
    shared = tmp_path / "run" / "shared"
    shared.mkdir(parents=True)
    for kind in ("world", "models"):
        (shared / kind).symlink_to(opened[1].root / kind)
    path = tmp_path / "defr.yaml"
    limits = ", ".join(LIMITS)
    path.write_text(
        f'config: tests/micro.yaml\noverrides: [{limits}, "defr.variants=[language_sign,random_sign]"]\n'
        "measure: defr\nseeds: [0, 1]\n"
    )
    assert sweep.main([str(path), "--run", str(tmp_path / "run")]) == 0
    points = pd.read_csv(tmp_path / "run" / "points.csv")
    assert points[["start", "loss", "seed"]].values.tolist() == [
        [start, "sign", seed] for seed in (0, 1) for start in ("language", "random")
    ]
    alone = recognition.comparison(*opened, ["language_sign"])
    assert points["mAP_full"][0] == pytest.approx(alone.loc["language_sign", "full"], abs=1e-3)
    summary = pd.read_csv(tmp_path / "run" / "summary.csv")
    assert summary["seeds"].eq(2).all() and len(summary) == 2
    differences = pd.read_csv(tmp_path / "run" / "differences.csv").set_index(["factor", "score"])
    full = points.set_index(["start", "seed"])["mAP_full"]
    wanted = (full["language"] - full["random"]).mean()
    assert differences.loc[("language less random", "mAP_full"), "difference"] == pytest.approx(wanted, abs=0.01)


def test_both_factors_are_paired():
    value = {("language", "sign"): 9.0, ("language", "bce"): 6.0, ("random", "sign"): 4.0, ("random", "bce"): 3.0}
    rows = [
        {"variant": "base", "start": start, "loss": loss, "seed": seed, "mAP_full": score + seed}
        for (start, loss), score in value.items()
        for seed in range(3)
    ]
    factors = {"start": recognition.STARTS, "loss": recognition.LOSSES}
    found = factor_differences(pd.DataFrame(rows), factors).set_index(["factor", "given"])
    assert found["difference"].to_dict() == {
        ("language less random", "sign"): 5, ("language less random", "bce"): 3,
        ("sign less bce", "language"): 3, ("sign less bce", "random"): 1,
    }  # fmt: skip
    assert found["verdict"].eq("helps").all()


def test_the_shipped_table():
    plan = sweep.read_sweep("configs/sweeps/defr.yaml")
    assert len(plan.points) == 3 and load_config(plan.config).defr.variants == list(DEFR_VARIANTS)
    rows = pd.read_csv("configs/sweeps/defr.csv")
    assert rows["seeds"].eq(3).all() and set(rows["start"] + "_" + rows["loss"]) == set(DEFR_VARIANTS)
    assert {"mAP_full_mean", "mAP_few_1_std", "mAP_few_5_mean", "mAP_few_10_mean"} <= set(rows)
    assert set(pd.read_csv("configs/sweeps/defr_differences.csv")["factor"]) == {
        "language less random",
        "sign less bce",
    }
