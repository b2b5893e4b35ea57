"""DETR through transformers: loading a local folder, test preprocessing, post-processing (spec §8-§10).

One class serves the full-size released detectors and the tiny one of the embedded world. A folder holds config.json,
model.safetensors and preprocessor_config.json (`size.shortest_edge`, `size.longest_edge`, `resample`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision.transforms.functional as TF
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode

from lib.errors import FoundExpected
from lib.runs import file_sha256

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILES = ("config.json", "model.safetensors", "preprocessor_config.json")
_PIL_FILTERS = {2: "bilinear", 3: "bicubic"}  # PIL's numbers, as preprocessor_config.json holds them


class DetectorError(FoundExpected):
    """A detector folder is missing, incomplete or unsuitable; names file, finding, expectation, mend."""


@dataclass(frozen=True, eq=False)
class Detr:
    """A frozen DETR with what its results depend on.

    labels: class names, index = label. short_side, long_side: the resize rule in pixels. resample: bilinear | bicubic.
    fingerprint: SHA-256 of the weights file.
    """

    model: nn.Module  # transformers' DetrForObjectDetection
    labels: tuple[str, ...]
    short_side: int
    long_side: int
    resample: str
    fingerprint: str
    device: torch.device

    def describe(self) -> dict[str, Any]:
        """What a detections manifest records about the detector."""
        return {
            "kind": "detr",
            "weights_sha256": self.fingerprint,
            "queries": self.model.config.num_queries,
            "short_side": self.short_side,
            "long_side": self.long_side,
            "resample": self.resample,
        }


def load_detr(folder: Path | str, device: torch.device | str = "cpu", resample: str | None = None) -> Detr:
    """Load a frozen detector, fp32, without any network.

    resample: overrides the folder's filter (`bilinear` reproduces UPT, `bicubic` EZ-HOI; spec §9).
    Raises DetectorError for missing files, unfit weights, or `auxiliary_loss: true` (it changes inference; spec §8).
    """
    # imported here: it takes seconds, and most notebooks only read the detections table
    from transformers import DetrForObjectDetection
    from transformers.utils import logging as transformers_logging

    folder = Path(folder)
    mend = "convert the released checkpoint into this folder, or run notebook 00 for the tiny DETR; then set the folder"
    for name in FILES:
        if not (folder / name).is_file():
            raise DetectorError(folder / name, "no file", f"a folder with {', '.join(FILES)}", mend)
    if json.loads((folder / "config.json").read_text()).get("auxiliary_loss"):
        raise DetectorError(
            folder / "config.json",
            "auxiliary_loss true",
            "false: true feeds normalised states to the next decoder layer at inference",
            "set auxiliary_loss to false",
        )
    transformers_logging.disable_progress_bar()  # a bar for 200 tensors says nothing
    model, loading = DetrForObjectDetection.from_pretrained(
        folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
    )
    wrong = {key: sorted(map(str, names)) for key, names in loading.items() if names}
    if wrong:
        raise DetectorError(
            folder / "model.safetensors", f"tensors that do not fit: {wrong}", "the model of config.json", mend
        )
    processing = json.loads((folder / "preprocessor_config.json").read_text())
    resample = resample or _PIL_FILTERS.get(processing.get("resample", 2))
    if resample not in _PIL_FILTERS.values():
        raise DetectorError(
            folder / "preprocessor_config.json", f"resample {resample!r}", "bilinear (2) or bicubic (3)", "set resample"
        )
    device = torch.device(device)
    names = model.config.id2label
    return Detr(
        model=model.requires_grad_(False).eval().to(device),
        labels=tuple(names[index] for index in range(len(names))),
        short_side=processing["size"]["shortest_edge"],
        long_side=processing["size"]["longest_edge"],
        resample=resample,
        fingerprint=file_sha256(folder / "model.safetensors"),
        device=device,
    )


def resized_size(width: int, height: int, short_side: int = 800, long_side: int = 1333) -> tuple[int, int]:
    """(width, height) after DETR's size rule (spec §9): short side to `short_side` unless the long one passes its cap.

    The capped short side is rounded and the long side truncated from it, so it may pass the cap by a few pixels.
    """
    short, long = min(width, height), max(width, height)
    if short_side * long / short > long_side:
        short_side = round(long_side * short / long)
    if short == short_side:
        return width, height
    other = int(short_side * long / short)
    return (short_side, other) if width <= height else (other, short_side)


def preprocess(detr: Detr, image: Image.Image) -> Tensor:
    """[3, H, W]: RGB, resized with PIL by the size rule, ImageNet mean and std."""
    width, height = resized_size(*image.size, detr.short_side, detr.long_side)
    resized = TF.resize(image.convert("RGB"), [height, width], InterpolationMode(detr.resample))
    return TF.normalize(TF.to_tensor(resized), IMAGENET_MEAN, IMAGENET_STD)


@torch.no_grad()
def detect(detr: Detr, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores [B, Q], labels [B, Q] and boxes [B, Q, 4] (cxcywh in [0, 1]) of every query.

    images: [B, 3, H, W] of one common size: padding changes a DETR's results (spec §9), so there is none.
    """
    output = detr.model(pixel_values=images.to(detr.device))
    scores, labels = best_class(output.logits)
    return scores, labels, output.pred_boxes


def best_class(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Score and label of every query: softmax, then background (last) dropped, then the maximum (spec §10)."""
    return logits.softmax(-1)[..., :-1].max(-1)


def class_positions(labels: Sequence[str], objects: Sequence[str]) -> list[int]:
    """Place of each detector class among `objects`, matched by name whatever its case and underscores; -1 for none."""
    place = {_plain(name): index for index, name in enumerate(objects)}
    return [place.get(_plain(name), -1) for name in labels]


def _plain(name: str) -> str:
    return name.replace("_", " ").lower()
