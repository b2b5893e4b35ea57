"""Train a small DETR from scratch (the detector of the embedded world).

Inference stays the plain transformers class: what helps a small DETR to converge in minutes lives here only.
  - Batch norm learns during training and is written back as DETR's frozen batch norm.
  - Token positions are a learned table that starts as sine codes made for a small grid; queries start as the codes of
    points spread over the image, and each cross-attention with equal query and key projections, so that every query
    looks at its own neighbourhood from the first step.
  - Besides DETR's own queries, one query a true box starts at the shaken centre of that box and must report it; the
    decoder so learns to look where a query's position points, without any matching.
  - Every decoder layer is supervised through the shared heads (DETR's auxiliary losses).
  - A dense head on the encoder tokens (each token names the smallest box that covers its centre) teaches the backbone
    before the matching has settled; it is dropped afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig
from transformers.models.detr.modeling_detr import DetrFrozenBatchNorm2d

from lib.detection.detr import IMAGENET_MEAN, IMAGENET_STD
from lib.detection.losses import Boxes, dense_loss, match, set_loss
from lib.engine.schedules import warmup_cosine

STRIDE = 16  # pixels a token side of the backbone below


@dataclass(frozen=True)
class DetrTraining:
    """Recipe of the tiny DETR."""

    steps: int = 4000
    batch_size: int = 32
    learning_rate: float = 6e-4
    warmup: int = 100
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    dense_weight: float = 1.0
    pointed_weight: float = 1.0
    point_noise: float = 0.6
    bfloat16: bool = True
    save_every: int = 500
    seed: int = 0


def tiny_config(labels: Sequence[str], queries: int = 48) -> DetrConfig:
    """A DETR of about 1.7 M parameters: basic ResNet at stride 16, width 128, 3 + 3 layers."""
    return DetrConfig(
        backbone_config=ResNetConfig(
            embedding_size=32, hidden_sizes=[32, 64, 128], depths=[1, 2, 2], layer_type="basic", out_features=["stage3"]
        ),
        use_timm_backbone=False,
        d_model=128,
        encoder_layers=3,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=256,
        decoder_ffn_dim=256,
        dropout=0.0,
        position_embedding_type="learned",
        num_queries=queries,
        auxiliary_loss=False,
        id2label=dict(enumerate(labels)),
        label2id={name: index for index, name in enumerate(labels)},
    )


def train_detr(
    config: DetrConfig,
    images: Tensor,
    targets: Boxes,
    recipe: DetrTraining,
    log: Callable[[dict[str, float]], None] = lambda row: None,
    save: Callable[[DetrForObjectDetection], None] = lambda model: None,
) -> DetrForObjectDetection:
    """Train on images [N, 3, H, W] uint8 of one size; returns the model with frozen batch norm, in eval mode.

    save: called with such a model every `recipe.save_every` steps on the way, so that a killed run leaves something.
    """
    torch.manual_seed(recipe.seed)
    model = DetrForObjectDetection(config)
    _start_positions(model, *token_grid(images))
    _learn_batch_norm(model.model.backbone)
    model.model.backbone.to(memory_format=torch.channels_last)
    dense = nn.ModuleDict(
        {"classes": nn.Linear(config.d_model, config.num_labels + 1), "boxes": nn.Linear(config.d_model, 4)}
    )
    parameters = [*model.requires_grad_(True).parameters(), *dense.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: warmup_cosine(step, recipe.warmup, recipe.steps)
    )
    model.train()
    for step in range(recipe.steps):
        chosen = torch.randint(len(images), (recipe.batch_size,))
        pixels, batch = augment(images[chosen], targets[chosen])
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.bfloat16):
            losses = _losses(model, dense, pixels, batch, recipe)
        loss = sum(losses.values())
        if not torch.isfinite(loss):
            raise FloatingPointError(f"tiny DETR, step {step}: loss parts {losses}; lower the learning rate")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, recipe.clip_norm)
        optimiser.step()
        schedule.step()
        if step % 50 == 0 or step == recipe.steps - 1:
            log({"step": step, "loss": loss.item()} | {name: value.item() for name, value in losses.items()})
        if step % recipe.save_every == recipe.save_every - 1:
            save(_freeze_batch_norm(model))
    return _freeze_batch_norm(model)


def augment(images: Tensor, targets: Boxes) -> tuple[Tensor, Boxes]:
    """Left-right flips, brightness and contrast per image; returns normalised pixels [B, 3, H, W]."""
    count = len(images)
    pixels = images.float() / 255
    flip = torch.rand(count) < 0.5
    pixels[flip] = pixels[flip].flip(-1)
    boxes = targets.boxes.clone()
    boxes[flip, :, 0] = 1 - boxes[flip, :, 0]
    gain, shift = 1 + 0.4 * (torch.rand(2, count, 1, 1, 1) - 0.5)
    mean = pixels.mean((1, 2, 3), keepdim=True)
    pixels = ((pixels - mean) * gain + mean * shift).clamp(0, 1)
    return normalise(pixels), Boxes(boxes, targets.labels)


def normalise(pixels: Tensor) -> Tensor:
    """ImageNet mean and std on pixels [B, 3, H, W] in [0, 1]."""
    return (pixels - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)


def token_grid(images: Tensor) -> tuple[int, int]:
    """Rows and columns of encoder tokens for images [..., H, W]."""
    return images.shape[-2] // STRIDE, images.shape[-1] // STRIDE


def _losses(
    model: DetrForObjectDetection, dense: nn.ModuleDict, pixels: Tensor, batch: Boxes, recipe: DetrTraining
) -> dict[str, Tensor]:
    output = model.model(pixels, output_hidden_states=True)
    logits, boxes = layer_predictions(model, output.decoder_hidden_states)
    repeated = batch.repeat(len(logits) // len(pixels))
    losses = set_loss(logits, boxes, match(logits, boxes, repeated), repeated, layers=len(logits) // len(pixels))

    tokens, grid = output.encoder_last_hidden_state, token_grid(pixels)  # (B, T, d)
    found = pointed_predictions(model, tokens, batch, grid, recipe.point_noise)
    pointed = set_loss(
        *found, pointed_pairs(repeated), repeated, layers=len(logits) // len(pixels), background_weight=0.0
    )
    dense_part = dense_loss(dense["classes"](tokens).float(), dense["boxes"](tokens).float().sigmoid(), batch, *grid)
    losses |= {f"pointed_{name}": recipe.pointed_weight * value for name, value in pointed.items()}
    return losses | {f"dense_{name}": recipe.dense_weight * value for name, value in dense_part.items()}


def layer_predictions(model: DetrForObjectDetection, states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Logits and boxes of every decoder layer, layers stacked along the batch: [layers*B, Q, ...]."""
    # Entry 0 is the input of the first layer; the decoder's shared norm comes before the heads.
    normed = model.model.decoder.layernorm(torch.cat(tuple(states[1:])))
    return model.class_labels_classifier(normed).float(), model.bbox_predictor(normed).float().sigmoid()


