"""Interaction loss of EZ-HOI: focal loss on prior-fused logits (spec ez-hoi.md §5.2; UPT eq. 6)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def fuse_prior(logits: Tensor, prior: Tensor) -> Tensor:
    """x = log(pi / (1 + e^-logit - pi) + 1e-8), so that sigmoid(x) = pi * sigmoid(logit). Any equal shapes."""
    return torch.log(prior / (1 + torch.exp(-logits) - prior) + 1e-8)


def focal_terms(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
    """|1 - y - alpha| (|y - sigmoid(x)| + 1e-6)^gamma BCE(x, y), element by element."""
    bce = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    weight = (1 - labels - alpha).abs() * ((labels - logits.sigmoid()).abs() + 1e-6) ** gamma
    return weight * bce


def interaction_loss(
    logits: Tensor, prior: Tensor, labels: Tensor, *, alpha: float = 0.5, gamma: float = 0.2
) -> dict[str, Tensor]:
    """Sum and normaliser of the interaction loss over the entries with prior > 0 (that mask withholds unseen classes).

    logits, prior, labels: [P, C]. Returns `sum` (connected to the graph even when nothing is left) and `positives`.
    The caller divides by `positives` (averaged over ranks); with none, the loss counts as zero.
    """
    keep = prior > 0
    terms = focal_terms(fuse_prior(logits[keep], prior[keep]), labels[keep], alpha, gamma)
    return {"sum": terms.sum() + 0.0 * logits.sum(), "positives": labels[keep].sum()}


def semantic_relation_loss(text: Tensor, descriptions: Tensor, seen: Tensor, unseen: Tensor) -> Tensor:
    """Keeps the learnt class texts as similar to each other as their descriptions are (spec ez-hoi.md §5.3).

    text, descriptions: [K, D]. seen, unseen: [K] bool, rows that take part. Mean of KL(R(T), R(H)) over the seen rows,
    the unseen rows and both together, R being the matrix of cosines; the seen rows alone where no row is unseen.
    """
    groups = [seen]
    if unseen.any():
        groups += [unseen, seen | unseen]
    return torch.stack([_relation_kl(text[rows], descriptions[rows]) for rows in groups]).mean()


def _relation_kl(text: Tensor, descriptions: Tensor, temperature: float = 0.1) -> Tensor:
    """KL of the row-wise softmax of two cosine matrices, averaged over their entries; 0 for no row."""
    if not len(text):
        return text.sum()
    p, q = (
        (F.normalize(rows, dim=-1) @ F.normalize(rows, dim=-1).T / temperature).log_softmax(dim=1)
        for rows in (text, descriptions)
    )
    return (q.exp() * (q - p)).mean()
