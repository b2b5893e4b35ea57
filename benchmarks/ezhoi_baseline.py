"""EZ-HOI as the public program runs it (spec ez-hoi.md §2.6, §3, §5, §11), written anew around the same weights.

Kept: the class texts go through the text tower at full context length in every forward, once with prompts behind the
end token and once without; the memory MLP and the prompt adapter run once a level; RoIAlign of boxes and of unions that
nobody uses, pairs, pair adapter, priors and labels go image by image; the object-to-verb table is read pair by pair
with `.item()`; patch tokens come from one pickle an image. Left out, to its favour: NMS and proposal rule, barriers,
the semantic loss, attention weights that are materialised.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass

import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_iou, roi_align
from torchvision.transforms import functional as TF

from benchmarks.ezhoi_case import PICTURE, EzHoiCase
from lib.clip.text import tokenize
from lib.detection.detr import IMAGENET_MEAN, IMAGENET_STD
from lib.ezhoi.adapters import BottleneckAdapter
from lib.ezhoi.loss import focal_terms, fuse_prior
from lib.ezhoi.predict import BOXES_H, BOXES_O
from lib.features.legacy import legacy_file

PROMPT = 2  # tokens a prompt
LEVELS = 9


@dataclass
class Detected:
    """One image as DETR left it: boxes [n, 4] in the R-frame, scores [n], labels [n], people first."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    n_human: int


