"""From settings or a saved record to a denoiser, and back to the record."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lib.bridge.denoisers import PrototypeDenoiser, ResidualMlp
from lib.bridge.diffusion import VARIANTS, Schedule
from lib.bridge.unet1d import Unet1d
from lib.settings import BridgeSettings

DENOISERS = ("mlp", "unet1d")


def architecture_of(settings: BridgeSettings) -> dict[str, Any]:
    """The plain record that `build_denoiser` understands, of a network still to be trained."""
    if settings.variant not in VARIANTS:
        raise ValueError(f"bridge.variant: found {settings.variant!r}, expected one of {', '.join(VARIANTS)}")
    if settings.denoiser == "mlp":
        return {"kind": "mlp", "width": settings.width, "depth": settings.depth, "variant": settings.variant}
    if settings.denoiser == "unet1d":
        return {"kind": "unet1d", "base": 32, "mults": [1, 2, 4, 8], "variant": settings.variant}
    raise ValueError(f"bridge.denoiser: found {settings.denoiser!r}, expected one of {', '.join(DENOISERS)}")


def build_denoiser(architecture: dict[str, Any], dim: int, schedule: Schedule, scale: float) -> nn.Module:
    """A freshly initialised denoiser for vectors of width `dim` on the sphere of radius `scale`.

    architecture: {"kind": "mlp", "width", "depth"} | {"kind": "unet1d", "base", "mults"} |
        {"kind": "prototype", "count"} (its prototypes come with the weights); with "variant" (what it is trained
        for; sphere where absent, as in all public files) and for the variant student its "entry_step". Both become
        attributes of the network, by which the solvers know what they may ask of it.
    """
    denoiser = _network(architecture, dim, schedule, scale)
    denoiser.variant = architecture.get("variant", "sphere")
    if denoiser.variant == "student":
        denoiser.entry_step = architecture["entry_step"]
    return denoiser


def _network(architecture: dict[str, Any], dim: int, schedule: Schedule, scale: float) -> nn.Module:
    match architecture["kind"]:
        case "mlp":
            cos_phi = schedule.cos_phi(dim, scale)
            return ResidualMlp(dim, cos_phi, scale, architecture["width"], architecture["depth"])
        case "unet1d":
            return Unet1d(dim, architecture["base"], tuple(architecture["mults"]))
        case "prototype":
            prototypes = torch.ones(architecture["count"], dim)
            return PrototypeDenoiser(prototypes, schedule.inverse_temperature(dim, scale), scale)
    raise ValueError(f"architecture: found kind {architecture['kind']!r}, expected mlp, unet1d or prototype")
