"""Replay of the public program's random stream: check values and fingerprints of spec ez-hoi.md Appendix C."""

import pytest
import torch
from torch import nn

from lib.ezhoi.random_stream import ClipDimensions, fingerprint_problems, prompt_bases, replay

SMALL = ClipDimensions(64, 16, 4, 128, 2, 64, 2, 77)
PUBLISHED = {
    "ViT-B/16": (
        ClipDimensions(512, 16, 14, 768, 12, 512, 12, 77),
        {
            0: ([-0.390394, 0.831705, 0.444922], 52.36196),
            1: ([-0.006636, 0.217766, -0.317494], -62.28316),
            8: ([-0.974887, 0.717551, -0.714797], 15.03439),
        },
        {0: [-0.02561742, 0.01439404, 0.02414482], 11: [-0.00522831, -0.02064767, -0.00340354]},
        [0.03401115, 0.01652003, 0.04157182],
    ),
    "ViT-L/14@336": (
        ClipDimensions(768, 14, 24, 1024, 24, 768, 12, 77),
        {
            0: ([1.199198, -0.022008, -1.258860], 73.91869),
            1: ([-1.066322, 1.147609, -1.983416], 26.51764),
            8: ([0.612946, -0.081798, 0.652335], -15.03008),
        },
        {0: [-0.02280997, -0.02540481, 0.03468164], 11: [-0.00149611, 0.00612873, 0.01477261]},
        [-0.02646438, -0.00502831, 0.01264961],
    ),
}


@pytest.mark.parametrize("backbone", PUBLISHED)
def test_check_values(backbone):
    size, bases, text_layers, class_prompts = PUBLISHED[backbone]
    stream = replay(size)
    assert stream.bases.shape == (9, 2, size.text_width)
    for level, (first, total) in bases.items():
        torch.testing.assert_close(stream.bases[level].flatten()[:3], torch.tensor(first), rtol=0, atol=1e-6)
        assert float(stream.bases[level].double().sum()) == pytest.approx(total, abs=2e-5)
    weights = {layer: stream.text_layers[layer]["down_proj_mem"].weight for layer in text_layers}
    weights["class prompts"] = stream.class_prompts["down_proj_mem"].weight
    for which, first in {**text_layers, "class prompts": class_prompts}.items():
        torch.testing.assert_close(weights[which].flatten()[:3], torch.tensor(first), rtol=0, atol=1e-8)


def test_the_stream_of_the_caller_stays_where_it_is():
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    first = prompt_bases(SMALL)
    assert torch.equal(torch.randn(3), expected)
    assert torch.equal(prompt_bases(SMALL), first)
    assert torch.equal(prompt_bases(SMALL, levels=2), first[:2])


@pytest.fixture(scope="module")
def stream():
    return replay(SMALL)


def checkpoint_of(stream, class_prompts):
    tensors = {
        f"clip_head.text_encoder.transformer.resblocks.{layer}.txtcls_adapter.{name}": value
        for layer, adapter in enumerate(stream.text_layers)
        for name, value in adapter.state_dict().items()
    }
    learner = "clip_head.prompt_learner.txtcls_pt_adapter."
    return {name: value.clone() for name, value in tensors.items()} | {
        learner + name: value.clone() for name, value in class_prompts.items()
    }


def test_weight_decay_alone_keeps_the_second_fingerprint(stream):
    parameters = [nn.Parameter(value.clone()) for value in stream.class_prompts.state_dict().values()]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-4)
    for _ in range(300):
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimiser.step()
    decayed = dict(zip(stream.class_prompts.state_dict(), (value.detach() for value in parameters), strict=True))
    assert not torch.equal(decayed["down_proj_mem.weight"], stream.class_prompts["down_proj_mem"].weight)
    assert fingerprint_problems(checkpoint_of(stream, decayed), stream) == []
    decayed["down_proj_mem.weight"][3, 4] += 1e-3
    (problem,) = fingerprint_problems(checkpoint_of(stream, decayed), stream)
    assert problem.startswith("(ii) txtcls_pt_adapter.down_proj_mem.weight")


def test_another_stream_fails_both_fingerprints(stream):
    other = replay(ClipDimensions(64, 16, 4, 128, 2, 64, 2, 76))
    problems = fingerprint_problems(checkpoint_of(other, other.class_prompts.state_dict()), stream)
    assert [problem[:4] for problem in problems] == ["(i) ", "(i) ", "(ii)"]


def test_one_changed_bit_fails_the_first_fingerprint(stream):
    tensors = checkpoint_of(stream, stream.class_prompts.state_dict())
    name = "clip_head.text_encoder.transformer.resblocks.1.txtcls_adapter.mhsa_layers.0.linear1.weight"
    tensors[name][0, 0] = torch.nextafter(tensors[name][0, 0], torch.tensor(9.0))
    (problem,) = fingerprint_problems(tensors, stream)
    assert problem.startswith("(i) text layer 1 mhsa_layers.0.linear1.weight")