def through(block: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """A block of open_clip on x [N, T, W], its projections as one product each, which the public program's layout gives
    and which nn.MultiheadAttention, batch first and in training, does not."""
    attention = block.attn
    packed = F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
    q, k, v = packed.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (N, heads, T, W / heads)
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    x = x + attention.out_proj(attended.transpose(1, 2).flatten(2))
    return x + block.mlp(block.ln_2(x))


@dataclass
class Scored:
    """One image's pairs: human x, object y [P], logits and prior [P, C]."""

    x: Tensor
    y: Tensor
    logits: Tensor
    prior: Tensor


class PublicProgram:
    """The same adapters and towers as `case.model`, driven as the public program drives them."""

    def __init__(self, case: EzHoiCase) -> None:
        clip, model = case.clip, case.model
        self.case, self.clip, self.model = case, clip, model
        sentences = [model.text.sentences[row] for row in model.text.rows]
        self.tokens = tokenize(clip, sentences)  # (K, context)
        self.described = F.normalize(model.text.plain, dim=-1)[:, None]  # (K, 1, D)
        self.text_bases = torch.randn(LEVELS, PROMPT, clip.spec.text_width, device=case.device)
        self.text_adapter = BottleneckAdapter(clip.spec.text_width, clip.spec.embed_dim, self_attention=False)
        self.text_adapter.to(case.device)
        self.labels_of_rows = (model.text.average > 0).float()  # (K, C)
        self.verbs_of = {
            thing: torch.from_numpy(row).nonzero().flatten().tolist()
            for thing, row in enumerate(case.classes.hoi_of >= 0)
        }

    def load(self, index: int) -> tuple[Tensor, Tensor, Detected]:
        """Picture [3, R, R], patch tokens [L, D] and detections of one image, from its files."""
        record, size, device = self.case.samples.dataset[index], self.model.size, self.case.device
        with Image.open(record.path) as opened:
            picture = opened.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
        pixels = TF.normalize(TF.to_tensor(picture), IMAGENET_MEAN, IMAGENET_STD)
        with legacy_file(self.case.pickles, record.name).open("rb") as stream:
            tokens = F.normalize(pickle.load(stream), dim=-1)
        found = self.case.samples.proposals[index]
        detected = Detected(
            *((found.boxes * size).to(device), found.scores.to(device), found.labels.to(device), found.n_human)
        )
        return pixels.to(device), tokens.to(device), detected

    def class_text(self) -> Tensor:
        """T [K, D]: both passes of the text tower; the second is computed and not used."""
        tower, count = self.clip.model, len(self.tokens)
        prompts = [self.text_adapter(base.expand(count, -1, -1), self.described) for base in self.text_bases]
        words = tower.token_embedding(self.tokens)  # (K, context, W)
        plain = words + tower.positional_embedding
        x = torch.cat([words[:, :-PROMPT], prompts[0]], dim=1) + tower.positional_embedding
        for index, block in enumerate(tower.transformer.resblocks):
            if 0 < index < LEVELS:
                x = torch.cat([x[:, :-PROMPT], prompts[index]], dim=1)
            x, plain = through(block, x, tower.attn_mask), through(block, plain, tower.attn_mask)
        end = self.tokens.argmax(dim=1)
        return tower.ln_final(x)[torch.arange(count, device=x.device), end] @ tower.text_projection

    def patch_maps(self, images: Tensor, memory: Tensor, detected: list[Detected]) -> Tensor:
        """[B, D, G, G]."""
        model, prompts = self.model, self.model.prompts
        layers = [prompts.proj, *prompts.compound_prompt_proj_vis]
        levels = []
        for layer, base in zip(layers, prompts.bases, strict=True):
            levels.append(prompts.img_clip_pt_adapter(layer(base).expand(len(images), -1, -1), memory))
        tokens = []
        for image in detected:
            known = [image.scores[:, None], image.boxes / model.size, model.object_text[image.labels]]
            tokens.append(torch.cat(known, dim=1))
        padding = pad_sequence([torch.zeros(len(each), dtype=torch.bool) for each in tokens], True, True)
        prior = model.priors_downproj(pad_sequence(tokens, batch_first=True))
        return model.vision(images, prior, padding.to(images.device), torch.stack(levels))

    def score(self, patch_map: Tensor, image: Detected, text: Tensor, power: float) -> Scored:
        """One image's pairs; patch_map [D, G, G]."""
        model, device = self.model, patch_map.device
        count, scale = len(image.boxes), patch_map.shape[-1] / model.size
        grid = torch.meshgrid(torch.arange(count, device=device), torch.arange(count, device=device), indexing="ij")
        x, y = torch.nonzero((grid[0] != grid[1]) & (grid[0] < image.n_human)).unbind(1)
        pooled = roi_align(patch_map[None], [image.boxes], 7, scale, aligned=True).mean(dim=(2, 3))
        corners = image.boxes[x], image.boxes[y]
        union = torch.cat([torch.minimum(*corners)[:, :2], torch.maximum(*corners)[:, 2:]], dim=1)
        roi_align(patch_map[None], [union], 7, scale, aligned=True).mean(dim=(2, 3))
        single = F.normalize(pooled, dim=-1)
        fused = model.vis_fuse(torch.cat([single[x], single[y]], dim=1))
        features = model.mem_adapter(fused[None])[0]
        rows = self.labels_of_rows
        logits = model.logit_scale_HO * (features @ text.T @ rows) / rows.sum(0).clamp(min=1) / 2
        return Scored(x, y, logits, self._prior(image, x, y, power))

    def _prior(self, image: Detected, x: Tensor, y: Tensor, power: float) -> Tensor:
        strength = (image.scores[x] * image.scores[y]) ** power
        verbs = [self.verbs_of[image.labels[thing].item()] for thing in y]
        pair = [p for p, possible in enumerate(verbs) for _ in possible]
        verb = [v for possible in verbs for v in possible]
        prior = torch.zeros(len(x), self.labels_of_rows.shape[1], device=strength.device)
        prior[pair, verb] = strength[pair]
        return prior

    def loss(self, indices: list[int], alpha: float, gamma: float) -> Tensor:
        """Interaction loss of one training batch."""
        loaded = [self.load(index) for index in indices]
        images, memory = (torch.stack([each[part] for each in loaded]) for part in (0, 1))
        detected, text = [each[2] for each in loaded], self.class_text()
        maps = self.patch_maps(images, memory, detected)
        logits, prior, labels = [], [], []
        for index, patch_map, image in zip(indices, maps, detected, strict=True):
            scored = self.score(patch_map, image, text, 1.0)
            logits.append(scored.logits)
            prior.append(scored.prior)
            labels.append(self._labels(index, image, scored))
        logits, prior, labels = (torch.cat(parts) for parts in (logits, prior, labels))
        pair, verb = torch.nonzero(prior).unbind(1)
        logits, prior, labels = logits[pair, verb], prior[pair, verb], labels[pair, verb]
        positives = len(torch.nonzero(labels))
        return focal_terms(fuse_prior(logits, prior), labels, alpha, gamma).sum() / positives

    def _labels(self, index: int, image: Detected, scored: Scored) -> Tensor:
        record, device = self.case.samples.dataset[index], scored.logits.device
        frame = torch.tensor(PICTURE * 2, device=device)
        truth = [
            torch.from_numpy(boxes).to(device) / frame * self.model.size for boxes in (record.boxes_h, record.boxes_o)
        ]
        overlap = torch.minimum(box_iou(image.boxes[scored.x], truth[0]), box_iou(image.boxes[scored.y], truth[1]))
        labels = torch.zeros_like(scored.prior)
        pair, row = torch.nonzero(overlap >= 0.5).unbind(1)
        labels[pair, torch.from_numpy(record.verb).to(device)[row]] = 1
        return labels

    @torch.no_grad()
    def predictions(self, indices: list[int], power: float) -> pd.DataFrame:
        """Evaluation, batch 1: what `hoi_predictions` gives, gathered in Python lists."""
        kept: dict[str, list] = {name: [] for name in ("image", *BOXES_H, *BOXES_O, "hoi", "score")}
        for index in indices:
            picture, tokens, image = self.load(index)
            text = self.class_text()
            patch_map = self.patch_maps(picture[None], tokens[None], [image])[0]
            scored = self.score(patch_map, image, text, power)
            pair, verb = torch.nonzero(scored.prior).unbind(1)
            scores = scored.logits[pair, verb].sigmoid() * scored.prior[pair, verb]
            boxes = image.boxes / self.model.size * torch.tensor(PICTURE * 2, device=image.boxes.device)
            for p, v, score in zip(pair.tolist(), verb.tolist(), scores.tolist(), strict=True):
                human, thing = scored.x[p].item(), scored.y[p].item()
                kept["image"].append(index)
                kept["hoi"].append(int(self.case.classes.hoi_of[image.labels[thing].item(), v]))
                kept["score"].append(score)
                for names, box in ((BOXES_H, boxes[human]), (BOXES_O, boxes[thing])):
                    for name, value in zip(names, box.tolist(), strict=True):
                        kept[name].append(value)
        return pd.DataFrame(kept)
