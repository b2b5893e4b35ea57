"""EZ-HOI: detected instances and a frozen CLIP in, one logit a (human-object pair, verb) out (spec ez-hoi.md §1-§3).

prior tokens of the instances ----> instance adapters --+
CLIP patch tokens of the image ---> visual prompts -----+-> vision tower -> patch map [B, D, G, G]
patch map --RoIAlign--> h, o --MLP--> g --pair adapter over all pairs of the image--> f [P, D]
logits = s * mean over the rows of a verb of (f . T) / 2                                 [P, C]
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.clip.load import ClipModel
from lib.clip.text import encode_text
from lib.config import EzHoiSettings
from lib.data.vocabulary import Vocabulary
from lib.ezhoi.adapters import BottleneckAdapter, Mlp
from lib.ezhoi.pairs import Instances, Pairs, enumerate_pairs, pad_pairs, prior_tokens, roi_features, union_boxes
from lib.ezhoi.prompts import TextPrompts, VisualPrompts
from lib.ezhoi.text import ClassText, select_rows
from lib.ezhoi.vision import AdaptedVision


@dataclass
class PairOutput:
    """What the model says of a batch: P pairs with features [P, D] (after the pair adapter) and logits [P, C]."""

    pairs: Pairs
    features: Tensor
    logits: Tensor


class EzHoi(nn.Module):
    """The detector's HOI head. Only what is trained lives in its parameters; CLIP stays outside, frozen.

    size: R of the CLIP frame. object_text: [objects + 1, D]. union_dropout etc. follow the published settings.
    """

    def __init__(
        self,
        size: int,
        vision: AdaptedVision,
        prompts: VisualPrompts,
        text: ClassText,
        object_text: Tensor,
        *,
        regions: str = "HO",
        pair_adapter: bool = True,
        roi_dropout: float = 0.2,
    ) -> None:
        super().__init__()
        dim = object_text.shape[1]
        self.size, self.regions, self.roi_dropout = size, regions, roi_dropout
        self.vision, self.prompts, self.text = vision, prompts, text
        self.register_buffer("object_text", object_text, persistent=False)
        self.priors_downproj = Mlp(dim + 5, 128, 128, 64)
        self.vis_fuse = _fusion(regions, dim)
        self.mem_adapter = BottleneckAdapter(dim, None, self_attention=True) if pair_adapter else None
        self.logit_scale_HO = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # used as it is, not exponentiated

    def forward(self, images: Tensor, memory: Tensor, instances: Instances) -> PairOutput:
        """images [B, 3, R, R] (squashed, ImageNet statistics); memory [B, L, D] L2-normalised CLIP patch tokens."""
        patch_map = self.encode(images, memory, instances)
        pairs = enumerate_pairs(instances)
        features = self.pair_features(patch_map, instances, pairs)
        return PairOutput(pairs, features, self.logits(features, self.text.verb_text()))

    def encode(self, images: Tensor, memory: Tensor, instances: Instances) -> Tensor:
        """Adapted patch map [B, D, G, G]."""
        prior = self.priors_downproj(prior_tokens(instances, self.object_text, self.size))  # (B, n, 64)
        return self.vision(images, prior, instances.padding, self.prompts(memory))

    def pair_features(self, patch_map: Tensor, instances: Instances, pairs: Pairs) -> Tensor:
        """[P, D]: RoIAlign of instances (and unions), fused, then attention over the image's pairs."""
        batch, slots = instances.boxes.shape[:2]
        owner = torch.arange(batch, device=patch_map.device).repeat_interleave(slots)
        pooled = roi_features(
            patch_map, instances.boxes.flatten(0, 1), owner, self.size, self.roi_dropout, self.training
        )  # (B*n, D)
        pooled = F.normalize(pooled, dim=-1).view(batch, slots, -1)
        human, obj = pooled[pairs.image, pairs.human], pooled[pairs.image, pairs.object]
        parts = [human, obj] if "HO" in self.regions else []
        if "U" in self.regions:
            boxes = union_boxes(instances, pairs)  # (P, 4)
            union = roi_features(patch_map, boxes, pairs.image, self.size, self.roi_dropout, self.training)
            parts.insert(0, F.normalize(union, dim=-1))
        fused = self.vis_fuse(torch.cat(parts, dim=-1))  # (P, D)
        if self.mem_adapter is None:
            return fused
        padded, padding, slot = pad_pairs(fused, pairs, batch)
        return self.mem_adapter(padded, padding=padding)[pairs.image, slot]

    def logits(self, features: Tensor, verb_text: Tensor) -> Tensor:
        """[P, C]: s/2 * f . mean text of the verb; neither side is normalised (quirk Q12, kept)."""
        return self.logit_scale_HO / 2 * features @ verb_text.T


def _fusion(regions: str, dim: int) -> nn.Module:
    """Which regions make a pair (`--logits_type`): HO 2D -> D -> D, HO+U 3D -> 2D -> D, U as it is (spec §3 step 4)."""
    if regions == "U":
        return nn.Identity()
    if regions not in ("HO", "HO+U"):
        raise ValueError(f"ezhoi.regions: found {regions!r}, expected HO, HO+U or U")
    hidden = dim if regions == "HO" else 2 * dim
    return nn.Sequential(nn.Linear(hidden + dim, hidden), nn.ReLU(), nn.Linear(hidden, dim), nn.ReLU())


def build_ezhoi(clip: ClipModel, vocabulary: Vocabulary, descriptions: list[str], settings: EzHoiSettings) -> EzHoi:
    """Put the parts together; random draws come from torch's global stream (seed it first).

    descriptions: one paragraph an HOI class, encoded as `<label>:<description>` (§2.7).
    """
    spec = clip.spec
    texts = [f"{vocabulary.hoi_label(i)}:{text}" for i, text in enumerate(descriptions)]
    described = F.normalize(encode_text(clip, texts), dim=-1)  # (C, D)
    rows = select_rows(vocabulary, described) if settings.class_rows == "selected" else np.arange(len(texts))
    text_prompts = None
    if settings.text_prompts == "prefix":
        depth = min(settings.prompt_depth, spec.text_layers)
        text_prompts = TextPrompts(spec.text_width, spec.embed_dim, depth=depth, length=settings.prompt_length)
    depth = min(settings.prompt_depth, spec.vision_layers)
    return EzHoi(
        spec.image_size,
        AdaptedVision(clip.model.visual, settings.adapter_gain_init, settings.instance_adapters != "none"),
        VisualPrompts(spec.text_width, spec.vision_width, spec.embed_dim, depth=depth, length=settings.prompt_length),
        ClassText(clip, vocabulary, rows, described, text_prompts),
        encode_text(clip, vocabulary.object_sentences()),
        regions=settings.regions,
        pair_adapter=settings.pair_adapter,
        roi_dropout=settings.roi_dropout,
    )
