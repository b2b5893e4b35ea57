"""The whole head on a random tiny CLIP (spec ez-hoi.md Appendix D 3, 4, 7 and §2)."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lib.clip.load import load_clip
from lib.clip.text import encode_text, encode_tokens
from lib.clip.tokens import encode_image
from lib.data.descriptions import ClassTexts, Difference
from lib.data.vocabulary import Vocabulary
from lib.ezhoi.classes import scored_classes
from lib.ezhoi.loss import semantic_relation_loss
from lib.ezhoi.model import build_ezhoi
from lib.ezhoi.pairs import Instances, Pairs, enumerate_pairs
from lib.ezhoi.text import select_rows
from lib.ezhoi.weights import WeightsError, load_model_weights, save_model
from lib.settings import PRESETS, EzHoiSettings

VOCABULARY = Vocabulary(
    ("person", "bicycle", "dog", "bench"),
    ("carry", "hold", "no_interaction", "ride"),
    np.array([1, 1, 1, 2, 2, 2, 3, 3]),
    np.array([1, 2, 3, 0, 1, 2, 2, 1]),
)


@pytest.fixture(scope="module")
def clip():
    return load_clip("random:configs/clip/tiny-clip.json", seed=3)


UNSEEN = (3, 7)  # `carry dog`, the only class of its verb, and `hold bench`
TEXTS = ClassTexts(
    [f"words about class {i}" for i in range(VOCABULARY.num_hois)],
    {3: Difference(4, ["one thing differs", "another too"]), 7: Difference(0, ["hands are higher"])},
    [[f"cue {i} of class {hoi}" for i in range(hoi % 5)] for hoi in range(VOCABULARY.num_hois)],
)
MODES = {
    "released": {"preset": "released"},
    "prefix": {"preset": "prefix"},
    "prefix_unseen": {"preset": "prefix_unseen"},
    "text_adapter": {"preset": "text_adapter"},
    "act_descriptors": {"act_descriptors": True},
    "everything": {"preset": "prefix_unseen", "text_adapter": True, "act_descriptors": True, "regions": "HO+U"},
}


def build(clip, preset="", **changes):
    torch.manual_seed(5)
    settings = replace(EzHoiSettings(), **PRESETS[preset] | changes)
    model = build_ezhoi(clip, VOCABULARY, TEXTS, UNSEEN, settings)
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


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_equals_its_images_alone(clip, mode):
    model = build(clip, **MODES[mode])
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


@pytest.mark.parametrize("mode", [name for name in MODES if name != "released"])
def test_live_text_moves_the_class_text(clip, mode):
    model = build(clip, **MODES[mode])
    assert model.text.live
    assert (model.text() - model.text.plain).abs().max() > 1e-3


@pytest.mark.parametrize("mode", MODES)
def test_every_trainable_parameter_learns_and_clip_stays(clip, mode):
    model = build(clip, **MODES[mode]).train()
    before = {name: value.clone() for name, value in clip.model.state_dict().items()}
    names = {name for name, _ in model.named_parameters()}
    assert not any("resblocks" in name or "token_embedding" in name for name in names)
    assert set(model.vis_parameters()) | set(model.head_parameters()) == set(model.parameters())
    assert not set(model.vis_parameters()) & set(model.head_parameters())
    output = model(*batch(clip, (2, 4)))
    loss = output.logits.square().sum()
    if model.text.live:
        loss = loss + model.text.semantic_loss(output.text, torch.tensor([0, 2, 4, 6]))
    loss.backward()
    torch.optim.SGD(model.parameters(), 0.1).step()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(torch.equal(before[name], value) for name, value in clip.model.state_dict().items())


def test_released_text_is_computed_once(clip, monkeypatch):
    model = build(clip, preset="released")
    monkeypatch.setattr(clip.model, "encode_text", None)  # any call would fail
    assert not model.text.live and model.text() is model.text()


def test_an_unseen_class_learns_from_its_seen_partner(clip):
    model = build(clip, preset="prefix_unseen")
    text, rows = model.text(), model.text.rows.tolist()
    model.text.guides.texts += 1.0
    changed = (model.text() - text).abs().amax(dim=1) > 1e-6
    assert [row for row, moved in zip(rows, changed, strict=True) if moved] == [row for row in rows if row in UNSEEN]
    model.text.guides = None  # without guides every class has only its own description
    changed = (model.text() - text).abs().amax(dim=1) > 1e-6
    assert [row for row, moved in zip(rows, changed, strict=True) if moved] == [row for row in rows if row in UNSEEN]


def test_empty_difference_slots_do_not_count(clip):
    model = build(clip, preset="prefix_unseen")
    text = model.text()
    model.text.guides.texts[model.text.guides.padding] = 7.0
    assert torch.equal(model.text(), text)


def test_partners_are_constants_for_the_unseen_class(clip):
    prompts = build(clip, preset="prefix_unseen").text.prompts
    own, seen = (torch.randn(2, 1, 2, clip.spec.text_width).requires_grad_() for _ in range(2))
    texts, padding = torch.randn(1, 3, clip.spec.embed_dim), torch.zeros(1, 3, dtype=torch.bool)
    prompts.learn_from_seen(own, seen, texts, padding).sum().backward()
    assert seen.grad is None and own.grad.any()


def test_partner_rows_join_the_classifier(clip):
    with_partners, without = build(clip).text.rows, build(clip, unseen_prompts=False).text.rows
    assert set(with_partners) - set(without) <= {0, 4} and set(without) <= set(with_partners)
    assert 4 in with_partners  # 3 stands alone for its verb, so it is selected, and so is its partner


def test_hoi_classes_have_a_logit_each(clip):
    model = build(clip, classes="hoi")
    assert model.text.rows.tolist() == list(range(VOCABULARY.num_hois))
    output = model(*batch(clip, (2, 4)))
    assert output.logits.shape[1] == VOCABULARY.num_hois
    expected = model.logit_scale_HO / 2 * output.features @ model.text.plain.T
    assert torch.allclose(output.logits, expected, atol=1e-5)
    classes = scored_classes(VOCABULARY, "hoi")
    assert classes.valid().sum(0).tolist() == [1] * VOCABULARY.num_hois
    assert classes.valid([2, 3]).nonzero().tolist() == [[1, 2], [2, 3]]


def test_semantic_relations(clip):
    """KL of equal relations is 0; rows outside the batch and its objects take no part."""
    described = F.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    seen, unseen = torch.tensor([1, 1, 0, 0, 0]).bool(), torch.tensor([0, 0, 1, 1, 0]).bool()
    assert semantic_relation_loss(3 * described, described, seen, unseen).abs() < 1e-6
    text = described.flip(1).cumsum(0).requires_grad_()
    loss = semantic_relation_loss(text, described, seen, unseen)
    loss.backward()
    assert loss > 0 and text.grad[:4].abs().sum(1).gt(0).all() and not text.grad[4].any()

    def kl(rows):
        p, q = (
            torch.log_softmax(F.cosine_similarity(a[rows][:, None], a[rows][None], dim=-1) / 0.1, dim=1)
            for a in (text.detach(), described)
        )
        return F.kl_div(p, q, log_target=True, reduction="sum") / q.numel()

    assert torch.allclose(loss, (kl([0, 1]) + kl([2, 3]) + kl([0, 1, 2, 3])) / 3, atol=1e-6)
    assert torch.allclose(semantic_relation_loss(text, described, seen, ~seen & False), kl([0, 1]), atol=1e-6)


def test_semantic_loss_takes_the_rows_of_the_batch(clip):
    model = build(clip, preset="prefix_unseen")
    text, rows = model.text().detach().requires_grad_(), model.text.rows.tolist()
    model.text.semantic_loss(text, torch.tensor([0, 4])).backward()  # hold bicycle, hold dog
    touched = {row for row, grad in zip(rows, text.grad, strict=True) if grad.any()}
    seen = {row for row in rows if VOCABULARY.hoi_verb[row] == 1 and row not in UNSEEN}
    assert touched == seen | {3}  # carry dog is unseen and its object occurs; hold bench is not


@pytest.mark.parametrize(
    "position, layers", [("all", "0123"), ("front", "01"), ("end", "23"), ("last", "3"), ("none", "")]
)
def test_where_instance_adapters_sit(clip, position, layers):
    assert list(build(clip, instance_adapters=position).vision.adaptermlp) == list(layers)


@pytest.mark.parametrize("change", [{"prior": "cb"}, {"prior": "e"}, {"image_prompts": False}, {"regions": "U"}])
def test_published_variants_run(clip, change):
    assert build(clip, **change)(*batch(clip, (2, 4), (0, 1))).logits.isfinite().all()


def test_rounded_prompts_move_the_features_a_little(clip):
    exact, rounded = (build(clip, round_prompts=on)(*batch(clip, (2, 4))).logits for on in (False, True))
    assert 0 < (exact - rounded).abs().max() < 1e-2


def test_truncated_prompted_text_equals_the_whole_context(clip):
    """The transformer is causal: what stands behind the end token cannot change it."""
    tokens = clip.tokenizer(["a dog on a bench", "two people"])
    prompts = torch.randn(2, 2, 2, clip.spec.text_width, generator=torch.Generator().manual_seed(1))
    longer = torch.cat([tokens, tokens[:1]])
    longer[2, 1:27], longer[2, 27] = 320, 49407  # a sentence that needs nearly the whole context
    whole = encode_tokens(clip, longer, torch.cat([prompts, prompts[:, :1]], dim=1))
    assert torch.allclose(encode_tokens(clip, tokens, prompts), whole[:2], atol=1e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"text_prompts": "suffix"}, "expected off or prefix"),
        ({"regions": "HO+U+T"}, "expected HO, HO"),
        ({"classes": "noun"}, "expected one of verb, hoi"),
        ({"instance_adapters": "middle"}, "expected one of all, front"),
    ],
)
def test_impossible_settings_are_named(clip, change, message):
    with pytest.raises(ValueError, match=message):
        build(clip, **change)


def test_a_missing_description_is_named(clip):
    with pytest.raises(ValueError, match="found 7 descriptions, expected 8"):
        build_ezhoi(clip, VOCABULARY, replace(TEXTS, descriptions=TEXTS.descriptions[1:]), UNSEEN, EzHoiSettings())
    with pytest.raises(ValueError, match="set data.act_descriptors"):
        settings = EzHoiSettings(act_descriptors=True)
        build_ezhoi(clip, VOCABULARY, replace(TEXTS, act_descriptors=None), UNSEEN, settings)


def test_weights_return_and_refuse_strangers(clip, tmp_path):
    settings = replace(EzHoiSettings(), **PRESETS["prefix_unseen"])
    model = build(clip, preset="prefix_unseen")
    save_model(tmp_path, model, clip.spec, settings)
    other = build_ezhoi(clip, VOCABULARY, TEXTS, UNSEEN, settings).eval()
    load_model_weights(tmp_path, other, clip.spec)
    inputs = batch(clip, (2, 4))
    assert torch.equal(model(*inputs).logits, other(*inputs).logits)
    with pytest.raises(WeightsError, match=r"unknown \['text.prompts.bases'"):
        load_model_weights(tmp_path, build(clip), clip.spec)
    with pytest.raises(WeightsError, match="class rows"):
        load_model_weights(tmp_path, build(clip, class_rows="all"), clip.spec)
    stranger = load_clip("random:configs/clip/tiny-clip.json", seed=4)
    with pytest.raises(WeightsError, match="set clip.source to that CLIP"):
        load_model_weights(tmp_path, other, stranger.spec)
    with pytest.raises(FileNotFoundError, match="run notebook 02"):
        load_model_weights(tmp_path / "nowhere", other, clip.spec)


def test_free_text_goes_through_the_adapted_tower(clip):
    model = build(clip, preset="prefix")
    sentences = ["a dog on a bench", "two people and a kite"]
    tokens = torch.nn.functional.pad(clip.tokenizer(sentences, context_length=30), (0, 2))
    prompts = model.text.prompts(F.normalize(encode_text(clip, sentences), dim=-1))
    assert torch.allclose(model.text.encode(sentences), encode_tokens(clip, tokens, prompts), atol=1e-5)
    guided = build(clip, **MODES["everything"])
    mine = guided.text.encode([*sentences, VOCABULARY.class_sentences()[3]])[2]
    assert torch.allclose(mine, guided.text.hoi_text(torch.tensor([3]))[0], atol=1e-5)  # a class sentence is its class


def test_untrained_adapters_leave_clip_as_it_is(clip):
    """With gains and up-projections at their start and no prompts, the patch map is CLIP's own."""
    torch.manual_seed(0)
    model = build_ezhoi(clip, VOCABULARY, TEXTS, UNSEEN, EzHoiSettings()).eval()
    images, memory, instances = batch(clip, (2, 4))
    prior = torch.zeros(1, 4, 64)
    patch_map = model.vision(images, prior, instances.padding, None)
    assert torch.allclose(patch_map.flatten(2).transpose(1, 2), encode_image(clip, images)[1], atol=1e-5)


def test_row_selection_takes_the_least_similar_pair():
    vectors = F.normalize(
        torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [1, 0.2], [1, 0], [1, 0.05], [0.9, 0.3], [0, 1]]), dim=1
    )
    rows = select_rows(VOCABULARY.hoi_verb, vectors)
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
    generator = torch.Generator().manual_seed(0)
    described = F.normalize(torch.randn(600, 64, generator=generator), dim=1)
    assert len(select_rows(verbs, described)) == 195
