"""Training a small DETR: matching, losses, position codes, frozen batch norm."""

import pytest
import torch
from transformers import DetrForObjectDetection

from lib.detection.losses import BOX_WEIGHT, Boxes, dense_loss, match, set_loss
from lib.detection.train import (
    DetrTraining,
    augment,
    in_tokens,
    normalise,
    position_codes,
    tiny_config,
    token_grid,
    train_detr,
)


@pytest.fixture
def targets():
    """Two images: two boxes, and one with padding."""
    boxes = torch.tensor([[[0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.4, 0.6]], [[0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]]])
    return Boxes(boxes, torch.tensor([[0, 1], [2, -1]]))


def perfect(targets, background=3):
    """Predictions of three queries: an empty one first, then the targets in reverse order."""
    boxes = torch.cat([torch.full((2, 1, 4), 0.1), targets.boxes.flip(1)], dim=1)
    labels = torch.cat([torch.full((2, 1), -1), targets.labels.flip(1)], dim=1)
    classes = torch.where(labels < 0, background, labels)
    return 20.0 * torch.nn.functional.one_hot(classes, background + 1).float(), boxes


def test_matching_finds_the_right_queries(targets):
    image, query, target = match(*perfect(targets), targets)
    found = sorted(zip(image.tolist(), query.tolist(), target.tolist(), strict=True))
    assert found == [(0, 1, 1), (0, 2, 0), (1, 2, 0)]  # padding is never matched


def test_set_loss_is_zero_for_perfect_predictions_and_counts_box_errors(targets):
    logits, boxes = perfect(targets)
    matched = match(logits, boxes, targets)
    assert sum(set_loss(logits, boxes, matched, targets).values()).item() == pytest.approx(0, abs=1e-4)
    moved = set_loss(logits, boxes + 0.01, matched, targets)
    assert moved["box"].item() == pytest.approx(BOX_WEIGHT * 0.04, rel=1e-4)
    doubled = targets.repeat(2)
    stacked = (logits.repeat(2, 1, 1), boxes.repeat(2, 1, 1) + 0.01)
    twice = set_loss(*stacked, match(*stacked, doubled), doubled, layers=2)
    assert twice["box"].item() == pytest.approx(2 * moved["box"].item(), rel=1e-4)  # layers add up


def test_dense_targets_are_the_smallest_covering_boxes():
    boxes = torch.tensor([[[0.5, 0.5, 1.0, 1.0], [0.25, 0.25, 0.5, 0.5]]])
    targets = Boxes(boxes, torch.tensor([[0, 1]]))
    wanted = torch.tensor([1, 0, 0, 0])  # 2 x 2 tokens: the small box covers the first centre
    logits = 20.0 * torch.nn.functional.one_hot(wanted, 3).float()[None]
    perfect_boxes = boxes[:, [1, 0, 0, 0]]
    losses = dense_loss(logits, perfect_boxes, targets, 2, 2)
    assert sum(losses.values()).item() == pytest.approx(0, abs=1e-4)
    assert dense_loss(logits.flip(1), perfect_boxes, targets, 2, 2)["class"] > 1


def test_codes_of_token_centres_are_the_table():
    """A query at the centre of a token has the code of that token, and is nearest to it."""
    rows, columns, width = 8, 10, 128
    centres = torch.tensor(
        [[(column + 0.5) / columns, (row + 0.5) / rows] for row in range(rows) for column in range(columns)]
    )
    codes = position_codes(in_tokens(centres, rows, columns), width)
    grid = torch.tensor([[float(column), float(row)] for row in range(rows) for column in range(columns)])
    torch.testing.assert_close(codes, position_codes(grid, width), atol=1e-4, rtol=0)
    assert torch.equal((codes @ codes.T).argmax(1), torch.arange(rows * columns))


def test_augment_flips_boxes_with_pixels():
    torch.manual_seed(0)
    images = torch.zeros(40, 3, 32, 32, dtype=torch.uint8)
    images[:, :, 8:16, 4:12] = 255
    boxes = Boxes(torch.tensor([[[0.25, 0.375, 0.25, 0.25]]]).expand(40, 1, 4), torch.zeros(40, 1, dtype=torch.int64))
    pixels, flipped = augment(images, boxes)
    bright = pixels.mean((1, 2)).argmax(1) / 32
    left = flipped.boxes[:, 0, 0] - flipped.boxes[:, 0, 2] / 2
    torch.testing.assert_close(bright, left)
    assert 5 < (flipped.boxes[:, 0, 0] > 0.5).sum() < 35


def test_training_lowers_the_loss_and_ends_in_the_plain_class():
    torch.manual_seed(0)
    images = torch.zeros(8, 3, 64, 80, dtype=torch.uint8)
    images[:4, 0, 16:48, 16:48] = 255
    images[4:, 2, 8:40, 40:72] = 255
    boxes = torch.tensor([[0.4, 0.5, 0.4, 0.5]] * 4 + [[0.7, 0.375, 0.4, 0.5]] * 4)[:, None]
    targets = Boxes(boxes, torch.tensor([0] * 4 + [1] * 4)[:, None])
    rows, saved = [], []
    recipe = DetrTraining(steps=60, batch_size=8, warmup=5, save_every=30)
    model = train_detr(tiny_config(("a", "b"), queries=4), images, targets, recipe, rows.append, saved.append)
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"] and len(saved) == 2
    assert type(model) is DetrForObjectDetection and not model.training
    assert not [name for name, module in model.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]
    frozen = [module for module in model.modules() if type(module).__name__ == "DetrFrozenBatchNorm2d"]
    assert any((module.running_mean != 0).any() for module in frozen)  # what was learnt is kept
    with torch.no_grad():
        pixels = normalise(images.float() / 255)
        assert model(pixels).pred_boxes.shape == (8, 4, 4)
    assert token_grid(pixels) == (4, 5)
