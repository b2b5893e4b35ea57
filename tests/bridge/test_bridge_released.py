"""Import of the public trainer's files, made here in their layout."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lib.bridge.bundle import Bridge
from lib.bridge.diffusion import Schedule
from lib.bridge.released import load_released, main, public_buffers
from lib.bridge.text_bank import TextBank, caption_bank, text_mean
from lib.bridge.unet1d import Unet1d
from lib.clip.load import load_clip

CLIP = "random:configs/clip/tiny-clip.json"


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
    assert (raw.weights, averaged.weights) == ("raw", "ema")
    assert torch.equal(load_released(path, 64, weights="model").denoiser.init_conv.weight, weight)
    with pytest.raises(ValueError, match=r"expected raw \(also called model\) or ema"):
        load_released(path, 64, weights="best")


def test_files_of_something_else_are_refused(write: Callable[..., Path], net: Unet1d) -> None:
    buffers = public_buffers(Schedule.cosine())
    for message, dim, changes in (
        ("embedding dimension .* 64, expected 512", 512, {}),
        ("input channels .* 2, expected 1", 64, {"model.init_conv.weight": torch.zeros(8, 2, 7)}),
        ("output channels .* 2, expected 1", 64, {"model.final_conv.weight": torch.zeros(2, 8, 1)}),
        ("not finite .*init_conv.bias", 64, {"model.init_conv.bias": torch.full((8,), float("nan"))}),
        ("kernel .* 3, expected 7", 64, {"model.init_conv.weight": torch.zeros(8, 1, 3)}),
        ("away from the cosine schedule", 64, {"alphas_cumprod": buffers["alphas_cumprod"] * 0.99}),
        ("objective noise, expected x0", 64, {"loss_weight": torch.ones(1000)}),
        ("objective v, expected x0", 64, {"loss_weight": buffers["alphas_cumprod"]}),
        ("do not fit a U-Net", 64, {"model.extra": torch.zeros(1)}),
    ):
        with pytest.raises(ValueError, match=message):
            load_released(write(**changes), dim)


def stock(dim: int, init_dim: int | None = None, mults: tuple[int, ...] = (1, 2)) -> dict[str, torch.Tensor]:
    """State dict with the widths of the stock library's Unet1D(dim, init_dim, mults): levels dim · mults, code 4 dim.

    Made from our blocks, whose names are the same, with the widths that differ put in afterwards.
    """
    base = init_dim or dim
    state = Unet1d(dim if dim == base else 64, base, mults).state_dict()
    if init_dim:
        state["time_mlp.1.weight"] = torch.zeros(4 * dim, dim)
        for level, mult in enumerate(mults):
            old = state[f"downs.{level}.3.weight"]
            state[f"downs.{level}.3.weight"] = torch.zeros(dim * mult, *old.shape[1:])
    return {f"model.{name}": value for name, value in state.items()}


def save(path: Path, table: dict[str, torch.Tensor]) -> Path:
    torch.save({"step": 1, "model": public_buffers(Schedule.cosine()) | table, "version": "2.3.4"}, path)
    return path


def test_files_of_the_stock_library(tmp_path: Path) -> None:
    """Unet1D(dim) is ours where dim is the embedding's; other widths are refused with what was found."""
    with pytest.warns(UserWarning, match="widths of the stock library"):
        found = load_released(save(tmp_path / "a.pt", stock(16)), 16)
    assert found.architecture == {"kind": "unet1d", "base": 16, "mults": [1, 2]}
    with pytest.raises(ValueError, match=r"width of time_mlp.1.weight\) 16, expected 64.*Unet1D\(dim=16\)"):
        load_released(tmp_path / "a.pt", 64)
    with pytest.raises(
        ValueError, match=r"hidden 256, first convolution 8, levels \[64, 128\].*Unet1D\(dim=64, init_dim=8"
    ):
        load_released(save(tmp_path / "b.pt", stock(64, init_dim=8)), 64)


