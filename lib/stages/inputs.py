"""Everything a method needs before it starts: annotations, images, CLIP, DETR, patch features, detections."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou

from lib.clip.load import WEIGHTS_FILE, ClipModel, load_clip
from lib.clip.text import encode_text
from lib.clip.tokens import encode_image, preprocess
from lib.config import load_config
from lib.data.captions import read_captions
from lib.data.descriptions import (
    ClassTexts,
    read_act_descriptors,
    read_descriptions,
    read_differences,
    template_act_descriptors,
    template_descriptions,
    template_differences,
)
from lib.data.hico_det import HoiDataset, read_hico_det
from lib.data.stick_world import render_world
from lib.data.vcoco import read_vcoco
from lib.data.zero_shot import split_counts, unseen_hois
from lib.detection.detr import Detr, load_detr
from lib.detection.proposals import Proposals, propose
from lib.detection.table import DetectionTable, detect_images
from lib.engine.checkpoints import seed_everything
from lib.engine.progress import Progress
from lib.ezhoi.batches import as_fractions
from lib.features.extract import extract_features
from lib.features.store import FeatureStore
from lib.runs import Artifact, Run, file_sha256
from lib.settings import Config

PROJECT = Path(__file__).parents[2]


def open_run(config: str, run: str, overrides: Sequence[str] = (), recompute: Sequence[str] = ()) -> tuple[Config, Run]:
    """Load settings, open the run folder, seed, and set the CPU threads: the first line of every notebook.

    The working directory becomes the project folder: relative paths in notebooks and settings start there.
    """
    os.chdir(PROJECT)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    settings = load_config(config, overrides)
    seed_everything(settings.seed)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    return settings, Run(run, settings, recompute)


def device(cfg: Config) -> torch.device:
    """The device of `cfg.device`; `auto` is CUDA when there is one."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if cfg.device == "auto" else cfg.device
    return torch.device(name)


# ---------------------------------------------------------------- data


def world(cfg: Config, run: Run) -> Artifact:
    """The embedded stick world, rendered in HICO-DET's own formats."""

    def make(folder: Path) -> None:
        with Progress("rendering", cfg.data.world.train_images + cfg.data.world.test_images) as progress:
            render_world(folder, cfg.data.world, progress.step)

    return run.artifact("world", cfg.data.world, make)


def data_root(cfg: Config, run: Run) -> Path:
    """Folder of the annotations: data.root, or the run's own world."""
    return Path(cfg.data.root) if cfg.data.root else run.existing("world").path


def dataset(cfg: Config, run: Run, split: str) -> HoiDataset:
    """All annotated images of `train` or `test`, unfiltered; V-COCO trains on its trainval split."""
    root, kind = data_root(cfg, run), cfg.data.kind
    if kind not in _LAYOUTS:
        raise ValueError(f"data.kind: found {kind!r}, expected one of {', '.join(_LAYOUTS)}")
    read, annotations, images = _LAYOUTS[kind]
    names = {"split": "trainval" if (kind, split) == ("vcoco", "train") else split}
    images = (cfg.data.images or images) if cfg.data.root else "images/{split}2015"
    annotations = root / annotations.format(**names)
    written = annotations.stat().st_mtime_ns if annotations.is_file() else 0
    found = _read_once(read, annotations, root / images.format(**names), split, written)
    return found.subset(cfg.data.train_limit if split == "train" else cfg.data.test_limit)


# reader, annotation file and image folder below data.root
_LAYOUTS = {
    "hico": (read_hico_det, "instances_{split}2015.json", "hico_20160224_det/images/{split}2015"),
    "vcoco": (read_vcoco, "instances_vcoco_{split}.json", "mscoco2014"),
}


@lru_cache(maxsize=4)
def _read_once(read: Callable, annotations: Path, images: Path, split: str, written: int) -> HoiDataset:
    """Stages ask for a split many times (once a variant); a file is parsed once until it is written again."""
    return read(annotations, images, split)


def unseen(cfg: Config, run: Run) -> list[int]:
    """Unseen HOI ids of the zero-shot setting."""
    return unseen_hois(cfg.data.zero_shot, data_root(cfg, run)).tolist()


