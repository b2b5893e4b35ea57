"""Read the public trainer's `model-N.pt` files and make bridges of them (spec diffusion-bridge.md §5).

    python -m lib.bridge.released model-30.pt --text-mean mean.pkl --clip local-dir:weights/clip --out weights/bridge

Such a file holds the network, its average and the schedule, but neither the text mean nor the radius, entry
depth or text space: those come from whoever trained it and are never guessed here. --texts gives the checks something
to hold on to: with sentences it learnt, a wrong mean, a wrong CLIP or a wrong radius is found at once.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lib.bridge.bundle import Bridge
from lib.bridge.diffusion import Schedule
from lib.bridge.geometry import Geometry
from lib.bridge.old_pickles import LegacyError, read_mean
from lib.bridge.self_test import FIXED_POINT, TextProbes, text_losses
from lib.bridge.text_bank import caption_bank
from lib.bridge.unet1d import Unet1d
from lib.clip.load import ClipLoadError, load_clip
from lib.clip.text_space import TextSpace, clip_text_space
from lib.data.captions import read_captions
from lib.engine.checkpoints import load_checkpoint
from lib.runs import file_sha256

WRAPPER_PREFIXES = ("module.", "_orig_mod.")
WEIGHTS = {"raw": "raw", "model": "raw", "ema": "ema"}  # names in use; `model` is the raw weights' name in the file
MAX_TEXTS = 1000


@dataclass(frozen=True)
class ReleasedDenoiser:
    """denoiser: with the file's weights, in eval mode. weights: raw | ema. step: optimiser steps (None if absent)."""

    denoiser: Unet1d
    architecture: dict
    schedule: Schedule
    weights: str
    step: int | None


def load_released(path: Path | str, dim: int, weights: str = "raw") -> ReleasedDenoiser:
    """Read a file of the CVPR repo, the fork or PyPI's denoising-diffusion-pytorch, made for `dim`-d embeddings.

    weights: raw (`model`; what the public programs sample from) | ema.

    The stock library's widths (dim · mults, time code of width dim) are ours for Unet1D(dim=<embedding dimension>)
    only; others have no equal here. Raises ValueError, naming what was found and expected, for another dimension,
    width, schedule, objective, self-conditioning, or a state dict that does not fit strictly.
    """
    path = Path(path)
    state = load_checkpoint(path)
    if not isinstance(state, Mapping):
        raise ValueError(f"{path}: found a {type(state).__name__}, expected the dict of a trainer file")
    table = _strip(_select(state, weights, path))
    buffers = {name: value for name, value in table.items() if not name.startswith("model.")}
    tensors = {name.removeprefix("model."): value for name, value in table.items() if name.startswith("model.")}
    for name in ("init_conv.weight", "time_mlp.1.weight", "downs.0.3.weight", "final_conv.weight"):
        if name not in tensors:
            raise ValueError(f"{path}: found no key model.{name}, expected the 1-D U-Net of the public trainer")

    base, channels, kernel = tensors["init_conv.weight"].shape
    _expect(path, "input channels (2 means self-conditioning)", channels, 1)
    _expect(path, "kernel of the first convolution", kernel, 7)
    _expect(path, "output channels (2 means a learnt variance)", tensors["final_conv.weight"].shape[0], 1)
    mults = _widths(path, tensors, base, dim)
    schedule = _schedule(buffers, path)

    denoiser = Unet1d(dim, base, mults)
    try:
        denoiser.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path}: the weights do not fit a U-Net of {base} channels x {mults}: {error}") from error
    broken = [name for name, value in tensors.items() if not value.isfinite().all()]
    _expect(path, "tensors that are not finite", broken[:3], [])
    if base == dim:
        warnings.warn(
            f"{path}: found the widths of the stock library ({base} channels x {mults}); its GaussianDiffusion1D does"
            " not put states on a sphere and, unless auto_normalize was off, changes the vectors: it can serve as a"
            " bridge only if the norm variant trained it; check it with --texts",
            stacklevel=2,
        )
    architecture = {"kind": "unet1d", "base": base, "mults": list(mults)}
    return ReleasedDenoiser(denoiser.eval(), architecture, schedule, WEIGHTS[weights], state.get("step"))


def bridge_from_released(
    path: Path | str,
    text_mean: Tensor,
    text_space: TextSpace,
    *,
    weights: str = "raw",
    vision_mean: Tensor | None = None,
    scale: float = 5.0,
    probes: TextProbes | None = None,
) -> Bridge:
    """A bridge of a trainer file and what the file does not hold.

    text_mean: [D] of the texts it learnt. scale: the radius c of its training vectors. probes: some of those texts.
    Raises ValueError where they do not belong together, as far as that can be seen.
    """
    released = load_released(path, len(text_mean), weights)
    geometry = Geometry(text_mean, vision_mean, scale=scale)
    if probes is not None:
        found = text_losses(released.denoiser, geometry, released.schedule, probes.vectors)
        if found["fixed_point"] < FIXED_POINT:
            raise ValueError(
                f"{path}: at t=0 the network moves its own texts (median cosine {found['fixed_point']:.4f}, expected"
                f" {FIXED_POINT} at least): it learnt other texts, or the text mean, CLIP or scale is not its own"
                "\n  mend: give the mean, CLIP and scale of its training; without --texts this is not checked"
            )
    bridge = Bridge(
        released.denoiser,
        released.architecture,
        geometry,
        released.schedule,
        text_space,
        provenance={
            "weights": {"kind": released.weights, "step": released.step},
            "imported": {"file": Path(path).name, "sha256": file_sha256(path)},
        },
        probes=probes,
    )
    bridge.verify(path)
    return bridge


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
    if weights not in WEIGHTS:
        raise ValueError(f"weights: found {weights!r}, expected raw (also called model) or ema")
    if WEIGHTS[weights] == "raw":
        return state.get("model", state)
    prefix = "ema_model."
    found = {k.removeprefix(prefix): v for k, v in state.get("ema", {}).items() if k.startswith(prefix)}
    if not found:
        raise ValueError(f"{path}: found no averaged weights; mend: read it with weights='raw'")
    return found


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


