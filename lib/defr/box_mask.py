"""The class token looks at the boxes of one pair: attention masks inside CLIP's tower (spec defr.md §11.4-7).

The public program means to hide cells from the class token, but casts its boolean mask to numbers, which adds 1 to the
attention of the cells outside: mode `released`. Mode `block` hides them, `none` gives all pairs the image's feature.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import functional as TF

from lib.defr.towers import ClipTower

MASK_MODES = ("block", "released", "none")


def detection_view(image: Tensor, boxes: Tensor, tower: ClipTower) -> tuple[Tensor, Tensor]:
    """Image [3, H, W] in [0, 1] and boxes [N, 4] as the tower takes them: [3, n, n] and pixels of that square (§11.4).

    Normalised, then squashed bilinearly without antialias; training squashes by PIL's bicubic, as published.
    """
    size = tower.image_size
    pixels = TF.normalize(image, list(tower.mean), list(tower.std))
    pixels = F.interpolate(pixels[None], size=(size, size), mode="bilinear", align_corners=False)[0]
    height, width = image.shape[1:]
    return pixels, boxes * (size / boxes.new_tensor([width, height, width, height]))


def hidden_cells(boxes_h: Tensor, boxes_o: Tensor, grid: int, patch: int) -> Tensor:
    """[P, g, g] bool, True where a cell touches neither box; boxes [P, 4] in pixels of the tower's input (§11.6)."""
    boxes = torch.stack([boxes_h, boxes_o], dim=1) / patch  # (P, 2, 4)
    low, high = boxes[..., :2].floor().clamp(0, grid), boxes[..., 2:].ceil().clamp(0, grid)
    cell = torch.arange(grid, device=boxes.device)
    inside = (cell >= low[..., None]) & (cell < high[..., None])  # (P, 2, xy, g)
    visible = inside[:, :, 1, :, None] & inside[:, :, 0, None, :]  # (P, 2, row, column)
    return ~visible.any(dim=1)


def class_token_mask(hidden: Tensor, mode: str) -> Tensor:
    """[P, 1 + g * g] float, added to the class token's attention: 0 on itself, by `mode` on hidden cells.

    block: -inf; a pair without any visible cell sees the whole image. released: +1. none: 0.
    """
    if mode not in MASK_MODES:
        raise ValueError(f"defr.mask_mode: found {mode!r}, expected one of {MASK_MODES}")
    hidden = hidden.flatten(1)  # (P, L)
    mask = torch.zeros(hidden.shape, device=hidden.device)
    if mode == "released":
        mask = mask + hidden
    elif mode == "block":
        mask = mask.masked_fill(hidden & ~hidden.all(dim=1, keepdim=True), -torch.inf)
    return F.pad(mask, (1, 0))


def masked_features(
    tower: ClipTower, pixels: Tensor, hidden: Tensor, *, mode: str = "block", layers: int = 1, chunk: int = 16
) -> Tensor:
    """Features [P, width] of the pairs of one image, whose mask acts in the last `layers` blocks (§11.5-7).

    pixels: [3, n, n]. hidden: [P, g, g]. The blocks before run once for the image. In the last block only the class
    token's row is computed, so one masked layer costs one query a pair; with more of them the tokens of pairs differ
    (patches attend to the class token) and `chunk` pairs run at a time.
    """
    blocks = tower.blocks
    if not 1 <= layers <= len(blocks):
        raise ValueError(f"defr.mask_layers: found {layers}, expected 1..{len(blocks)}")
    x = tower.tokens(pixels[None])  # (1, 1 + L, D)
    for block in blocks[: len(blocks) - layers]:
        x = block(x)
    mask = class_token_mask(hidden, mode)
    rows = []
    for part in mask.split(len(mask) or 1 if layers == 1 else chunk):
        y = x if layers == 1 else x.expand(len(part), -1, -1)
        for block in blocks[len(blocks) - layers : -1]:
            y = block(y, attn_mask=_full_mask(part, block.attn.num_heads))
        rows.append(_class_row(blocks[-1], y, part))
    return tower.pooled(torch.cat(rows)) if rows else x.new_zeros(0, tower.width)


def _full_mask(mask: Tensor, heads: int) -> Tensor:
    """[P * heads, 1 + L, 1 + L]: the class token's row is `mask`, all other rows are free."""
    full = mask.new_zeros(len(mask), mask.shape[1], mask.shape[1])
    full[:, 0] = mask
    return full.repeat_interleave(heads, dim=0)


def _class_row(block: torch.nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """Class tokens [P, D] behind a block. x: [P or 1, 1 + L, D] tokens; mask: [P, 1 + L]."""
    attention, normed = block.attn, block.ln_1(x)
    q_weight, kv_weight = attention.in_proj_weight.split([x.shape[2], 2 * x.shape[2]])
    q_bias, kv_bias = attention.in_proj_bias.split([x.shape[2], 2 * x.shape[2]])
    heads = (attention.num_heads, -1)
    q = F.linear(normed[:, :1], q_weight, q_bias).unflatten(2, heads).transpose(1, 2)  # (P | 1, heads, 1, d)
    k, v = (
        each.unflatten(2, heads).transpose(1, 2)  # (P | 1, heads, 1 + L, d)
        for each in F.linear(normed, kv_weight, kv_bias).chunk(2, dim=2)
    )
    weights = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5 + mask[:, None, None]).softmax(dim=3)  # (P, heads, 1, 1 + L)
    mixed = (weights @ v).transpose(1, 2).flatten(2)  # (P, 1, D)
    cls = x[:, :1] + block.ls_1(attention.out_proj(mixed))
    return (cls + block.ls_2(block.mlp(block.ln_2(cls))))[:, 0]
