"""Train the denoiser on a text bank (spec diffusion-bridge.md §3.3), resumable, with a held-out loss per timestep.

The whole bank lies on the device and batches are drawn by random indexing there. Held-out *texts*, not
rows, are kept apart, so that a caption that occurs twice cannot be on both sides. `optimise` is the loop itself,
which the one-evaluation student shares.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lib.bridge.architectures import architecture_of, build_denoiser
from lib.bridge.bundle import Bridge
from lib.bridge.denoisers import PrototypeDenoiser
from lib.bridge.diffusion import Schedule, bucket_losses, denoising_loss
from lib.bridge.geometry import Geometry
from lib.bridge.samplers import check_denoiser, check_sampler
from lib.bridge.self_test import TextProbes
from lib.bridge.text_bank import TextBank, text_mean
from lib.engine.checkpoints import Checkpoints, checkpoint_folder
from lib.engine.distributed import (
    is_first,
    share,
    share_of_mean,
    sum_gradients,
    summed,
    wait_for_all,
    weights_of_first,
)
from lib.engine.ema import Ema
from lib.engine.loop import cut_history
from lib.runs import append_jsonl, fingerprint, read_jsonl, write_text
from lib.settings import BridgeSettings

Progress = Callable[[int, int, dict[str, float]], None]

# settings that do not shape a denoiser's weights
SAMPLER_SETTINGS = (
    "entry_step",
    "num_steps",
    "solver",
    "last_step",
    "walk_precision",
    "center",
    "allow_text_space_mismatch",
    "student_pairs",
)
PRECISIONS = ("float32", "bfloat16")
MAX_PROTOTYPES = 20_000  # texts above which the closed form is not worth its cost as a yardstick


def split_texts(labels: Sequence[str], share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Row numbers for training and held-out rows; equal labels stay on one side, a share above 0 holds out one."""
    if not 0 <= share < 1:
        raise ValueError(f"bridge.held_out: found {share}, expected a share from 0 to below 1")
    distinct = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    count = min(math.ceil(share * len(distinct)), len(distinct) - 1)
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed))
    is_held_out = torch.zeros(len(distinct), dtype=torch.bool)
    is_held_out[order[:count]] = True
    rows = is_held_out[torch.tensor([distinct[label] for label in labels])]
    return (~rows).nonzero().flatten(), rows.nonzero().flatten()


