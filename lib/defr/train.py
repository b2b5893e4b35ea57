"""Training of DEFR (spec defr.md §7, §10): AdamW end to end, cosine with warm restarts, one or several processes.

Nothing random is left to the loop: order and augmentation are functions of (seed, epoch), so a resumed run repeats the
uninterrupted one, and the number of processes changes nothing but the order of summation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lib.defr.labels import AMBIGUOUS, POSITIVE
from lib.defr.losses import Loss, build_loss, lse_sign, positive_share, positive_weights
from lib.defr.model import DefrClassifier
from lib.defr.pictures import RecognitionImages
from lib.engine.checkpoints import load_checkpoint, save_checkpoint
from lib.engine.progress import Progress
from lib.runs import read_jsonl, write_text
from lib.settings import DefrSettings

Evaluate = Callable[[DefrClassifier], dict[str, float]]


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient became infinite or not a number; the weights are those of the step before."""


def restart_cosine(step: int, steps_per_epoch: int, period: int) -> float:
    """Factor on the learning rate that step 0, 1, ... uses: cosine with warm restarts every `period` epochs (§7).

    The published loop advances the schedule after a step, so a step has the cosine of the step before it: the first two
    share the base rate and the first of a new cycle still has the end of the last one.
    """
    epoch = max(step - 1, 0) / steps_per_epoch
    return 0.5 * (1 + math.cos(math.pi * (epoch % period) / period))


