"""The proposal rule (spec clip-features-and-detr.md §15.6)."""

import pytest
import torch

from lib.detection.proposals import propose


def spread(count, offset=0.0):
    """Boxes that do not overlap."""
    x = torch.arange(count, dtype=torch.float32) * 20 + offset
    return torch.stack([x, torch.zeros(count), x + 10, torch.full((count,), 10.0)], dim=1)


def case(human_scores, object_scores):
    """Separate boxes; objects come first in the input and belong to different classes."""
    scores = torch.tensor([*object_scores, *human_scores])
    labels = torch.tensor([1 + i % 5 for i in range(len(object_scores))] + [0] * len(human_scores), dtype=torch.int64)
    return spread(len(scores)), scores, labels


@pytest.mark.parametrize(
    ("humans", "objects", "kept_humans", "kept_objects"),
    [
        ([], [], 0, 0),
        ([], [0.9, 0.1], 0, 2),  # no human; the weak object is waived in
        ([0.9], [0.9], 1, 1),
        ([0.9, 0.1], [0.9] * 4, 2, 4),
        ([0.9, 0.8, 0.1, 0.05], [0.05] * 6, 3, 3),  # fewer than three strong ones: the best three
        ([0.9] * 5 + [0.1] * 5, [0.3] * 3, 5, 3),  # strong ones only
        ([0.9] * 20, [0.9] * 17, 15, 15),
        ([0.1] * 20, [0.1] * 17, 3, 3),  # all below the threshold
        ([0.2], [0.2, 0.2, 0.2, 0.2, 0.19], 1, 4),  # the threshold itself is strong
    ],
)
def test_counts(humans, objects, kept_humans, kept_objects):
    found = propose(*case(humans, objects))
    assert (found.n_human, len(found.boxes)) == (kept_humans, kept_humans + kept_objects)
    assert (found.labels[: found.n_human] == 0).all() and (found.labels[found.n_human :] != 0).all()


def test_best_ones_in_falling_order():
    humans = torch.linspace(0.3, 0.9, 20)
    found = propose(*case(humans[torch.randperm(20, generator=torch.Generator().manual_seed(0))].tolist(), [0.5]))
    torch.testing.assert_close(found.scores[:15], humans.flip(0)[:15])


def test_duplicates_go_within_a_class_only():
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 11], [0, 0, 10, 10], [0, 0, 10, 10]], dtype=torch.float32)
    found = propose(boxes, torch.tensor([0.8, 0.9, 0.7, 0.6]), torch.tensor([0, 0, 3, 4]))
    assert found.labels.tolist() == [0, 3, 4]
    assert found.boxes[0].tolist() == [0, 0, 10, 11]  # the better of the two


def test_waived_boxes_are_survivors_of_nms():
    boxes = torch.cat([spread(1), spread(1), spread(1, offset=50.0)])
    found = propose(boxes, torch.tensor([0.9, 0.15, 0.1]), torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.1]))


def test_result_does_not_depend_on_the_frame():
    boxes, scores, labels = case([0.9, 0.8, 0.3], [0.7, 0.6])
    scale = torch.tensor([3.0, 0.5, 3.0, 0.5])
    plain, scaled = propose(boxes, scores, labels), propose(boxes * scale, scores, labels)
    torch.testing.assert_close(plain.boxes * scale, scaled.boxes)


def test_human_label_of_another_label_space():
    found = propose(spread(2), torch.tensor([0.9, 0.8]), torch.tensor([49, 0]), human=49)
    assert found.labels.tolist() == [49, 0] and found.n_human == 1
