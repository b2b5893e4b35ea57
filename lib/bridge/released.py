"""Read the public trainer's `model-N.pt` files (spec diffusion-bridge.md §5).

Such a file holds the network, its average and the schedule, but neither the text mean nor the radius, entry
depth or text space: those come from whoever trained it and are never guessed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lib.bridge.diffusion import Schedule
from lib.bridge.unet1d import Unet1d
from lib.engine.checkpoints import load_checkpoint

WRAPPER_PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class ReleasedDenoiser:
    """denoiser: with the file's weights, in eval mode. step: optimiser steps it was trained for (None if absent)."""

    denoiser: Unet1d
    architecture: dict
    schedule: Schedule
    step: int | None


def load_released(path: Path | str, dim: int, weights: str = "raw") -> ReleasedDenoiser:
    """Read a trainer file made for `dim`-dimensional embeddings.

    weights: raw (what the public programs sample from) | ema.

    Raises ValueError, naming what was found and expected, for another dimension, schedule, objective,
    self-conditioning, or a state dict that does not fit strictly.
    """
    path = Path(path)
    state = load_checkpoint(path)
    table = _strip(_select(state, weights, path))
    buffers = {name: value for name, value in table.items() if not name.startswith("model.")}
    tensors = {name.removeprefix("model."): value for name, value in table.items() if name.startswith("model.")}
    for name in ("init_conv.weight", "time_mlp.1.weight"):
        if name not in tensors:
            raise ValueError(f"{path}: found no key model.{name}, expected the 1-D U-Net of the public trainer")

    base, channels, kernel = tensors["init_conv.weight"].shape
    _expect(path, "input channels (2 means self-conditioning)", channels, 1)
    _expect(path, "kernel of the first convolution", kernel, 7)
    _expect(path, "embedding dimension (width of time_mlp.1.weight)", tensors["time_mlp.1.weight"].shape[1], dim)
    levels = len({name.split(".")[1] for name in tensors if name.startswith("downs.")})
    mults = tuple(tensors[f"downs.{level}.3.weight"].shape[0] // base for level in range(levels))
    schedule = _schedule(buffers, path)

    denoiser = Unet1d(dim, base, mults)
    try:
        denoiser.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path}: the weights do not fit a U-Net of {base} channels x {mults}: {error}") from error
    architecture = {"kind": "unet1d", "base": base, "mults": list(mults)}
    return ReleasedDenoiser(denoiser.eval(), architecture, schedule, state.get("step"))


def public_buffers(schedule: Schedule) -> dict[str, Tensor]:
    """The 13 schedule buffers [T] float32 that a trainer file carries next to the weights."""
    abar = schedule.abar
    previous = torch.cat([abar.new_ones(1), abar[:-1]])
    alphas = 1 - schedule.betas
    posterior_variance = schedule.betas * (1 - previous) / (1 - abar)
    tables = {
        "betas": schedule.betas,
        "alphas_cumprod": abar,
        "alphas_cumprod_prev": previous,
        "sqrt_alphas_cumprod": abar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - abar).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - abar).log(),
        "sqrt_recip_alphas_cumprod": (1 / abar).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / abar - 1).sqrt(),
        "posterior_variance": posterior_variance,
        "posterior_log_variance_clipped": posterior_variance.clamp_min(1e-20).log(),
        "posterior_mean_coef1": schedule.betas * previous.sqrt() / (1 - abar),
        "posterior_mean_coef2": (1 - previous) * alphas.sqrt() / (1 - abar),
        "loss_weight": schedule.snr,
    }
    return {name: table.float() for name, table in tables.items()}


def _select(state: Mapping, weights: str, path: Path) -> Mapping[str, Tensor]:
    if weights == "ema":
        if "ema" not in state:
            raise ValueError(f"{path}: found no averaged weights; mend: read it with weights='raw'")
        prefix = "ema_model."
        return {k.removeprefix(prefix): v for k, v in state["ema"].items() if k.startswith(prefix)}
    if weights == "raw":
        return state.get("model", state)
    raise ValueError(f"weights: found {weights!r}, expected raw or ema")


def _strip(table: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for prefix in WRAPPER_PREFIXES:
        table = {name.removeprefix(prefix): value for name, value in table.items()}
    return dict(table)


def _schedule(buffers: Mapping[str, Tensor], path: Path) -> Schedule:
    """The cosine schedule, once the file's buffers are seen to be those of predict-x0 on it."""
    missing = {"betas", "alphas_cumprod", "loss_weight"} - buffers.keys()
    if missing:
        raise ValueError(f"{path}: found no schedule buffers {sorted(missing)}, expected those of the trainer")
    schedule = Schedule.cosine(len(buffers["betas"]))
    distance = float((buffers["alphas_cumprod"].double() - schedule.abar).abs().max())
    if distance > 1e-6:
        raise ValueError(f"{path}: found a schedule {distance:.2g} away from the cosine schedule, expected 1e-6")
    weight = buffers["loss_weight"].double()
    objectives = {"x0": schedule.snr, "noise": torch.ones_like(weight), "v": schedule.abar}
    matching = [name for name, expected in objectives.items() if torch.allclose(weight, expected, rtol=1e-3)]
    _expect(path, "training objective", matching[0] if matching else "unknown", "x0")
    return schedule


def _expect(path: Path, what: str, found: object, expected: object) -> None:
    if found != expected:
        raise ValueError(f"{path}: found {what} {found}, expected {expected}")
