"""The trained detector's view of every pair, kept once, and the predictions table that evaluation reads.

Pair features and logits are stored for all pairs of a split, so that any number of bridges can be evaluated without
running the detector again: they act on `features`, after the pair adapter and before the product with the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lib.engine.distributed import gathered_in_turn, share
from lib.engine.progress import Progress
from lib.ezhoi.batches import HoiSamples, collate
from lib.ezhoi.bridged import FeatureBridge, bridged_logits
from lib.ezhoi.classes import ScoredClasses
from lib.ezhoi.model import EzHoi
from lib.ezhoi.pairs import Instances, Pairs, assign_labels, enumerate_pairs
from lib.runs import atomic_write

BOXES_H, BOXES_O = ["x1h", "y1h", "x2h", "y2h"], ["x1o", "y1o", "x2o", "y2o"]


@dataclass
class PairTable:
    """All N pairs of a split.

    frame: one row a pair: `image` index, boxes in pixels of the original image, `object` id, `strength` s_h s_o.
    features [N, D] and logits [N, C] of the detector; labels [N, C] bool, classes of the annotated rows that overlap.
    """

    frame: pd.DataFrame
    features: np.ndarray
    logits: np.ndarray
    labels: np.ndarray

    def save(self, folder: Path) -> None:
        """Write pairs.parquet and three .npy files, each atomically."""
        atomic_write(folder / "pairs.parquet", lambda stream: self.frame.to_parquet(stream))
        for name in ("features", "logits", "labels"):
            atomic_write(folder / f"{name}.npy", lambda stream, name=name: np.save(stream, getattr(self, name)))

    @classmethod
    def joined(cls, parts: Sequence[PairTable]) -> PairTable:
        """One table of the pairs of several, in their order."""
        arrays = (np.concatenate([getattr(part, name) for part in parts]) for name in ("features", "logits", "labels"))
        return cls(pd.concat([part.frame for part in parts], ignore_index=True), *arrays)

    @classmethod
    def load(cls, folder: Path) -> PairTable:
        """Read what `save` wrote."""
        arrays = {name: np.load(folder / f"{name}.npy") for name in ("features", "logits", "labels")}
        return cls(pd.read_parquet(folder / "pairs.parquet"), **arrays)


@torch.inference_mode()
def predict_pairs(
    model: EzHoi,
    samples: HoiSamples,
    *,
    batch_size: int,
    workers: int,
    device: torch.device | str,
    bridge: FeatureBridge | None = None,
) -> PairTable:
    """Run the detector over `samples` (no augmentation) and keep every pair; the whole table on every process.

    Each process computes every world-th batch; the batches are those of a single process, and so are the numbers.
    bridge: what a detector trained with a bridge passes its features through; the raw ones are kept all the same.
    """
    model.eval().to(device)
    rows = model.text()  # constant in evaluation: computed once
    class_text = model.text.class_text(rows)
    parts: list[PairTable] = []
    batches = share([batch.tolist() for batch in torch.arange(len(samples)).split(batch_size)])
    loader = DataLoader(samples, batch_sampler=batches, num_workers=workers, collate_fn=collate)
    with Progress("EZ-HOI on pairs", sum(map(len, batches))) as progress:
        for batch in loader:
            batch = batch.to(device)
            patch_map = model.encode(batch.images, batch.memory, batch.instances)
            pairs = enumerate_pairs(batch.instances)
            found = model.pair_features(patch_map, batch.instances, pairs)
            if bridge is None or not len(found):
                logits = model.logits(found, class_text)
            else:
                logits = bridged_logits(found, rows, model.text.average, model.logit_scale_HO, bridge, "none")
            labels = assign_labels(batch.instances, pairs, batch.targets, len(class_text)).bool()
            sizes = torch.tensor([samples.dataset[int(i)].size for i in batch.index], device=pairs.image.device)
            owner = batch.index.to(pairs.image.device)[pairs.image]
            frame = pair_frame(batch.instances, pairs, sizes, model.size, image=owner)
            parts.append(PairTable(frame, *(values.cpu().numpy() for values in (found, logits, labels))))
            progress.step(len(batch.index))
    return PairTable.joined(gathered_in_turn(parts))


def pair_frame(instances: Instances, pairs: Pairs, sizes: Tensor, size: int, **columns: Tensor) -> pd.DataFrame:
    """One row a pair: the given columns [P], then `object` id, `strength` and both boxes in pixels of the image.

    sizes: [B, 2] width and height of the images. size: R, the frame of the instances' boxes.
    """
    image, human, obj = pairs
    boxes, scores = instances.boxes, instances.scores
    scale = (sizes / size).repeat(1, 2)[image]  # (P, 4) R-frame -> pixels
    columns |= {"object": instances.labels[image, obj], "strength": scores[image, human] * scores[image, obj]}
    columns |= dict(zip(BOXES_H, (boxes[image, human] * scale).T, strict=True))
    columns |= dict(zip(BOXES_O, (boxes[image, obj] * scale).T, strict=True))
    return pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()})


def hoi_predictions(
    frame: pd.DataFrame, logits: np.ndarray | Tensor, classes: ScoredClasses, power: float
) -> pd.DataFrame:
    """Predictions table: one row a (pair, HOI) with score = sigmoid(logit) (s_h s_o)^power (spec §1.8).

    frame: rows of a PairTable; logits [N, C]. A class counts only where it is an HOI with the detected object.
    """
    hoi = classes.hoi_of[frame["object"].to_numpy()]  # (N, C), -1 where no class
    pair, label = np.nonzero(hoi >= 0)
    scores = torch.as_tensor(logits)[pair, label].sigmoid().numpy() * frame["strength"].to_numpy()[pair] ** power
    columns = ["image", *BOXES_H, *BOXES_O]
    table = frame[columns].iloc[pair].reset_index(drop=True)
    return table.assign(hoi=hoi[pair, label], score=scores.astype(np.float32))
