"""Contrastive pre-training of a small CLIP on captioned images (the CLIP of the embedded world).

The logit scale stays at CLIP's final value 100: with a learned one a small model closes its modality gap on the way,
with the fixed one the gap stays like that of the released models. Every picture is shown in the ways that consumers
show pictures to a CLIP: the evaluation transform (short side, centre crop), squashed to a square (EZ-HOI), and cropped
around what the caption tells of (zero-shot classification of pairs).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor, nn

from lib.clip.load import ClipModel
from lib.clip.text import encode_text
from lib.clip.tokens import encode_image
from lib.engine.schedules import warmup_cosine

LOGIT_SCALE = 100.0
VIEWS = {"centre": 0.15, "squash": 0.25, "square": 0.4, "stretch": 0.2}  # how often a caption's picture is shown how


@dataclass(frozen=True)
class ContrastiveTraining:
    """Recipe of the tiny CLIP."""

    steps: int = 1500
    batch_size: int = 128
    learning_rate: float = 1e-3
    warmup: int = 60
    weight_decay: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class CaptionedImages:
    """N pictures with K texts each.

    pixels: [N, 3, H, W] uint8. tokens: [N, K, T] token ids. regions: [N, K, 4] xyxy in [0, 1], what a text tells of.
    whole: [K] bool, whether a text of this kind also fits the whole picture. weights: [K] how often each kind is drawn.
    """

    pixels: Tensor
    tokens: Tensor
    regions: Tensor
    whole: Tensor
    weights: Tensor


def train_clip(
    model: nn.Module,
    data: CaptionedImages,
    recipe: ContrastiveTraining,
    log: Callable[[dict[str, float]], None] = lambda row: None,
) -> nn.Module:
    """Train an open_clip model in place and return it frozen, in eval mode."""
    torch.manual_seed(recipe.seed)
    model.requires_grad_(True).train()
    model.logit_scale.requires_grad_(False).fill_(math.log(LOGIT_SCALE))
    size = model.visual.image_size[0]
    start_patch_embedding(model.visual, _draw_batch(data, 512, size)[0])
    optimiser = torch.optim.AdamW(
        _parameter_groups(model, recipe.weight_decay), lr=recipe.learning_rate, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: warmup_cosine(step, recipe.warmup, recipe.steps)
    )
    for step in range(recipe.steps):
        images, tokens = _draw_batch(data, recipe.batch_size, size)
        image = F.normalize(model.visual(images), dim=-1)
        text = model.encode_text(tokens, normalize=True)
        loss = contrastive_loss(LOGIT_SCALE * image @ text.T, tokens)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"tiny CLIP, step {step}: loss {loss.item()}; lower the learning rate")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % 50 == 0 or step == recipe.steps - 1:
            gap = (image.mean(0) - text.mean(0)).norm()
            log({"step": step, "loss": loss.item(), "gap": gap.item()})
    return model.requires_grad_(False).eval()


@torch.no_grad()
def start_patch_embedding(visual: nn.Module, images: Tensor) -> None:
    """Start the patch convolution as a whitening of image patches, rotated at random.

    images: [B, 3, n, n], normalised. A random convolution hides most of a patch from the first layer for thousands of
    steps; the leading principal components keep nearly all of it (0.99 of the variance here) from the first step.
    """
    conv = visual.conv1
    width, *kernel = conv.weight.shape
    patches = F.unfold(images, conv.kernel_size, stride=conv.stride).transpose(1, 2).flatten(0, 1)  # (N, 3 p p)
    centred = patches - patches.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))  # ascending
    values, vectors = values.flip(0)[:width], vectors.flip(1)[:, :width]
    whiten = vectors / (values + 1e-3).sqrt()  # (3 p p, width)
    rotation = torch.linalg.qr(torch.randn(width, width))[0]
    conv.weight.copy_((0.5 * whiten @ rotation).T.view(width, *kernel))


def contrastive_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy [scalar]; equal texts of a batch share the target."""
    same = (tokens[:, None] == tokens[None]).all(-1).float()
    target = same / same.sum(1, keepdim=True)  # symmetric, so it serves rows and columns
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def _draw_batch(data: CaptionedImages, count: int, size: int) -> tuple[Tensor, Tensor]:
    owner = torch.randint(len(data.pixels), (count,))
    kind = torch.multinomial(data.weights, count, replacement=True)
    windows = sample_windows(data.regions[owner, kind], data.whole[kind], data.pixels.shape[-2:])
    pixels = cut(data.pixels[owner].float() / 255, windows, size)
    return _normalise(_colour_jitter(pixels)), data.tokens[owner, kind]


