"""EZ-HOI: detected instances and a frozen CLIP in, one logit a (human-object pair, class) out (spec ez-hoi.md §1-§3).

prior tokens of the instances ----> instance adapters --+
CLIP patch tokens of the image ---> visual prompts -----+-> vision tower -> patch map [B, D, G, G]
patch map --RoIAlign--> h, o --MLP--> g --pair adapter over all pairs of the image--> f [P, D]
logits = s * mean over the rows of a class of (f . T) / 2                                [P, C]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.clip.load import ClipModel
from lib.clip.text import encode_text
from lib.data.descriptions import ClassTexts
from lib.data.vocabulary import Vocabulary
from lib.ezhoi.adapters import BottleneckAdapter, Mlp
from lib.ezhoi.classes import scored_classes
from lib.ezhoi.pairs import Instances, Pairs, enumerate_pairs, pad_pairs, prior_tokens, roi_features, union_boxes
from lib.ezhoi.prompts import TextPrompts, VisualPrompts
from lib.ezhoi.text import ClassText, UnseenGuides, select_rows
from lib.ezhoi.vision import AdaptedVision, adapter_layers
from lib.settings import EzHoiSettings


@dataclass
class PairOutput:
    """What the model says of a batch: P pairs with features [P, D] (after the pair adapter) and logits [P, C].

    text: T [K, D], the class rows that the logits were made with.
    """

    pairs: Pairs
    features: Tensor
    logits: Tensor
    text: Tensor


class EzHoi(nn.Module):
    """The detector's HOI head. Only what is trained lives in its parameters; CLIP stays outside, frozen.

    size: R of the CLIP frame. object_text: [objects + 1, D] features of `a photo of a <object>`. prior: which of
    confidence, box and embedding the instance tokens hold. Defaults are the published settings.
    """

    def __init__(
        self,
        size: int,
        vision: AdaptedVision,
        prompts: VisualPrompts,
        text: ClassText,
        object_text: Tensor,
        *,
        prior: str = "cbe",
        regions: str = "HO",
        pair_adapter: bool = True,
        roi_dropout: float = 0.2,
        round_prompts: bool = False,
    ) -> None:
        super().__init__()
        dim = object_text.shape[1]
        self.size, self.prior, self.regions = size, prior, regions
        self.roi_dropout, self.round_prompts = roi_dropout, round_prompts
        self.vision, self.prompts, self.text = vision, prompts, text
        self.register_buffer("object_text", object_text, persistent=False)
        self.priors_downproj = Mlp(sum({"c": 1, "b": 4, "e": dim}[part] for part in prior), 128, 128, 64)
        self.vis_fuse = _fusion(regions, dim)
        self.mem_adapter = BottleneckAdapter(dim, None, self_attention=True) if pair_adapter else None
        self.logit_scale_HO = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # used as it is, not exponentiated

    def forward(self, images: Tensor, memory: Tensor, instances: Instances) -> PairOutput:
        """images [B, 3, R, R] (squashed, ImageNet statistics); memory [B, L, D] L2-normalised CLIP patch tokens."""
        patch_map = self.encode(images, memory, instances)
        pairs = enumerate_pairs(instances)
        features, text = self.pair_features(patch_map, instances, pairs), self.text()
        return PairOutput(pairs, features, self.logits(features, self.text.class_text(text)), text)

    def instance_tokens(self, instances: Instances) -> Tensor:
        """[B, n, 64]: what the instance adapters attend to; empty slots hold the MLP's response to zeros."""
        return self.priors_downproj(prior_tokens(instances, self.object_text, self.size, self.prior))

    def encode(self, images: Tensor, memory: Tensor, instances: Instances) -> Tensor:
        """Adapted patch map [B, D, G, G]."""
        prompts = self.prompts(memory)
        if self.round_prompts:
            prompts = prompts.half().to(prompts.dtype)
        return self.vision(images, self.instance_tokens(instances), instances.padding, prompts)

    def fused_features(self, patch_map: Tensor, instances: Instances, pairs: Pairs) -> Tensor:
        """g [P, D]: RoIAlign of instances (and unions), normalised, fused by an MLP (spec §3 steps 1-4)."""
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
        return self.vis_fuse(torch.cat(parts, dim=-1))

    def pair_features(self, patch_map: Tensor, instances: Instances, pairs: Pairs) -> Tensor:
        """f [P, D]: fused features after attention over all pairs of their image (spec §3 step 5)."""
        fused = self.fused_features(patch_map, instances, pairs)
        if self.mem_adapter is None or not len(fused):
            return fused
        padded, padding, slot = pad_pairs(fused, pairs, len(patch_map))
        return self.mem_adapter(padded, padding=padding)[pairs.image, slot]

    def logits(self, features: Tensor, class_text: Tensor) -> Tensor:
        """[P, C]: s/2 * f . mean text of the class; neither side is normalised (quirk Q12, kept)."""
        return self.logit_scale_HO / 2 * features @ class_text.T

    def vis_parameters(self) -> list[nn.Parameter]:
        """Parameters trained at `lr_vit`: prompts (of both towers) and instance adapters (spec §6)."""
        inside_clip = (self.prompts, self.vision, self.text.prompts)
        return [p for module in inside_clip if module is not None for p in module.parameters()]

    def head_parameters(self) -> list[nn.Parameter]:
        """Parameters trained at `lr_head`: everything else."""
        inside_clip = set(self.vis_parameters())
        return [p for p in self.parameters() if p not in inside_clip]


