"""From settings or a saved record to a denoiser, and back to the record."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lib.bridge.denoisers import PrototypeDenoiser, ResidualMlp
from lib.bridge.diffusion import Schedule
from lib.bridge.unet1d import Unet1d
from lib.config import BridgeSettings

DENOISERS = ("mlp", "unet1d")


def architecture_of(settings: BridgeSettings) -> dict[str, Any]:
    """The plain record that `build_denoiser` understands."""
    if settings.denoiser == "mlp":
        return {"kind": "mlp", "width": settings.width, "depth": settings.depth}
    if settings.denoiser == "unet1d":
        return {"kind": "unet1d", "base": 32, "mults": [1, 2, 4, 8]}
    raise ValueError(f"bridge.denoiser: found {settings.denoiser!r}, expected one of {', '.join(DENOISERS)}")


def build_denoiser(architecture: dict[str, Any], dim: int, schedule: Schedule, scale: float) -> nn.Module:
    """A freshly initialised denoiser for vectors of width `dim` on the sphere of radius `scale`.

    architecture: {"kind": "mlp", "width", "depth"} | {"kind": "unet1d", "base", "mults"} |
        {"kind": "prototype", "count"} (its prototypes come with the weights).
    """
    options = {name: value for name, value in architecture.items() if name != "kind"}
    match architecture["kind"]:
        case "mlp":
            return ResidualMlp(dim, schedule.cos_phi(dim, scale), scale, **options)
        case "unet1d":
            return Unet1d(dim, options["base"], tuple(options["mults"]))
        case "prototype":
            prototypes = torch.ones(options["count"], dim)
            return PrototypeDenoiser(prototypes, schedule.inverse_temperature(dim, scale), scale)
    raise ValueError(f"architecture: found kind {architecture['kind']!r}, expected mlp, unet1d or prototype")
