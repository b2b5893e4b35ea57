"""EZ-HOI: training, all pairs of a split, and frozen CLIP on the same pairs as the baseline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lib.bridge.bundle import Bridge, check_compatible
from lib.bridge.geometry import modality_mean
from lib.data.descriptions import ClassTexts
from lib.data.hico_det import HoiDataset
from lib.engine.checkpoints import remove_checkpoints, seed_everything
from lib.engine.compiled import compile_module
from lib.engine.distributed import is_first
from lib.engine.launch import launch
from lib.errors import FoundExpected
from lib.evaluation.hico_det import ApResult, hico_det_ap, per_class_table, summarise
from lib.ezhoi.batches import HoiSamples
from lib.ezhoi.classes import ScoredClasses, scored_classes
from lib.ezhoi.frozen_clip import clip_on_crops, clip_on_regions
from lib.ezhoi.live_detector import DetectorView, LiveDetector, build_live_detector
from lib.ezhoi.model import EzHoi, build_ezhoi
from lib.ezhoi.predict import BOXES_H, BOXES_O, PairTable, hoi_predictions, predict_pairs
from lib.ezhoi.train import train_ezhoi
from lib.ezhoi.weights import WEIGHTS, load_model_weights, read_record, save_model
from lib.runs import Artifact, Run, atomic_write, file_sha256, fingerprint
from lib.settings import Config
from lib.stages import inputs

PAIR_BATCH = 32  # images a forward in prediction

# settings of the ezhoi section that do not change the trained weights
_NOT_SHAPING = {"workers", "log_every", "prior_power", "bridge_eval", "bridge", "init_from"}


def ezhoi(cfg: Config, run: Run) -> Artifact:
    """Train EZ-HOI on the seen HOIs of the training split."""
    data = inputs.dataset(cfg, run, "train")
    parents = [run.existing("features/train"), run.existing("detections/train")]
    shaping = {name: value for name, value in asdict(cfg.ezhoi).items() if name not in _NOT_SHAPING}
    settings = {
        "ezhoi": shaping,
        "zero_shot": cfg.data.zero_shot,
        "seed": cfg.seed,
        "proposals": inputs.proposal_rule(cfg),
    }
    settings["validation_images"] = cfg.data.validation_images
    if cfg.data.zero_shot_filter != "row":
        settings["zero_shot_filter"] = cfg.data.zero_shot_filter
    unseen = inputs.unseen(cfg, run)
    texts = inputs.class_texts(cfg, run, data, unseen)
    settings["texts"] = fingerprint("texts", asdict(texts))

    if cfg.ezhoi.bridge:
        parents.append(file_sha256(bridge_folder(cfg, run) / "bridge.json"))
        settings["bridge"] = {"center": cfg.bridge.center, "entry_step": cfg.bridge.entry_step}
    if cfg.ezhoi.init_from:
        parents.append(file_sha256(Path(cfg.ezhoi.init_from) / WEIGHTS))

    if cfg.checkpoints.ezhoi:
        settings["result"] = cfg.checkpoints.ezhoi

    def make(folder: Path) -> dict:
        return launch(_train, cfg, run, texts, folder, settings=cfg.launch, device=inputs.device(cfg))[0]

    return run.artifact("ezhoi", settings, make, parents)


def _train(cfg: Config, run: Run, texts: ClassTexts, folder: Path) -> dict:
    """What every process of a launch does of the training; the first one writes."""
    data = inputs.dataset(cfg, run, "train")
    seen_data, valid = seen_training_set(cfg, run, data)
    model = new_model(cfg, run, data, texts=texts)
    bridge = training_bridge(cfg, run, model, seen_data)
    live = _live_detector(cfg, run, data) if cfg.ezhoi.detections == "live" else None
    samples = HoiSamples(
        seen_data,
        None if live else inputs.proposals(cfg, run, seen_data),
        inputs.feature_store(cfg, run, "train"),
        model.size,
        classes_of(cfg, data),
        augment=cfg.ezhoi,
        seed=cfg.seed,
        detector_view=DetectorView.of(live.detr) if live else None,
    )
    info = train_ezhoi(
        model, samples, valid, cfg.ezhoi, folder, seed=cfg.seed, device=inputs.device(cfg), detector=live,
        bridge=bridge, evaluate=_validation(cfg, run, data), checkpoints=cfg.checkpoints,
    )  # fmt: skip
    if is_first():
        if bridge is not None:
            bridge.save(folder / "bridge")  # with the mean of this model's features
        spec = inputs.clip_model(cfg, run).spec
        save_model(folder, model, spec, cfg.ezhoi, {"zero_shot": cfg.data.zero_shot, "images": len(seen_data)})
        remove_checkpoints(folder)
    return info | {"rows": len(model.text.rows)}


def _validation(cfg: Config, run: Run, data: HoiDataset) -> Callable[[EzHoi], dict[str, float]] | None:
    """Scores the validation images after every epoch, where `checkpoints.ezhoi` chooses by a score."""
    if cfg.checkpoints.ezhoi in ("", "loss"):
        return None
    if not cfg.data.validation_images:
        raise FoundExpected(
            "checkpoints.ezhoi", f"{cfg.checkpoints.ezhoi!r} without validation images",
            "images that EZ-HOI is not trained on", "data.validation_images=500, or checkpoints.ezhoi=loss",
        )  # fmt: skip
    chosen, classes = fit_set(cfg, run, data), classes_of(cfg, data)
    found, store = inputs.proposals(cfg, run, chosen), inputs.feature_store(cfg, run, "train")

    def evaluate(model: EzHoi) -> dict[str, float]:
        samples = HoiSamples(chosen, found, store, model.size, classes)
        table = predict_pairs(
            model, samples, batch_size=PAIR_BATCH, workers=cfg.ezhoi.workers, device=inputs.device(cfg)
        )
        predictions = hoi_predictions(table.frame, table.logits, classes, cfg.ezhoi.prior_power)
        ap = hico_det_ap(predictions, chosen.truth(), chosen.vocabulary.num_hois)
        return {"mAP_seen": summarise(ap, unseen=inputs.unseen(cfg, run) or None)["mAP_full"]}

    return evaluate


def bridge_folder(cfg: Config, run: Run) -> Path:
    """The folder that `ezhoi.bridge` names; `captions` is the run's own, trained before EZ-HOI (`bridging.before`)."""
    return run.existing("bridge/captions").path if cfg.ezhoi.bridge == "captions" else Path(cfg.ezhoi.bridge)