def train_bridge(
    bank: TextBank,
    settings: BridgeSettings,
    folder: Path | str,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a denoiser on `bank` and save it as a bridge in `folder`.

    Writes checkpoints (resumed when present: on the CPU the result equals that of an uninterrupted run),
    loss.jsonl (step, loss, and val_<bucket> where validated) and the bundle. The bridge has the text mean
    only; the vision mean joins when the detector is known. Raw or averaged weights are kept, whichever has
    the lower held-out loss.

    progress: called as progress(step, steps, {"loss": ...}) every `settings.log_every` steps.
    Returns flat metrics. Raises ValueError when `folder` holds a checkpoint of other texts or settings,
    FloatingPointError on a non-finite loss.
    """
    folder = Path(folder)
    started = time.perf_counter()
    schedule = Schedule.cosine().to(device)
    check_sampler(settings.solver, settings.entry_step, settings.num_steps, len(schedule))
    geometry = Geometry(text_mean(bank), center=settings.center, scale=settings.scale)
    x0 = geometry.scale * geometry.text(bank.vectors)
    train_rows, held_out_rows = split_texts(bank.labels, settings.held_out, seed)
    train, held_out = x0[train_rows].to(device), x0[held_out_rows].to(device)

    architecture = architecture_of(settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_denoiser(architecture, bank.dim, schedule, settings.scale).to(device)
    check_denoiser(model, settings.solver, settings.entry_step)

    def batch_loss(network: nn.Module, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(train), (settings.batch,), generator=generator, device=device)
        t = torch.randint(len(schedule), (settings.batch,), generator=generator, device=device)
        noise = torch.randn((settings.batch, train.shape[1]), generator=generator, device=device)
        rows, t, noise = map(share, (rows, t, noise))
        losses = denoising_loss(network, train[rows], t, noise, schedule, settings.scale)
        return share_of_mean(losses, settings.batch)

    def held_out_losses(network: nn.Module) -> dict[str, float]:
        return bucket_losses(network, held_out, schedule, settings.scale) if len(held_out) else {}

    shaping = {name: value for name, value in asdict(settings).items() if name not in SAMPLER_SETTINGS}
    signature = fingerprint("bridge checkpoint", [shaping, seed, bank.vectors_sha, bank.space.id])
    candidates = optimise(model, batch_loss, held_out_losses, settings, folder, signature, seed, progress)

    metrics: dict[str, Any] = {"loss_train": read_jsonl(folder / "loss.jsonl")[-1]["loss"]}
    chosen, val_loss, scores = choose_weights(candidates, held_out_losses)
    metrics |= scores
    if val_loss and len(train) <= MAX_PROTOTYPES:
        closed_form = PrototypeDenoiser(train, schedule.inverse_temperature(bank.dim, settings.scale), settings.scale)
        metrics["val_closed_form"] = held_out_losses(closed_form)["all"]
    metrics |= {
        "weights": chosen,
        "steps": settings.steps,
        "rows": len(train),
        "held_out_rows": len(held_out),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "text_space": bank.space.id,
        "text_mean_norm": float(geometry.text_mean.norm()),
    }

    trained = {
        "weights": {"kind": chosen, "step": settings.steps},
        "training": {"seed": seed, "settings": asdict(settings), "val_loss": val_loss},
    }
    probes = TextProbes.of(bank, held_out_rows)
    if is_first():
        _bridge(bank, settings, geometry, candidates[chosen], architecture, trained, probes).save(folder)
    return metrics | {"seconds": time.perf_counter() - started}


def closed_form_bridge(bank: TextBank, settings: BridgeSettings) -> Bridge:
    """The bridge of the optimal denoiser for exactly these texts, without training (spec §6.3).

    The baseline for any network trained on few texts: it snaps a feature to the nearest text, and so do networks
    that have learnt their texts by heart.
    """
    schedule = Schedule.cosine()
    geometry = Geometry(text_mean(bank), center=settings.center, scale=settings.scale)
    temperature = schedule.inverse_temperature(bank.dim, settings.scale)
    denoiser = PrototypeDenoiser(geometry.text(bank.vectors), temperature, settings.scale)
    architecture = {"kind": "prototype", "count": len(bank)}
    provenance = {"weights": {"kind": "closed form"}}
    return _bridge(bank, settings, geometry, denoiser, architecture, provenance, TextProbes.of(bank))


def _bridge(
    bank: TextBank,
    settings: BridgeSettings,
    geometry: Geometry,
    denoiser: nn.Module,
    architecture: dict[str, Any],
    provenance: dict[str, Any],
    probes: TextProbes,
) -> Bridge:
    return Bridge(
        denoiser,
        architecture,
        geometry,
        Schedule.cosine(),
        bank.space,
        entry_step=settings.entry_step,
        num_steps=settings.num_steps,
        solver=settings.solver,
        last_step=settings.last_step,
        provenance={"corpus": bank.corpus(), **provenance},
        probes=probes,
    )


def optimise(
    model: nn.Module,
    batch_loss: Callable[[nn.Module, torch.Generator], Tensor],
    validate: Callable[[nn.Module], dict[str, float]],
    settings: BridgeSettings,
    folder: Path,
    signature: str,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, nn.Module]:
    """Run the steps that are left of `settings.steps`, writing checkpoints and loss.jsonl in `folder`.

    batch_loss: (model, generator) -> scalar loss; all its randomness comes from the generator, which is saved, so
        that a resumed run equals an uninterrupted one. In a process group every process draws the same numbers and
        returns what its share adds to the batch's mean (`share_of_mean`). validate: model -> numbers for the history,
        as val_<name>.
    signature: of everything that shapes the weights, to refuse a checkpoint of something else.

    Returns the networks of the last step: {"raw": model} and, where averaged, {"ema": its average}.
    """
    if settings.precision not in PRECISIONS:
        raise ValueError(f"bridge.precision: found {settings.precision!r}, expected one of {', '.join(PRECISIONS)}")
    device = next(model.parameters()).device
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16")
    generator = torch.Generator(device).manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=settings.lr, betas=(0.9, 0.99))
    ema = Ema(model, settings.ema) if settings.ema else None
    loss_sum, loss_count, step = torch.zeros((), device=device), 0, 0  # of the steps since the last line
    history, kept = folder / "loss.jsonl", Checkpoints(checkpoint_folder(folder))
    weights_of_first(model)

    if state := kept.newest():
        if state["signature"] != signature:
            raise ValueError(
                f"{kept.folder}: found a checkpoint of other texts or settings ({state['signature']}), expected"
                f" {signature}; mend: train in another folder, or delete this one"
            )
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        if ema:
            ema.load_state_dict(state["ema"])
        generator.set_state(state["generator"])
        step = state["step"]
    if is_first():
        write_text(history, "") if step == 0 else cut_history(history, step)

    model.train()
    while step < settings.steps:
        optimiser.param_groups[0]["lr"] = _learning_rate(step, settings)
        with autocast:
            loss = batch_loss(model, generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        sum_gradients(model.parameters())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if ema:
            ema.update(model)
        loss_sum += loss.detach()
        loss_count += 1
        step += 1

        last = step == settings.steps
        at_checkpoint = last or step % settings.validate_every == 0
        if at_checkpoint or step % settings.log_every == 0:
            mean_loss = float(summed(loss_sum)) / loss_count
            loss_sum, loss_count = torch.zeros((), device=device), 0
            if not math.isfinite(mean_loss):
                raise FloatingPointError(
                    f"step {step}: found a loss of {mean_loss}, expected a finite number;"
                    f" mend: lower bridge.lr (now {settings.lr:g})"
                )
            line = {"step": step, "loss": mean_loss}
            if at_checkpoint:
                line |= {f"val_{name}": value for name, value in validate(model).items()}
            if is_first():
                append_jsonl(history, line)
            if progress:
                progress(step, settings.steps, line)
        if at_checkpoint:
            state = {
                "signature": signature,
                "step": step,
                "model": model.state_dict(),
                "optimiser": optimiser.state_dict(),
                "ema": ema.state_dict() if ema else None,
                "generator": generator.get_state(),
            }
            kept.save(step, state)
    model.eval()
    wait_for_all()  # the history is whole
    return {"raw": model} | ({"ema": ema.model} if ema else {})


def choose_weights(
    candidates: dict[str, nn.Module], validate: Callable[[nn.Module], dict[str, float]]
) -> tuple[str, dict[str, float], dict[str, float]]:
    """Raw or averaged weights, whichever validate to the lower "all"; raw where nothing is held out.

    Returns the name, its validation numbers, and all numbers as metrics: val_<name of the weights>, val_<number>.
    """
    losses = {name: validate(network) for name, network in candidates.items()}
    if not losses["raw"]:
        return "raw", {}, {}
    chosen = min(losses, key=lambda name: losses[name]["all"])
    metrics = {f"val_{name}": loss["all"] for name, loss in losses.items()}
    return chosen, losses[chosen], metrics | {f"val_{key}": value for key, value in losses[chosen].items()}


def _learning_rate(step: int, settings: BridgeSettings) -> float:
    if settings.lr_decay == "constant":
        return settings.lr
    if settings.lr_decay == "cosine":
        return settings.lr * (1 + math.cos(math.pi * step / settings.steps)) / 2
    raise ValueError(f"bridge.lr_decay: found {settings.lr_decay!r}, expected cosine or constant")