def train_defr(
    model: DefrClassifier,
    images: RecognitionImages,
    settings: DefrSettings,
    folder: Path,
    *,
    seed: int,
    device: torch.device | str,
    evaluate: Evaluate | None = None,
) -> dict[str, float]:
    """Train in place; resumes from `folder/checkpoint.pt`, written every epoch by the first process.

    images: with order and augmentation. evaluate: called on all processes at the end of every cycle and of training;
    its numbers go to history.jsonl as they come. In an initialised process group, a step's batch is shared out and
    gradients are summed: the same step as one process makes. Returns the mean loss of the first and last epoch.
    Raises NonFiniteLoss.
    """
    device, (rank, world) = torch.device(device), processes()
    model.to(device)
    loss_of = _loss(settings, images, device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, settings.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    checkpoint, history = folder / "checkpoint.pt", folder / "history.jsonl"
    epoch_losses: list[float] = []
    if checkpoint.is_file():
        state = load_checkpoint(checkpoint)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        epoch_losses = state["epoch_losses"]
    _same_weights(model, world)
    steps, done = len(step_batches(images, settings, seed, 0, world)), len(epoch_losses)
    if rank == 0:
        _cut_history(history, steps * done)
    total = steps * settings.epochs
    with Progress("DEFR", total, start=steps * done, history=history if rank == 0 else None, curve="loss") as progress:
        for epoch in range(done, settings.epochs):
            model.train()
            batches = step_batches(images, settings, seed, epoch, world)
            losses = []
            for number, (size, (_, pixels, labels)) in enumerate(
                zip(map(len, batches), _loader(images, batches, settings, epoch, rank, world), strict=True)
            ):
                step = epoch * steps + number
                rate = settings.lr * restart_cosine(step, steps, settings.restart_epochs)
                optimiser.param_groups[0]["lr"] = rate
                optimiser.zero_grad(set_to_none=True)
                labels = labels.to(device)
                logits = model(pixels.to(device), settings.precision)
                loss = loss_of(logits, labels).sum() / size
                loss.backward()
                terms = _summed_over_processes(parameters, loss.detach(), world)
                terms["gradient"] = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
                _stop_if_not_finite(terms, epoch, number, checkpoint)
                optimiser.step()
                losses.append(terms["loss"])
                progress.step(epoch=epoch + 1)
                if number % settings.log_every == 0 or number == steps - 1:
                    terms["positive_share"] = positive_share(logits.detach(), labels == POSITIVE)
                    progress.record(lr=rate, **{name: float(value) for name, value in terms.items()})
            epoch_losses.append(float(torch.stack(losses).mean()))
            if evaluate is not None and ((epoch + 1) % settings.restart_epochs == 0 or epoch + 1 == settings.epochs):
                progress.record(epoch=epoch + 1, **evaluate(model.eval()))
            if rank == 0:
                state = {"model": model.state_dict(), "optimiser": optimiser.state_dict()}
                save_checkpoint(checkpoint, state | {"epoch": epoch + 1, "epoch_losses": epoch_losses})
    if world > 1:
        dist.barrier()
    model.eval()
    return {"loss_first_epoch": epoch_losses[0], "loss_last_epoch": epoch_losses[-1]} if epoch_losses else {}


def processes() -> tuple[int, int]:
    """(rank, number of processes) of the initialised process group; (0, 1) without one."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def step_batches(
    images: RecognitionImages, settings: DefrSettings, seed: int, epoch: int, world: int = 1
) -> list[np.ndarray]:
    """Positions of every step's batch over all processes, shuffled by (seed, epoch) alone.

    A last batch too small to give every process an image is left out of this epoch.
    """
    order = np.random.default_rng([seed, epoch]).permutation(len(images))
    batches = [order[start : start + settings.batch_size] for start in range(0, len(order), settings.batch_size)]
    kept = [batch for batch in batches if len(batch) >= world]
    if not kept:
        raise ValueError(f"DEFR training: found {len(order)} images a step for {world} processes, expected one each")
    return kept


def _loss(settings: DefrSettings, images: RecognitionImages, device: torch.device) -> Loss:
    """Labels [B, C] in {-2, -1, 0, 1} and logits -> loss of every image [B]."""
    if settings.loss == "sign" and settings.ignore_ambiguous:
        return lambda logits, labels: lse_sign(logits, labels == POSITIVE, ignore=labels == AMBIGUOUS)
    counts = (images.labels == POSITIVE).double().T @ torch.bincount(
        torch.from_numpy(images.order), minlength=len(images.labels)
    ).double()  # (C,), copies counted
    weight = positive_weights(counts, len(images)).to(device)
    of_targets = build_loss(
        settings.loss, positive_weight=weight, alpha=settings.focal_alpha, gamma=settings.focal_gamma
    )
    return lambda logits, labels: of_targets(logits, labels == POSITIVE)


def _loader(
    images: RecognitionImages, batches: list[np.ndarray], settings: DefrSettings, epoch: int, rank: int, world: int
) -> DataLoader:
    images.epoch = epoch
    mine = [batch[rank::world].tolist() for batch in batches]
    return DataLoader(images, batch_sampler=mine, num_workers=settings.workers, pin_memory=torch.cuda.is_available())


def _summed_over_processes(parameters: list[nn.Parameter], loss: Tensor, world: int) -> dict[str, Tensor]:
    """Sum gradients and loss; each process divided its part by the whole batch's size."""
    if world > 1:
        handles = [dist.all_reduce(p.grad, async_op=True) for p in parameters if p.grad is not None]
        dist.all_reduce(loss)
        for handle in handles:
            handle.wait()
    return {"loss": loss}


def _same_weights(model: nn.Module, world: int) -> None:
    """The first process's weights everywhere: random starts need not agree across machines."""
    if world > 1:
        for value in model.state_dict().values():
            dist.broadcast(value, src=0)


def _cut_history(history: Path, step: int) -> None:
    """Drop lines of steps that ran past the checkpoint: they will be run, and written, again."""
    rows = read_jsonl(history)
    if rows and rows[-1]["step"] > step:
        write_text(history, "".join(f"{json.dumps(row)}\n" for row in rows if row["step"] <= step))


def _stop_if_not_finite(terms: dict[str, Tensor], epoch: int, number: int, checkpoint: Path) -> None:
    if bool(torch.isfinite(torch.stack(list(terms.values()))).all()):
        return
    kept = f"the last whole epoch is in {checkpoint}" if checkpoint.is_file() else "no epoch was finished"
    raise NonFiniteLoss(
        f"DEFR training, epoch {epoch + 1}, step {number + 1}: found"
        f" { ({name: float(value) for name, value in terms.items()}) }, expected finite numbers; the weights were not"
        f" touched, {kept}\n  mend: lower defr.lr, or use defr.precision=fp32"
    )
