"""Training of DEFR (spec defr.md §7, §10): AdamW end to end, cosine with warm restarts, one or several processes.

Nothing random is left to the loop: order and augmentation are functions of (seed, epoch), so a resumed run repeats the
uninterrupted one, and the number of processes changes nothing but the order of summation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lib.defr.labels import AMBIGUOUS, POSITIVE
from lib.defr.losses import Loss, build_loss, lse_sign, positive_share, positive_weights
from lib.defr.model import DefrClassifier
from lib.defr.pictures import RecognitionImages
from lib.engine.distributed import gathered, sum_gradients, summed, weights_of_first
from lib.engine.loop import Loop, epoch_steps, in_steps, own_parts
from lib.settings import CheckpointSettings, DefrSettings

Evaluate = Callable[[DefrClassifier], dict[str, float]]
Batch = tuple[Tensor, Tensor, Tensor]  # image indices [B], pixels [B, 3, n, n], labels [B, C]


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
    checkpoints: CheckpointSettings | None = None,
) -> dict[str, float]:
    """Train in place; resumes from `folder/checkpoints`, written every epoch by the first process.

    images: with order and augmentation. evaluate: called on all processes at the end of every cycle and of training;
    its numbers go to history.jsonl as they come. In an initialised process group, a step's batch is shared out and
    gradients are summed: the same step as one process makes. Returns the mean loss of the first and last epoch.
    Raises NonFiniteLoss.
    """
    device = torch.device(device)
    model.to(device)
    loss_of = _loss(settings, images, device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, settings.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    checkpoints = checkpoints or CheckpointSettings()
    weights_of_first(model)
    steps_of = lambda epoch: epoch_steps(len(images), settings.batch_size, 1, seed, epoch)  # noqa: E731
    steps = len(steps_of(0))
    loop = Loop(
        "DEFR", folder, settings.epochs, steps, {"model": model, "optimiser": optimiser}, settings.log_every,
        best=checkpoints.defr, checkpoints=checkpoints,
    )  # fmt: skip

    def batches(epoch: int, first: int) -> Iterator[tuple[int, list[Batch]]]:
        left = steps_of(epoch)[first:]
        own = own_parts(left)
        sizes = [len(batch) for (batch,) in left]
        return zip(sizes, in_steps(_loader(images, own, settings, epoch), own), strict=True)

    def step(epoch: int, number: int, batch: tuple[int, list[Batch]]) -> dict[str, Tensor | float]:
        model.train()
        size, own = batch
        rate = settings.lr * restart_cosine(epoch * steps + number, steps, settings.restart_epochs)
        optimiser.param_groups[0]["lr"] = rate
        optimiser.zero_grad(set_to_none=True)
        numbers = torch.zeros(2, device=device)  # loss, share of positives
        for _, pixels, labels in own:  # one, or none where the batch is smaller than the number of processes
            labels = labels.to(device)
            logits = model(pixels.to(device), settings.precision)
            loss = loss_of(logits, labels).sum() / size
            loss.backward()
            positive = positive_share(logits.detach(), labels == POSITIVE) * len(labels) / size
            numbers = torch.stack([loss.detach(), positive])
        sum_gradients(parameters)
        loss, positive = summed(numbers)
        gradient = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        terms = {"loss": loss, "gradient": gradient}
        loop.stop_if_not_finite(terms, lambda: _images_of(own, images), "lower defr.lr, or use defr.precision=fp32")
        optimiser.step()
        return terms | {"lr": rate, "positive_share": positive}

    def after_epoch(epoch: int) -> dict[str, float]:
        cycle_ends = (epoch + 1) % settings.restart_epochs == 0 or epoch + 1 == settings.epochs
        return evaluate(model.eval()) if evaluate is not None and cycle_ends else {}

    info = loop.run(batches, step, after_epoch)
    model.eval()
    return info


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


def _loader(images: RecognitionImages, own: list[list[list[int]]], settings: DefrSettings, epoch: int) -> DataLoader:
    images.epoch = epoch
    mine = [part for step in own for part in step]
    return DataLoader(images, batch_sampler=mine, num_workers=settings.workers, pin_memory=torch.cuda.is_available())


def _images_of(own: list[Batch], images: RecognitionImages) -> str:
    """The images of a step, on all processes."""
    names = [images.paths[i].name for index, _, _ in own for i in index.tolist()]
    return f"its images: {sum(gathered(names), [])}"
