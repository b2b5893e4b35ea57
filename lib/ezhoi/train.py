"""Training of EZ-HOI (spec ez-hoi.md §5, §6): AdamW, focal loss on prior-fused logits, checkpoints an epoch.

loss = interaction loss (§5.2) + semantic_weight * semantic relation loss (§5.3, while the text is live). Batches may be
gathered (`accumulate`): labels need no model, so the common divisor is known before the first backward pass and the
step equals that of one large batch.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lib.engine.checkpoints import load_checkpoint, rng_state, save_checkpoint, seed_everything, set_rng_state
from lib.engine.ema import Ema
from lib.engine.progress import Progress
from lib.ezhoi.batches import HoiBatch, HoiSamples, collate
from lib.ezhoi.bridged import FeatureBridge, bridge_of_epoch, bridged_logits
from lib.ezhoi.loss import interaction_loss
from lib.ezhoi.model import EzHoi
from lib.ezhoi.pairs import Instances, Pairs, assign_labels, enumerate_pairs, pair_prior
from lib.runs import read_jsonl, write_text
from lib.settings import EzHoiSettings

Detector = Callable[[Tensor, Tensor], Instances]  # the two parts of Views -> instances in the R-frame


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient became infinite or not a number; the weights are those of the step before."""


class Share(NamedTuple):
    """What a batch counts for in its step: the divisor (positives of the whole step) and the HOI ids whose semantic
    loss it carries (those of the whole step in one of its batches, none in the others)."""

    positives: Tensor
    hois: Tensor