def training_bridge(cfg: Config, run: Run, model: EzHoi, data: HoiDataset, images: int = 256) -> Bridge | None:
    """The bridge of `ezhoi.bridge`, entered at `bridge.entry_step`; None without one.

    Its vision mean, where `bridge.center` asks for one, is that of the untrained model's features on the first
    training images. Refused (ValueError) where its texts are not the classifier's.
    """
    if not cfg.ezhoi.bridge:
        return None
    bridge = Bridge.load(bridge_folder(cfg, run), inputs.device(cfg)).with_settings(cfg.bridge)
    check_compatible(
        bridge, model.text.space("in training"), len(bridge.geometry.text_mean),
        allow_mismatch=cfg.bridge.allow_text_space_mismatch,
        command="ezhoi.preset=released keeps the class text in the space of a caption bridge",
    )  # fmt: skip
    if cfg.bridge.center == "own":
        first = data.subset(images)
        store = inputs.feature_store(cfg, run, "train")
        samples = HoiSamples(first, inputs.proposals(cfg, run, first), store, model.size, classes_of(cfg, data))
        table = predict_pairs(model, samples, batch_size=PAIR_BATCH, workers=0, device=inputs.device(cfg))
        bridge = bridge.with_vision_mean(modality_mean(torch.from_numpy(table.features)))
    return bridge.walking_on(bridge.device, cfg.compile)


def evaluation_bridge(cfg: Config, run: Run) -> Bridge | None:
    """What `ezhoi.bridge_eval` names: the bridge of training, none, or another folder with the same vision mean."""
    which, trained = cfg.ezhoi.bridge_eval, run.existing("ezhoi").path / "bridge"
    if which == "none" or (which == "same" and not cfg.ezhoi.bridge):
        return None
    found = Bridge.load(trained if which == "same" else which, inputs.device(cfg))
    if which != "same" and trained.is_dir():
        own = Bridge.load(trained, inputs.device(cfg)).geometry
        found = found.with_center(own.center)
        found = found if own.vision_mean is None else found.with_vision_mean(own.vision_mean)
    return found.walking_on(found.device, cfg.compile)


def _live_detector(cfg: Config, run: Run, data: HoiDataset) -> LiveDetector:
    return build_live_detector(
        inputs.detector(cfg, run),
        data.vocabulary.objects,
        size=inputs.clip_model(cfg, run).spec.image_size,
        human=data.vocabulary.person,
        rule=inputs.proposal_rule(cfg),
        dropout=cfg.ezhoi.detector_dropout,
    )


