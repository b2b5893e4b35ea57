"""Pair features of any detector on any images, and what its layers say on the way: no change of model code.

table, layers = extract_pairs(cfg, run, "train", images=range(200), layers=["vis_fuse"])
layers["vis_fuse"]      # [P, D], before the attention over pairs
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lib.analysis.recording import recorded
from lib.data.dataset import HoiDataset
from lib.errors import FoundExpected
from lib.ezhoi.batches import HoiSamples
from lib.ezhoi.model import EzHoi
from lib.ezhoi.predict import PairTable, predict_pairs
from lib.runs import Run
from lib.settings import Config
from lib.stages import inputs
from lib.stages.detector import classes_of, evaluation_bridge, fit_set, load_ezhoi


def chosen_pairs(cfg: Config, run: Run) -> tuple[PairTable, HoiDataset]:
    """All pairs of the images that `analysis.images` names, and the data set that their `image` counts in.

    `test` and `fit` were kept by notebook 02; of `train` at most analysis.max_pairs images are run now.
    """
    images = cfg.analysis.images
    if images == "test":
        return PairTable.load(run.existing("pairs/test").path), inputs.dataset(cfg, run, "test")
    data = inputs.dataset(cfg, run, "train")
    if images == "fit":
        return PairTable.load(run.existing("pairs/fit").path), fit_set(cfg, run, data)
    if images != "train":
        raise FoundExpected("analysis.images", repr(images), "test, fit or train", "analysis.images=test")
    count = min(len(data), cfg.analysis.max_pairs)
    drawn = np.sort(np.random.default_rng(cfg.analysis.seed).choice(len(data), count, replace=False))
    return extract_pairs(cfg, run, "train", drawn)[0], data


def extract_pairs(
    cfg: Config, run: Run, split: str, images: Sequence[int], model: EzHoi | None = None, layers: Sequence[str] = ()
) -> tuple[PairTable, dict[str, np.ndarray]]:
    """Run a detector over some images of a split -> its pairs, and the outputs of its `layers`.

    model: another checkpoint than the run's own, for instance. `image` of the table counts in the whole split. Features
    and detections are the run's.
    """
    data, images = inputs.dataset(cfg, run, split), np.asarray(images)
    bridge = evaluation_bridge(cfg, run) if model is None else None
    model = model or load_ezhoi(cfg, run)
    part = replace(data, images=tuple(data.images[i] for i in images))
    store = inputs.feature_store(cfg, run, split)
    samples = HoiSamples(part, inputs.proposals(cfg, run, part), store, model.size, classes_of(cfg, data))
    with recorded(model, layers) as kept:
        table = predict_pairs(
            model, samples, batch_size=32, workers=cfg.ezhoi.workers, device=inputs.device(cfg), bridge=bridge
        )
    frame = table.frame.assign(image=images[table.frame["image"].to_numpy()])
    return replace(table, frame=frame), {name: _stacked(name, outputs) for name, outputs in kept.items()}


def _stacked(name: str, outputs: Sequence[Tensor]) -> np.ndarray:
    """The outputs of all batches as one array; refuses those that are padded to the longest image of their batch."""
    shapes = sorted({tuple(output.shape[1:]) for output in outputs})
    if len(shapes) > 1:
        raise FoundExpected(
            f"layer {name}", f"rows of shapes {shapes}", "one shape in every batch",
            "name a layer that gives a row a pair, such as vis_fuse, or use recording.recorded yourself",
        )  # fmt: skip
    return torch.cat(list(outputs)).numpy()
