"""Pairs, labels, prior and loss against hand-computed cases (spec ez-hoi.md Appendix D 4, 5, 9)."""

import pytest
import torch
from torchvision.ops import box_iou, nms

from lib.ezhoi.loss import focal_terms, fuse_prior, interaction_loss
from lib.ezhoi.pairs import (
    Instances,
    PairTargets,
    assign_labels,
    enumerate_pairs,
    pad_pairs,
    pair_prior,
    prior_tokens,
)


def instances(*counts: tuple[int, int], seed: int = 0) -> Instances:
    """Random instances; each item is (humans, all) of an image."""
    generator = torch.Generator().manual_seed(seed)
    items = []
    for humans, total in counts:
        corner = torch.rand(total, 2, generator=generator) * 60
        boxes = torch.cat([corner, corner + 10 + torch.rand(total, 2, generator=generator) * 50], 1)
        labels = torch.tensor([0] * humans + [1 + i % 3 for i in range(total - humans)])
        items.append((boxes, torch.rand(total, generator=generator), labels, humans))
    return Instances.collate(items)


def test_pairs_are_humans_with_everyone_else():
    found = instances((2, 4), (0, 3), (1, 1), (3, 3))
    pairs = enumerate_pairs(found)
    assert torch.bincount(pairs.image, minlength=4).tolist() == [2 * 3, 0, 0, 3 * 2]
    first = [(int(h), int(o)) for i, h, o in zip(*pairs, strict=True) if i == 0]
    assert first == [(0, 1), (0, 2), (0, 3), (1, 0), (1, 2), (1, 3)]


def test_a_batch_without_any_instance_has_no_pairs():
    found = Instances.collate([(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long), 0)] * 2)
    assert len(enumerate_pairs(found).image) == 0
    assert not found.padding.all(dim=1).any()  # attention stays defined


def test_padding_and_slots_invert():
    found = instances((2, 4), (0, 3), (1, 3))
    pairs = enumerate_pairs(found)
    flat = torch.arange(len(pairs.image) * 5.0).view(-1, 5)
    padded, padding, slot = pad_pairs(flat, pairs, batch=3)
    assert torch.equal(padded[pairs.image, slot], flat)
    assert (~padding).sum(1).tolist() == [6, 1, 2]  # an image without pairs keeps one open slot


def test_labels_need_both_boxes_in_the_same_image():
    human, obj = [0.0, 0, 10, 10], [20.0, 0, 30, 10]
    half = [20.0, 5, 30, 15]  # IoU 1/3 with the object box
    items = [(torch.tensor([human, obj, half]), torch.ones(3), torch.tensor([0, 1, 1]), 1)] * 2
    found = Instances.collate(items)
    targets = PairTargets(
        torch.tensor([0, 0]),
        torch.tensor([human, human]),
        torch.tensor([obj, obj]),
        torch.tensor([1, 3]),
        torch.tensor([1, 3]),
    )
    labels = assign_labels(found, enumerate_pairs(found), targets, num_classes=4)
    assert labels.tolist() == [[0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_half_overlap_is_positive_in_training():
    human, obj = [0.0, 0, 10, 10], [0.0, 0, 10, 20]  # IoU(human, object box) = 0.5 exactly
    found = Instances.collate([(torch.tensor([human, obj]), torch.ones(2), torch.tensor([0, 1]), 1)])
    targets = PairTargets(
        torch.tensor([0]), torch.tensor([human]), torch.tensor([human]), torch.tensor([0]), torch.tensor([0])
    )
    assert assign_labels(found, enumerate_pairs(found), targets, 1).item() == 1


def test_prior_is_zero_where_the_object_forbids_the_verb():
    found = instances((1, 3))
    valid = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 1]], dtype=torch.bool)
    pairs = enumerate_pairs(found)
    prior = pair_prior(found, pairs, valid, power=2.8)
    strength = (found.scores[0, 0] * found.scores[0, 1:3]) ** 2.8
    assert torch.allclose(prior, strength[:, None] * valid[[1, 2]])


def test_prior_masking_identity():
    logits, prior = torch.linspace(-4, 4, 9), torch.linspace(0.05, 0.95, 9)
    assert torch.allclose(fuse_prior(logits, prior).sigmoid(), prior * logits.sigmoid(), atol=1e-6)


def test_focal_loss_of_the_specification():
    x = fuse_prior(torch.tensor([2.0, -1.0]), torch.tensor([0.81, 0.3]))
    assert focal_terms(x, torch.tensor([1.0, 0.0]), alpha=0.5, gamma=0.2).sum().item() == pytest.approx(
        0.1569, abs=5e-5
    )


def test_masked_entries_get_no_gradient():
    logits = torch.zeros(2, 3, requires_grad=True)
    prior = torch.tensor([[0.5, 0.0, 0.5], [0.0, 0.0, 0.0]])
    labels = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    terms = interaction_loss(logits, prior, labels)
    terms["sum"].backward()
    assert terms["positives"].item() == 1
    assert torch.equal(logits.grad != 0, prior > 0)


def test_overlaps_do_not_depend_on_the_frame():
    found = instances((3, 8), seed=3)
    boxes, stretch = found.boxes[0], torch.tensor([2.5, 0.7, 2.5, 0.7])
    assert torch.allclose(box_iou(boxes, boxes), box_iou(boxes * stretch, boxes * stretch), atol=1e-6)
    assert torch.equal(nms(boxes, found.scores[0], 0.3), nms(boxes * stretch, found.scores[0], 0.3))


def test_prior_tokens_of_empty_slots_are_zero():
    found = instances((1, 2), (1, 4))
    tokens = prior_tokens(found, torch.randn(5, 6), size=128)
    assert tokens.shape == (2, 4, 11)
    assert tokens[0, 2:].abs().sum() == 0 and (tokens[1].abs().sum(1) > 0).all()
    assert torch.equal(tokens[0, 1, 1:5], found.boxes[0, 1] / 128)
