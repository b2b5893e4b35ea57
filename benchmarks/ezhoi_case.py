"""Everything an EZ-HOI benchmark needs, made up at a given size: pictures, proposals, CLIP tokens in a store and in one
pickle an image, HICO-DET's classes, and a model with random weights whose adapters do something.

DETR is outside: both sides get the same proposals, 3 people and 8 objects an image unless told otherwise (30 pairs).
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib.clip.load import ClipModel, load_clip
from lib.data.dataset import HoiDataset, HoiImage
from lib.data.descriptions import ClassTexts, template_descriptions
from lib.data.hico_classes import OFFICIAL
from lib.data.stick_world import render_world
from lib.data.vocabulary import Vocabulary
from lib.detection.proposals import Proposals
from lib.ezhoi.adapters import DecoderLayer
from lib.ezhoi.batches import HoiSamples
from lib.ezhoi.classes import ScoredClasses, scored_classes
from lib.ezhoi.model import EzHoi, build_ezhoi
from lib.features.legacy import legacy_file
from lib.features.store import FeatureStore
from lib.features.writer import FeatureWriter
from lib.settings import EzHoiSettings, WorldSettings

PICTURE = (640, 480)
STILL = EzHoiSettings(flip=0.0, crop=0.0, jitter=0.0, roi_dropout=0.0)  # published, but without chance


@dataclass
class EzHoiCase:
    """samples: without augmentation, opened from disk each time. pickles: folder of the same tokens, one file an image.
    valid: [objects, C] bool."""

    clip: ClipModel
    model: EzHoi
    samples: HoiSamples
    classes: ScoredClasses
    valid: Tensor
    pickles: Path
    device: torch.device


def make_case(
    folder: Path,
    clip_source: str,
    device: torch.device | str,
    images: int,
    rows: int,
    humans: int = 3,
    objects: int = 8,
    seed: int = 0,
) -> EzHoiCase:
    """rows: K, sentences that stand for the 117 verbs."""
    torch.manual_seed(seed)
    device = torch.device(device)
    clip = load_clip(clip_source, device)
    rng = np.random.default_rng(seed)
    render_world(
        folder / "world", WorldSettings(train_images=images, test_images=1, width=PICTURE[0], height=PICTURE[1])
    )
    paths = sorted((folder / "world/images/train2015").iterdir())
    proposals = [made_proposals(rng, humans, objects) for _ in paths]
    records = [_annotated(path, found, OFFICIAL, rng) for path, found in zip(paths, proposals, strict=True)]
    store = _written(folder, [path.name for path in paths], clip.spec.tokens, clip.spec.embed_dim)
    data = HoiDataset(folder / "none.json", "train", OFFICIAL, tuple(records))
    classes = scored_classes(OFFICIAL)
    samples = HoiSamples(data, proposals, store, clip.spec.image_size, classes)
    samples._decoded = None  # HICO-DET does not stay in memory
    return EzHoiCase(clip, _model(clip, rows).to(device), samples, classes, classes.valid(), folder / "pickles", device)


def class_rows(vocabulary: Vocabulary, count: int) -> np.ndarray:
    """Ascending ids of `count` HOI classes, one of every verb among them."""
    first = np.unique(vocabulary.hoi_verb, return_index=True)[1]
    others = np.setdiff1d(np.arange(vocabulary.num_hois), first)
    return np.sort(np.concatenate([first, others])[: max(count, len(first))])


def _model(clip: ClipModel, rows: int) -> EzHoi:
    texts = ClassTexts(template_descriptions(OFFICIAL), {})
    model = build_ezhoi(clip, OFFICIAL, texts, (), STILL, class_rows(OFFICIAL, rows))
    with torch.no_grad():
        for parameter in model.parameters():  # untrained adapters are the identity, and would hide a difference
            parameter += 0.02 * torch.randn_like(parameter)
    for part in model.modules():
        if isinstance(part, DecoderLayer):
            part.dropout.p = part.multihead_attn.dropout = 0.0
            if part.has_self_attention:
                part.self_attn.dropout = 0.0
    return model


def made_proposals(rng: np.random.Generator, humans: int, objects: int) -> Proposals:
    """Boxes in fractions, people first."""
    count = humans + objects
    corner = rng.uniform(0, 0.6, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.15, 0.4, (count, 2))], 1)
    labels = np.concatenate([np.zeros(humans, np.int64), rng.integers(1, len(OFFICIAL.objects), objects)])
    scores = rng.uniform(0.3, 1.0, count)
    boxes, scores = (torch.from_numpy(values.astype(np.float32)) for values in (boxes, scores))
    return Proposals(boxes, scores, torch.from_numpy(labels), humans)


def _annotated(path: Path, found: Proposals, vocabulary: Vocabulary, rng: np.random.Generator) -> HoiImage:
    """The image with three annotated rows: pairs of proposals, a few pixels off."""
    boxes = found.boxes.numpy() * np.array(PICTURE * 2, np.float32)
    human = rng.integers(0, found.n_human, 3)
    thing = rng.integers(found.n_human, len(boxes), 3)
    labels = found.labels.numpy()[thing]
    hoi = np.array([rng.choice(np.flatnonzero(vocabulary.hoi_object == label)) for label in labels])
    near = [boxes[ids] + rng.uniform(-3, 3, (3, 4)).astype(np.float32) for ids in (human, thing)]
    return HoiImage(path, PICTURE, *near, hoi, labels, vocabulary.hoi_verb[hoi])


def _written(folder: Path, names: Sequence[str], tokens: int, dim: int) -> FeatureStore:
    """Random patch tokens as a store and as the pickles of the public scripts (float32 behind the class token)."""
    pickles = folder / "pickles"
    pickles.mkdir()
    writer = FeatureWriter(folder / "store", {"L": tokens, "D": dim}, names)
    for k in range(writer.num_shards):
        values = torch.randn(len(writer.shard_ids(k)), 1 + tokens, dim).half()
        writer.write_shard(k, values[:, 1:].numpy(), values[:, 0].numpy())
        for i, image in zip(writer.shard_ids(k), values, strict=True):
            with legacy_file(pickles, names[i]).open("wb") as stream:
                pickle.dump(image.float()[1:], stream)
    writer.finish()
    return FeatureStore.open(folder / "store")
