"""Baselines: frozen CLIP as zero-shot classifier of pairs, on pooled regions and on image crops.

Both compare a feature of the union box with every HOI sentence at CLIP's own temperature; the softmax runs over the
HOIs of the detected object (the detector names it), and the log-odds of that probability are the logit. So the prior
and the evaluation are those of EZ-HOI.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from lib.clip.load import ClipModel
from lib.clip.text import encode_text
from lib.clip.tokens import encode_image
from lib.data.hico_det import HoiDataset
from lib.data.images import read_image
from lib.data.vocabulary import Vocabulary
from lib.engine.progress import Progress
from lib.ezhoi.pairs import roi_features


def square_crop(image: Image.Image, box: np.ndarray, margin: float = 0.1) -> Image.Image:
    """The square around a box [4] (side = longest side plus margin), black where it leaves the image."""
    centre, side = (box[:2] + box[2:]) / 2, float((box[2:] - box[:2]).max()) * (1 + margin)
    corners = np.concatenate([centre - side / 2, centre + side / 2]).round().astype(int)
    return image.crop(tuple(corners.tolist()))


class PairClassifier:
    """Turns union features into verb log-odds by CLIP's text, for the HOIs that exist with the detected object."""

    def __init__(self, clip: ClipModel, vocabulary: Vocabulary) -> None:
        self.scale = clip.logit_scale
        self.text = F.normalize(encode_text(clip, vocabulary.class_sentences()), dim=-1)  # (H, D)
        self.hoi_of = torch.from_numpy(vocabulary.hoi_of).to(self.text.device)  # (objects, C)

    def __call__(self, features: Tensor, objects: np.ndarray) -> np.ndarray:
        """features [P, D], detected object ids [P] -> log-odds [P, C]; verbs that do not exist get the lowest."""
        similarity = self.scale * F.normalize(features.to(self.text), dim=-1) @ self.text.T  # (P, H)
        hois = self.hoi_of[torch.tensor(objects, device=self.text.device)]  # (P, C)
        scores = similarity.gather(1, hois.clamp(min=0)).masked_fill(hois < 0, -torch.inf)
        probability = scores.softmax(dim=1).nan_to_num(0.0).clamp(1e-6, 1 - 1e-6)  # no HOI for this object: zero
        return probability.logit().cpu().numpy()


@torch.inference_mode()
def region_features(clip: ClipModel, data: HoiDataset, pairs: pd.DataFrame, batch_size: int) -> np.ndarray:
    """Features [N, D] of the union boxes from the tower that EZ-HOI adapts, untrained: RoIAlign of its patch tokens.

    The image is squashed to the CLIP frame as for EZ-HOI, with CLIP's own mean and std; the 7 x 7 bins are averaged.
    pairs: columns of boxes and `image`; images without a pair are not opened.
    """
    size, owners, unions = clip.spec.image_size, pairs["image"].to_numpy(), _unions(pairs)
    features = np.zeros((len(pairs), clip.spec.embed_dim), np.float32)
    wanted = np.unique(owners)
    with Progress("frozen CLIP on regions", len(wanted)) as progress:
        for start in range(0, len(wanted), batch_size):
            batch = wanted[start : start + batch_size]
            squashed = [read_image(data[i].path).convert("RGB").resize((size, size)) for i in batch]
            patches = encode_image(clip, torch.stack([clip.transform(image) for image in squashed]))[1]
            patch_map = patches.transpose(1, 2).unflatten(2, (clip.spec.grid, -1))  # (B, D, G, G)
            rows = np.flatnonzero(np.isin(owners, batch))
            scale = np.array([data[i].size * 2 for i in owners[rows]], np.float32) / size
            boxes = torch.from_numpy(unions[rows] / scale).to(patches.device)
            owner = torch.from_numpy(np.searchsorted(batch, owners[rows])).to(patches.device)
            pooled = roi_features(patch_map, boxes, owner, size, dropout=0.0, training=False)
            features[rows] = pooled.cpu().numpy()
            progress.step(len(batch))
    return features


def clip_on_regions(clip: ClipModel, data: HoiDataset, pairs: pd.DataFrame, batch_size: int) -> np.ndarray:
    """Log-odds [N, C] of `region_features` against every HOI sentence."""
    classify = PairClassifier(clip, data.vocabulary)
    features = torch.from_numpy(region_features(clip, data, pairs, batch_size))
    return classify(features, pairs["object"].to_numpy())


@torch.inference_mode()
def clip_on_crops(clip: ClipModel, data: HoiDataset, pairs: pd.DataFrame, batch_size: int) -> np.ndarray:
    """Log-odds [N, C] from the class embedding of the square crop around each pair: one forward of CLIP a pair."""
    classify = PairClassifier(clip, data.vocabulary)
    logits = np.zeros((len(pairs), len(data.vocabulary.verbs)), np.float32)
    owners, unions, objects = pairs["image"].to_numpy(), _unions(pairs), pairs["object"].to_numpy()
    opened: tuple[int, Image.Image | None] = (-1, None)
    with Progress("frozen CLIP on crops", len(pairs)) as progress:
        for start in range(0, len(pairs), batch_size):
            rows = slice(start, min(start + batch_size, len(pairs)))
            crops = []
            for owner, union in zip(owners[rows], unions[rows], strict=True):
                if owner != opened[0]:
                    opened = (owner, read_image(data[owner].path).convert("RGB"))
                crops.append(clip.transform(square_crop(opened[1], union)))
            logits[rows] = classify(encode_image(clip, torch.stack(crops))[0], objects[rows])
            progress.step(len(crops))
    return logits


def _unions(pairs: pd.DataFrame) -> np.ndarray:
    """[N, 4] smallest box around human and object, pixels."""
    human, obj = pairs[["x1h", "y1h", "x2h", "y2h"]].to_numpy(), pairs[["x1o", "y1o", "x2o", "y2o"]].to_numpy()
    return np.concatenate([np.minimum(human, obj)[:, :2], np.maximum(human, obj)[:, 2:]], axis=1).astype(np.float32)