def zero_shot_counts(cfg: Config, run: Run) -> dict[str, int]:
    """What the zero-shot setting withholds from training and what the test split holds of it (rows, images, classes).

    On HICO-DET the counts are checked against the published ones.
    """
    withheld = unseen(cfg, run)
    return {
        name: count
        for split in ("train", "test")
        for name, count in split_counts(dataset(cfg, run, split), withheld, cfg.data.zero_shot).items()
    }


def class_texts(cfg: Config, run: Run, data: HoiDataset, unseen: Sequence[int]) -> ClassTexts:
    """Descriptions, differences and action descriptors from the files of the settings, or from templates."""
    vocabulary, own = data.vocabulary, data_root(cfg, run) / "hoi_descriptions.txt"
    if cfg.data.descriptions or not cfg.data.root:
        descriptions = read_descriptions(cfg.data.descriptions or own, vocabulary)
    else:
        descriptions = template_descriptions(vocabulary)
    differences, cues = {}, None
    if cfg.ezhoi.unseen_prompts and cfg.data.differences:
        differences = read_differences(cfg.data.differences, vocabulary, unseen)
    elif cfg.ezhoi.unseen_prompts and len(unseen):
        described = F.normalize(encode_text(clip_model(cfg, run), descriptions), dim=-1)
        differences = template_differences(vocabulary, unseen, described @ described.T)
    if cfg.ezhoi.act_descriptors and cfg.data.act_descriptors:
        cues = read_act_descriptors(cfg.data.act_descriptors, vocabulary)
    elif cfg.ezhoi.act_descriptors:
        cues = template_act_descriptors(vocabulary)
    return ClassTexts(descriptions, differences, cues)


def captions(cfg: Config, run: Run) -> list[str]:
    """Distinct captions in order of appearance."""
    path = Path(cfg.text_bank.captions) if cfg.text_bank.captions else data_root(cfg, run) / "captions_train2015.json"
    distinct = list(dict.fromkeys(read_captions(path)))
    return distinct[: cfg.text_bank.max_texts or None]


# ---------------------------------------------------------------- models


def models(cfg: Config, run: Run) -> Artifact:
    """The shipped tiny CLIP and DETR, unpacked into the folders that the loaders of the real models read."""
    from lib.stages.tiny_models import shipped_sha256, unpack_tiny_models

    return run.artifact("models", {}, lambda folder: unpack_tiny_models(folder), [shipped_sha256()])


def clip_model(cfg: Config, run: Run) -> ClipModel:
    """The frozen CLIP of clip.source, or the run's tiny one."""
    source = cfg.clip.source or f"local-dir:{run.existing('models').path / 'clip'}"
    weights = Path(source.removeprefix("local-dir:")) / WEIGHTS_FILE
    return _load_once(source, device(cfg), cfg.seed, weights.stat().st_mtime_ns if weights.is_file() else 0)


@lru_cache(maxsize=1)
def _load_once(source: str, where: torch.device, seed: int, written: int) -> ClipModel:
    """Stages ask for the frozen CLIP many times; it is loaded once until its file is written again."""
    return load_clip(source, where, seed=seed)


def detector(cfg: Config, run: Run) -> Detr:
    """The DETR of detector.source, or the run's tiny one."""
    folder = Path(cfg.detector.source) if cfg.detector.source else run.existing("models").path / "detr"
    return load_detr(folder, device(cfg), resample=cfg.detector.resample)


# ---------------------------------------------------------------- features and detections


def features(cfg: Config, run: Run, split: str) -> Artifact:
    """Projected CLIP patch tokens of every image of a split in the sharded store."""
    clip, data = clip_model(cfg, run), dataset(cfg, run, split)
    settings = {"clip": clip.spec.id, "split": split, "shard_size": cfg.features.shard_size, "images": len(data)}

    def make(folder: Path) -> dict:
        with Progress(f"CLIP features, {split}", len(data)) as progress:
            failed = extract_features(
                lambda images: encode_image(clip, images),
                [image.path for image in data.images],
                [image.name for image in data.images],
                folder,
                {"clip": clip.spec.id, "split": split, "L": clip.spec.tokens, "D": clip.spec.embed_dim},
                preprocess=preprocess(clip),
                batch_size=cfg.clip.batch_size,
                shard_size=cfg.features.shard_size,
                workers=cfg.features.workers,
                strict=cfg.features.strict,
                progress=lambda done, total: progress.step(done - progress.done),
            )
        return {"images": len(data), "failed": len(failed), "tokens": clip.spec.tokens, "dim": clip.spec.embed_dim}

    return run.artifact(f"features/{split}", settings, make, [file_sha256(data.source), clip.spec.weights_sha256])


