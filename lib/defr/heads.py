"""Classifier heads and their named families (spec defr.md §3).

All heads scale by exp(log_scale). log_scale 0 also means that the feature is not normalised: an ordinary layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.defr.embeddings import LanguageRows


@dataclass(frozen=True)
class HeadFamily:
    """What a published head name stands for.

    kind: cosine | linear | mixing (frozen rows under a trainable C x C matrix). rows: random | clip | bert | simcse.
    shuffled: rows under a random permutation of the classes. joint: the CLIP tower keeps its projection.
    """

    kind: str
    rows: str
    shuffled: bool = False
    joint: bool = False


FAMILIES = {
    "rand": HeadFamily("cosine", "random"),
    "rand-linear": HeadFamily("linear", "random"),
    "rand-512": HeadFamily("cosine", "random", joint=True),
    "rand-512-linear": HeadFamily("linear", "random", joint=True),
    "clip": HeadFamily("cosine", "clip"),
    "clip-linear": HeadFamily("linear", "clip"),
    "bert": HeadFamily("cosine", "bert"),
    "bert-linear": HeadFamily("linear", "bert"),
    "simcse": HeadFamily("cosine", "simcse"),  # ours, to complete the table
    "simcse-linear": HeadFamily("linear", "simcse"),
    "clip-shuffle": HeadFamily("cosine", "clip", shuffled=True),
    "bert-shuffle": HeadFamily("cosine", "bert", shuffled=True),
    "i-clip": HeadFamily("mixing", "clip"),
    "i-bert": HeadFamily("mixing", "bert"),
}


class _Scaled(nn.Module):
    """Holds log_scale; a trainable one is held below its maximum at the start of every forward."""

    def __init__(self, log_scale: float, trainable: bool, log_scale_max: float) -> None:
        super().__init__()
        self.normalised, self.log_scale_max = log_scale != 0, log_scale_max
        self.logit_scale = nn.Parameter(torch.tensor(float(log_scale)), requires_grad=trainable)

    def scaled(self, features: Tensor) -> Tensor:
        """kappa * f, with f on the unit sphere unless log_scale began at 0; [B, D]."""
        if self.logit_scale.requires_grad:
            # in place, as published: a clamp inside the graph would leave a scale above the maximum without gradient
            self.logit_scale.data.clamp_(max=self.log_scale_max)
        f = F.normalize(features, dim=-1) if self.normalised else features
        return self.logit_scale.exp() * f


class CosineHead(_Scaled):
    """s = kappa * cos(f, w_c); rows are normalised again on every forward, no bias."""

    def __init__(self, rows: Tensor, log_scale: float, trainable: bool = False, log_scale_max: float = 4.61) -> None:
        super().__init__(log_scale, trainable, log_scale_max)
        self.classifier = nn.Parameter(rows.clone())  # (C, D)

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, C]."""
        return self.scaled(features) @ F.normalize(self.classifier, dim=-1).T


class LinearHead(_Scaled):
    """s = w_c . (kappa f) + b_c."""

    def __init__(
        self, rows: Tensor, bias: Tensor, log_scale: float, trainable: bool = False, log_scale_max: float = 4.61
    ) -> None:
        super().__init__(log_scale, trainable, log_scale_max)
        self.classifier = nn.Linear(rows.shape[1], rows.shape[0], device="meta").to_empty(device=rows.device)
        with torch.no_grad():
            self.classifier.weight.copy_(rows)
            self.classifier.bias.copy_(bias)

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, C]."""
        return self.classifier(self.scaled(features))


class MixingHead(_Scaled):
    """Ablation `i-*`: frozen unit rows, mixed by a C x C matrix that starts at the identity, normalised again."""

    def __init__(self, rows: Tensor, log_scale: float, trainable: bool = False, log_scale_max: float = 4.61) -> None:
        super().__init__(log_scale, trainable, log_scale_max)
        self.classifier = nn.Parameter(F.normalize(rows, dim=-1), requires_grad=False)  # (C, D)
        self.m_classifier = nn.Parameter(torch.eye(len(rows)))

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, C]."""
        return self.scaled(features) @ F.normalize(self.m_classifier @ self.classifier, dim=-1).T


def build_head(
    name: str,
    width: int,
    num_classes: int,
    *,
    language: LanguageRows | None = None,
    log_scale: float = 4.61,
    trainable: bool = False,
    log_scale_max: float = 4.61,
    seed: int = 0,
) -> CosineHead | LinearHead | MixingHead:
    """The head of a family of `FAMILIES` over features of `width` for `num_classes` classes.

    language: embedding rows, for families that start from them. seed: draws random rows and permutations.
    Raises ValueError for an unknown family, absent embeddings or rows of another shape.
    """
    family = family_of(name)
    generator = torch.Generator().manual_seed(seed)
    if family.rows == "random":
        rows = torch.randn(num_classes, width, generator=generator) / math.sqrt(width)
    elif language is None:
        raise ValueError(f"defr.head {name}: found no embeddings, expected {family.rows} rows; mend: defr.embeddings")
    else:
        rows = language.rows(family.rows)
    if rows.shape != (num_classes, width):
        raise ValueError(
            f"defr.head {name}: found {family.rows} rows {tuple(rows.shape)}, expected ({num_classes}, {width})"
            "\n  mend: use embeddings of these classes, of a model whose width is that of the backbone"
        )
    if family.shuffled:
        rows = rows[torch.randperm(num_classes, generator=generator)]
    if family.kind == "cosine":
        return CosineHead(rows, log_scale, trainable, log_scale_max)
    if family.kind == "mixing":
        return MixingHead(rows, log_scale, trainable, log_scale_max)
    bias = torch.zeros(num_classes)
    if family.rows == "random":  # torch's own start of a linear layer: both uniform within 1 / sqrt(width)
        bound = 1 / math.sqrt(width)
        rows = torch.empty_like(rows).uniform_(-bound, bound, generator=generator)
        bias = bias.uniform_(-bound, bound, generator=generator)
    else:
        rows = F.normalize(rows, dim=-1)
    return LinearHead(rows, bias, log_scale, trainable, log_scale_max)


def family_of(name: str) -> HeadFamily:
    """The family of a head's name; ValueError names the known ones."""
    if name not in FAMILIES:
        raise ValueError(f"defr.head: found {name!r}, expected one of {list(FAMILIES)}")
    return FAMILIES[name]
