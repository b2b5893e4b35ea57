"""Everything a method needs before it starts: annotations, images, CLIP, DETR, patch features, detections."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou

from lib.clip.load import WEIGHTS_FILE, ClipModel, load_clip
from lib.clip.text import encode_text
from lib.clip.tokens import preprocess
from lib.config import load_config
from lib.data.captions import read_captions
from lib.data.dataset import HoiDataset
from lib.data.descriptions import (
    ClassTexts,
    read_act_descriptors,
    read_descriptions,
    read_differences,
    template_act_descriptors,
    template_descriptions,
    template_differences,
)
from lib.data.formats import read_dataset
from lib.data.stick_world import render_world
from lib.data.zero_shot import filter_training, split_counts, unseen_hois
from lib.detection.detr import DetectorError, Detr, load_detr
from lib.detection.json_cache import cache_fingerprint, import_json_cache
from lib.detection.oracle import oracle_detections
from lib.detection.proposals import Proposals, propose
from lib.detection.table import DetectionTable, detect_images
from lib.engine import tracking
from lib.engine.checkpoints import seed_everything
from lib.engine.distributed import device_named, processes
from lib.engine.launch import launch
from lib.engine.progress import Progress
from lib.ezhoi.batches import as_fractions
from lib.features.clip_features import clip_decode, clip_encoder, clip_manifest, mode_difference
from lib.features.extract import extract_features
from lib.features.layout import images_per_shard
from lib.features.loading import decoding_workers
from lib.features.store import FeatureStore
from lib.runs import Artifact, Run, file_sha256
from lib.settings import Config, FeatureSettings

PROJECT = Path(__file__).parents[2]
ORACLES, JSON = ("oracle", "oracle_jittered"), "json:"  # values of detector.source beside a folder


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
    tracking.start(settings.tracking, Path(run), asdict(settings))
    return settings, Run(run, settings, recompute)


def device(cfg: Config) -> torch.device:
    """The device of `cfg.device`; `auto` is CUDA when there is one."""
    return device_named(cfg.device)


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
    images = cfg.data.images if cfg.data.root else "images/{split}2015"
    found = read_dataset(data_root(cfg, run), cfg.data.kind, split, images)
    return found.subset(cfg.data.train_limit if split == "train" else cfg.data.test_limit)


def data_summary(cfg: Config, run: Run) -> pd.DataFrame:
    """What was read, a column a split: file, version and conversions, counts of images, rows, pairs and classes."""
    return pd.DataFrame({split: dataset(cfg, run, split).summary() for split in ("train", "test")})


def unseen(cfg: Config, run: Run) -> list[int]:
    """Unseen HOI ids of the zero-shot setting."""
    return unseen_hois(cfg.data.zero_shot, data_root(cfg, run)).tolist()


def seen_part(cfg: Config, run: Run, data: HoiDataset) -> HoiDataset:
    """What the zero-shot setting and its filter leave of a training split."""
    return filter_training(data, unseen(cfg, run), cfg.data.zero_shot_filter)


def zero_shot_counts(cfg: Config, run: Run) -> dict[str, int]:
    """What the zero-shot setting withholds from training and what the test split holds of it (rows, images, classes).

    On HICO-DET the counts are checked against the published ones.
    """
    withheld, by = unseen(cfg, run), cfg.data.zero_shot_filter
    return {
        name: count
        for split in ("train", "test")
        for name, count in split_counts(dataset(cfg, run, split), withheld, cfg.data.zero_shot, by).items()
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
    return load_detr(detector_folder(cfg, run), device(cfg), resample=cfg.detector.resample)


def detector_folder(cfg: Config, run: Run) -> Path:
    """Where the weights of the detector are; DetectorError where detector.source names boxes without a network."""
    source = cfg.detector.source
    if source in ORACLES or source.startswith(JSON):
        raise DetectorError(
            "detector.source", source, "the folder of a DETR: there are no boxes to look up here",
            "set detector.source to a folder, or leave it empty for the tiny DETR",
        )  # fmt: skip
    return Path(source) if source else run.existing("models").path / "detr"


# ---------------------------------------------------------------- features and detections


def features(cfg: Config, run: Run, split: str) -> Artifact:
    """Projected CLIP patch tokens of every image of a split in the sharded store, or the store of features.source.

    A mode other than exact fp32 is compared with it on a few images; the differences are kept with the artefact.
    """
    clip, data, chosen = clip_model(cfg, run), dataset(cfg, run, split), cfg.features
    settings = {"clip": clip.spec.id, "split": split, "shard_size": _shard_size(cfg, clip), "images": len(data)}
    # what is as published is not told, so that stores from before these settings stay valid
    usual, told = FeatureSettings(), ("decode", "precision", "dtype", "source")
    settings |= {name: getattr(chosen, name) for name in told if getattr(chosen, name) != getattr(usual, name)}

    def make(folder: Path) -> dict:
        about: dict[str, Any] = {"images": len(data), "tokens": clip.spec.tokens, "dim": clip.spec.embed_dim}
        if chosen.source:
            store = FeatureStore.open(
                Path(chosen.source) / split, {"clip": clip.spec.id, "L": clip.spec.tokens, "D": clip.spec.embed_dim}
            )
            store.ids([image.name for image in data.images])  # every one is there
            about["store"] = str(store.folder.resolve())
        else:
            launch(_extract, cfg, run, split, folder, settings=cfg.launch, device=device(cfg))
            store = FeatureStore.open(folder)
            if (chosen.decode, chosen.precision) != (usual.decode, usual.precision) and not store.errors:
                paths = [image.path for image in data.images[:8]]
                about |= mode_difference(clip, paths, chosen.decode, chosen.precision)
        return about | {"failed": len(store.errors)}

    return run.artifact(f"features/{split}", settings, make, [file_sha256(data.source), clip.spec.weights_sha256])


def _extract(cfg: Config, run: Run, split: str, folder: Path) -> None:
    """This process's part of a split's features."""
    clip, data, chosen, (rank, world) = clip_model(cfg, run), dataset(cfg, run, split), cfg.features, processes()
    with Progress(f"CLIP features, {split}", len(data)) as progress:
        extract_features(
            clip_encoder(clip, chosen.precision, cfg.compile),
            [image.path for image in data.images],
            [image.name for image in data.images],
            folder,
            clip_manifest(clip, split, chosen.decode, chosen.precision),
            preprocess=preprocess(clip),
            decode=clip_decode(clip, chosen.decode),
            batch_size=cfg.clip.batch_size,
            shard_size=_shard_size(cfg, clip),
            rank=rank,
            world=world,
            workers=decoding_workers(chosen.workers, clip.device, world),
            strict=chosen.strict,
            dtype=chosen.dtype,
            progress=lambda done, total: progress.step(done - progress.done),
            log=run.root / "log" / f"features_{split}.jsonl",
        )


def _shard_size(cfg: Config, clip: ClipModel) -> int:
    return cfg.features.shard_size or images_per_shard(clip.spec.tokens, clip.spec.embed_dim, cfg.features.dtype)


def feature_store(cfg: Config, run: Run, split: str) -> FeatureStore:
    """The finished store of a split."""
    artifact = run.existing(f"features/{split}")
    return FeatureStore.open(artifact.info.get("store", artifact.path), preload=cfg.features.preload)


def detections(cfg: Config, run: Run, split: str, source: str | None = None) -> Artifact:
    """All boxes of a detector for every image of a split, unthresholded.

    source: another one than detector.source, kept beside the run's own as `detections_<source>`, e.g. `oracle`.
    """
    kind = "detections" if source is None else f"detections_{source}"
    source, data, asked = cfg.detector.source if source is None else source, dataset(cfg, run, split), cfg.detector
    if source in ORACLES:
        jitter = asked.jitter if source == "oracle_jittered" else 0.0
        described = {"kind": source, "jitter": jitter, "seed": cfg.seed if jitter else 0}

        def make_table(folder: Path) -> DetectionTable:
            return oracle_detections(data, folder, jitter, cfg.seed)
    elif source.startswith(JSON):
        cache = Path(source.removeprefix(JSON).format(split=split))
        described = {"kind": "json", "labels": asked.labels, "frame": asked.frame, "content": cache_fingerprint(cache)}

        def make_table(folder: Path) -> DetectionTable:
            return import_json_cache(cache, data, folder, asked.labels, asked.frame)
    else:
        detr = detector(cfg, run)
        described = detr.describe()

        def make_table(folder: Path) -> DetectionTable:
            return detect_images(detr, [image.path for image in data.images], folder, asked.batch_size)

    settings = {"detector": described, "split": split, "images": len(data)}

    def make(folder: Path) -> dict:
        return {"images": len(data), "boxes": len(make_table(folder).rows)}

    return run.artifact(f"{kind}/{split}", settings, make, [file_sha256(data.source)])


def proposals(cfg: Config, run: Run, data: HoiDataset, kind: str = "detections") -> list[Proposals]:
    """Region proposals of every image of a split, boxes as fractions of width and height (spec ez-hoi.md §1.4).

    kind: whose detections, `detections_oracle` for instance.
    """
    table = DetectionTable.open(run.existing(f"{kind}/{data.split}").path)
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
