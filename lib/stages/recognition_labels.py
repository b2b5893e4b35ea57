"""Image-level HOI labels of a run: from a file, from annotated pairs, or written by a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd

from lib.data.hico_det import HoiDataset
from lib.data.images import read_image
from lib.defr.labels import (
    ABSENT,
    AMBIGUOUS,
    POSITIVE,
    SPLITS,
    UNKNOWN,
    RecognitionLabels,
    few_shot,
    labels_of_pairs,
    read_labels,
    save_labels,
)
from lib.defr.pseudo_labels import agreement, pair_unions, pseudo_labels, teacher_scores
from lib.defr.teacher import captioner_teacher, clip_teacher
from lib.defr.text import class_sentences
from lib.engine.progress import Progress
from lib.runs import Artifact, Run, file_sha256
from lib.settings import Config
from lib.stages import inputs

LABELS = "labels.npz"


def labels(cfg: Config, run: Run) -> Artifact:
    """Image-level labels of both splits: those of defr.labels, or made from the annotated pairs.

    The stick world's get gaps and doubts like those of HICO (`with_gaps`).
    """
    source = cfg.defr.labels
    data = {split: inputs.dataset(cfg, run, split) for split in SPLITS}
    settings = {"images": cfg.defr.images, "limits": [cfg.data.train_limit, cfg.data.test_limit]}
    if cfg.defr.teacher:
        settings["teacher"] = {key: value for key, value in asdict(cfg.defr).items() if key.startswith("teacher")}
    parents = [file_sha256(source) if source and Path(source).is_file() else source]
    parents += [file_sha256(each.source) for each in data.values()]

    def make(folder: Path) -> dict:
        found = {split: _labels(cfg, data[split]) for split in SPLITS}
        values = {f"{split}_images": len(each.files) for split, each in found.items()}
        if cfg.defr.teacher:
            truth, found["train"] = found["train"], _taught(cfg, run, data["train"], found["train"].files)
            values["teacher"] = agreement(found["train"], truth)
        save_labels(folder / LABELS, **found)
        return values | {"few": {name: len(ids) for name, ids in few_shot(found["train"].positive).items()}}

    return run.artifact("recognition_labels", settings, make, parents)


def _labels(cfg: Config, data: HoiDataset) -> RecognitionLabels:
    if cfg.defr.labels:
        found = read_labels(cfg.defr.labels, data.split)
        limit = cfg.data.train_limit if data.split == "train" else cfg.data.test_limit
        found = _first(found, limit)
    else:
        found = labels_of_pairs(data)
        if not cfg.data.root:
            found = with_gaps(found, data.vocabulary.hoi_object, cfg.data.world.seed, data.split)
    return _first(found, cfg.defr.images if data.split == "train" else 0)


def _taught(cfg: Config, run: Run, data: HoiDataset, files: Sequence[str]) -> RecognitionLabels:
    """Labels that `defr.teacher` writes without a look at the annotation (spec defr.md §14)."""
    settings, clip = cfg.defr, inputs.clip_model(cfg, run)
    sentences = [group[0] for group in class_sentences(data.vocabulary, settings.sentences)]
    if settings.teacher == "clip":
        teacher = clip_teacher(clip, sentences)
    else:
        teacher = captioner_teacher(settings.teacher, sentences, inputs.device(cfg))
    by_name = {record.name: index for index, record in enumerate(data.images)}
    inputs.detections(cfg, run, data.split)
    chosen = replace(data, images=[data.images[by_name[name]] for name in files])
    boxes = [pair_unions(found, settings.teacher_unions) for found in inputs.proposals(cfg, run, chosen)]
    pictures = ((read_image(record.path), unions) for record, unions in zip(chosen.images, boxes, strict=True))
    with Progress("pseudo-labels", len(files)) as progress:
        scores = teacher_scores(pictures, teacher, settings.teacher_temperature, progress.step)
    cuts = {"quantile": settings.teacher_quantile, "band": settings.teacher_band, "top": settings.teacher_top}
    return pseudo_labels(files, scores, **cuts)


def _first(labels: RecognitionLabels, count: int) -> RecognitionLabels:
    return RecognitionLabels(labels.files[: count or None], labels.values[: count or None])


def with_gaps(
    labels: RecognitionLabels, hoi_object: np.ndarray, seed: int, split: str, *, unknown=0.05, ambiguous=0.05
) -> RecognitionLabels:
    """Complete labels with the gaps of HICO's annotation: a pure function of labels, seed and split (spec defr.md §1).

    unknown: share of the visible objects of training images that nobody verified: all their classes become -2, also the
    positive ones. Test images are verified for every object they show, so that no right answer counts as a mistake.
    ambiguous: share of the remaining +1 and -1 that become 0, in both splits. hoi_object: [C] object id of a class.
    """
    values = labels.values.copy()
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    skipped = rng.random((len(values), int(hoi_object.max()) + 1)) < unknown  # (N, objects)
    doubtful = rng.random(values.shape) < ambiguous
    if split == "train":
        values[skipped[:, hoi_object]] = UNKNOWN
    values[doubtful & (np.abs(values) == POSITIVE)] = AMBIGUOUS
    return RecognitionLabels(labels.files, values)


def label_counts(run: Run) -> pd.DataFrame:
    """What the labels hold: a row a split, with images, the share of every label in percent, and the tail."""
    rows = {}
    for split in SPLITS:
        values = stored_labels(run, split).values
        names = {"present": POSITIVE, "absent": ABSENT, "ambiguous": AMBIGUOUS, "unknown": UNKNOWN}
        count = (values == POSITIVE).sum(0)
        rows[split] = {"images": len(values)} | {f"{n} %": 100 * (values == v).mean() for n, v in names.items()}
        rows[split] |= {"rarest class": int(count.min()), "commonest class": int(count.max())}
    return pd.DataFrame(rows).T


def stored_labels(run: Run, split: str) -> RecognitionLabels:
    """The run's labels of a split."""
    return read_labels(run.existing("recognition_labels").path / LABELS, split)
