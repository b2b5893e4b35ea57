"""The shipped tiny models: size, unpacking, and their recorded quality on fresh scenes."""

import json

import pytest
import torch

from lib.clip.load import load_clip
from lib.clip.text import encode_text
from lib.data.stick_world import WorldSettings, render_world
from lib.detection.detr import load_detr
from lib.stages import tiny_models
from lib.stages.tiny_models import CLIP_FOLDER, DETR_FOLDER, shipped_sha256, unpack_tiny_models
from lib.stages.tiny_quality import clip_quality, detr_quality


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    unpack_tiny_models(folder)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Scenes that neither training nor the recorded measurement has seen."""
    folder = tmp_path_factory.mktemp("fresh_world")
    render_world(folder, WorldSettings(seed=77, train_images=2, test_images=100))
    return folder


def recorded(folder):
    return json.loads((folder / "training.json").read_text())["quality"]


def test_shipped_files_are_small():
    files = [file for folder in (CLIP_FOLDER, DETR_FOLDER) for file in folder.iterdir()]
    assert sum(file.stat().st_size for file in files) <= 10e6


def test_clip_reaches_its_recorded_quality(models, world):
    clip = load_clip(f"local-dir:{models / 'clip'}")
    assert clip.spec.activation == "quick_gelu" and clip.logit_scale == pytest.approx(100, rel=1e-4)
    found, promised = clip_quality(clip, world), recorded(CLIP_FOLDER)
    assert found["accuracy"] > promised["accuracy"] - 0.1  # about 200 crops: 0.1 is three standard errors
    assert found["gap"] == pytest.approx(promised["gap"], abs=0.1)


def test_detr_reaches_its_recorded_quality(models, world):
    found, promised = detr_quality(load_detr(models / "detr"), world), recorded(DETR_FOLDER)
    for name in ("people", "objects"):
        assert found[name] > promised[name] - 0.08


def test_trained_words_differ_from_untrained_ones(models):
    """Rows of the token table that no training text used are seeded noise, the same at every unpacking."""
    clip = load_clip(f"local-dir:{models / 'clip'}")
    table = clip.model.token_embedding.weight
    noise = torch.randn(*table.shape, generator=torch.Generator().manual_seed(0)) * 0.02
    unused, used = clip.tokenizer(["zebra"])[0, 1], clip.tokenizer(["person"])[0, 1]
    assert torch.equal(table[unused], noise[unused]) and not torch.equal(table[used], noise[used])
    assert torch.isfinite(encode_text(clip, ["a photo of a zebra"])).all()


def test_fingerprint_follows_the_weights_not_the_record(monkeypatch, tmp_path):
    for name, folder in (("CLIP_FOLDER", CLIP_FOLDER), ("DETR_FOLDER", DETR_FOLDER)):
        copy = tmp_path / folder.name
        copy.mkdir()
        for file in folder.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        monkeypatch.setattr(tiny_models, name, copy)
    before = shipped_sha256()
    (tmp_path / "tiny_clip" / "training.json").write_text("{}")
    assert shipped_sha256() == before
    (tmp_path / "tiny_clip" / "weights.safetensors").write_bytes(b"other")
    assert shipped_sha256() != before


def test_missing_weights_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(tiny_models, "DETR_FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match="(?s)weights.safetensors: found no file.*make tiny-weights"):
        unpack_tiny_models(tmp_path / "models")
