"""The baseline: frozen CLIP as zero-shot classifier of pairs, on the crop around human and object."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.nn import functional as F

from lib.clip.load import ClipModel
from lib.clip.text import encode_text
from lib.clip.tokens import encode_image
from lib.data.hico_det import HoiDataset
from lib.data.images import read_image
from lib.engine.progress import Progress


def square_crop(image: Image.Image, box: np.ndarray, margin: float = 0.1) -> Image.Image:
    """The square around a box [4] (side = longest side plus margin), black where it leaves the image."""
    centre, side = (box[:2] + box[2:]) / 2, float((box[2:] - box[:2]).max()) * (1 + margin)
    corners = np.concatenate([centre - side / 2, centre + side / 2]).round().astype(int)
    return image.crop(tuple(corners.tolist()))


@torch.inference_mode()
def frozen_clip_pairs(clip: ClipModel, data: HoiDataset, pairs: pd.DataFrame, batch_size: int) -> np.ndarray:
    """Verb log-odds [N, C] of pairs (rows of a PairTable, grouped by image).

    The crop's class embedding is compared with every HOI sentence at CLIP's own temperature; the softmax runs over the
    HOIs of the detected object (the detector names it), and the log-odds of that probability are the logit.
    """
    vocabulary = data.vocabulary
    text = F.normalize(encode_text(clip, vocabulary.class_sentences()), dim=-1)  # (H, D)
    hoi_of = torch.from_numpy(vocabulary.hoi_of).to(text.device)  # (objects, C)
    boxes = pairs[["x1h", "y1h", "x2h", "y2h", "x1o", "y1o", "x2o", "y2o"]].to_numpy(np.float32)
    unions = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 4:6]), np.maximum(boxes[:, 2:4], boxes[:, 6:])], axis=1)
    owners, objects = pairs["image"].to_numpy(), torch.tensor(pairs["object"].to_numpy(), device=text.device)
    logits = np.zeros((len(pairs), len(vocabulary.verbs)), np.float32)
    opened: tuple[int, Image.Image | None] = (-1, None)
    with Progress("frozen CLIP on crops", len(pairs)) as progress:
        for start in range(0, len(pairs), batch_size):
            rows = slice(start, min(start + batch_size, len(pairs)))
            crops = []
            for owner, union in zip(owners[rows], unions[rows], strict=True):
                if owner != opened[0]:
                    opened = (owner, read_image(data[owner].path).convert("RGB"))
                crops.append(clip.transform(square_crop(opened[1], union)))
            image = F.normalize(encode_image(clip, torch.stack(crops))[0], dim=-1)
            similarity = clip.logit_scale * image @ text.T  # (b, H)
            hois = hoi_of[objects[rows]]  # (b, C)
            scores = similarity.gather(1, hois.clamp(min=0)).masked_fill(hois < 0, -torch.inf)
            probability = scores.softmax(dim=1).nan_to_num(0.0).clamp(1e-6, 1 - 1e-6)  # no HOI for this object: zero
            logits[rows] = probability.logit().cpu().numpy()
            progress.step(len(crops))
    return logits