def _widths(path: Path, tensors: Mapping[str, Tensor], base: int, dim: int) -> tuple[int, ...]:
    """Multipliers of the levels, once all widths are seen to be those that `Unet1d(dim, base, mults)` has."""
    code, time_width = tensors["time_mlp.1.weight"].shape
    levels = len({name.split(".")[1] for name in tensors if name.startswith("downs.")})
    widths = [tensors[f"downs.{level}.3.weight"].shape[0] for level in range(levels)]
    found = f"time code {time_width} wide, hidden {code}, first convolution {base}, levels {widths}"
    if code != 4 * base or any(width % base for width in widths):
        raise ValueError(
            f"{path}: found {found}; expected a hidden time code of 4 x {base} and levels that are multiples of {base}."
            f" These are the widths of the stock library's Unet1D(dim={code // 4}, init_dim={base}): it cannot be"
            " expressed here\n  mend: use a file of the CVPR repo or the fork, or train one (notebook 03)"
        )
    if time_width != dim:
        stock, mend = "", "give the text mean of the CLIP that it was trained on"
        if time_width == base:
            stock = (
                f": those of the stock library's Unet1D(dim={base}), which cannot be expressed here for this dimension"
            )
            mend = "use a file of the CVPR repo or the fork, or train one (notebook 03)"
        raise ValueError(
            f"{path}: found embedding dimension (width of time_mlp.1.weight) {time_width}, expected {dim}; all widths:"
            f" {found}{stock}\n  mend: {mend}"
        )
    return tuple(width // base for width in widths)


def _expect(path: Path, what: str, found: object, expected: object) -> None:
    if found != expected:
        raise ValueError(f"{path}: found {what} {found}, expected {expected}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a bridge folder; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lib.bridge.released", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("model", type=Path, help="model-N.pt of the trainer")
    add("--text-mean", type=Path, required=True, help="mean of the texts it learnt: .pkl of the public programs")
    add("--clip", required=True, help="the CLIP whose text it learnt (names the text space): local-dir:<folder>")
    add("--out", type=Path, required=True, help="receives the bridge")
    add("--weights", choices=WEIGHTS, default="raw", help="raw = model: as the public programs sample; ema: averaged")
    add("--vision-mean", type=Path, help="mean of the features that it will carry, .pkl; else the detector's is added")
    add("--scale", type=float, default=5.0, help="radius of its training vectors (scale_factor)")
    add("--template", default="{}", help="what wrapped its sentences, such as 'a photo of a {}'")
    add("--adaptation", default="none", help="ezhoi:<fingerprint> where it learnt the text of a trained EZ-HOI")
    add("--texts", type=Path, help="sentences or COCO captions that it learnt: checks mean, CLIP and scale")
    given = parser.parse_args(arguments)
    try:
        clip = load_clip(given.clip)
        space = clip_text_space(clip, given.adaptation, given.template)
        probes = None
        if given.texts and given.adaptation != "none":
            raise ValueError(
                f"--texts {given.texts}: found --adaptation {given.adaptation}, expected none: frozen CLIP cannot make"
                " adapted text\n  mend: leave --texts out"
            )
        if given.texts:
            sentences = list(dict.fromkeys(read_captions(given.texts)))[:MAX_TEXTS]
            probes = TextProbes.of(caption_bank(clip, sentences, [given.template], given.texts.name))
        text_mean = read_mean(given.text_mean, "text").mean
        if len(text_mean) != clip.spec.embed_dim:
            raise ValueError(
                f"{given.text_mean}: found a mean {len(text_mean)} wide, expected {clip.spec.embed_dim}, the embedding"
                f" dimension of {given.clip}\n  mend: give the CLIP that the texts were encoded with"
            )
        vision_mean = read_mean(given.vision_mean, "vision").mean if given.vision_mean else None
        bridge = bridge_from_released(
            given.model, text_mean, space,
            weights=given.weights, vision_mean=vision_mean, scale=given.scale, probes=probes,
        )  # fmt: skip
        bridge.save(given.out)
    except (ClipLoadError, LegacyError, ValueError, FileNotFoundError, RuntimeError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    print(f"{given.out}: {bridge.provenance['weights']} of {given.model.name}, text space {space.id}, D {bridge.dim}")
    print("use it in training: ezhoi.bridge=" + str(given.out))
    if not given.texts:
        print("not checked: that the mean, the CLIP and the scale are those of its training (--texts checks them)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
