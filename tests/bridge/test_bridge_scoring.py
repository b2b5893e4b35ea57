"""Class cosines and the blend with the detector's logits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lib.bridge.geometry import Geometry, centre, modality_mean, normalise
from lib.bridge.scoring import Blend, Ensemble, class_cosines, fit_blend


def test_cosines_are_averaged_over_the_rows_of_a_class(raw_text: Callable[..., torch.Tensor]) -> None:
    text = raw_text(5, 16)
    geometry = Geometry(modality_mean(raw_text(100, 16)))
    features = normalise(torch.randn(3, 16, generator=torch.Generator().manual_seed(0)))
    row_classes = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1], [1, 1]])
    cosines = class_cosines(features, text, row_classes, geometry)
    g = centre(text, geometry.text_mean)
    for p in range(3):
        for c, rows in enumerate(([0, 1, 4], [2, 3, 4])):
            expected = torch.stack([torch.dot(features[p], g[r]) for r in rows]).mean()
            torch.testing.assert_close(cosines[p, c], expected)
    with pytest.raises(ValueError, match=r"no text row for the classes \[1\]"):
        class_cosines(features, text[:2], row_classes[:2], geometry)


def test_weight_zero_is_the_detector_bit_for_bit() -> None:
    logits = torch.randn(4, 3)
    logits[0, 0] = -float("inf")
    assert Blend(0.0, alpha=7.0, offset=1.0)(logits, torch.full((4, 3), float("nan"))) is logits
    torch.testing.assert_close(
        Blend(0.25, 4.0, -1.0)(torch.tensor([2.0]), torch.tensor([0.5])), torch.tensor([0.75 * 2 + 0.25 * (2 - 1)])
    )


def problem(cosine_matters: float, count: int = 20_000) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, cosines and labels drawn from a logistic model s = 0.5 logit + cosine_matters · cos - 1."""
    generator = torch.Generator().manual_seed(0)
    logits, cosines = (torch.randn(count // 10, 10, generator=generator) for _ in range(2))
    cosines = 0.2 * cosines
    truth = torch.sigmoid(0.5 * logits + cosine_matters * cosines - 1)
    return logits, cosines, (torch.rand(truth.shape, generator=generator) < truth).float()


def test_fit_recovers_the_generating_blend() -> None:
    logits, cosines, labels = problem(cosine_matters=6.0)
    blend = fit_blend(logits, cosines, labels)
    assert blend.weight == pytest.approx(0.5, abs=0.051)
    assert blend.weight * blend.alpha == pytest.approx(6.0, rel=0.1)
    assert blend.weight * blend.offset == pytest.approx(-1.0, abs=0.1)
    assert blend.loss < blend.loss_unblended


def test_harmful_cosines_get_no_weight() -> None:
    logits, cosines, labels = problem(cosine_matters=-6.0)
    assert fit_blend(logits, cosines, labels).weight == 0.0


def test_masked_entries_do_not_count() -> None:
    logits, cosines, labels = problem(cosine_matters=6.0)
    mask = torch.arange(10).expand_as(labels) < 8  # the last two classes are unseen
    expected = fit_blend(logits[:, :8], cosines[:, :8], labels[:, :8])
    labels = labels.clone()
    labels[:, 8:] = 1
    assert fit_blend(logits, cosines, labels, mask) == expected
    assert fit_blend(logits, cosines, labels) != expected


def test_fit_needs_both_labels() -> None:
    with pytest.raises(ValueError, match="positive share of 0, expected both"):
        fit_blend(torch.zeros(4, 2), torch.zeros(4, 2), torch.zeros(4, 2))


def test_ensemble_averages_scores() -> None:
    own, bridged = torch.tensor([-2.0, 0.0, 30.0, -90.0]), torch.tensor([1.0, 3.0, -30.0, -91.0])
    mixed = Ensemble(0.7)(own.double(), bridged.double())
    torch.testing.assert_close(mixed.sigmoid(), 0.7 * bridged.double().sigmoid() + 0.3 * own.double().sigmoid())
    assert -91 < float(mixed[3]) < -90  # no score so small that its order is lost
    assert Ensemble(0.0)(own, bridged) is own and Ensemble(1.0)(own, bridged) is bridged
    with pytest.raises(ValueError, match="found weight 1.5"):
        Ensemble(1.5)
