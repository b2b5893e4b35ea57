"""Forward hooks: what layers give out, without a change of the model, and gone afterwards."""

import numpy as np
import pytest
import torch
from torch import nn

from lib.analysis.recording import recorded
from lib.errors import FoundExpected


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.LSTM(3, 2))


def test_outputs_of_every_call_are_kept_and_the_hooks_are_gone(model):
    x, y = torch.randn(5, 4), torch.randn(2, 4)
    with recorded(model, ["0", "1"]) as kept:
        outputs = [model(x)[0], model(y)[0]]
    assert [len(part) for part in kept["0"]] == [5, 2]
    torch.testing.assert_close(kept["1"][0], model[0](x).relu().detach())
    assert not kept["0"][0].requires_grad and outputs[0].requires_grad
    model(x)
    assert len(kept["0"]) == 2 and not any(module._forward_hooks for module in model.modules())


def test_a_compiled_model_is_recorded_too():
    model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(5, 4)
    model.compile(backend="eager")  # the tracing without the code generator
    expected = model(x)  # traced before there was a hook
    with recorded(model, ["0", "1"]) as kept:
        model(x)
    torch.testing.assert_close(kept["1"][0], expected.detach())
    assert len(kept["0"]) == 1


def test_of_a_tuple_the_first_tensor_is_kept_and_an_empty_name_is_the_model(model):
    x = torch.randn(3, 4)
    with recorded(model, ["", "2"]) as kept:
        expected = model(x)[0]
    np.testing.assert_array_equal(kept[""][0], expected.detach())
    np.testing.assert_array_equal(kept["2"][0], expected.detach())


def test_an_unknown_layer_is_named_with_the_known_ones(model):
    with (
        pytest.raises(FoundExpected, match="no module 'vis_fuse', expected one of 0, 1, 2"),
        recorded(model, ["vis_fuse"]),
    ):
        pass


def test_hooks_go_when_the_model_fails(model):
    with pytest.raises(RuntimeError), recorded(model, ["0"]):
        model(torch.randn(1, 9))
    assert not any(module._forward_hooks for module in model.modules())
