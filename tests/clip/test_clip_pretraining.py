"""Contrastive training of a small CLIP: loss, views, and a fit of a toy vocabulary."""

import math

import open_clip
import pytest
import torch

from lib.clip.load import load_clip
from lib.clip.pretrain import (
    CaptionedImages,
    ContrastiveTraining,
    contrastive_loss,
    cut,
    sample_windows,
    train_clip,
    zero_shot,
)

TINY = "random:configs/clip/tiny-clip.json"


def test_loss_of_hand_computed_cases():
    logits = torch.log(torch.tensor([[3.0, 1.0], [1.0, 3.0]]))
    different = torch.tensor([[1, 2], [1, 3]])
    assert contrastive_loss(logits, different).item() == pytest.approx(-math.log(3 / 4))
    equal = torch.tensor([[1, 2], [1, 2]])  # either picture is right for either text
    assert contrastive_loss(logits, equal).item() == pytest.approx(-(math.log(3 / 4) + math.log(1 / 4)) / 2)


def test_cut_takes_the_window():
    pixels = torch.rand(1, 3, 16, 32)
    whole = cut(pixels, torch.tensor([[0.0, 0.0, 0.5, 1.0]]), 16, flip=False)
    torch.testing.assert_close(whole, pixels[..., :16], atol=1e-5, rtol=0)
    outside = cut(pixels, torch.tensor([[1.0, 0.0, 1.5, 1.0]]), 16, flip=False)
    assert outside[..., 1:].abs().max() == 0  # black beyond the border


def test_windows_show_what_the_text_tells_of():
    torch.manual_seed(0)
    region = torch.tensor([0.6, 0.2, 0.9, 0.7]).expand(500, 4)
    for whole in (True, False):
        windows = sample_windows(region, torch.full((500,), whole), (128, 160))
        overlap = torch.minimum(windows[:, 2:], region[:, 2:]) - torch.maximum(windows[:, :2], region[:, :2])
        share = overlap.clamp(min=0).prod(1) / (region[0, 2:] - region[0, :2]).prod()
        assert share.mean() > 0.9 and share.min() > 0.3
    area = (windows[:, 2:] - windows[:, :2]).prod(1)
    assert area.max() < 0.6  # a text that does not fit the whole picture never goes with all of it


def test_training_learns_colours_and_keeps_scale():
    clip = load_clip(TINY)
    names = ["red", "green", "blue", "white"]
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], dtype=torch.uint8)
    label = torch.arange(32) % 4
    tokens = open_clip.SimpleTokenizer(context_length=32)([f"a {names[i]} wall" for i in label.tolist()])
    data = CaptionedImages(
        colours[label][:, :, None, None].expand(-1, 3, 32, 40).contiguous(),
        tokens[:, None],
        torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(32, 1, 4),
        torch.tensor([True]),
        torch.tensor([1.0]),
    )
    rows = []
    train_clip(clip.model, data, ContrastiveTraining(steps=12, batch_size=16, warmup=4), rows.append)
    assert clip.logit_scale == pytest.approx(100, rel=1e-5)
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    unused = clip.tokenizer(["zebra"])[0, 1]
    assert torch.equal(clip.model.token_embedding.weight[unused], load_clip(TINY).model.token_embedding.weight[unused])


def test_zero_shot_counts_every_right_class():
    clip = load_clip(TINY)
    images = torch.randn(6, 3, 128, 128)
    sentences = ["a dog", "a cat", "a horse"]
    all_right = zero_shot(clip, images, sentences, torch.ones(6, 3, dtype=torch.bool))
    assert all_right["accuracy"] == all_right["chance"] == 1.0
    assert all_right["gap"] > 0
    assert zero_shot(clip, images, sentences, torch.zeros(6, 3, dtype=torch.bool))["accuracy"] == 0.0