def seen_training_set(cfg: Config, run: Run, data: HoiDataset) -> tuple[HoiDataset, torch.Tensor]:
    """Training images without unseen rows and without the validation images; seen affordances [objects, verbs]."""
    unseen = inputs.unseen(cfg, run)
    seen = np.setdiff1d(np.arange(data.vocabulary.num_hois), unseen)
    kept = inputs.seen_part(cfg, run, data)
    kept = replace(kept, images=kept.images[: len(kept) - cfg.data.validation_images])
    return kept, classes_of(cfg, data).valid(seen)


def classes_of(cfg: Config, data: HoiDataset) -> ScoredClasses:
    """What the run's detector scores: verbs or HOI classes."""
    return scored_classes(data.vocabulary, cfg.ezhoi.classes)


def fit_set(cfg: Config, run: Run, data: HoiDataset) -> HoiDataset:
    """Images with seen rows only, for fitting what sits on top of the detector.

    The validation images, which the detector never trained on; without any, the first evaluation.fit_images training
    images (the detector's logits look better on those than they are).
    """
    kept = inputs.seen_part(cfg, run, data)
    count = cfg.data.validation_images
    return replace(kept, images=kept.images[-count:]) if count else kept.subset(cfg.evaluation.fit_images)


def new_model(
    cfg: Config, run: Run, data: HoiDataset, weights: str | Path = "", texts: ClassTexts | None = None
) -> EzHoi:
    """An EZ-HOI with its random draws fixed by the seed, then with the weights of a folder (`ezhoi.init_from`).

    Class rows come with the weights: descriptions, from which new ones are chosen, may differ in their last bits.
    """
    weights = weights or cfg.ezhoi.init_from
    rows = np.array(read_record(weights)["rows"], np.int64) if weights else None
    seed_everything(cfg.seed)
    unseen = inputs.unseen(cfg, run)
    texts = texts or inputs.class_texts(cfg, run, data, unseen)
    clip = inputs.clip_model(cfg, run)
    model = build_ezhoi(clip, data.vocabulary, texts, unseen, cfg.ezhoi, rows)
    if weights:
        load_model_weights(weights, model, clip.spec)
    compile_module(model.vision, cfg.compile)
    return model


def load_ezhoi(cfg: Config, run: Run) -> EzHoi:
    """The trained model of the run, on the run's device, where its CLIP is."""
    model = new_model(cfg, run, inputs.dataset(cfg, run, "train"), run.existing("ezhoi").path)
    return model.to(inputs.device(cfg)).eval()


def pairs(cfg: Config, run: Run, which: str) -> Artifact:
    """Features and logits of the trained detector for all pairs of the `test` split or of the `fit` images."""
    split = "train" if which == "fit" else "test"
    parents = [run.existing(name) for name in ("ezhoi", f"features/{split}", f"detections/{split}")]
    settings = {"which": which, "bridge": cfg.ezhoi.bridge_eval}
    if which == "fit":
        settings |= {"validation_images": cfg.data.validation_images, "fit_images": cfg.evaluation.fit_images}

    def make(folder: Path) -> dict:
        return launch(_predict, cfg, run, which, folder, settings=cfg.launch, device=inputs.device(cfg))[0]

    return run.artifact(f"pairs/{which}", settings, make, parents)


def _predict(cfg: Config, run: Run, which: str, folder: Path) -> dict:
    """What every process of a launch does of the prediction; the first one writes."""
    split = "train" if which == "fit" else "test"
    data = inputs.dataset(cfg, run, split)
    data = fit_set(cfg, run, data) if which == "fit" else data
    model = load_ezhoi(cfg, run)
    samples = HoiSamples(
        data,
        inputs.proposals(cfg, run, data),
        inputs.feature_store(cfg, run, split),
        model.size,
        classes_of(cfg, data),
    )
    table = predict_pairs(
        model, samples, batch_size=PAIR_BATCH, workers=cfg.ezhoi.workers, device=inputs.device(cfg),
        bridge=evaluation_bridge(cfg, run),
    )  # fmt: skip
    if is_first():
        table.save(folder)
    return {"images": len(data), "pairs": len(table.frame)}


BASELINES = {"frozen_clip": clip_on_regions, "clip_crops": clip_on_crops}


