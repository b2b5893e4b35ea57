"""Centring on the sphere: order of operations, means, and the rejection of rows that went through it before."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from lib.bridge.geometry import Geometry, centre, modality_mean, moving_mean, normalise, uncentre

RawText = Callable[..., torch.Tensor]


def test_centre_by_hand() -> None:
    # N((3, 4)) = (.6, .8); minus (.6, 0) = (0, .8); normalised (0, 1)
    out = centre(torch.tensor([[3.0, 4.0]]), torch.tensor([0.6, 0.0]))
    torch.testing.assert_close(out, torch.tensor([[0.0, 1.0]]))


def test_every_other_order_of_the_three_operations_differs(raw_text: RawText) -> None:
    rows, mean = raw_text(50, 16), modality_mean(raw_text(50, 16))
    steps = {"first N": normalise, "minus": lambda x: x - mean, "scale": lambda x: 5 * x}
    expected = normalise(normalise(rows) - mean) * 5
    for order in itertools.permutations(steps):
        x = rows
        for name in order:
            x = steps[name](x)
        assert (x - expected).abs().max() > 1e-2, order
    assert (centre(centre(rows, mean), mean) - centre(rows, mean)).abs().max() > 1e-2


def test_modality_mean_normalises_rows_first_and_not_the_result(raw_text: RawText) -> None:
    rows = torch.tensor([[2.0, 0.0], [0.0, 10.0]])
    torch.testing.assert_close(modality_mean(rows), torch.tensor([0.5, 0.5]))
    rows = raw_text(500, 32)
    exact = (rows.double() / rows.double().norm(dim=1, keepdim=True)).mean(0)
    assert (modality_mean(rows).double() - exact).abs().max() < 1e-6
    torch.testing.assert_close(modality_mean(rows.half()), modality_mean(rows), atol=1e-3, rtol=0)


def test_means_of_centred_or_raw_or_equal_rows_are_refused(raw_text: RawText) -> None:
    rows = raw_text(500, 16)
    with pytest.raises(ValueError, match="already centred"):
        modality_mean(centre(rows, modality_mean(rows)))
    with pytest.raises(ValueError, match="expected between 0.3 and 0.98"):
        Geometry(rows.mean(0))  # forgot to normalise: about 6 long
    with pytest.raises(ValueError, match="all alike"):
        modality_mean(rows[:1].expand(10, -1))
    with pytest.raises(ValueError, match="at least two"):
        modality_mean(rows[:1])
    with pytest.warns(UserWarning, match="outside the usual"):
        Geometry(torch.tensor([0.2, 0.0]))


def test_own_means_remove_the_gap_and_the_text_mean_leaves_most_of_it(raw_text: RawText) -> None:
    text = raw_text(600, 32)
    gap = torch.zeros(32).index_fill_(0, torch.tensor([1]), 1.0)
    vision = 9 * normalise(normalise(raw_text(600, 32, seed=5)) + gap)
    geometry = Geometry(modality_mean(text), modality_mean(vision))
    assert geometry.vision(vision).mean(0).norm() < 0.1
    by_text = Geometry(geometry.text_mean, geometry.vision_mean, center="text")
    assert by_text.vision(vision).mean(0).norm() > 0.5
    torch.testing.assert_close(Geometry(geometry.text_mean, center="none").vision(vision), normalise(vision))


def test_rows_transformed_before_are_rejected(raw_text: RawText) -> None:
    rows = raw_text(200, 16)
    geometry = Geometry(modality_mean(rows), modality_mean(rows[1:]))
    once = geometry.text(rows)
    torch.testing.assert_close(once.norm(dim=1), torch.ones(200))
    for transform in (geometry.text, geometry.vision):
        with pytest.raises(ValueError, match="transformed before"):
            transform(once)
        with pytest.raises(ValueError, match="scaled to 5"):
            transform(5 * once)
        transform(normalise(rows))  # unit raw rows are legal
    one = rows[:1] / rows[:1].norm() * 5  # a single row may be 5 long by chance
    assert geometry.vision(one).shape == (1, 16)


def test_wrong_use_names_the_mend(raw_text: RawText) -> None:
    geometry = Geometry(torch.full((16,), 0.2))
    with pytest.raises(ValueError, match="with_vision_mean"):
        geometry.vision(raw_text(4, 16))
    with pytest.raises(ValueError, match=r"shape \(4, 8\), expected \[N, 16\]"):
        geometry.text(raw_text(4, 8))
    with pytest.raises(ValueError, match="bridge.center: found 'image'"):
        Geometry(geometry.text_mean, center="image")
    with pytest.raises(ValueError, match="bridge.scale"):
        Geometry(geometry.text_mean, scale=0.0)
    with pytest.raises(ValueError, match="vision mean: found shape"):
        geometry.with_vision_mean(torch.full((8,), 1 / math.sqrt(20)))


def test_centring_is_undone_with_its_mean(raw_text: RawText) -> None:
    """What the public programs keep, 5 · G(e), gives N(e) back."""
    rows = raw_text(50, 16).double()
    mean = modality_mean(rows).double()
    torch.testing.assert_close(uncentre(5 * centre(rows, mean), mean), normalise(rows))
    assert (uncentre(5 * centre(rows, mean), 0.9 * mean) - normalise(rows)).abs().max() > 1e-2


def test_moving_mean(raw_text: RawText) -> None:
    rows, mean = raw_text(10, 16), torch.full((16,), 0.2)
    torch.testing.assert_close(moving_mean(mean, rows, 0.75), 0.75 * mean + 0.25 * normalise(rows).mean(0))
    torch.testing.assert_close(moving_mean(mean, rows, 0.0), modality_mean(rows))
    assert moving_mean(mean, rows[:0]) is mean
    with pytest.raises(ValueError, match="found decay 1"):
        moving_mean(mean, rows, 1)


def test_offset_tells_the_own_mean_from_another(raw_text: RawText) -> None:
    geometry = Geometry(modality_mean(raw_text(400, 16)), modality_mean(raw_text(400, 16, seed=1)))
    assert geometry.offset(raw_text(400, 16, seed=2), "text") < 0.05
    assert geometry.offset(raw_text(400, 16, seed=2), "vision") < 0.05
    assert geometry.offset(raw_text(400, 16, seed=2).roll(1, dims=1), "text") > 0.3
