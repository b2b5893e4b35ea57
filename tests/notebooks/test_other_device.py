"""The notebooks on a device that is not the CPU: no tensor is left behind on either side (see other_device.py)."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("other_device.py")


def test_every_notebook_goes_through_on_another_device(tmp_path):
    command = [sys.executable, str(SCRIPT), str(tmp_path / "run"), "ezhoi.precision=bf16"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert done.stdout.count(": went through") == 7


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("torch.ones(2) + torch.ones(2, device='meta')", "expected all tensors on one device"),
        ("torch.ones(2)[torch.zeros(1, dtype=torch.long, device='meta')]", "expected all tensors on one device"),
        ("torch.ones(2, device='meta').numpy()", "numpy"),
    ],
)
def test_what_cuda_would_refuse_is_refused(wrong, message):
    code = f"import torch\nfrom other_device import TwoDevices\nwith TwoDevices():\n    {wrong}"
    done = subprocess.run([sys.executable, "-c", code], cwd=SCRIPT.parent, capture_output=True, text=True)
    assert done.returncode != 0 and message in done.stderr


def test_numbers_are_those_of_the_cpu_and_gradients_flow():
    code = """
import torch
from other_device import TwoDevices
torch.manual_seed(0)
layer, x = torch.nn.Linear(3, 2), torch.randn(4, 3)
layer(x).square().sum().backward()
torch.__future__.set_overwrite_module_params_on_conversion(True)
with TwoDevices():
    moved = torch.nn.Linear(3, 2)
    moved.load_state_dict(layer.state_dict())
    moved.to("meta")
    out = moved(x.to("meta"))
    out.square().sum().backward()
    assert out.device.type == moved.weight.grad.device.type == "meta"
    assert torch.equal(moved.weight.grad.cpu(), layer.weight.grad)
"""
    subprocess.run([sys.executable, "-c", code], cwd=SCRIPT.parent, check=True)
