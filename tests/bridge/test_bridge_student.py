"""The one-evaluation student: inputs, learning, resuming, bundle, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lib.bridge.bundle import Bridge
from lib.bridge.geometry import modality_mean
from lib.bridge.student import entering_directions, noised_texts, train_student, walk
from lib.bridge.text_bank import TextBank
from lib.bridge.training import closed_form_bridge
from lib.runs import read_jsonl
from lib.settings import BridgeSettings

SETTINGS = BridgeSettings(
    width=32, depth=2, steps=60, batch=64, lr=3e-3, log_every=7, validate_every=20, entry_step=300, student_pairs=500
)


@pytest.fixture
def teacher(bank: TextBank, raw_text: Callable) -> Bridge:
    """The closed form over twelve texts, entered at 300: far from the identity, and known exactly."""
    few = replace(bank, vectors=bank.vectors[:12], labels=bank.labels[:12])
    return closed_form_bridge(few, SETTINGS).with_vision_mean(modality_mean(raw_text(50, 16, seed=5) + 1.0))


def test_noised_texts_have_the_cosines_asked_for() -> None:
    texts = torch.eye(16)[:4]
    u = noised_texts(texts, 300, (0.2, 0.7))
    torch.testing.assert_close(u.norm(dim=1), torch.ones(300))
    nearest = (u @ texts.T).amax(dim=1)
    exact = noised_texts(texts[:1], 300, (0.4, 0.4))[:, 0]
    assert float(nearest.min()) > 0.19 and float(nearest.max()) > 0.6
    torch.testing.assert_close(exact, torch.full((300,), 0.4))
    assert torch.equal(u, noised_texts(texts, 300, (0.2, 0.7)))
    assert not torch.equal(u, noised_texts(texts, 300, (0.2, 0.7), seed=1))


def test_inputs_are_features_then_texts_as_available(teacher: Bridge, bank: TextBank, raw_text: Callable) -> None:
    features = raw_text(30, 16, seed=5)
    own = teacher.geometry.vision(features)
    few = entering_directions(teacher, 20, features)
    torch.testing.assert_close(few, own[:20])
    many = entering_directions(teacher, 100, features)
    torch.testing.assert_close(many[:30], own)
    assert float((many[30:] @ own.T).amax(dim=1).min()) > 0.9 - 1e-5
    both = entering_directions(teacher, 41, features, bank.vectors)
    assert both.shape == (41, 16)
    torch.testing.assert_close(both[20:], own[:21])
    with pytest.raises(ValueError, match="found neither features nor texts"):
        entering_directions(teacher, 10)


def test_student_learns_the_teacher_and_is_one_evaluation(
    teacher: Bridge, bank: TextBank, raw_text: Callable, tmp_path: Path
) -> None:
    features = raw_text(100, 16, seed=5)
    settings = replace(SETTINGS, steps=600, student_pairs=3000)
    metrics = train_student(teacher, settings, tmp_path, features=features, texts=bank.vectors[:12])
    student = Bridge.load(tmp_path)
    assert (student.solver, student.num_steps, student.entry_step) == ("student", 1, 300)
    assert metrics["cosine_mean"] > 0.85 and metrics["cosine_p1"] <= metrics["cosine_mean"]
    history = read_jsonl(tmp_path / "loss.jsonl")
    assert history[-1]["val_all"] < 0.5 * history[0]["loss"]

    unseen = raw_text(200, 16, seed=6)
    calls = []
    student.denoiser.register_forward_hook(lambda *_: calls.append(1))
    cosine = (student(unseen) * teacher(unseen)).sum(dim=1)
    untouched = (teacher.geometry.vision(unseen) * teacher(unseen)).sum(dim=1)
    assert len(calls) == 1 and float(cosine.mean()) > max(0.85, float(untouched.mean()) + 0.05)
    assert student.provenance["student"]["teacher"] == {
        "entry_step": 300, "num_steps": 12, "solver": "sphere_pc", "last_step": 20,
    }  # fmt: skip

    features = unseen[:4].clone().requires_grad_()  # a differentiable layer (spec §10.1, design C)
    student(features)[:, 0].sum().backward()
    assert (features.grad.abs().amax(dim=1) > 0).all()


def test_resumed_student_equals_uninterrupted(teacher: Bridge, bank: TextBank, tmp_path: Path) -> None:
    expected = train_student(teacher, SETTINGS, tmp_path / "whole", texts=bank.vectors)

    def stop(step: int, steps: int, line: dict[str, float]) -> None:
        if step >= 35:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_student(teacher, SETTINGS, tmp_path / "cut", texts=bank.vectors, progress=stop)
    resumed = train_student(teacher, SETTINGS, tmp_path / "cut", texts=bank.vectors)
    whole, cut = (load_file(tmp_path / name / "weights.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    assert resumed | {"seconds": 0} == expected | {"seconds": 0}


def test_chunks_do_not_change_the_walk(teacher: Bridge, bank: TextBank) -> None:
    u = noised_texts(teacher.geometry.text(bank.vectors), 50)
    torch.testing.assert_close(walk(replace(teacher, chunk=7), u), walk(teacher, u))


def test_what_a_student_refuses(teacher: Bridge, bank: TextBank, tmp_path: Path) -> None:
    train_student(teacher, replace(SETTINGS, steps=20), tmp_path, texts=bank.vectors)
    student = Bridge.load(tmp_path).with_center("text")
    rows = bank.vectors[:3]
    with pytest.raises(ValueError, match="found a student as teacher"):
        train_student(student, SETTINGS, tmp_path / "again", texts=bank.vectors)
    with pytest.raises(ValueError, match="bridge.solver: found sphere_2m, .* trained as student"):
        student.with_sampler(solver="sphere_2m")(rows)
    with pytest.raises(ValueError, match="bridge.num_steps: found 6, expected 1 for solver student"):
        student.with_sampler(num_steps=6)
    with pytest.raises(ValueError, match="bridge.entry_step: found 100, expected 300"):
        student.with_sampler(entry_step=100)(rows)
    with pytest.raises(ValueError, match="bridge.student_pairs: found 1, expected at least 2"):
        train_student(teacher, replace(SETTINGS, student_pairs=1), tmp_path / "one", texts=bank.vectors)
    with pytest.raises(ValueError, match="found a checkpoint of other texts or settings"):
        train_student(teacher.with_sampler(entry_step=200), replace(SETTINGS, steps=20), tmp_path, texts=bank.vectors)
