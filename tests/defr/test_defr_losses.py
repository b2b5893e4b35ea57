"""LSE-Sign against its definition, its limits and its relation to BCE (spec defr.md §2, §17.1-3)."""

import math

import pytest
import torch
from torch.nn import functional as F

from lib.defr.losses import bce, build_loss, focal, lse_sign, positive_share, positive_weights, signed_logits


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(5, 9, generator=generator, dtype=torch.float64)
    return logits, torch.rand(5, 9, generator=generator) < 0.3


def test_definition_and_gradient(case):
    logits, targets = case
    s = logits.clone().requires_grad_()
    loss = lse_sign(s, targets)
    sigma = 1 - 2 * targets.double()
    total = 1 + (sigma * logits).exp().sum(1, keepdim=True)
    assert torch.allclose(loss, total.log()[:, 0], rtol=1e-14)
    loss.sum().backward()
    assert torch.allclose(s.grad, sigma * (sigma * logits).exp() / total, atol=1e-15)
    assert torch.allclose(s.grad.abs().sum(1), 1 - (-loss.detach()).exp(), atol=1e-14)
    assert torch.equal(s.detach(), logits)


def test_one_class_is_softplus(case):
    logits, targets = case[0][:, :1], case[1][:, :1]
    assert torch.allclose(lse_sign(logits, targets), F.softplus(torch.where(targets, -logits, logits))[:, 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_logits_stay_finite(dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0]], dtype=dtype, requires_grad=True)
    loss = lse_sign(logits, torch.tensor([[False, True, True]]))
    loss.sum().backward()
    assert loss.dtype == torch.float32 and loss.isfinite().all() and logits.grad.isfinite().all()
    assert loss.item() == pytest.approx(float(logits.detach()[0, 0]) + math.log(2))


def test_limits():
    nothing = torch.zeros(1, 7, dtype=torch.bool)
    assert lse_sign(torch.zeros(1, 7), nothing).item() == pytest.approx(math.log(8))
    assert lse_sign(torch.full((1, 7), -1e4), nothing).item() == 0
    assert lse_sign(torch.full((1, 7), 1e4), ~nothing).item() == 0


def test_never_above_summed_bce_and_permutes(case):
    logits, targets = case
    summed = logits.shape[1] * bce(logits, targets)
    assert (lse_sign(logits, targets) < summed).all()
    order = torch.randperm(9)
    assert torch.allclose(lse_sign(logits[:, order], targets[:, order]), lse_sign(logits, targets))
    alone = torch.full((1, 9), -60.0, dtype=torch.float64)
    alone[0, 3] = 1.5  # a single z that counts: both losses agree
    assert lse_sign(alone, alone > 9).item() == pytest.approx(9 * bce(alone, alone > 9).item(), rel=1e-12)


def test_soft_targets_ignored_labels_and_weights(case):
    logits, targets = case
    assert torch.equal(lse_sign(logits, targets.double()), lse_sign(logits, targets))
    t = torch.full_like(logits, 0.25)
    z = (0.25 * (-logits).exp() + 0.75 * logits.exp()).sum(1)
    assert torch.allclose(lse_sign(logits, t), (1 + z).log())
    ignore = torch.zeros_like(targets)
    ignore[:, 4:] = True
    s = logits.clone().requires_grad_()
    loss = lse_sign(s, targets, ignore=ignore)
    loss.sum().backward()
    assert torch.allclose(loss, lse_sign(logits[:, :4], targets[:, :4])) and not s.grad[:, 4:].any()
    twice = torch.cat([logits, logits], 1), torch.cat([targets, targets], 1)
    doubled = lse_sign(logits, targets, class_log_weight=torch.full((9,), math.log(2), dtype=torch.float64))
    assert torch.allclose(doubled, lse_sign(*twice))


def test_positive_share_counts_gradient(case):
    logits, targets = case
    s = logits.clone().requires_grad_()
    lse_sign(s, targets).sum().backward()
    expected = ((s.grad.abs() * targets).sum(1) / s.grad.abs().sum(1)).mean()
    assert positive_share(logits, targets).item() == pytest.approx(expected.item())
    assert signed_logits(logits, targets).shape == logits.shape


def test_weighted_bce_and_focal_by_hand():
    logits, targets = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64), torch.tensor([[True, False]])
    weights = positive_weights(torch.tensor([1, 2]), 4)
    assert weights.tolist() == pytest.approx([3.0, 1.0])
    assert build_loss("wbce", positive_weight=weights)(logits, targets).item() == pytest.approx(
        (3 * math.log(2) + math.log(4)) / 2
    )
    expected = (0.25 * 0.5**2 * math.log(2) + 0.75 * 0.75**2 * math.log(4)) / 2
    assert focal(logits, targets, alpha=0.25, gamma=2.0).item() == pytest.approx(expected)
    with pytest.raises(ValueError, match="positive_weight"):
        build_loss("wbce")
    with pytest.raises(ValueError, match="expected one of"):
        build_loss("sgn")