def _fusion(regions: str, dim: int) -> nn.Module:
    """Which regions make a pair (`--logits_type`): HO 2D -> D -> D, HO+U 3D -> 2D -> D, U as it is (spec §3 step 4)."""
    if regions == "U":
        return nn.Identity()
    if regions not in ("HO", "HO+U"):
        raise ValueError(f"ezhoi.regions: found {regions!r}, expected HO, HO+U or U")
    hidden = dim if regions == "HO" else 2 * dim
    return nn.Sequential(nn.Linear(hidden + dim, hidden), nn.ReLU(), nn.Linear(hidden, dim), nn.ReLU())


def build_ezhoi(
    clip: ClipModel,
    vocabulary: Vocabulary,
    texts: ClassTexts,
    unseen: Sequence[int],
    settings: EzHoiSettings,
    rows: np.ndarray | None = None,
) -> EzHoi:
    """Put the parts together; random draws come from torch's global stream (seed it first).

    unseen: HOI ids withheld from training. rows: ascending HOI ids that stand for the classes, instead of the rule
    that `class_rows` names. Raises ValueError for settings that contradict each other or the texts.
    """
    spec = clip.spec
    return EzHoi(
        spec.image_size,
        AdaptedVision(
            clip.model.visual,
            settings.adapter_gain_init,
            adapter_layers(settings.instance_adapters, spec.vision_layers),
        ),
        VisualPrompts(
            spec.text_width,
            spec.vision_width,
            spec.embed_dim if settings.image_prompts else None,
            depth=min(settings.prompt_depth, spec.vision_layers),
            length=settings.prompt_length,
        ),
        _class_text(clip, vocabulary, texts, unseen, settings, rows),
        encode_text(clip, vocabulary.object_sentences()),
        prior=settings.prior,
        regions=settings.regions,
        pair_adapter=settings.pair_adapter,
        roi_dropout=settings.roi_dropout,
        round_prompts=settings.round_prompts,
    )


def _class_text(
    clip: ClipModel,
    vocabulary: Vocabulary,
    texts: ClassTexts,
    unseen: Sequence[int],
    settings: EzHoiSettings,
    rows: np.ndarray | None,
) -> ClassText:
    spec, dim = clip.spec, clip.spec.embed_dim
    if settings.text_prompts not in ("off", "prefix"):
        raise ValueError(f"ezhoi.text_prompts: found {settings.text_prompts!r}, expected off or prefix")
    if settings.act_descriptors and texts.act_descriptors is None:
        raise ValueError("ezhoi.act_descriptors: found no descriptors; mend: set data.act_descriptors or switch it off")
    if len(texts.descriptions) != vocabulary.num_hois:
        raise ValueError(
            f"found {len(texts.descriptions)} descriptions, expected {vocabulary.num_hois}: one an HOI class"
        )
    live = settings.text_prompts == "prefix" or settings.text_adapter or settings.act_descriptors
    selecting = rows is None and settings.class_rows == "selected" and settings.classes == "verb"
    described = None
    if live or selecting:  # `<label>:<description>` (§2.7)
        labelled = [f"{vocabulary.hoi_label(hoi)}:{text}" for hoi, text in enumerate(texts.descriptions)]
        described = F.normalize(encode_text(clip, labelled), dim=-1).cpu()  # (H, D)
    if selecting:
        partners = {hoi: found.seen for hoi, found in texts.differences.items()} if settings.unseen_prompts else {}
        rows = select_rows(vocabulary.hoi_verb, described, partners)
    elif rows is None:
        rows = np.arange(vocabulary.num_hois)
    prompts = guides = None
    if settings.text_prompts == "prefix":
        guiding = settings.unseen_prompts and len(texts.differences) > 0
        depth = min(settings.prompt_depth, spec.text_layers)
        prompts = TextPrompts(spec.text_width, dim, depth=depth, length=settings.prompt_length, unseen=guiding)
        guides = UnseenGuides(clip, texts.differences, vocabulary.num_hois) if guiding else None
    return ClassText(
        clip,
        vocabulary.class_sentences(),
        vocabulary.hoi_object,
        rows,
        scored_classes(vocabulary, settings.classes).of_hoi,
        unseen,
        described,
        prompts=prompts,
        guides=guides,
        act_descriptor_attn=BottleneckAdapter(dim, dim, self_attention=True) if settings.act_descriptors else None,
        descriptors=texts.act_descriptors,
        txtmem_adapter=BottleneckAdapter(dim, None, self_attention=True) if settings.text_adapter else None,
    )
