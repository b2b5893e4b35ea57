"""`compile` and CUDA graphs change the speed, not the result; `bridge.walk_precision` hardly the result."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from benchmarks.bridge import made_bridge, made_features, made_texts
from benchmarks.ezhoi_case import make_case
from benchmarks.ezhoi_training import our_step, same_step
from lib.clip.load import load_clip
from lib.engine.compiled import compile_module
from lib.errors import FoundExpected
from lib.ezhoi.predict import predict_pairs
from lib.features.clip_features import clip_encoder
from lib.settings import BridgeSettings

CLIP = "random:configs/clip/tiny-clip.json"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler (g++)")
WAYS = [
    pytest.param("cpu", "default", marks=needs_compiler),
    pytest.param("cuda", "default", marks=needs_gpu),
    pytest.param("cuda", "reduce-overhead", marks=needs_gpu),
]


@pytest.fixture(scope="module")
def bridge(tmp_path_factory):
    settings = BridgeSettings(width=48, depth=1, steps=40, batch=64, num_steps=6)
    return made_bridge(tmp_path_factory.mktemp("bridge"), "cpu", 32, settings)


@pytest.mark.parametrize(("device", "mode"), WAYS)
def test_a_compiled_bridge_walks_the_same_way(bridge, device, mode):
    features = made_features(made_texts(32), 150)
    compiled = bridge.walking_on(device, mode)
    for rows in (features[:7], features, features[:30]):  # buckets of 32, 512 and 32 rows
        torch.testing.assert_close(compiled(rows), bridge(rows), rtol=0, atol=1e-4)
    assert compiled.device.type == device and bridge.device.type == "cpu"  # a network of its own


@pytest.mark.parametrize(("device", "mode"), WAYS)
def test_a_compiled_tower_gives_the_same_features(device, mode):
    clip = load_clip(CLIP, device)
    images = torch.randn(5, 3, clip.spec.image_size, clip.spec.image_size)
    plain, compiled = clip_encoder(clip), clip_encoder(load_clip(CLIP, device), compile_mode=mode)
    with torch.inference_mode():
        for some in (images, images[:3]):
            for ours, expected in zip(compiled(some), plain(some), strict=True):
                torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("device", "mode"), WAYS)
def test_a_compiled_detector_learns_and_predicts_the_same(tmp_path, device, mode):
    case = make_case(tmp_path, CLIP, device, 3, 117, humans=2, objects=2)
    optimiser = torch.optim.AdamW(case.model.parameters(), lr=0.0)

    def predicted():
        return predict_pairs(case.model, case.samples, batch_size=2, workers=0, device=case.device).logits

    plain, logits = our_step(case, "fp32", optimiser), predicted()
    compile_module(case.model.vision, mode)
    for _ in range(2):  # the second one is a replay
        same_step("fp32", {})(our_step(case, "fp32", optimiser), plain)
    torch.testing.assert_close(torch.from_numpy(predicted()), torch.from_numpy(logits), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("device", "mode"), WAYS)
def test_compiled_dropout_draws_the_same_numbers(device, mode):
    module, x = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Dropout(0.5)).to(device), torch.randn(16, 8)
    torch.manual_seed(3)
    plain = module(x.to(device))
    compile_module(module, mode)
    torch.manual_seed(3)
    torch.testing.assert_close(module(x.to(device)), plain)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_a_bridge_walked_in_bfloat16_ends_at_the_same_place(bridge, device):
    features = made_features(made_texts(32), 400)
    half = bridge.with_settings(BridgeSettings(num_steps=6, walk_precision="bfloat16")).walking_on(device)
    expected = bridge.with_settings(BridgeSettings(num_steps=6))(features)
    moved = half(features)
    assert moved.dtype == torch.float32 and not torch.equal(moved, expected)
    cosine = (moved * expected).sum(1)
    assert cosine.mean() > 0.9999 and cosine.min() > 0.999


def test_what_cannot_be_compiled_is_refused(monkeypatch):
    with pytest.raises(FoundExpected, match="compile: found 'fast', expected one of default, reduce-overhead"):
        compile_module(torch.nn.Linear(1, 1), "fast")
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(FoundExpected, match=r"no program /nowhere/c\+\+.*\n.*install"):
        compile_module(torch.nn.Linear(1, 1), "default")
    compile_module(torch.nn.Linear(1, 1), "")  # nothing asked, nothing needed


def test_an_unknown_precision_is_refused(bridge):
    with pytest.raises(ValueError, match="bridge.walk_precision: found 'half', expected one of float32, bfloat16"):
        replace(bridge, precision="half")