def feature_store(cfg: Config, run: Run, split: str) -> FeatureStore:
    """The finished store of a split."""
    return FeatureStore.open(run.existing(f"features/{split}").path)


def detections(cfg: Config, run: Run, split: str) -> Artifact:
    """All boxes of the detector for every image of a split, unthresholded."""
    detr, data = detector(cfg, run), dataset(cfg, run, split)
    settings = {"detector": detr.describe(), "split": split, "images": len(data)}

    def make(folder: Path) -> dict:
        table = detect_images(detr, [image.path for image in data.images], folder, cfg.detector.batch_size)
        return {"images": len(data), "boxes": len(table.rows)}

    return run.artifact(f"detections/{split}", settings, make, [file_sha256(data.source)])


def proposals(cfg: Config, run: Run, data: HoiDataset) -> list[Proposals]:
    """Region proposals of every image of a split, boxes as fractions of width and height (spec ez-hoi.md §1.4)."""
    table = DetectionTable.open(run.existing(f"detections/{data.split}").path)
    table = table.in_label_space(data.vocabulary.objects)
    row = {name: i for i, name in enumerate(image.name for image in dataset(cfg, run, data.split).images)}
    found = []
    for image in data.images:
        chosen = propose(*table.of(row[image.name]), human=data.vocabulary.person, **proposal_rule(cfg))
        found.append(chosen._replace(boxes=as_fractions(chosen.boxes, image.size).clamp(0, 1)))
    return found


def proposal_rule(cfg: Config) -> dict[str, float]:
    """The settings of `propose`."""
    names = ("nms_iou", "score_threshold", "min_instances", "max_instances")
    return {name: getattr(cfg.detector, name) for name in names}


# ---------------------------------------------------------------- a look


def disk_costs(run: Run, artifacts: Sequence[Artifact]) -> pd.DataFrame:
    """What artefacts take on disk: artefact, images, megabytes, kilobytes an image."""
    rows = []
    for artifact in artifacts:
        size = sum(file.stat().st_size for file in artifact.path.rglob("*") if file.is_file())
        images = artifact.info["images"]
        rows.append((artifact.kind, images, size / 1e6, size / 1e3 / max(images, 1)))
    return pd.DataFrame(rows, columns=["artefact", "images", "megabytes", "kilobytes_an_image"]).round(2)


def proposal_recall(data: HoiDataset, found: Sequence[Proposals], iou: float = 0.5) -> dict[str, float]:
    """Share of annotated boxes with a proposal of their class at `iou`: people, objects, and pairs (both boxes)."""
    hits: dict[str, list[Tensor]] = {"recall_people": [], "recall_objects": [], "recall_pairs": []}
    for image, proposals in zip(data.images, found, strict=True):
        if not len(image.hoi):
            continue
        people = proposals.labels == data.vocabulary.person
        boxes_h, boxes_o = as_fractions(image.boxes_h, image.size), as_fractions(image.boxes_o, image.size)
        same = torch.from_numpy(image.object)[:, None] == proposals.labels[None]  # (n, p)
        hit_h = ((box_iou(boxes_h, proposals.boxes) >= iou) & people).any(dim=1)
        hit_o = ((box_iou(boxes_o, proposals.boxes) >= iou) & same).any(dim=1)
        for name, hit in zip(hits, (hit_h, hit_o, hit_h & hit_o), strict=True):
            hits[name].append(hit)
    return {name: float(torch.cat(values).float().mean()) if values else float("nan") for name, values in hits.items()}


def clip_view(clip: ClipModel, image: Image.Image) -> Image.Image:
    """The part of an image that CLIP's transform shows to the tower: short side to n, centre crop."""
    size = clip.spec.image_size
    scale = size / min(image.size)
    resized = image.resize(tuple(max(size, round(side * scale)) for side in image.size))
    left, top = ((side - size) // 2 for side in resized.size)
    return resized.crop((left, top, left + size, top + size))
