"""DEFR: recognition of the HOIs of whole images, from labels to the comparison and the transfer to detection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from lib.analysis.recognition import by_examples, row_metrics
from lib.config import ConfigError
from lib.data.images import read_image
from lib.defr.detect import detect_pairs
from lib.defr.heads import MixingHead, family_of
from lib.defr.labels import (
    POSITIVE,
    SPLITS,
    few_shot,
    oversampled,
)
from lib.defr.model import DefrClassifier, build_defr
from lib.defr.pictures import RecognitionImages, evaluation_view, frame_of
from lib.defr.predict import predict_logits, recognition_scores
from lib.defr.text import class_sentences, language_rows
from lib.defr.train import train_defr
from lib.detection.table import DetectionTable
from lib.engine.checkpoints import remove_checkpoints
from lib.engine.compiled import compile_module
from lib.engine.distributed import is_first
from lib.engine.launch import launch
from lib.evaluation.hico_det import hico_det_ap, summarise
from lib.evaluation.recognition import read_array, recognition_ap
from lib.runs import Artifact, Run, atomic_write, file_sha256
from lib.settings import Config, DefrSettings
from lib.stages import inputs
from lib.stages.recognition_labels import stored_labels

WEIGHTS, SCORES = "model.safetensors", "scores.npz"
UNTRAINED = "untrained"  # the language start as it is, near to zero-shot CLIP (spec defr.md §3.2)
OWN = "own"
STARTS, LOSSES = ("language", "random"), ("sign", "bce")
# settings of the defr section that do not change the trained weights, or reach the fingerprint by other ways
_NOT_SHAPING = {
    "workers", "log_every", "labels", "images", "variants", "mask_mode", "mask_layers", "prior_power", "rescore",
    "embeddings", "weights", "sentences", "other_backbone", "other_weights", "teacher", "teacher_temperature",
    "teacher_quantile", "teacher_top", "teacher_band", "teacher_unions",
}  # fmt: skip


# ---------------------------------------------------------------- training


def images(
    cfg: Config, run: Run, split: str, model: DefrClassifier, augment: DefrSettings | None = None
) -> RecognitionImages:
    """Labelled images of a split as the model takes them; with `augment` for training, rare classes repeated."""
    found, data = stored_labels(run, split), inputs.dataset(cfg, run, split)
    paths = {image.name: image.path for image in data.images}
    folder = data.images[0].path.parent  # of labelled images without an annotated pair
    order = oversampled(found.positive, augment.min_samples) if augment else None
    return RecognitionImages(
        [paths.get(name, folder / name) for name in found.files], found.values, frame_of(model.tower),
        order=order, augment=augment, seed=cfg.seed,
    )  # fmt: skip


# ---------------------------------------------------------------- training


def variant_settings(settings: DefrSettings, variant: str) -> DefrSettings:
    """Settings of a variant: `own`, `untrained`, or start_loss such as `language_sign`; all else stays.

    A language start is the head of the settings (CLIP's rows if that one is random), a random start has the same kind.
    `other_language_sign` and its like stand on defr.other_backbone, so that backbone x start x loss can be compared.
    """
    if variant.startswith("other_"):
        if not settings.other_backbone:
            raise ConfigError(f"defr.variants: found {variant!r} but no defr.other_backbone, expected a ViT of timm")
        other = replace(settings, backbone=settings.other_backbone, weights=settings.other_weights)
        return variant_settings(other, variant.removeprefix("other_"))
    family = family_of(settings.head)
    linear = "-linear" if family.kind == "linear" else ""
    language = settings.head if family.rows != "random" else f"clip{linear}"
    start, _, loss = variant.partition("_")
    if variant == OWN:
        return settings
    if variant == UNTRAINED:
        return replace(settings, head=language)
    if start not in STARTS or loss not in LOSSES:
        known = [OWN, *(f"{start}_{loss}" for start in STARTS for loss in LOSSES)]
        raise ConfigError(f"defr.variants: found {variant!r}, expected some of {known}")
    return replace(settings, head=language if start == "language" else f"rand{linear}", loss=loss)


def defr(cfg: Config, run: Run, variant: str) -> Artifact:
    """Train one variant end to end; its test scores at the end of every cycle go to history.jsonl."""
    settings = variant_settings(cfg.defr, variant)
    parents = [run.existing("recognition_labels"), *_sources(cfg, run, settings)]

    shaping = _shaping(cfg, settings) | ({"result": cfg.checkpoints.defr} if cfg.checkpoints.defr else {})

    def make(folder: Path) -> dict:
        return launch(_train, cfg, run, variant, folder, settings=cfg.launch, device=inputs.device(cfg))[0]

    return run.artifact(f"defr/{variant}", shaping, make, parents)


def _train(cfg: Config, run: Run, variant: str, folder: Path) -> dict:
    """What every process of a launch does of the training; the first one writes."""
    settings = variant_settings(cfg.defr, variant)
    model = new_model(cfg, run, settings)
    train, test = images(cfg, run, "train", model, settings), images(cfg, run, "test", model)
    few = few_shot(train.labels.numpy() == POSITIVE)

    def evaluate(model: DefrClassifier) -> dict[str, float]:
        return recognition_scores(_logits(cfg, model, test), test.labels.numpy(), few)

    info = train_defr(
        model, train, settings, folder, seed=cfg.seed, device=inputs.device(cfg), evaluate=evaluate,
        checkpoints=cfg.checkpoints,
    )  # fmt: skip
    if is_first():
        blob = save({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()})
        atomic_write(folder / WEIGHTS, lambda stream: stream.write(blob))
        remove_checkpoints(folder)
    return info | {"images": len(train)}


def _shaping(cfg: Config, settings: DefrSettings) -> dict:
    return {"seed": cfg.seed} | {name: value for name, value in asdict(settings).items() if name not in _NOT_SHAPING}


def _sources(cfg: Config, run: Run, settings: DefrSettings) -> list[str]:
    """Hashes of the models, embeddings and sentences that a model of the settings starts from."""
    found = [file_sha256(path) for path in (settings.embeddings, settings.weights) if path and Path(path).is_file()]
    language = family_of(settings.head).rows
    if settings.backbone == "clip" or language == "clip":
        found.append(inputs.clip_model(cfg, run).spec.weights_sha256)
    if language != "random":
        found.append(str(class_sentences(inputs.dataset(cfg, run, "train").vocabulary, settings.sentences)))
    return found


def new_model(cfg: Config, run: Run, settings: DefrSettings) -> DefrClassifier:
    """The untrained model of the settings; its random rows are drawn by the run's seed."""
    vocabulary = inputs.dataset(cfg, run, "train").vocabulary
    needed = "clip" in (settings.backbone, family_of(settings.head).rows)
    clip = inputs.clip_model(cfg, run) if needed else None
    language = language_rows(settings, vocabulary, clip)
    model = build_defr(settings, vocabulary.num_hois, clip=clip, language=language, seed=cfg.seed)
    compile_module(model.tower, cfg.compile)
    return model


def load_defr(cfg: Config, run: Run, variant: str) -> DefrClassifier:
    """The run's model of a variant, ready to score."""
    model = new_model(cfg, run, variant_settings(cfg.defr, variant))
    if variant != UNTRAINED:
        model.load_state_dict(load_file(run.existing(f"defr/{variant}").path / WEIGHTS))
    return model.eval()


def history(run: Run, variant: str) -> pd.DataFrame:
    """Loss and gradient norm of the logged steps."""
    lines = pd.read_json(run.existing(f"defr/{variant}").path / "history.jsonl", lines=True)
    return lines.dropna(subset="loss")[["step", "loss", "gradient"]]


# ---------------------------------------------------------------- recognition


def scores(cfg: Config, run: Run, variant: str) -> Artifact:
    """Logits of all test images by a variant, in the form that `python -m lib.evaluation.recognition` reads."""
    settings = variant_settings(cfg.defr, variant)
    trained = [] if variant == UNTRAINED else [run.existing(f"defr/{variant}")]
    parents = [run.existing("recognition_labels"), *trained, *_sources(cfg, run, settings)]

    def make(folder: Path) -> dict:
        logits = launch(_score, cfg, run, variant, settings=cfg.launch, device=inputs.device(cfg))[0]
        atomic_write(folder / SCORES, lambda stream: np.savez_compressed(stream, scores=logits))
        return {"images": len(logits)}

    shape = {name: getattr(settings, name) for name in ("backbone", "head", "image_size", "log_scale", "precision")}
    return run.artifact(f"recognition/{variant}", shape, make, parents)


def _score(cfg: Config, run: Run, variant: str) -> np.ndarray:
    """What every process of a launch does of the scoring: [N, C] logits of all test images."""
    model = load_defr(cfg, run, variant)
    return _logits(cfg, model, images(cfg, run, "test", model))


def _logits(cfg: Config, model: DefrClassifier, test: RecognitionImages) -> np.ndarray:
    return predict_logits(
        model, test, batch_size=cfg.clip.batch_size, device=inputs.device(cfg), precision=cfg.defr.precision,
        workers=cfg.defr.workers,
    )  # fmt: skip


def stored_scores(run: Run, variant: str) -> np.ndarray:
    """[N, C] logits of the test images by a variant."""
    return read_array(run.existing(f"recognition/{variant}").path / SCORES, ("scores",))


def comparison(cfg: Config, run: Run, variants: Sequence[str]) -> pd.DataFrame:
    """mAP of every variant in percent, recorded in the run's metrics: full, known_object and Few@k as few_k.

    Few-shot classes are counted in the run's own training labels.
    """
    truth, few = stored_labels(run, "test").values, few_shot(stored_labels(run, "train").positive)
    rows = {}
    for variant in variants:
        found = recognition_scores(stored_scores(run, variant), truth, few)
        rows[variant] = {name.removeprefix("mAP_"): value for name, value in found.items()}
        run.record(f"defr/{variant}", **{f"recognition_{name}": value for name, value in rows[variant].items()})
    return pd.DataFrame(rows).T


def class_ap(run: Run, variants: Sequence[str]) -> dict[str, np.ndarray]:
    """Variant -> [C] AP in percent."""
    truth = stored_labels(run, "test").values
    return {name: 100 * recognition_ap(stored_scores(run, name).astype(np.float64), truth) for name in variants}


def class_gains(cfg: Config, run: Run, after: str, before: str = UNTRAINED) -> pd.DataFrame:
    """AP of every class under two variants with its positive images in both splits, largest gain first."""
    names = inputs.dataset(cfg, run, "test").vocabulary.hoi_name
    count = {f"{split}_images": stored_labels(run, split).positive.sum(0) for split in SPLITS}
    table = pd.DataFrame(count | class_ap(run, [before, after]))
    table.insert(0, "name", [names(hoi) for hoi in table.index])
    return table.assign(gain=table[after] - table[before]).sort_values("gain", ascending=False)


def by_training_images(run: Run, variants: Sequence[str]) -> pd.DataFrame:
    """Mean AP over classes of like numbers of positive training images."""
    return by_examples(class_ap(run, variants), stored_labels(run, "train").positive.sum(0))


# ---------------------------------------------------------------- a look inside


def classifier_rows(model: DefrClassifier) -> np.ndarray:
    """The rows [C, D] that features meet."""
    head = model.head
    if isinstance(head, MixingHead):
        return (head.m_classifier @ head.classifier).detach().cpu().numpy()
    weight = head.classifier.weight if hasattr(head.classifier, "weight") else head.classifier
    return weight.detach().cpu().numpy()


def label_geometry(cfg: Config, run: Run, variants: Sequence[str]) -> tuple[dict[str, np.ndarray], pd.DataFrame]:
    """Classifier rows of the variants and the table of their `row_metrics`, recorded in the run's metrics."""
    vocabulary = inputs.dataset(cfg, run, "test").vocabulary
    rows = {name: classifier_rows(load_defr(cfg, run, name)) for name in variants}
    table = {name: row_metrics(each, vocabulary) for name, each in rows.items()}
    for name, values in table.items():
        run.record(f"defr/{name}", **{f"rows_{key}": value for key, value in values.items()})
    return rows, pd.DataFrame(table).T


def shown_images(cfg: Config, run: Run, model: DefrClassifier, count: int = 3) -> tuple[list, Tensor, list[str]]:
    """First test images with a positive label: pictures, pixels [count, 3, n, n] of the model, and their labels."""
    found, names = stored_labels(run, "test"), inputs.dataset(cfg, run, "test").vocabulary.hoi_name
    data = images(cfg, run, "test", model)
    chosen = np.flatnonzero(found.positive.any(1))[:count]
    pictures = [read_image(data.paths[index]) for index in chosen]
    captions = [", ".join(names(hoi) for hoi in np.flatnonzero(found.positive[index])[:2]) for index in chosen]
    view = evaluation_view(frame_of(model.tower))
    return pictures, torch.stack([view(picture) for picture in pictures]), captions


# ---------------------------------------------------------------- detection


def detections(cfg: Config, run: Run, variant: str, mode: str) -> Artifact:
    """Scored pairs of all test images by a variant that never saw a box, from the detector's boxes (§11)."""
    parents = [run.existing("detections/test"), run.existing(f"defr/{variant}")]
    settings = replace(cfg.defr, mask_mode=mode)
    shape = {name: getattr(settings, name) for name in ("mask_mode", "mask_layers", "prior_power", "rescore")}

    def make(folder: Path) -> dict:
        data, table = inputs.dataset(cfg, run, "test"), DetectionTable.open(parents[0].path)
        model = load_defr(cfg, run, variant)
        found = detect_pairs(model, data, table, settings, device=inputs.device(cfg))
        atomic_write(folder / "predictions.parquet", lambda stream: found.to_parquet(stream))
        return {"images": len(data), "rows": len(found)}

    return run.artifact(f"defr_detections/{mode}", shape, make, parents)


def detection_scores(cfg: Config, run: Run, modes: Sequence[str]) -> pd.DataFrame:
    """Detection mAP of the mask modes in percent, recorded: full, rare, non_rare. No class was withheld from DEFR."""
    data, rare = inputs.dataset(cfg, run, "test"), inputs.dataset(cfg, run, "train").rare().tolist()
    rows = {}
    for mode in modes:
        predictions = pd.read_parquet(run.existing(f"defr_detections/{mode}").path / "predictions.parquet")
        means = summarise(hico_det_ap(predictions, data.truth(), data.vocabulary.num_hois), rare=rare)
        rows[mode] = {name: means[f"mAP_{name}"] for name in ("full", "rare", "non_rare")}
        run.record(f"defr/detection_{mode}", **{name: value for name, value in rows[mode].items() if value == value})
    return pd.DataFrame(rows).T
