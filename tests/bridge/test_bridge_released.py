"""Import of the public trainer's files, made here in their layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lib.bridge.diffusion import Schedule
from lib.bridge.released import load_released, public_buffers
from lib.bridge.unet1d import Unet1d


@pytest.fixture
def net() -> Unet1d:
    torch.manual_seed(0)
    return Unet1d(64, base=8, mults=(1, 2))


@pytest.fixture
def write(net: Unet1d, tmp_path: Path) -> Callable[..., Path]:
    """Writes a trainer file with some entries changed."""

    def write(prefix: str = "", **changes: torch.Tensor) -> Path:
        table = public_buffers(Schedule.cosine()) | {f"model.{k}": v for k, v in net.state_dict().items()}
        table = {f"{prefix}{name}": value for name, value in (table | changes).items()}
        averaged = {f"ema_model.{name}": 2 * value for name, value in table.items() if "model." in name}
        averaged |= {f"ema_model.{name}": value for name, value in table.items() if "model." not in name}
        torch.save({"step": 300, "model": table, "ema": averaged, "version": "2.0.17"}, tmp_path / "model-3.pt")
        return tmp_path / "model-3.pt"

    return write


@torch.no_grad()
def test_full_size_file_has_251_entries_and_loads_strictly(tmp_path: Path) -> None:
    net = Unet1d(512)
    table = public_buffers(Schedule.cosine()) | {f"model.{name}": value for name, value in net.state_dict().items()}
    assert len(table) == 251
    torch.save({"model": table}, tmp_path / "model-300.pt")
    released = load_released(tmp_path / "model-300.pt", dim=512)
    assert released.architecture == {"kind": "unet1d", "base": 32, "mults": [1, 2, 4, 8]}
    assert sum(p.numel() for p in released.denoiser.parameters()) == 4_037_313
    x, t = torch.randn(2, 512), torch.tensor([5, 700])
    assert torch.equal(released.denoiser(x, t), net.eval()(x, t))


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_raw_and_averaged_weights(write: Callable[..., Path], net: Unet1d, prefix: str) -> None:
    path = write(prefix)
    raw, averaged = load_released(path, 64), load_released(path, 64, weights="ema")
    assert raw.step == 300 and torch.equal(raw.schedule.betas, Schedule.cosine().betas)
    weight = net.init_conv.weight.detach()
    torch.testing.assert_close(raw.denoiser.init_conv.weight.detach(), weight)
    torch.testing.assert_close(averaged.denoiser.init_conv.weight.detach(), 2 * weight)
    with pytest.raises(ValueError, match="expected raw or ema"):
        load_released(path, 64, weights="best")


def test_files_of_something_else_are_refused(write: Callable[..., Path], net: Unet1d) -> None:
    buffers = public_buffers(Schedule.cosine())
    for message, dim, changes in (
        ("embedding dimension .* 64, expected 512", 512, {}),
        ("input channels .* 2, expected 1", 64, {"model.init_conv.weight": torch.zeros(8, 2, 7)}),
        ("kernel .* 3, expected 7", 64, {"model.init_conv.weight": torch.zeros(8, 1, 3)}),
        ("away from the cosine schedule", 64, {"alphas_cumprod": buffers["alphas_cumprod"] * 0.99}),
        ("objective noise, expected x0", 64, {"loss_weight": torch.ones(1000)}),
        ("objective v, expected x0", 64, {"loss_weight": buffers["alphas_cumprod"]}),
        ("do not fit a U-Net", 64, {"model.extra": torch.zeros(1)}),
    ):
        with pytest.raises(ValueError, match=message):
            load_released(write(**changes), dim)