def sample_windows(regions: Tensor, whole: Tensor, size: tuple[int, int]) -> Tensor:
    """The window [B, 4] (xyxy in [0, 1], may pass the border) that is shown for each region [B, 4].

    Centre and squash windows hold the whole picture up to a zoom; regions whose text does not fit the whole picture
    (`whole` false) are always cut out, as a square or stretched, with a margin and a small shift.
    """
    count, (height, width) = len(regions), size
    view = torch.multinomial(torch.tensor(list(VIEWS.values())), count, replacement=True)
    view = torch.where(whole, view, torch.randint(2, 4, (count,)))
    pixel = torch.tensor([width, height], dtype=torch.float32)
    centre, side = (regions[:, :2] + regions[:, 2:]) / 2 * pixel, (regions[:, 2:] - regions[:, :2]) * pixel  # (B, 2)
    margin = 1 + 0.35 * torch.rand(count, 1)
    shift = 0.1 * (torch.rand(count, 2) - 0.5)

    short = torch.full((count, 2), float(min(height, width)))
    zoom = 0.85 + 0.15 * torch.rand(count, 1)
    room = (pixel - short * zoom) / 2
    towards = torch.minimum(torch.maximum(centre - pixel / 2, -room), room)  # the caption's region stays in sight
    cases = [  # (centre, side) of the windows, in the order of VIEWS
        (pixel / 2 + towards * torch.rand(count, 1), short * zoom),
        (pixel / 2 + (1 - zoom) * pixel * (torch.rand(count, 2) - 0.5), pixel * zoom),
        (centre + shift * side, side.amax(1, keepdim=True).expand(-1, 2) * margin),
        (centre + shift * side, side * margin),
    ]
    middle = torch.stack([case[0] for case in cases])[view, torch.arange(count)]
    extent = torch.stack([case[1] for case in cases])[view, torch.arange(count)]
    return torch.cat([middle - extent / 2, middle + extent / 2], dim=1) / pixel.repeat(2)


def cut(pixels: Tensor, windows: Tensor, size: int, flip: bool = True) -> Tensor:
    """Windows [B, 4] of pictures [B, 3, H, W] as squares [B, 3, n, n], black outside; half of them mirrored."""
    centre, half = windows[:, :2] + windows[:, 2:] - 1, windows[:, 2:] - windows[:, :2]  # in [-1, 1] coordinates
    mirror = torch.where(torch.rand(len(windows)) < 0.5, -1.0, 1.0) if flip else torch.ones(len(windows))
    theta = torch.zeros(len(windows), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = half[:, 0] * mirror, half[:, 1], centre
    grid = F.affine_grid(theta, [len(windows), 3, size, size], align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _colour_jitter(pixels: Tensor) -> Tensor:
    """Brightness, contrast and saturation per picture, up to 20 % each."""
    gain, shift, colour = 1 + 0.4 * (torch.rand(3, len(pixels), 1, 1, 1) - 0.5)
    mean = pixels.mean((1, 2, 3), keepdim=True)
    pixels = (pixels - mean) * gain + mean * shift
    grey = pixels.mean(1, keepdim=True)
    return ((pixels - grey) * colour + grey).clamp(0, 1)


def _normalise(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD))
    return (pixels - mean) / std


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Decay on matrices only: not on gains, biases, positions or the token table (unused rows stay put)."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    plain = {name for name, parameter in named if parameter.ndim < 2 or "embedding" in name}
    return [
        {"params": [parameter for name, parameter in named if name not in plain], "weight_decay": weight_decay},
        {"params": [parameter for name, parameter in named if name in plain], "weight_decay": 0.0},
    ]


# ---------------------------------------------------------------- quality


def zero_shot(
    clip: ClipModel, images: Tensor, sentences: Sequence[str], labels: Tensor, batch_size: int = 128
) -> dict[str, float]:
    """Zero-shot classification of preprocessed images [N, 3, n, n] among C sentences, and the modality gap.

    labels: [N, C] bool, the classes that are right for an image. Returns `accuracy` (top-1 is one of them),
    `accuracy_class` (mean of the classes' shares of recognised images), `chance`, and `gap`: distance between the mean
    normalised image feature and the mean normalised text feature.
    """
    text = F.normalize(encode_text(clip, sentences), dim=-1)  # (C, D)
    image = torch.cat(
        [F.normalize(encode_image(clip, batch)[0], dim=-1) for batch in images.split(batch_size)]
    )  # (N, D)
    labels = labels.to(text.device)
    right = labels.gather(1, (image @ text.T).argmax(1, keepdim=True)).squeeze(1).float()  # (N,)
    present = labels.any(0)
    per_class = (labels * right[:, None]).sum(0)[present] / labels.sum(0)[present]
    return {
        "accuracy": right.mean().item(),
        "accuracy_class": per_class.mean().item(),
        "chance": labels.float().mean().item(),
        "gap": (image.mean(0) - text.mean(0)).norm().item(),
    }
