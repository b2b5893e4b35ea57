"""Image features: class token and projected patch tokens of a CLIP (spec clip-features-and-detr.md §1, §3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from lib.clip.load import ClipModel


def preprocess(clip: ClipModel) -> Callable[[Image.Image], Tensor]:
    """The CLIP evaluation transform `PIL image -> [3, n, n]`; a fixed point of the published features (spec §2)."""
    return clip.transform


@torch.no_grad()
def encode_image(clip: ClipModel, images: Tensor) -> tuple[Tensor, Tensor]:
    """Class features [B, D] and patch tokens [B, L, D], both projected, neither L2-normalised.

    images: [B, 3, n, n], preprocessed. Token r*g + c belongs to grid cell (row r, column c).
    Recipe B of spec §3: the tower returns the pooled projection and the tokens after the last layer norm, which take
    the same projection.
    """
    spec, visual = clip.spec, clip.model.visual
    expected = (3, spec.image_size, spec.image_size)
    if tuple(images.shape[1:]) != expected:
        raise ValueError(
            f"images: found shape {tuple(images.shape)}, expected (B, {', '.join(map(str, expected))}) for {spec.id}"
            "\n  mend: prepare them with lib.clip.tokens.preprocess"
        )
    output_tokens, visual.output_tokens = visual.output_tokens, True
    try:
        cls, tokens = visual(images.to(clip.device, non_blocking=True))  # (B, D), (B, L, vision width)
    finally:
        visual.output_tokens = output_tokens
    patches = tokens @ visual.proj  # (B, L, D)
    wanted = (len(images), spec.tokens, spec.embed_dim)
    if tuple(patches.shape) != wanted:
        raise RuntimeError(
            f"{spec.id}: found patch tokens {tuple(patches.shape)}, expected {wanted}; a tower without a"
            " class token or with layer norm after pooling is not supported\n  mend: use a ViT of the OpenAI layout"
        )
    return cls, patches
