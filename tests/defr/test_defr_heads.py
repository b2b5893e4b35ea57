"""Heads of every named family: bounds, starts, what is trained (spec defr.md §3, §17.4)."""

import math

import pytest
import torch
from torch.nn import functional as F

from lib.defr.embeddings import EmbeddingsError, LanguageRows
from lib.defr.heads import FAMILIES, build_head

CLASSES, WIDTH, JOINT = 6, 8, 4


@pytest.fixture
def language():
    g = torch.Generator().manual_seed(1)
    unit = {name: F.normalize(torch.randn(CLASSES, WIDTH, generator=g), dim=1) for name in ("bert", "simcse")}
    unit["clip"] = F.normalize(torch.randn(CLASSES, JOINT, generator=g), dim=1)
    return LanguageRows(unit, torch.randn(WIDTH, JOINT, generator=g))


@pytest.fixture
def features():
    return 3 * torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_builds_and_learns(name, language, features):
    head = build_head(name, WIDTH, CLASSES, language=language)
    logits = head(features)
    assert logits.shape == (5, CLASSES)
    logits.square().sum().backward()
    trained = {key for key, p in head.named_parameters() if p.grad is not None and p.grad.any()}
    kind = FAMILIES[name].kind
    expected = {
        "cosine": {"classifier"},
        "linear": {"classifier.weight", "classifier.bias"},
        "mixing": {"m_classifier"},
    }
    assert trained == expected[kind]
    if kind != "linear":
        assert logits.abs().max() <= math.exp(4.61) * (1 + 1e-6)


def test_cosine_and_linear_at_the_start(language, features):
    rows = F.normalize(language.rows("clip"), dim=1)
    cosine = build_head("clip", WIDTH, CLASSES, language=language)(features)
    assert torch.allclose(cosine, math.exp(4.61) * F.normalize(features, dim=1) @ rows.T, atol=1e-4)
    plain = build_head("clip-linear", WIDTH, CLASSES, language=language, log_scale=0.0)
    assert torch.allclose(plain(features), features @ rows.T, atol=1e-5) and not plain.classifier.bias.any()
    scaled = build_head("clip-linear", WIDTH, CLASSES, language=language)  # published: still normalised and scaled
    assert torch.allclose(scaled(features), cosine, atol=1e-4)
    mixing = build_head("i-clip", WIDTH, CLASSES, language=language)
    assert torch.allclose(mixing(features), cosine, atol=1e-4)


def test_back_projection_keeps_clips_scores(language, features):
    text = language.unit["clip"]
    assert torch.allclose(features @ language.rows("clip").T, (features @ language.projection) @ text.T, atol=1e-5)


def test_shuffled_rows_are_a_permutation_of_the_seed(language):
    plain = build_head("bert", WIDTH, CLASSES, language=language).classifier
    one, same, other = (build_head("bert-shuffle", WIDTH, CLASSES, language=language, seed=s) for s in (3, 3, 4))
    assert torch.equal(one.classifier, same.classifier) and not torch.equal(one.classifier, other.classifier)
    assert sorted(map(tuple, one.classifier.tolist())) == sorted(map(tuple, plain.tolist()))


def test_random_starts():
    cosine = build_head("rand", 400, 500).classifier
    assert cosine.std().item() == pytest.approx(1 / 20, rel=0.02)
    linear = build_head("rand-linear", 400, 500).classifier
    assert linear.weight.abs().max() <= 1 / 20 and linear.weight.std().item() == pytest.approx(3**-0.5 / 20, rel=0.02)
    assert linear.bias.any()


def test_trainable_scale_is_held_and_can_come_back(language, features):
    head = build_head("clip", WIDTH, CLASSES, language=language, log_scale=5.0, trainable=True)
    head(features).sum().backward()
    assert head.logit_scale.item() == pytest.approx(4.61) and head.logit_scale.grad != 0
    frozen = build_head("clip", WIDTH, CLASSES, language=language, log_scale=5.0)
    frozen(features)
    assert frozen.logit_scale.item() == 5.0 and not frozen.logit_scale.requires_grad


def test_wrong_requests_are_named(language):
    with pytest.raises(ValueError, match="expected one of"):
        build_head("clip-lin", WIDTH, CLASSES, language=language)
    with pytest.raises(ValueError, match=r"expected \(6, 9\)"):
        build_head("clip", 9, CLASSES, language=language)
    with pytest.raises(ValueError, match="found no embeddings"):
        build_head("bert", WIDTH, CLASSES)
    with pytest.raises(EmbeddingsError, match="simcse"):
        build_head("simcse", WIDTH, CLASSES, language=LanguageRows({"bert": language.unit["bert"]}))