def pointed_predictions(
    model: DetrForObjectDetection, tokens: Tensor, targets: Boxes, grid: tuple[int, int], noise: float
) -> tuple[Tensor, Tensor]:
    """Decoder predictions for one query a true box at its shaken centre (noise in box sides): [layers*B, M, ...]."""
    batch, width = len(tokens), tokens.shape[-1]
    shaken = (
        targets.boxes[..., :2] + noise * (torch.rand(targets.boxes.shape[:2] + (2,)) - 0.5) * targets.boxes[..., 2:]
    )
    queries = position_codes(in_tokens(shaken, *grid), width)  # (B, M, d)
    positions = model.model.position_embedding(torch.Size([batch, width, *grid]), tokens.device, tokens.dtype)
    output = model.model.decoder(
        inputs_embeds=torch.zeros_like(queries),
        encoder_hidden_states=tokens,
        spatial_position_embeddings=positions.flatten(2).transpose(1, 2),
        object_queries_position_embeddings=queries,
        output_hidden_states=True,
    )
    return layer_predictions(model, output.hidden_states)


def pointed_pairs(targets: Boxes) -> tuple[Tensor, Tensor, Tensor]:
    """Index triples that give query m to target m."""
    image, query = (targets.labels >= 0).nonzero(as_tuple=True)
    return image, query, query


def position_codes(points: Tensor, width: int) -> Tensor:
    """Sine codes [..., width] of points [..., 2] (x, y in tokens; the centre of token (r, c) is (c, r)).

    Wave lengths from 3 to 60 tokens, so that the codes of neighbours differ clearly on a small grid (DETR's own sine
    codes spend most of their waves on lengths far beyond it).
    """
    wave = torch.logspace(math.log10(3), math.log10(60), width // 4)
    angle = points[..., None] * 2 * math.pi / wave  # (..., 2, width / 4)
    return torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2)


def _start_positions(model: DetrForObjectDetection, rows: int, columns: int) -> None:
    """Position tables of the tokens, queries on a grid of points, and cross-attention that starts local."""
    tokens, queries = model.model.position_embedding, model.model.query_position_embeddings.weight
    count, width = queries.shape
    line = torch.arange(tokens.row_embeddings.num_embeddings, dtype=torch.float32)
    codes = position_codes(torch.stack([line, line], dim=1), width)
    across = math.ceil(math.sqrt(count * columns / rows))
    index = torch.arange(count)
    points = torch.stack([(index % across + 0.5) / across, (index // across + 0.5) / math.ceil(count / across)], dim=1)
    with torch.no_grad():
        tokens.column_embeddings.weight.copy_(codes[:, : width // 2])
        tokens.row_embeddings.weight.copy_(codes[:, width // 2 :])
        queries.copy_(position_codes(in_tokens(points, rows, columns), width))
        for layer in model.model.decoder.layers:
            layer.encoder_attn.q_proj.weight.copy_(layer.encoder_attn.k_proj.weight)


def in_tokens(points: Tensor, rows: int, columns: int) -> Tensor:
    """Points (x, y) in [0, 1] in units of tokens."""
    return points * torch.tensor([columns, rows]) - 0.5


def _learn_batch_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, DetrFrozenBatchNorm2d):
            setattr(module, name, nn.BatchNorm2d(len(child.weight)))
        else:
            _learn_batch_norm(child)


def _freeze_batch_norm(model: DetrForObjectDetection) -> DetrForObjectDetection:
    frozen = DetrForObjectDetection(model.config)
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    frozen.load_state_dict(state)
    return frozen.requires_grad_(False).eval()
