"""Training of EZ-HOI (spec ez-hoi.md §5, §6): AdamW, focal loss on prior-fused logits, checkpoints an epoch.

loss = interaction loss (§5.2) + semantic_weight * semantic relation loss (§5.3, while the text is live). Batches may be
gathered (`accumulate`): labels need no model, so the common divisor is known before the first backward pass and the
step equals that of one large batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lib.engine.checkpoints import seed_everything
from lib.engine.distributed import gathered, is_first, processes, sum_gradients, summed, weights_of_first
from lib.engine.ema import Ema
from lib.engine.loop import Loop, epoch_steps, in_steps, own_parts
from lib.ezhoi.batches import HoiBatch, HoiSamples, collate
from lib.ezhoi.bridged import FeatureBridge, bridge_of_epoch, bridged_logits
from lib.ezhoi.loss import interaction_loss
from lib.ezhoi.model import EzHoi
from lib.ezhoi.pairs import Instances, Pairs, assign_labels, enumerate_pairs, pair_prior
from lib.settings import CheckpointSettings, EzHoiSettings

Detector = Callable[[Tensor, Tensor], Instances]  # the two parts of Views -> instances in the R-frame
Evaluate = Callable[[EzHoi], dict[str, float]]
PARTS = ("loss", "interaction", "semantic", "positives", "pairs")  # of a step
STREAM_OF_RANK = 1_000_003  # seeds of the processes' dropout are this far apart
MEND = "inspect these images and their features, lower ezhoi.lr_vit and ezhoi.lr_head, or use ezhoi.precision=fp32"


class Share(NamedTuple):
    """What a batch counts for in its step: the divisor (positives of the whole step) and the HOI ids whose semantic
    loss it carries (those of the whole step in the first process's first batch, none in the others)."""

    positives: Tensor
    hois: Tensor


def pair_supervision(batch: HoiBatch, pairs: Pairs, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Labels and prior, both [P, C]; a prior of 0 takes an entry out of the loss (spec §5.1, §5.2)."""
    labels = assign_labels(batch.instances, pairs, batch.targets, valid.shape[1])
    return labels, pair_prior(batch.instances, pairs, valid, power=1.0)


def shares(batches: Sequence[HoiBatch], valid: Tensor, num_hois: int) -> list[Share]:
    """How this process's batches of one step share its loss with each other and with those of other processes."""
    counts = torch.zeros(1 + num_hois, device=valid.device)  # positives, rows of every HOI
    for batch in batches:
        labels, prior = pair_supervision(batch, enumerate_pairs(batch.instances), valid)
        counts[0] += labels[prior > 0].sum()
        counts[1:] += torch.bincount(batch.targets.hoi, minlength=num_hois)
    counts = summed(counts)
    positives, hois = counts[0], counts[1:].nonzero().flatten()
    return [Share(positives, hois if is_first() and number == 0 else hois[:0]) for number in range(len(batches))]


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
    """This process's gradients of one step, left in the parameters, and the parts of its loss over all processes."""
    alone = len(batches) == 1 and processes()[1] == 1
    parts = [None] if alone else shares(batches, valid, len(model.text.class_of_hoi))
    numbers = torch.zeros(len(PARTS), device=valid.device)
    for batch, share in zip(batches, parts, strict=True):
        terms = training_loss(model, batch, valid, settings, bridge=bridge, share=share)
        terms["loss"].backward()
        numbers += torch.stack([terms[name].detach().to(numbers) for name in PARTS])
    return dict(zip(PARTS, summed(numbers), strict=True))


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
    evaluate: Evaluate | None = None,
    checkpoints: CheckpointSettings | None = None,
) -> dict[str, float]:
    """Train in place; resumes from `folder/checkpoints` to the same numbers as an uninterrupted run.

    In a process group every process computes its share of each batch and gradients are summed: the step of one process,
    up to rounding, but for the dropout inside the network, whose random numbers belong to a process.

    detector: finds the instances of every augmented image (`detections: live`; `samples` need its view). bridge: on
    `device` and with the mean of this model's features, see `bridged`. evaluate: model -> numbers an epoch, for the
    history and for `checkpoints.ezhoi`. Returns the mean loss of the first and last epoch and the parameter count (that
    alone for no epochs). Writes history.jsonl. Raises NonFiniteLoss.
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
        _warn_of_silent_parts(model)
    groups = [{"params": vis, "lr": settings.lr_vit}, {"params": head, "lr": settings.lr_head}]
    optimiser = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, settings.lr_step, gamma=0.1)
    ema = Ema(parameters, settings.ema, every=1, after=0) if settings.ema else None
    parts = {"model": model, "optimiser": optimiser, "schedule": schedule} | ({"ema": ema} if ema else {})
    checkpoints = checkpoints or CheckpointSettings()
    weights_of_first(model)
    seed_everything(seed + STREAM_OF_RANK * processes()[0])
    loop = Loop(
        "EZ-HOI training", folder, settings.epochs, len(_steps(samples, settings, seed, 0)), parts, settings.log_every,
        "ema" if ema else "model", checkpoints.ezhoi, checkpoints,
    )  # fmt: skip

    def batches(epoch: int, first: int) -> Iterator[list[HoiBatch]]:
        own = own_parts(_steps(samples, settings, seed, epoch)[first:])
        return in_steps(_loader(samples, own, settings, epoch), own)

    def step(epoch: int, number: int, batches: list[HoiBatch]) -> dict[str, Tensor]:
        walked = None if bridge is None else bridge_of_epoch(bridge, settings.bridge_steps, epoch)
        batches = [_detected(batch.to(device), detector) for batch in batches]
        optimiser.zero_grad(set_to_none=True)
        terms = backward_step(model.train(), batches, valid, settings, walked)
        sum_gradients(parameters)
        terms["gradient"] = nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        loop.stop_if_not_finite(terms, lambda: _suspects(batches, samples), MEND)
        optimiser.step()
        if ema:
            ema.update(parameters)
        return terms | {"scale": model.logit_scale_HO.detach()}

    def after_epoch(epoch: int) -> dict[str, float]:
        schedule.step()
        return {} if evaluate is None else evaluate(model)

    info = loop.run(batches, step, after_epoch)
    if ema:
        with torch.no_grad():
            torch._foreach_copy_(list(parameters), list(ema.model.parameters()))
    return info | count


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


def _steps(samples: HoiSamples, settings: EzHoiSettings, seed: int, epoch: int) -> list[list[np.ndarray]]:
    return epoch_steps(len(samples), settings.batch_size, settings.accumulate, seed, epoch)


def _loader(samples: HoiSamples, own: list[list[list[int]]], settings: EzHoiSettings, epoch: int) -> DataLoader:
    """This process's batches of an epoch; workers are started an epoch so that they see its number."""
    samples.epoch = epoch
    return DataLoader(
        samples, batch_sampler=[part for step in own for part in step], num_workers=settings.workers,
        collate_fn=collate, pin_memory=torch.cuda.is_available(),
    )  # fmt: skip


def _warn_of_silent_parts(model: EzHoi) -> None:
    silent = [name for name, part in model.named_children() if name != "text" and any(True for _ in part.parameters())]
    warnings.warn(
        f"ezhoi.bridge_grad=none: no gradient reaches {', '.join(silent)}; only the logit scale"
        f"{' and the text side' if model.text.live else ''} learn\n  mend: ezhoi.bridge_grad=straight_through",
        stacklevel=3,
    )


def _suspects(batches: Sequence[HoiBatch], samples: HoiSamples) -> str:
    """The images of a step, on all processes: those whose inputs are not finite, or else all of them."""
    found: list[tuple[str, bool]] = []
    for batch in batches:
        fit = torch.isfinite(batch.images).flatten(1).all(1) & torch.isfinite(batch.memory).flatten(1).all(1)
        found += [(samples.dataset[i].name, ok) for i, ok in zip(batch.index.tolist(), fit.tolist(), strict=True)]
    found = sum(gathered(found), [])
    broken = [name for name, fit in found if not fit]
    if broken:
        return f"images or CLIP features that are not finite: {broken}"
    return f"all inputs of the step are finite: {[name for name, _ in found]}"
