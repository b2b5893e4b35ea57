"""Multi-label losses (spec defr.md §2): LSE-Sign and the baselines it is compared with.

Every loss maps logits [B, C] and targets [B, C] to one number an image [B]; the mean over the batch is the quantity to
differentiate. Unknown and ambiguous labels are plain negatives here, as in the paper's program.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES = ("sign", "bce", "wbce", "focal")


def lse_sign(
    logits: Tensor, targets: Tensor, *, ignore: Tensor | None = None, class_log_weight: Tensor | None = None
) -> Tensor:
    """L = log(1 + sum_c exp(z_c)) with z_c = -s_c for positives and +s_c for negatives (spec §2); [B].

    targets: [B, C] bool or in [0, 1]; t between them weighs both signs, t e^-s + (1 - t) e^s (§2.3). ignore: [B, C]
    bool, entries that leave the sum. class_log_weight: [C], added to z. In at least fp32, out of place.
    """
    z = signed_logits(logits, targets, ignore=ignore, class_log_weight=class_log_weight)
    return F.pad(z, (1, 0)).logsumexp(dim=1)  # the added zero is the threshold that all classes compete with


def signed_logits(
    logits: Tensor, targets: Tensor, *, ignore: Tensor | None = None, class_log_weight: Tensor | None = None
) -> Tensor:
    """z [B, C] of `lse_sign`; its gradient is sigma * softmax of (0, z)."""
    s = _at_least_fp32(logits)
    t = targets.to(s.dtype)
    z = torch.logaddexp(t.log() - s, torch.log1p(-t) + s)  # exactly -s for t = 1 and s for t = 0
    if class_log_weight is not None:
        z = z + class_log_weight
    return z if ignore is None else z.masked_fill(ignore, -torch.inf)


def positive_share(logits: Tensor, targets: Tensor) -> Tensor:
    """[] share of the gradient that positives hold: their p_c over the sum of all p_c, mean over the batch."""
    p = F.pad(signed_logits(logits, targets), (1, 0)).softmax(dim=1)[:, 1:]  # (B, C)
    return ((p * targets).sum(1) / p.sum(1).clamp(min=torch.finfo(p.dtype).tiny)).mean()


def bce(logits: Tensor, targets: Tensor, *, positive_weight: Tensor | None = None) -> Tensor:
    """Binary cross-entropy, mean over classes (§2.2); [B]. positive_weight: [C], factor on the positives' term."""
    s = _at_least_fp32(logits)
    weight = None if positive_weight is None else positive_weight.to(s)
    each = F.binary_cross_entropy_with_logits(s, targets.to(s.dtype), pos_weight=weight, reduction="none")
    return each.mean(dim=1)


def positive_weights(positives: Tensor, images: int) -> Tensor:
    """[C] float64 weights of weighted BCE, negatives / positives; counts [C] are those after oversampling (§2.2)."""
    positives = positives.double()
    return (images - positives) / (positives + torch.finfo(torch.float64).eps)


def focal(logits: Tensor, targets: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Focal loss, alpha on positives and 1 - alpha on negatives, mean over classes (§2.2); [B]."""
    s = _at_least_fp32(logits)
    t = targets.to(s.dtype)
    log_p, log_q = F.logsigmoid(s), F.logsigmoid(-s)
    positive = alpha * log_q.exp() ** gamma * log_p
    negative = (1 - alpha) * log_p.exp() ** gamma * log_q
    return -(t * positive + (1 - t) * negative).mean(dim=1)


def build_loss(name: str, *, positive_weight: Tensor | None = None, alpha: float = 0.25, gamma: float = 2.0) -> Loss:
    """The loss of a setting: sign | bce | wbce (needs `positive_weight`) | focal."""
    if name == "wbce" and positive_weight is None:
        raise ValueError("defr.loss wbce: found no positive_weight, expected that of `positive_weights`")
    losses: dict[str, Loss] = {
        "sign": lse_sign,
        "bce": bce,
        "wbce": partial(bce, positive_weight=positive_weight),
        "focal": partial(focal, alpha=alpha, gamma=gamma),
    }
    if name not in losses:
        raise ValueError(f"defr.loss: found {name!r}, expected one of {LOSSES}")
    return losses[name]


def _at_least_fp32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
