"""Train a DETR of any size on annotated boxes, from released weights or those of another data set.

DETR's own recipe: AdamW with a slower backbone, the set loss on every decoder layer, frozen batch norm, gradients
clipped. (The small detector of the stick world was made from nothing by `lib.detection.train`.)
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import DetrForObjectDetection
from transformers.utils import logging as transformers_logging

from lib.detection.detr import FILES, DetectorError, class_positions
from lib.detection.losses import match, set_loss
from lib.detection.samples import AUGMENTATIONS, BoxBatch, BoxSamples, collate
from lib.detection.train import layer_predictions
from lib.engine.checkpoints import seed_everything
from lib.engine.distributed import is_first, sum_gradients, summed, wait_for_all, weights_of_first
from lib.engine.loop import Loop, Terms, epoch_steps, in_steps, own_parts
from lib.runs import atomic_write, write_json
from lib.settings import CheckpointSettings, DetectorTrainSettings

_TRAINED_STAGES = r"\blayer[234]\.|\bstages\.[123]\."  # timm's and transformers' names of all but the first


def start_from(folder: Path | str, classes: Sequence[str]) -> DetrForObjectDetection:
    """The DETR of a folder, with outputs for `classes`: rows of equal names are kept, others start at random.

    Batch norm, the stem and the first stage stay frozen, as in DETR. Raises DetectorError for a folder without weights.
    """
    folder = Path(folder)
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        mend = "convert a released checkpoint: python -m lib.detection.released detr.pth FOLDER"
        raise DetectorError(folder, f"no {missing[0]}", f"a folder with {', '.join(FILES)}", mend)
    model = DetrForObjectDetection.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    old = model.class_labels_classifier
    place = class_positions(classes, [model.config.id2label[index] for index in range(len(old.weight) - 1)])
    rows = torch.tensor([*place, len(old.weight) - 1])  # background comes last
    new = nn.Linear(old.in_features, len(rows))
    with torch.no_grad():
        new.weight[rows >= 0], new.bias[rows >= 0] = old.weight[rows[rows >= 0]], old.bias[rows[rows >= 0]]
    model.class_labels_classifier = new
    for name, parameter in model.model.backbone.named_parameters():
        parameter.requires_grad_(re.search(_TRAINED_STAGES, name) is not None)
    model.config.id2label = dict(enumerate(classes))
    model.config.label2id = {name: index for index, name in enumerate(classes)}
    return model


def box_losses(model: DetrForObjectDetection, batch: BoxBatch, bf16: bool = False) -> dict[str, Tensor]:
    """Named parts (class, box, giou) of DETR's loss, summed over the decoder layers; matching and losses in fp32."""
    with torch.autocast(batch.pixels.device.type, torch.bfloat16, enabled=bf16):
        output = model.model(batch.pixels, pixel_mask=batch.mask, output_hidden_states=True)
        logits, boxes = layer_predictions(model, output.decoder_hidden_states)
    layers = len(logits) // len(batch.pixels)
    targets = batch.targets.repeat(layers)
    return set_loss(logits, boxes, match(logits, boxes, targets), targets, layers=layers)


def finetune(
    model: DetrForObjectDetection,
    samples: BoxSamples,
    recipe: DetectorTrainSettings,
    folder: Path,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    checkpoints: CheckpointSettings | None = None,
) -> dict[str, float]:
    """Train in place; resumes from `folder`/checkpoints to the same numbers as an uninterrupted run on the CPU.

    Several processes share the images of a step. Returns the mean loss of the first and last epoch. Raises
    NonFiniteLoss, and DetectorError for a setting that is not known.
    """
    _check(recipe, samples)
    seed_everything(seed)
    model.to(device).train()
    weights_of_first(model)
    backbone = [p for p in model.model.backbone.parameters() if p.requires_grad]
    own = {id(p) for p in backbone}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    groups = [{"params": backbone, "lr": recipe.lr_backbone}, {"params": others, "lr": recipe.lr}]
    optimiser = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
    steps = -(-len(samples) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, recipe.lr_step * steps)
    loop = Loop(
        "DETR training", folder, recipe.epochs, steps, log_every=recipe.log_every,
        parts={"model": model, "optimiser": optimiser, "schedule": schedule},
        checkpoints=checkpoints or CheckpointSettings(),
    )  # fmt: skip
    sizes: list[int] = []  # images of the steps of this epoch, over all processes

    def batches(epoch: int, first: int) -> Iterable[list[BoxBatch]]:
        samples.epoch = epoch
        planned = epoch_steps(len(samples), recipe.batch_size, 1, seed, epoch)
        sizes[:] = [len(parts[0]) for parts in planned]
        parts = own_parts(planned)[first:]
        order = [part for step in parts for part in step]
        loader = DataLoader(samples, batch_sampler=order, num_workers=recipe.workers, collate_fn=collate)
        return in_steps(loader, parts)

    def step(epoch: int, number: int, loaded: list[BoxBatch]) -> Terms:
        optimiser.zero_grad(set_to_none=True)
        terms = dict.fromkeys(("class", "box", "giou"), torch.zeros((), device=device))
        for batch in (part.to(device) for part in loaded):
            share = len(batch.index) / sizes[number]
            terms = {name: share * part for name, part in box_losses(model, batch, recipe.precision == "bf16").items()}
            sum(terms.values()).backward()
        sum_gradients([*backbone, *others])
        terms = {name: summed(part) for name, part in terms.items()}
        terms["gradient"] = nn.utils.clip_grad_norm_([*backbone, *others], recipe.clip_norm)
        terms["loss"] = terms["class"] + terms["box"] + terms["giou"]
        names = [samples.truth[int(index)].name for batch in loaded for index in batch.index]
        loop.stop_if_not_finite(terms, lambda: f"images {names}", "lower detector.train.lr, or precision=fp32")
        optimiser.step()
        schedule.step()
        return terms

    found = loop.run(batches, step, lambda epoch: {})
    model.eval()
    return found


def save_detr(model: DetrForObjectDetection, start: Path | str, folder: Path | str) -> None:
    """Write the folder that `load_detr` reads: weights, config, and the preprocessing of the folder it started from."""
    wait_for_all()
    if not is_first():
        return
    transformers_logging.disable_progress_bar()  # a bar for one file says nothing
    with tempfile.TemporaryDirectory() as temporary:  # save_pretrained is not atomic
        model.save_pretrained(temporary)
        weights = (Path(temporary) / "model.safetensors").read_bytes()
        config = json.loads((Path(temporary) / "config.json").read_text())
    processing = json.loads((Path(start) / "preprocessor_config.json").read_text())
    atomic_write(Path(folder) / "model.safetensors", lambda stream: stream.write(weights))
    write_json(Path(folder) / "preprocessor_config.json", processing)
    write_json(Path(folder) / "config.json", config)
    shutil.rmtree(Path(folder) / "checkpoints", ignore_errors=True)


def _check(recipe: DetectorTrainSettings, samples: BoxSamples) -> None:
    where = "detector.train"
    if samples.augment not in AUGMENTATIONS:
        raise DetectorError(f"{where}.augment", repr(samples.augment), " | ".join(AUGMENTATIONS), "set one of them")
    if recipe.precision not in ("fp32", "bf16"):
        raise DetectorError(f"{where}.precision", repr(recipe.precision), "fp32 | bf16", "set one of them")
    if not len(samples):
        raise DetectorError("annotations", "no image with a box", "at least one", "check data.root and the split")