def test_files_that_are_no_trainer_files(tmp_path: Path, write: Callable[..., Path]) -> None:
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="found a list, expected the dict"):
        load_released(tmp_path / "list.pt", 64)
    state = torch.load(write())
    torch.save({"model": state["model"]}, tmp_path / "raw.pt")
    with pytest.raises(ValueError, match="found no averaged weights"):
        load_released(tmp_path / "raw.pt", 64, "ema")


@torch.no_grad()
def identity(dim: int) -> Unet1d:
    """A U-Net that returns its input: the one skip connection from the first convolution to the last is all it has."""
    net = Unet1d(dim, base=8, mults=(1, 2))
    for name, value in net.final_res_block.named_parameters():
        value.zero_() if "block2.norm" in name or "res_conv" in name else None
    net.init_conv.weight.zero_()[0, 0, 3] = 1
    net.final_res_block.res_conv.weight[0, 8, 0] = 1
    net.final_conv.weight.zero_()[0, 0, 0] = 1
    for layer in (net.init_conv, net.final_conv):
        layer.bias.zero_()
    return net


@pytest.fixture
def learnt(tmp_path: Path) -> TextBank:
    """Sentences, their mean as a pickle, and two trainer files: of a network that keeps clean texts, and of noise."""
    words = [
        f"a {who} {does} a {what}" for who in ("man", "dog", "cat") for does in ("sees", "has") for what in "abcde"
    ]
    (tmp_path / "texts.txt").write_text("\n".join(words))
    bank = caption_bank(load_clip(CLIP), words)
    with (tmp_path / "mean.pkl").open("wb") as stream:
        pickle.dump({"text_mean": text_mean(bank), "source": "coco_captions"}, stream)
    for name, net in (("model-30.pt", identity(bank.dim)), ("noise.pt", Unet1d(bank.dim, base=8, mults=(1, 2)))):
        save(tmp_path / name, {f"model.{key}": value for key, value in net.state_dict().items()})
    return bank


@pytest.mark.filterwarnings("ignore:.*is outside the usual")
def test_command_makes_a_bridge_folder(learnt: TextBank, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, bank = tmp_path, learnt
    given = ["--clip", CLIP, "--out", f"{tmp_path / 'bridge'}"]
    model = f"{folder / 'model-30.pt'}"
    mean, texts = ["--text-mean", f"{folder / 'mean.pkl'}"], ["--texts", f"{folder / 'texts.txt'}"]
    assert main([*given, *mean, model]) == 0
    assert "not checked" in capsys.readouterr().out
    assert main([*given, *mean, *texts, model]) == 0
    bridge = Bridge.load(tmp_path / "bridge")
    assert bridge.text_space == bank.space and bridge.provenance["weights"] == {"kind": "raw", "step": 1}
    torch.testing.assert_close(bridge.geometry.text_mean, text_mean(bank))
    assert bridge.probes.vectors.shape == (30, bank.dim)
    rows = bank.vectors[:3]
    assert bridge.with_vision_mean(text_mean(bank) * 0.9)(rows).shape == rows.shape

    other = caption_bank(load_clip(CLIP), ["zebra", "a plane in the sky", "snow"])
    with (tmp_path / "other.pkl").open("wb") as stream:
        pickle.dump(text_mean(other), stream)
    with (tmp_path / "narrow.pkl").open("wb") as stream:
        pickle.dump(text_mean(other)[None, :16], stream)
    capsys.readouterr()
    for wrong, message in (
        (["--text-mean", f"{tmp_path / 'other.pkl'}", *texts], "leaves its own texts"),
        (["--text-mean", f"{tmp_path / 'narrow.pkl'}"], "16 wide, expected"),
        ([*mean, *texts, "--adaptation", "ezhoi:1"], "cannot make adapted text"),
        ([*mean, *texts, f"{folder / 'noise.pt'}"], "moves its own texts"),
        ([*mean, "--weights", "ema"], "no averaged weights"),
        (["--text-mean", f"{tmp_path / 'absent.pkl'}"], "found no file"),
    ):
        file = [] if wrong[-1].endswith("noise.pt") else [model]
        assert main([*given, *wrong, *file]) == 2
        assert re.search(message, capsys.readouterr().err)