def pair_supervision(batch: HoiBatch, pairs: Pairs, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Labels and prior, both [P, C]; a prior of 0 takes an entry out of the loss (spec §5.1, §5.2)."""
    labels = assign_labels(batch.instances, pairs, batch.targets, valid.shape[1])
    return labels, pair_prior(batch.instances, pairs, valid, power=1.0)


def shares(batches: Sequence[HoiBatch], valid: Tensor) -> list[Share]:
    """How the batches of one step share its loss."""
    positives = valid.new_zeros((), dtype=torch.float32)
    for batch in batches:
        labels, prior = pair_supervision(batch, enumerate_pairs(batch.instances), valid)
        positives = positives + labels[prior > 0].sum()
    hois = torch.cat([batch.targets.hoi for batch in batches])
    return [Share(positives, hois), *[Share(positives, hois[:0])] * (len(batches) - 1)]


def training_loss(
    model: EzHoi,
    batch: HoiBatch,
    valid: Tensor,
    settings: EzHoiSettings,
    *,
    bridge: FeatureBridge | None = None,
    share: Share | None = None,
) -> dict[str, Tensor]:
    """Named parts of the loss of one batch; `loss` = `interaction` + `semantic` is the thing to differentiate.

    valid: [objects, C] affordances of the *seen* HOIs: unseen ones take no part in the loss (spec §1.1). bridge: what
    pair features pass before they meet the text. share: of a step over several batches. Without any positive the
    interaction loss is zero, but connected to the graph.
    """
    with autocast(settings, batch.images.device):
        output = model(batch.images, batch.memory, batch.instances)
    logits, text = output.logits.float(), output.text.float()
    if bridge is not None:
        logits = bridged_logits(
            output.features.float(), text, model.text.average, model.logit_scale_HO, bridge, settings.bridge_grad
        )
    labels, prior = pair_supervision(batch, output.pairs, valid)
    terms = interaction_loss(logits, prior, labels, alpha=settings.alpha, gamma=settings.gamma)
    total, hois = share or Share(terms["positives"], batch.targets.hoi)
    interaction = torch.where(total > 0, terms["sum"] / total.clamp(min=1), terms["sum"] * 0)
    semantic = torch.zeros_like(interaction)
    if model.text.live and settings.semantic_weight > 0 and len(hois):
        semantic = settings.semantic_weight * model.text.semantic_loss(text, hois)
    return {
        "loss": interaction + semantic,
        "interaction": interaction.detach(),
        "semantic": semantic.detach(),
        "positives": terms["positives"],
        "pairs": torch.tensor(len(labels)),
    }


def backward_step(
    model: EzHoi,
    batches: Sequence[HoiBatch],
    valid: Tensor,
    settings: EzHoiSettings,
    bridge: FeatureBridge | None = None,
) -> dict[str, Tensor]:
    """Gradients of one step, left in the parameters, and the parts of its loss summed over its batches."""
    parts: list[Share | None] = [None] if len(batches) == 1 else shares(batches, valid)
    summed: dict[str, Tensor] = {}
    for batch, share in zip(batches, parts, strict=True):
        terms = training_loss(model, batch, valid, settings, bridge=bridge, share=share)
        terms["loss"].backward()
        summed = {name: summed.get(name, 0) + value.detach() for name, value in terms.items()}
    return summed


def train_ezhoi(
    model: EzHoi,
    samples: HoiSamples,
    valid: Tensor,
    settings: EzHoiSettings,
    folder: Path,
    *,
    seed: int,
    device: torch.device | str,
    detector: Detector | None = None,
    bridge: FeatureBridge | None = None,
) -> dict[str, float]:
    """Train in place; resumes from `folder/checkpoint.pt` to the same numbers as an uninterrupted run.

    detector: finds the instances of every augmented image (`detections: live`; `samples` need its view). bridge: on
    `device` and with the mean of this model's features, see `bridged`. Returns the mean loss of the first and last
    epoch and the parameter count (that alone for no epochs). Writes history.jsonl. Raises NonFiniteLoss.
    """
    _check_detections(settings, samples, detector)
    model.to(device)
    valid = valid.to(device)
    vis, head = ([p for p in group if p.requires_grad] for group in (model.vis_parameters(), model.head_parameters()))
    parameters = nn.ParameterList([*vis, *head])
    count = {"trainable_parameters": sum(p.numel() for p in parameters)}
    if settings.epochs == 0:
        return count
    if bridge is not None and settings.bridge_grad == "none":
        silent = [
            name for name, part in model.named_children() if name != "text" and any(True for _ in part.parameters())
        ]
        warnings.warn(
            f"ezhoi.bridge_grad=none: no gradient reaches {', '.join(silent)}; only the logit scale"
            f"{' and the text side' if model.text.live else ''} learn\n  mend: ezhoi.bridge_grad=straight_through",
            stacklevel=2,
        )
    groups = [{"params": vis, "lr": settings.lr_vit}, {"params": head, "lr": settings.lr_head}]
    optimiser = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, settings.lr_step, gamma=0.1)
    ema = Ema(parameters, settings.ema, every=1, after=0) if settings.ema else None
    stateful = {"model": model, "optimiser": optimiser, "schedule": schedule} | ({"ema": ema} if ema else {})
    steps = -(-len(samples) // (settings.batch_size * settings.accumulate))
    checkpoint, history = folder / "checkpoint.pt", folder / "history.jsonl"
    epoch_losses: list[float] = []
    seed_everything(seed)
    if checkpoint.is_file():
        state = load_checkpoint(checkpoint)
        for name, part in stateful.items():
            part.load_state_dict(state[name])
        set_rng_state(state["rng"])
        epoch_losses = state["epoch_losses"]
    done = len(epoch_losses)
    _cut_history(history, steps * done)
    with Progress(
        "EZ-HOI training", steps * settings.epochs, start=steps * done, history=history, curve="loss"
    ) as progress:
        for epoch in range(done, settings.epochs):
            losses = []
            walked = None if bridge is None else bridge_of_epoch(bridge, settings.bridge_steps, epoch)
            loader = _loader(samples, settings, seed, epoch)
            for number, batches in enumerate(_grouped(loader, settings.accumulate)):
                batches = [_detected(batch.to(device), detector) for batch in batches]
                optimiser.zero_grad(set_to_none=True)
                terms = backward_step(model.train(), batches, valid, settings, walked)
                terms["gradient"] = nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
                _stop_if_not_finite(terms, batches, samples, checkpoint)
                optimiser.step()
                if ema:
                    ema.update(parameters)
                losses.append(terms["loss"])
                progress.step(epoch=epoch + 1)
                if number % settings.log_every == 0 or number == steps - 1:
                    numbers = {name: float(value) for name, value in terms.items()}
                    progress.record(**numbers, scale=float(model.logit_scale_HO.detach()))
            epoch_losses.append(float(torch.stack(losses).mean()))
            schedule.step()
            state = {name: part.state_dict() for name, part in stateful.items()}
            save_checkpoint(checkpoint, state | {"rng": rng_state(), "epoch_losses": epoch_losses})
    if ema:
        with torch.no_grad():
            torch._foreach_copy_(list(parameters), list(ema.model.parameters()))
    return {"loss_first_epoch": epoch_losses[0], "loss_last_epoch": epoch_losses[-1]} | count


def autocast(settings: EzHoiSettings, device: torch.device) -> torch.autocast:
    """bfloat16 where it is safe inside the model; losses, labels and the bridge stay in float32."""
    if settings.precision not in ("fp32", "bf16"):
        raise ValueError(f"ezhoi.precision: found {settings.precision!r}, expected fp32 or bf16")
    return torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16", cache_enabled=False)


def _detected(batch: HoiBatch, detector: Detector | None) -> HoiBatch:
    return batch if detector is None else replace(batch, instances=detector(*batch.views))


def _check_detections(settings: EzHoiSettings, samples: HoiSamples, detector: Detector | None) -> None:
    if settings.detections not in ("cached", "live"):
        raise ValueError(f"ezhoi.detections: found {settings.detections!r}, expected cached or live")
    live, given = settings.detections == "live", (detector is not None, samples.detector_view is not None)
    if given != (live, live):
        raise ValueError(
            f"ezhoi.detections: found {settings.detections} with detector={given[0]} and"
            f" samples.detector_view={given[1]}, expected both {live}"
        )


def _loader(samples: HoiSamples, settings: EzHoiSettings, seed: int, epoch: int) -> DataLoader:
    """Shuffled by (seed, epoch) alone; workers are started an epoch so that they see its number."""
    samples.epoch = epoch
    order = np.random.default_rng([seed, epoch]).permutation(len(samples)).tolist()
    return DataLoader(
        samples, settings.batch_size, sampler=order, num_workers=settings.workers, collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
    )  # fmt: skip


def _grouped(loader: Iterable[HoiBatch], size: int) -> Iterator[list[HoiBatch]]:
    """Up to `size` batches at a time; an epoch's last step may have fewer."""
    batches = iter(loader)
    while group := list(islice(batches, size)):
        yield group


def _cut_history(history: Path, step: int) -> None:
    """Drop lines of steps that ran past the checkpoint: they will be run, and written, again."""
    rows = read_jsonl(history)
    if rows and rows[-1]["step"] > step:
        write_text(history, "".join(f"{json.dumps(row)}\n" for row in rows if row["step"] <= step))


def _stop_if_not_finite(
    terms: dict[str, Tensor], batches: Sequence[HoiBatch], samples: HoiSamples, checkpoint: Path
) -> None:
    """Before the weights move. One wait for the device a step: small beside those for pair counts and loss masks."""
    if bool(torch.isfinite(torch.stack([terms["loss"], terms["gradient"]])).all()):
        return
    inputs_fit = [
        torch.isfinite(batch.images).flatten(1).all(1) & torch.isfinite(batch.memory).flatten(1).all(1)
        for batch in batches
    ]
    index, fit = torch.cat([batch.index for batch in batches]), torch.cat(inputs_fit).cpu()
    what = "all inputs of the step are finite" if fit.all() else "images or CLIP features that are not finite"
    names = [samples.dataset[int(i)].name for i in (index if fit.all() else index[~fit])]
    kept = f"the last whole epoch is in {checkpoint}" if checkpoint.is_file() else "no epoch was finished"
    raise NonFiniteLoss(
        f"EZ-HOI training: found { ({name: float(value) for name, value in terms.items()}) }, expected finite numbers;"
        f" {what}: {names}; the weights were not touched, {kept}"
        "\n  mend: inspect these images and their features, lower ezhoi.lr_vit and ezhoi.lr_head, or use"
        " ezhoi.precision=fp32"
    )
