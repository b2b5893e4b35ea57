"""EZ-HOI: training, all pairs of a split, and frozen CLIP on the same pairs as the baseline."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save

from lib.config import Config
from lib.data.hico_det import HoiDataset
from lib.engine.checkpoints import seed_everything
from lib.evaluation.hico_det import ApResult, hico_det_ap, per_class_table, summarise
from lib.ezhoi.batches import HoiSamples
from lib.ezhoi.classes import ScoredClasses, scored_classes
from lib.ezhoi.frozen_clip import clip_on_crops, clip_on_regions
from lib.ezhoi.model import EzHoi, build_ezhoi
from lib.ezhoi.predict import BOXES_H, BOXES_O, PairTable, hoi_predictions, predict_pairs
from lib.ezhoi.train import train_ezhoi
from lib.runs import Artifact, Run, atomic_write, fingerprint, write_json
from lib.stages import inputs

# settings of the ezhoi section that do not change the trained weights
_NOT_SHAPING = {"workers", "log_every", "prior_power"}


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
    settings["descriptions"] = fingerprint("descriptions", inputs.descriptions(cfg, run, data))

    def make(folder: Path) -> dict:
        seen_data, valid = seen_training_set(cfg, run, data)
        model = new_model(cfg, run, data)
        samples = HoiSamples(
            seen_data,
            inputs.proposals(cfg, run, seen_data),
            inputs.feature_store(cfg, run, "train"),
            model.size,
            classes_of(cfg, data),
            augment=cfg.ezhoi,
            seed=cfg.seed,
        )
        info = train_ezhoi(model, samples, valid, cfg.ezhoi, folder, seed=cfg.seed, device=inputs.device(cfg))
        blob = save({name: value.cpu().contiguous() for name, value in model.state_dict().items()})
        atomic_write(folder / "model.safetensors", lambda stream: stream.write(blob))
        write_json(folder / "model.json", {"settings": settings, "rows": model.text.rows, "images": len(seen_data)})
        return info

    return run.artifact("ezhoi", settings, make, parents)


def seen_training_set(cfg: Config, run: Run, data: HoiDataset) -> tuple[HoiDataset, torch.Tensor]:
    """Training images without unseen rows and without the validation images; seen affordances [objects, verbs]."""
    unseen = inputs.unseen(cfg, run)
    seen = np.setdiff1d(np.arange(data.vocabulary.num_hois), unseen)
    kept = data.without_hois(unseen)
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
    kept = data.without_hois(inputs.unseen(cfg, run))
    count = cfg.data.validation_images
    return replace(kept, images=kept.images[-count:]) if count else kept.subset(cfg.evaluation.fit_images)


def new_model(cfg: Config, run: Run, data: HoiDataset) -> EzHoi:
    """An untrained EZ-HOI, its random draws fixed by the seed."""
    seed_everything(cfg.seed)
    texts = inputs.descriptions(cfg, run, data)
    return build_ezhoi(inputs.clip_model(cfg, run), data.vocabulary, texts, cfg.ezhoi)


def load_ezhoi(cfg: Config, run: Run) -> EzHoi:
    """The trained model of the run."""
    model = new_model(cfg, run, inputs.dataset(cfg, run, "train"))
    model.load_state_dict(load_file(run.existing("ezhoi").path / "model.safetensors"))
    return model.eval()


def pairs(cfg: Config, run: Run, which: str) -> Artifact:
    """Features and logits of the trained detector for all pairs of the `test` split or of the `fit` images."""
    split = "train" if which == "fit" else "test"
    parents = [run.existing(name) for name in ("ezhoi", f"features/{split}", f"detections/{split}")]
    settings = {"which": which}
    if which == "fit":
        settings |= {"validation_images": cfg.data.validation_images, "fit_images": cfg.evaluation.fit_images}

    def make(folder: Path) -> dict:
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
        table = predict_pairs(model, samples, batch_size=32, workers=cfg.ezhoi.workers, device=inputs.device(cfg))
        table.save(folder)
        return {"images": len(data), "pairs": len(table.frame)}

    return run.artifact(f"pairs/{which}", settings, make, parents)


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
    tables = {name: _baseline_predictions(run, name) for name in BASELINES}
    tables["ezhoi"] = _detector_predictions(cfg, run)
    scores = {name: evaluate(cfg, run, predictions) for name, predictions in tables.items()}
    for name, values in scores.items():
        run.record(name, **values)
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
