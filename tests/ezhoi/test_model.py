"""The whole head on a random tiny CLIP (spec ez-hoi.md Appendix D 3, 4, 7 and §2)."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lib.clip.load import load_clip
from lib.clip.text import encode_text
from lib.clip.tokens import encode_image
from lib.config import EzHoiSettings
from lib.data.vocabulary import Vocabulary
from lib.ezhoi.model import build_ezhoi
from lib.ezhoi.pairs import Instances, Pairs, enumerate_pairs
from lib.ezhoi.prompts import encode_prompted_text
from lib.ezhoi.text import select_rows

VOCABULARY = Vocabulary(
    ("person", "bicycle", "dog", "bench"),
    ("carry", "hold", "no_interaction", "ride"),
    np.array([1, 1, 1, 2, 2, 2, 3, 3]),
    np.array([1, 2, 3, 0, 1, 2, 2, 1]),
)


@pytest.fixture(scope="module")
def clip():
    return load_clip("random:configs/clip/tiny-clip.json", seed=3)


def build(clip, **changes):
    torch.manual_seed(5)
    texts = [f"words about class {i}" for i in range(VOCABULARY.num_hois)]
    model = build_ezhoi(clip, VOCABULARY, texts, replace(EzHoiSettings(), **changes))
    with torch.no_grad():  # adapters start as the identity; move them so that every part matters
        for name, parameter in model.named_parameters():
            if "up_proj" in name or name.endswith("scale"):
                parameter.normal_(std=0.1)
    return model.eval()


def batch(clip, *counts, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = clip.spec.image_size
    items = []
    for humans, total in counts:
        corner = torch.rand(total, 2, generator=generator) * size * 0.6
        boxes = torch.cat([corner, corner + size * (0.1 + 0.3 * torch.rand(total, 2, generator=generator))], 1)
        labels = torch.tensor([0] * humans + [1 + i % 3 for i in range(total - humans)], dtype=torch.long)
        items.append((boxes, torch.rand(total, generator=generator), labels, humans))
    images = torch.randn(len(counts), 3, size, size, generator=generator)
    memory = F.normalize(encode_image(clip, images)[1], dim=-1)
    return images, memory, Instances.collate(items)


def single(images, memory, instances, i):
    n = max(int(instances.count[i]), 1)
    one = Instances(
        instances.boxes[i : i + 1, :n], instances.scores[i : i + 1, :n], instances.labels[i : i + 1, :n],
        instances.count[i : i + 1], instances.n_human[i : i + 1],
    )  # fmt: skip
    return images[i : i + 1], memory[i : i + 1], one


@pytest.mark.parametrize("text_prompts", ["off", "prefix"])
def test_a_batch_equals_its_images_alone(clip, text_prompts):
    model = build(clip, text_prompts=text_prompts)
    inputs = batch(clip, (2, 5), (0, 2), (1, 3), (3, 6))
    together = model(*inputs)
    for i in range(4):
        alone = model(*single(*inputs, i))
        mine = together.pairs.image == i
        assert mine.sum() == len(alone.logits)
        assert torch.allclose(together.features[mine], alone.features, atol=1e-5)
        assert torch.allclose(together.logits[mine], alone.logits, atol=1e-5)


def test_the_pair_adapter_looks_at_the_other_pairs(clip):
    model = build(clip)
    images, memory, instances = batch(clip, (2, 5))
    patch_map, pairs = model.encode(images, memory, instances), enumerate_pairs(instances)
    whole = model.pair_features(patch_map, instances, pairs)
    without_last = model.pair_features(patch_map, instances, Pairs(*(index[:-1] for index in pairs)))
    assert (whole[:-1] - without_last).abs().max() > 1e-4


def test_logits_follow_the_row_wise_formula(clip):
    model = build(clip)
    output = model(*batch(clip, (2, 4)))
    rows = model.text()  # (K, D)
    labels = F.one_hot(torch.from_numpy(VOCABULARY.hoi_verb[model.text.rows]), 4).float()
    phi = output.features @ rows.T
    expected = model.logit_scale_HO * (phi @ labels) / labels.sum(0) / 2
    assert torch.allclose(output.logits, expected, atol=1e-5)


def test_constant_text_is_plain_clip_text(clip):
    model = build(clip)
    expected = encode_text(clip, [VOCABULARY.class_sentences()[row] for row in model.text.rows])
    assert torch.equal(model.text(), expected)


def test_prefix_prompts_reach_the_class_text_and_learn(clip):
    model = build(clip, text_prompts="prefix")
    text = model.text()
    assert (text - model.text.plain).abs().max() > 1e-3
    text.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in [model.text.prompts.bases])


def test_free_text_goes_through_the_adapted_tower(clip):
    model = build(clip, text_prompts="prefix")
    sentences = ["a dog on a bench", "two people and a kite"]
    tokens = torch.nn.functional.pad(clip.tokenizer(sentences, context_length=30), (0, 2))
    prompts = model.text.prompts(F.normalize(encode_text(clip, sentences), dim=-1))
    assert torch.allclose(model.text.encode(sentences), encode_prompted_text(clip, tokens, prompts), atol=1e-5)


def test_untrained_adapters_leave_clip_as_it_is(clip):
    """With gains and up-projections at their start and no prompts, the patch map is CLIP's own."""
    torch.manual_seed(0)
    texts = ["x"] * VOCABULARY.num_hois
    model = build_ezhoi(clip, VOCABULARY, texts, EzHoiSettings()).eval()
    images, memory, instances = batch(clip, (2, 4))
    prior = torch.zeros(1, 4, 64)
    patch_map = model.vision(images, prior, instances.padding, None)
    assert torch.allclose(patch_map.flatten(2).transpose(1, 2), encode_image(clip, images)[1], atol=1e-5)


def test_only_the_head_is_trained(clip):
    model = build(clip)
    before = {name: value.clone() for name, value in clip.model.state_dict().items()}
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any("resblocks" in name or "token_embedding" in name for name in names)
    model.train()
    output = model(*batch(clip, (2, 4)))
    output.logits.square().sum().backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert missing == []
    assert all(torch.equal(before[name], value) for name, value in clip.model.state_dict().items())


def test_row_selection_takes_the_least_similar_pair():
    vectors = F.normalize(
        torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [1, 0.2], [1, 0], [1, 0.05], [0.9, 0.3], [0, 1]]), dim=1
    )
    rows = select_rows(VOCABULARY, vectors)
    # hold has classes 0, 4, 7: the least similar two hold 7; no_interaction has classes 1, 5, 6
    assert {3, 2} <= set(rows.tolist())  # verbs with a single class
    assert 7 in rows and not {0, 4} <= set(rows.tolist())
    no_interaction = [1, 5, 6]
    similarity = vectors[no_interaction] @ vectors[no_interaction].T
    a, b = np.unravel_index(int(similarity.argmin()), (3, 3))
    assert {no_interaction[a], no_interaction[b]} <= set(rows.tolist())


def test_hico_has_195_rows(shared):
    rows = json.loads((shared / "facts" / "hico_hoi.json").read_text())["hoi"]
    verbs = np.array([row["verb_id"] for row in rows])
    vocabulary = Vocabulary(("person",), tuple(map(str, range(117))), np.zeros(600, int), verbs)
    generator = torch.Generator().manual_seed(0)
    described = F.normalize(torch.randn(600, 64, generator=generator), dim=1)
    assert len(select_rows(vocabulary, described)) == 195