def frozen_clip(cfg: Config, run: Run, kind: str) -> Artifact:
    """Zero-shot CLIP on every test pair: `frozen_clip` pools regions as EZ-HOI does, `clip_crops` classifies crops."""
    parents = [run.existing("pairs/test")]

    def make(folder: Path) -> dict:
        frame = PairTable.load(parents[0].path).frame
        data = inputs.dataset(cfg, run, "test")
        logits = BASELINES[kind](inputs.clip_model(cfg, run), data, frame, cfg.clip.batch_size)
        predictions = hoi_predictions(frame, logits, scored_classes(data.vocabulary), cfg.ezhoi.prior_power)
        atomic_write(folder / "predictions.parquet", lambda stream: predictions.to_parquet(stream))
        return {"pairs": len(frame)}

    return run.artifact(f"predictions/{kind}", {"prior_power": cfg.ezhoi.prior_power}, make, parents)


def evaluate(cfg: Config, run: Run, predictions: pd.DataFrame) -> dict[str, float]:
    """mAP of a predictions table on the test split, in percent; NaN groups (no unseen class, say) are left out."""
    unseen, rare = inputs.unseen(cfg, run), inputs.dataset(cfg, run, "train").rare().tolist()
    scores = summarise(evaluation(cfg, run, predictions), unseen=unseen or None, rare=rare)
    return {name: value for name, value in scores.items() if value == value}


def detector_results(cfg: Config, run: Run) -> dict[str, dict[str, float]]:
    """Scores of both frozen-CLIP baselines and of the detector on the same pairs, recorded in the run's metrics."""
    scores = {name: evaluate(cfg, run, _baseline_predictions(run, name)) for name in BASELINES}
    for name, values in scores.items():
        run.record(name, **values)
    return scores | {"ezhoi": ezhoi_scores(cfg, run)}


def ezhoi_scores(cfg: Config, run: Run) -> dict[str, float]:
    """Scores of the detector alone, recorded in the run's metrics."""
    scores = evaluate(cfg, run, _detector_predictions(cfg, run))
    run.record("ezhoi", **scores)
    return scores


def evaluation(cfg: Config, run: Run, predictions: pd.DataFrame) -> ApResult:
    """Per-class AP of a predictions table on the test split."""
    data = inputs.dataset(cfg, run, "test")
    return hico_det_ap(predictions, data.truth(), data.vocabulary.num_hois)


def class_table(cfg: Config, run: Run, predictions: pd.DataFrame) -> pd.DataFrame:
    """Per-class AP with names, counts, seen and rare flags."""
    unseen, rare = inputs.unseen(cfg, run), inputs.dataset(cfg, run, "train").rare().tolist()
    table = per_class_table(evaluation(cfg, run, predictions), unseen=unseen, rare=rare)
    names = inputs.dataset(cfg, run, "test").vocabulary.hoi_name
    return table.assign(name=[names(hoi) for hoi in table["hoi"]])


def class_gains(cfg: Config, run: Run) -> pd.DataFrame:
    """AP of every class under frozen CLIP and under the detector, largest gain first."""
    before = class_table(cfg, run, _baseline_predictions(run, "frozen_clip")).set_index("hoi")["ap"]
    after = class_table(cfg, run, _detector_predictions(cfg, run)).set_index("hoi")
    table = after[["name", "seen", "rare", "num_gt"]].assign(frozen_clip=before, ezhoi=after["ap"])
    return table.assign(gain=table["ezhoi"] - table["frozen_clip"]).sort_values("gain", ascending=False)


def top_predictions(
    cfg: Config, run: Run, image: int, count: int = 5
) -> tuple[np.ndarray, np.ndarray, list[str], list]:
    """Surest predictions of one test image: human boxes [n, 4], object boxes [n, 4], names, scores."""
    predictions = _detector_predictions(cfg, run)
    best = predictions[predictions["image"] == image].nlargest(count, "score")
    names = inputs.dataset(cfg, run, "test").vocabulary.hoi_name
    return (
        best[BOXES_H].to_numpy(), best[BOXES_O].to_numpy(), [names(hoi) for hoi in best["hoi"]], best["score"].tolist(),
    )  # fmt: skip


def _baseline_predictions(run: Run, kind: str) -> pd.DataFrame:
    return pd.read_parquet(run.existing(f"predictions/{kind}").path / "predictions.parquet")


def _detector_predictions(cfg: Config, run: Run) -> pd.DataFrame:
    table = PairTable.load(run.existing("pairs/test").path)
    classes = classes_of(cfg, inputs.dataset(cfg, run, "test"))
    return hoi_predictions(table.frame, table.logits, classes, cfg.ezhoi.prior_power)
