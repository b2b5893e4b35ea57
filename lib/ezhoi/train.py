"""Training of EZ-HOI (spec ez-hoi.md §5, §6): AdamW, focal loss on prior-fused logits, checkpoints an epoch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lib.config import EzHoiSettings
from lib.engine.checkpoints import load_checkpoint, rng_state, save_checkpoint, seed_everything, set_rng_state
from lib.engine.progress import Progress
from lib.ezhoi.batches import HoiBatch, HoiSamples, collate
from lib.ezhoi.loss import interaction_loss
from lib.ezhoi.model import EzHoi
from lib.ezhoi.pairs import assign_labels, pair_prior


class NonFiniteLoss(RuntimeError):
    """The loss became infinite or not a number."""


def training_loss(model: EzHoi, batch: HoiBatch, valid: Tensor, settings: EzHoiSettings) -> dict[str, Tensor]:
    """Named parts of the loss of one batch; `loss` is their sum, the thing to differentiate.

    valid: [objects, C] affordances of the *seen* HOIs: unseen ones get neither logits nor loss (spec §1.1).
    """
    output = model(batch.images, batch.memory, batch.instances)
    labels = assign_labels(batch.instances, output.pairs, batch.targets, valid.shape[1])
    prior = pair_prior(batch.instances, output.pairs, valid, power=1.0)
    terms = interaction_loss(output.logits.float(), prior, labels, alpha=settings.alpha, gamma=settings.gamma)
    positives = terms["positives"]
    loss = torch.where(positives > 0, terms["sum"] / positives.clamp(min=1), terms["sum"] * 0)
    return {
        "loss": loss,
        "interaction": loss.detach(),
        "positives": positives,
        "pairs": torch.tensor(len(labels)),
    }


def train_ezhoi(
    model: EzHoi,
    samples: HoiSamples,
    valid: Tensor,
    settings: EzHoiSettings,
    folder: Path,
    *,
    seed: int,
    device: torch.device | str,
) -> dict[str, float]:
    """Train in place; resumes from `folder/checkpoint.pt` to the same numbers as an uninterrupted run.

    Returns the mean loss of the first and last epoch and the parameter count. Writes history.jsonl.
    """
    model.to(device)
    valid = valid.to(device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=settings.lr_head, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, settings.lr_step, gamma=0.1)
    steps = -(-len(samples) // settings.batch_size)
    checkpoint, epoch_losses = folder / "checkpoint.pt", []
    seed_everything(seed)
    if checkpoint.is_file():
        state = load_checkpoint(checkpoint)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        set_rng_state(state["rng"])
        epoch_losses = state["epoch_losses"]
    autocast = torch.autocast(
        torch.device(device).type, torch.bfloat16, enabled=settings.precision == "bf16", cache_enabled=False
    )
    done = len(epoch_losses)
    with Progress(
        "EZ-HOI training",
        steps * settings.epochs,
        start=steps * done,
        history=folder / "history.jsonl",
        curve="loss",
    ) as progress:
        for epoch in range(done, settings.epochs):
            losses = []
            for number, batch in enumerate(_loader(samples, settings, seed, epoch)):
                batch = batch.to(device)
                with autocast:
                    terms = training_loss(model.train(), batch, valid, settings)
                optimiser.zero_grad(set_to_none=True)
                terms["loss"].backward()
                torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
                optimiser.step()
                losses.append(terms["loss"].detach())
                progress.step(epoch=epoch + 1)
                if number % settings.log_every == 0 or number == steps - 1:
                    numbers = {name: float(value.detach()) for name, value in terms.items()}
                    _stop_if_not_finite(numbers, batch, samples)
                    progress.record(**numbers, scale=float(model.logit_scale_HO.detach()))
            mean = torch.stack(losses).mean()
            _stop_if_not_finite({"epoch mean": float(mean)}, batch, samples)
            epoch_losses.append(float(mean))
            schedule.step()
            save_checkpoint(
                checkpoint,
                {
                    "model": model.state_dict(), "optimiser": optimiser.state_dict(),
                    "schedule": schedule.state_dict(), "rng": rng_state(), "epoch_losses": epoch_losses,
                },
            )  # fmt: skip
    return {
        "loss_first_epoch": epoch_losses[0],
        "loss_last_epoch": epoch_losses[-1],
        "trainable_parameters": sum(p.numel() for p in parameters),
    }


def _loader(samples: HoiSamples, settings: EzHoiSettings, seed: int, epoch: int) -> DataLoader:
    """Shuffled by (seed, epoch) alone; workers are started an epoch so that they see its number."""
    samples.epoch = epoch
    order = np.random.default_rng([seed, epoch]).permutation(len(samples)).tolist()
    return DataLoader(
        samples, settings.batch_size, sampler=order, num_workers=settings.workers, collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
    )  # fmt: skip


def _stop_if_not_finite(numbers: dict[str, float], batch: HoiBatch, samples: HoiSamples) -> None:
    if np.isfinite(list(numbers.values())).all():
        return
    names = [samples.dataset[int(i)].name for i in batch.index]
    raise NonFiniteLoss(
        f"EZ-HOI training: found {numbers}, expected finite losses; last batch: {names}"
        "\n  mend: lower ezhoi.lr, use ezhoi.precision=fp32, or inspect these images"
    )
